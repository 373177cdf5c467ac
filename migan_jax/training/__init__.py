"""What turns losses into trained weights."""
