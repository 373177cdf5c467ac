"""Metrics of completions: of image pairs and of whole sets."""
