"""Zero-shot classification: models of a manifest, classes as text, and answers.

`import landscape.zeroshot` is instant: the names below are loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.zeroshot.model import ZeroShotModel
    from landscape.zeroshot.scoring import COSINE, by_rule, imagenet16, num_stored, predictions_of

_MODULES = {
    "COSINE": "scoring",
    "ZeroShotModel": "model",
    "by_rule": "scoring",
    "imagenet16": "scoring",
    "num_stored": "scoring",
    "predictions_of": "scoring",
}

__all__ = [
    "COSINE",
    "ZeroShotModel",
    "by_rule",
    "imagenet16",
    "num_stored",
    "predictions_of",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
