"""Files and folders of weights, read as data: what is in them, who wrote them, and what that means. Imports no torch."""

from landscape.containers.folders import digest_of_checkpoint, read_weights
from landscape.containers.layouts import Contents, interpret
from landscape.containers.outline import Outline, outline

__all__ = ["Contents", "Outline", "digest_of_checkpoint", "interpret", "outline", "read_weights"]
