"""Distortions of pictures: model-vs-human's twelve, and sketch, silhouette and edge."""

from landscape.distortions.pointwise import to_bytes
from landscape.distortions.registry import KINDS, Inputs, Kind, Picture, distort, kind_of
from landscape.distortions.spectrum import amplitude_spectrum

__all__ = [
    "KINDS",
    "Inputs",
    "Kind",
    "Picture",
    "amplitude_spectrum",
    "distort",
    "kind_of",
    "to_bytes",
]
