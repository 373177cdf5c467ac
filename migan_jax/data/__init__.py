"""Training and evaluation data: images, masks and batches."""
