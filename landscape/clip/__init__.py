"""Everything that is CLIP: models, data, training."""
