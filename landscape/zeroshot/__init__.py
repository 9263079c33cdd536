"""Zero-shot classification: a model of a manifest, the classes as text, and what the model says of each picture."""

from landscape.zeroshot.model import ZeroShotModel
from landscape.zeroshot.scoring import COSINE, by_rule, imagenet16, num_stored, predictions_of

__all__ = ["COSINE", "ZeroShotModel", "by_rule", "imagenet16", "num_stored", "predictions_of"]
