"""Files and folders of weights, read as data: contents, layouts and their meaning.

Imports no torch.
"""

from landscape.containers.folders import (
    digest_of_checkpoint,
    known_digests,
    read_weights,
    remember_digests,
)
from landscape.containers.layouts import Contents, interpret
from landscape.containers.outline import Outline, outline

__all__ = [
    "Contents",
    "Outline",
    "digest_of_checkpoint",
    "interpret",
    "known_digests",
    "outline",
    "read_weights",
    "remember_digests",
]
