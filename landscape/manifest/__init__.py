"""checkpoints.yaml <-> Manifest, CheckpointSeries, Checkpoint: read, check, extend. Imports no torch."""

from landscape.manifest.files import sha256_of_file, write_atomically
from landscape.manifest.settings import Checkpoint, CheckpointSeries, DataSettings, HessianSettings

__all__ = [
    "Checkpoint",
    "CheckpointSeries",
    "DataSettings",
    "HessianSettings",
    "sha256_of_file",
    "write_atomically",
]
