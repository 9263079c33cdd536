"""CLIP models, their data and their training.

`import landscape.clip` is instant: the names below are loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.clip.checkpoint import describe_checkpoint
    from landscape.clip.image_text import open_pairs
    from landscape.clip.loaded_series import LoadedSeries, Notes, device_of, settings_of
    from landscape.clip.model import is_classifier
    from landscape.clip.named_model import model_on_openmoji
    from landscape.clip.objectives import contrastive_objective
    from landscape.clip.seeding import derive_seed
    from landscape.clip.stored_optimizer import read_adam_state

_MODULES = {
    "LoadedSeries": "loaded_series",
    "Notes": "loaded_series",
    "contrastive_objective": "objectives",
    "derive_seed": "seeding",
    "describe_checkpoint": "checkpoint",
    "device_of": "loaded_series",
    "is_classifier": "model",
    "model_on_openmoji": "named_model",
    "open_pairs": "image_text",
    "read_adam_state": "stored_optimizer",
    "settings_of": "loaded_series",
}

__all__ = [
    "LoadedSeries",
    "Notes",
    "contrastive_objective",
    "derive_seed",
    "describe_checkpoint",
    "device_of",
    "is_classifier",
    "model_on_openmoji",
    "open_pairs",
    "read_adam_state",
    "settings_of",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
