"""Data sets as tensors, where they are found, and proof that they are what they claim to be."""
