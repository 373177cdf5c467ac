"""The cost of a compiled training step on accelerators that this machine lacks."""
