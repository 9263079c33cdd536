"""checkpoints.yaml <-> Manifest, CheckpointSeries, Checkpoint.

Reading, checks and extension. Imports no torch.
"""

from landscape.files import sha256_of_file, sync_folder, write_atomically
from landscape.manifest.manifest import Manifest, canonical_json, json_sha256
from landscape.manifest.run import extend_run_manifest, write_run_manifest
from landscape.manifest.selection import Selection, Task
from landscape.manifest.settings import Checkpoint, CheckpointSeries, DataSettings, HessianSettings
from landscape.manifest.trained import Setting, TrainedAs

__all__ = [
    "Checkpoint",
    "CheckpointSeries",
    "DataSettings",
    "HessianSettings",
    "Manifest",
    "Selection",
    "Setting",
    "Task",
    "TrainedAs",
    "canonical_json",
    "extend_run_manifest",
    "json_sha256",
    "sha256_of_file",
    "sync_folder",
    "write_atomically",
    "write_run_manifest",
]
