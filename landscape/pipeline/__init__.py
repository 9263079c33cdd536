"""Plan, then run: a manifest becomes tasks, tasks become records, records go to the store one by one."""

from landscape.clip.train_command import train_run
from landscape.figures.from_store import draw_figure3, draw_sharpness
from landscape.figures.modules_from_store import draw_modules
from landscape.manifest.selection import Selection, Task
from landscape.pipeline.audit import audit_target
from landscape.pipeline.comparison import compare
from landscape.pipeline.density import DensityReport, DensitySettings, density_of
from landscape.pipeline.evaluation import EvaluationReport, requests_of, run_evaluation
from landscape.pipeline.modules import run_with_modules
from landscape.pipeline.ood import OodReport, OodRequest, run_ood
from landscape.pipeline.ood_figures import KINDS as OOD_FIGURES
from landscape.pipeline.ood_figures import draw_ood
from landscape.pipeline.plan import RunReport, plan
from landscape.pipeline.prediction_tables import BY, show_table
from landscape.pipeline.products import ProductSettings
from landscape.pipeline.solve import SolverSettings
from landscape.pipeline.spectra import run
from landscape.pipeline.surface import SurfaceReport, run_surface
from landscape.pipeline.surface_plan import SurfaceRequest
from landscape.report.describe import describe
from landscape.report.from_store import write_report
from landscape.workers.crew import WorkerSettings

__all__ = [
    "BY",
    "DensityReport",
    "DensitySettings",
    "EvaluationReport",
    "OOD_FIGURES",
    "OodReport",
    "OodRequest",
    "ProductSettings",
    "RunReport",
    "Selection",
    "SolverSettings",
    "SurfaceReport",
    "SurfaceRequest",
    "Task",
    "WorkerSettings",
    "audit_target",
    "compare",
    "density_of",
    "describe",
    "draw_figure3",
    "draw_sharpness",
    "draw_modules",
    "draw_ood",
    "plan",
    "requests_of",
    "run",
    "run_evaluation",
    "run_ood",
    "run_surface",
    "run_with_modules",
    "show_table",
    "train_run",
    "write_report",
]
