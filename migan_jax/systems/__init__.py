"""Systems: networks with their training losses, one file per family."""
