"""The trainer, shared by all families."""
