"""What is trained: networks with their losses, one file per family."""
