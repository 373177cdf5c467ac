"""From a photo with a hole to the network's square, and back."""
