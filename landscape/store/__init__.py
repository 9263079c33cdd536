"""SpectrumStore: HDF5 schema version 1.

A growing log, merge, resume and reading. Imports no torch.
"""

from typing import Any

from landscape.deprecation import renamed_attribute
from landscape.store.as_trained import described_as_trained, models_as_trained, value_text
from landscape.store.contents import SCHEMA_VERSION, PlannedSeries, StoreContents, differing_setting
from landscape.store.densities import (
    DensityRecord,
    describe_densities,
    is_density_file,
    read_densities,
    write_densities,
)
from landscape.store.describe import (
    CheckpointSummary,
    describe,
    is_store,
    running_lines,
    summarize,
)
from landscape.store.hdf5 import LARGEST_VALUE
from landscape.store.merge import MergeReport, merge_stores
from landscape.store.module_record import ModuleRecord, ModuleTable
from landscape.store.parts import RejectedPart, parts_folder
from landscape.store.record import Record, SpectraTable
from landscape.store.store import SpectrumStore
from landscape.store.surfaces import (
    StoredSurface,
    axes_of,
    check_same_request,
    describe_surface,
    is_surface,
    read_surface,
    write_surface,
)
from landscape.store.table import UNIT, task_key
from landscape.store.validation import Validation, validate
from landscape.store.vectors import ParameterLayout, StoredVectors, VectorRecord
from landscape.store.verdicts import is_audited, verdicts
from landscape.store.writer import SpectrumWriter
from landscape.workers.run_status import RunStatus, read_status, write_status

__all__ = [
    "LARGEST_VALUE",
    "SCHEMA_VERSION",
    "UNIT",
    "CheckpointSummary",
    "DensityRecord",
    "MergeReport",
    "ModuleRecord",
    "ModuleTable",
    "ParameterLayout",
    "PlannedSeries",
    "Record",
    "RejectedPart",
    "RunStatus",
    "SpectraTable",
    "SpectrumStore",
    "SpectrumWriter",
    "StoreContents",
    "StoredSurface",
    "StoredVectors",
    "Validation",
    "VectorRecord",
    "axes_of",
    "check_same_request",
    "describe",
    "describe_densities",
    "describe_surface",
    "described_as_trained",
    "differing_setting",
    "is_audited",
    "is_density_file",
    "is_store",
    "is_surface",
    "merge_stores",
    "models_as_trained",
    "parts_folder",
    "read_densities",
    "read_status",
    "read_surface",
    "running_lines",
    "summarize",
    "task_key",
    "validate",
    "value_text",
    "verdicts",
    "write_densities",
    "write_status",
    "write_surface",
]

_RENAMED = {"Plan": "StoreContents"}


def __getattr__(name: str) -> Any:
    return renamed_attribute(globals(), name, _RENAMED)
