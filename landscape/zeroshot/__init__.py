"""Zero-shot classification: a model of a manifest, the classes as text, and what the model says of each picture."""

from landscape.zeroshot.model import ZeroShotModel
from landscape.zeroshot.scoring import MOST_STORED, Predictions, num_stored, predictions_of

__all__ = ["MOST_STORED", "Predictions", "ZeroShotModel", "predictions_of", "num_stored"]
