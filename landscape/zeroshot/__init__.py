"""Zero-shot classification: models of a manifest, classes as text, and answers."""

from landscape.zeroshot.model import ZeroShotModel
from landscape.zeroshot.scoring import COSINE, by_rule, imagenet16, num_stored, predictions_of

__all__ = ["COSINE", "ZeroShotModel", "by_rule", "imagenet16", "num_stored", "predictions_of"]
