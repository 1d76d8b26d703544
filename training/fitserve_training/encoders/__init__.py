"""Pretrained encoders of transformers as parts of a recipe: opened, checked, given new heads. Start with `networks`."""
