"""Networks, one file per family; images are [N, H, W, C] in [-1, 1]."""
