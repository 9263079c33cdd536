"""Plan, then run: a manifest becomes tasks, tasks become records, records go to the store one by one."""

from landscape.pipeline.audit import audit_target
from landscape.pipeline.compare import compare
from landscape.pipeline.density import DensityReport, DensitySettings, density_of
from landscape.pipeline.describe import describe
from landscape.pipeline.draw import draw_figure3, draw_sharpness
from landscape.pipeline.measure import run
from landscape.pipeline.module_figure import draw_modules
from landscape.pipeline.modules import run_modules, run_with_modules
from landscape.pipeline.plan import RunReport, Task, plan
from landscape.pipeline.products import ProductSettings
from landscape.pipeline.report import write_report
from landscape.pipeline.solve import SolverSettings
from landscape.pipeline.surface import SurfaceReport, run_surface
from landscape.pipeline.surface_plan import SurfaceRequest
from landscape.pipeline.train import train_run

__all__ = [
    "DensityReport",
    "DensitySettings",
    "ProductSettings",
    "RunReport",
    "SolverSettings",
    "SurfaceReport",
    "SurfaceRequest",
    "Task",
    "audit_target",
    "compare",
    "density_of",
    "describe",
    "draw_figure3",
    "draw_sharpness",
    "draw_modules",
    "plan",
    "run",
    "run_modules",
    "run_surface",
    "run_with_modules",
    "train_run",
    "write_report",
]
