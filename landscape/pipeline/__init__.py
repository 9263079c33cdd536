"""From a manifest to records in a store: plan, then run.

A manifest becomes tasks, tasks become records, and each record goes to the store as soon as it is
known.

`import landscape.pipeline` is instant: the names below are loaded on first use, so that a command
loads what it needs and nothing else.
"""

import importlib
from typing import TYPE_CHECKING, Any

from landscape.deprecation import renamed_attribute

if TYPE_CHECKING:
    from landscape.clip.train_command import train_run
    from landscape.figures.eigenvectors_from_store import draw_vector_modules, draw_vectors
    from landscape.figures.from_store import draw_figure3, draw_sharpness
    from landscape.figures.modules_from_store import draw_modules
    from landscape.figures.page_options import PageOptions
    from landscape.figures.training_from_record import draw_training
    from landscape.manifest.selection import Selection, Task
    from landscape.pipeline.audit import audit_target
    from landscape.pipeline.comparison import compare
    from landscape.pipeline.density import DensityReport, DensitySettings, density_of
    from landscape.pipeline.evaluation import EvaluationReport, requests_of, run_evaluation
    from landscape.pipeline.export_command import export
    from landscape.pipeline.modules import run_with_modules
    from landscape.pipeline.ood import OodReport, OodRequest, run_ood
    from landscape.pipeline.ood_figures import KINDS as OOD_FIGURES
    from landscape.pipeline.ood_figures import draw_ood
    from landscape.pipeline.prediction_tables import BY, show_table
    from landscape.pipeline.products import HvpSettings
    from landscape.pipeline.remaining import RunReport, plan
    from landscape.pipeline.shard_settings import ShardSettings
    from landscape.pipeline.solve import SolverSettings
    from landscape.pipeline.spectra_command import checked_request, run
    from landscape.pipeline.surface import SurfaceReport, run_surface
    from landscape.pipeline.surface_plan import SurfaceRequest
    from landscape.report.describe import describe
    from landscape.report.facts import facts
    from landscape.report.from_store import write_report
    from landscape.store import validate
    from landscape.workers.crew import WorkerSettings

_MODULES = {
    "BY": "landscape.pipeline.prediction_tables",
    "DensityReport": "landscape.pipeline.density",
    "DensitySettings": "landscape.pipeline.density",
    "EvaluationReport": "landscape.pipeline.evaluation",
    "HvpSettings": "landscape.pipeline.products",
    "OodReport": "landscape.pipeline.ood",
    "OodRequest": "landscape.pipeline.ood",
    "PageOptions": "landscape.figures.page_options",
    "RunReport": "landscape.pipeline.remaining",
    "Selection": "landscape.manifest.selection",
    "ShardSettings": "landscape.pipeline.shard_settings",
    "SolverSettings": "landscape.pipeline.solve",
    "SurfaceReport": "landscape.pipeline.surface",
    "SurfaceRequest": "landscape.pipeline.surface_plan",
    "Task": "landscape.manifest.selection",
    "WorkerSettings": "landscape.workers.crew",
    "audit_target": "landscape.pipeline.audit",
    "checked_request": "landscape.pipeline.spectra_command",
    "compare": "landscape.pipeline.comparison",
    "density_of": "landscape.pipeline.density",
    "describe": "landscape.report.describe",
    "draw_figure3": "landscape.figures.from_store",
    "draw_modules": "landscape.figures.modules_from_store",
    "draw_ood": "landscape.pipeline.ood_figures",
    "draw_sharpness": "landscape.figures.from_store",
    "draw_training": "landscape.figures.training_from_record",
    "draw_vector_modules": "landscape.figures.eigenvectors_from_store",
    "draw_vectors": "landscape.figures.eigenvectors_from_store",
    "export": "landscape.pipeline.export_command",
    "facts": "landscape.report.facts",
    "plan": "landscape.pipeline.remaining",
    "requests_of": "landscape.pipeline.evaluation",
    "run": "landscape.pipeline.spectra_command",
    "run_evaluation": "landscape.pipeline.evaluation",
    "run_ood": "landscape.pipeline.ood",
    "run_surface": "landscape.pipeline.surface",
    "run_with_modules": "landscape.pipeline.modules",
    "show_table": "landscape.pipeline.prediction_tables",
    "train_run": "landscape.clip.train_command",
    "validate": "landscape.store",
    "write_report": "landscape.report.from_store",
}
_RENAMED = {"ProductSettings": "HvpSettings"}

__all__ = [
    "BY",
    "OOD_FIGURES",
    "DensityReport",
    "DensitySettings",
    "EvaluationReport",
    "HvpSettings",
    "OodReport",
    "OodRequest",
    "PageOptions",
    "RunReport",
    "Selection",
    "ShardSettings",
    "SolverSettings",
    "SurfaceReport",
    "SurfaceRequest",
    "Task",
    "WorkerSettings",
    "audit_target",
    "checked_request",
    "compare",
    "density_of",
    "describe",
    "draw_figure3",
    "draw_modules",
    "draw_ood",
    "draw_sharpness",
    "draw_training",
    "draw_vector_modules",
    "draw_vectors",
    "export",
    "facts",
    "plan",
    "requests_of",
    "run",
    "run_evaluation",
    "run_ood",
    "run_surface",
    "run_with_modules",
    "show_table",
    "train_run",
    "validate",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name == "OOD_FIGURES":
        return importlib.import_module("landscape.pipeline.ood_figures").KINDS
    return renamed_attribute(globals(), name, _RENAMED)
