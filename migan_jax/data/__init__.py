"""What goes in: photos, masks."""
