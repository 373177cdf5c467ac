"""Checkpoints in and out: safe reading, name maps, fusing, workdirs."""
