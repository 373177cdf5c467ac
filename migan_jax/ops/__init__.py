"""Pure array functions that the networks are made of (no parameters, no state)."""
