"""Pure array functions used by the networks (no parameters, no state)."""
