"""SpectrumStore: HDF5 schema version 1; a log while it grows; merge; resume; read. Imports no torch."""

from landscape.store.as_trained import described_as_trained, models_as_trained, value_text
from landscape.store.densities import (
    DensityRecord,
    describe_densities,
    is_density_file,
    read_densities,
    write_densities,
)
from landscape.store.describe import CheckpointSummary, describe, is_store, summarize
from landscape.store.hdf5 import LARGEST_VALUE
from landscape.store.merge import MergeReport, merge_stores
from landscape.store.module_record import ModuleRecord, ModuleTable
from landscape.store.parts import RejectedPart, parts_folder
from landscape.store.plan import SCHEMA_VERSION, Plan, PlannedSeries, differing_setting
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
from landscape.store.verdicts import is_audited, verdicts
from landscape.store.writer import SpectrumWriter
from landscape.workers.run_status import RunStatus, read_status, write_status

__all__ = [
    "CheckpointSummary",
    "DensityRecord",
    "LARGEST_VALUE",
    "MergeReport",
    "ModuleRecord",
    "ModuleTable",
    "Plan",
    "PlannedSeries",
    "Record",
    "RejectedPart",
    "RunStatus",
    "SCHEMA_VERSION",
    "SpectraTable",
    "SpectrumStore",
    "SpectrumWriter",
    "StoredSurface",
    "UNIT",
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
    "summarize",
    "task_key",
    "value_text",
    "verdicts",
    "write_densities",
    "write_status",
    "write_surface",
]
