"""Figures of completions: of pictures alone, of pairs, and of whole sets."""
