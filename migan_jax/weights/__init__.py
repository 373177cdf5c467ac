"""Checkpoints: safe reading, name maps, kernel forms, workdirs."""
