"""CLIP models, their data and their training."""
