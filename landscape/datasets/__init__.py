"""Labelled pictures for zero-shot evaluation: the 26 sets of Table 1, OpenMoji, and one's own; classes matched by name."""

from landscape.datasets.classes import Classes
from landscape.datasets.labelled import LabelledPictures
from landscape.datasets.opening import open_labelled
from landscape.datasets.stimuli import Stimuli, open_stimuli
from landscape.datasets.suite import OPENMOJI_SETS, SUITE, KnownSet, find_set

__all__ = [
    "Classes",
    "KnownSet",
    "LabelledPictures",
    "OPENMOJI_SETS",
    "SUITE",
    "Stimuli",
    "find_set",
    "open_labelled",
    "open_stimuli",
]
