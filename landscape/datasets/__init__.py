"""Labelled pictures for zero-shot evaluation, with classes matched by name.

These are the 26 sets of Table 1, OpenMoji, and your own. `import landscape.datasets` is instant:
the names below are loaded on first use, and the list of the sets needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.datasets.classes import Classes
    from landscape.datasets.labelled import LabelledPictures
    from landscape.datasets.opening import open_labelled
    from landscape.datasets.sources import SLIP_FILES
    from landscape.datasets.stimuli import Stimuli, open_stimuli
    from landscape.datasets.suite import OPENMOJI_SETS, SUITE, KnownSet, find_set

_MODULES = {
    "OPENMOJI_SETS": "suite",
    "SLIP_FILES": "sources",
    "SUITE": "suite",
    "Classes": "classes",
    "KnownSet": "suite",
    "LabelledPictures": "labelled",
    "Stimuli": "stimuli",
    "find_set": "suite",
    "open_labelled": "opening",
    "open_stimuli": "stimuli",
}

__all__ = [
    "OPENMOJI_SETS",
    "SLIP_FILES",
    "SUITE",
    "Classes",
    "KnownSet",
    "LabelledPictures",
    "Stimuli",
    "find_set",
    "open_labelled",
    "open_stimuli",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
