"""How far the density of a spectrum, as each tool estimates it, is from the exact one: the
1-Wasserstein distance.

The model is a classifier of 2,950 parameters, so that all its eigenvalues can be had: from the
dense Hessian by double backward, row by row, in float64. The tools work in float32. All get the
same number of products, cut into probes and steps in the ways of `STEPS`; the best way counts, for
each tool by itself. A density is compared as the nodes and weights of its quadrature;
hessian-eigenthings also as the smooth curve that it returns.
Shapes: n = number of parameters, a = atoms of a discrete measure.
"""

import importlib
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.nn import functional as F

import landscape
from landscape.curvature import Batch, HessianOperator, Objective, Params, select_parameters
from peers.processes import TaskFailed, run_task
from peers.solvers import LossModule

STEPS = (10, 20, 40, 80)
BUDGETS = (80, 160, 320)
_WIDTHS = (16, 42, 42, 10)
_NUM_POINTS, _TRAINING_STEPS = 200, 60


@dataclass(frozen=True)
class Measure:
    """A discrete measure on the line: positions and weights (a,), which sum to 1."""

    positions: Float[np.ndarray, " a"]
    weights: Float[np.ndarray, " a"]

    def distance(self, eigenvalues: Float[np.ndarray, " n"]) -> float:
        """The 1-Wasserstein distance to the spectrum with these eigenvalues."""
        return float(wasserstein_distance(self.positions, eigenvalues, self.weights))


def small_problem(dtype: torch.dtype) -> tuple[Objective, Params, Batch]:
    """The cross-entropy of a small network that has learned to tell ten overlapping clouds of
    points apart, partly.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(_NUM_POINTS) % _WIDTHS[-1]
    centres = torch.randn(_WIDTHS[-1], _WIDTHS[0], generator=generator)
    points = centres[labels] + 0.8 * torch.randn(_NUM_POINTS, _WIDTHS[0], generator=generator)
    layers: list[nn.Module] = []
    for inputs, outputs in zip(_WIDTHS, _WIDTHS[1:]):
        linear = nn.Linear(inputs, outputs)
        for parameter in linear.parameters():
            nn.init.normal_(parameter, std=inputs**-0.5, generator=generator)
        layers += [linear, nn.Tanh()]
    model = nn.Sequential(*layers[:-1])

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch["points"]), batch["labels"])

    batch = {"points": points, "labels": labels}
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(_TRAINING_STEPS):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
    model = model.to(dtype).eval()
    return (
        Objective.from_closure(model, loss),
        select_parameters(model),
        {"points": points.to(dtype), "labels": labels},
    )


def exact_eigenvalues(
    objective: Objective, params: Params, batch: Batch
) -> Float[np.ndarray, " n"]:
    """Of the dense Hessian by double backward, row by row: nothing of the engine is in it."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in params.items()}
    tensors = list(leaves.values())
    gradients = torch.autograd.grad(objective(leaves, batch), tensors, create_graph=True)
    entries = torch.cat([gradient.reshape(-1) for gradient in gradients])
    rows = [
        torch.autograd.grad(entry, tensors, retain_graph=True, materialize_grads=True)
        for entry in entries
    ]
    matrix = torch.stack([torch.cat([piece.reshape(-1) for piece in row]) for row in rows])
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2).numpy()


def _ours(probes: int, steps: int, seed: int) -> list[Measure]:
    """landscape.density, whose deflation is paid for with one of the probes."""
    operator = HessianOperator(*small_problem(torch.float32))
    found = landscape.density(
        operator, num_probes=probes - 1, num_matvecs=steps, num_deflation=steps, seed=seed
    )
    exact = found.exact[0][~found.exact[0].isnan()].double()
    zeros = int(found.num_zeros[0])
    # Each probe stands for the eigenvalues that are neither known one by one nor zero by structure.
    share = (found.n - len(exact) - zeros) / found.n / found.num_probes
    there, one = ~found.nodes.isnan(), torch.ones(1, dtype=torch.float64) / found.n
    positions = torch.cat([found.nodes[there].double(), exact, 0 * one])
    weights = torch.cat(
        [found.weights[there].double() * share, one.expand(len(exact)), zeros * one]
    )
    return [Measure(positions.numpy(), weights.numpy())]


def _probes_average(nodes: Any, weights: Any) -> Measure:
    nodes, weights = np.asarray(nodes, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    return Measure(nodes.reshape(-1), weights.reshape(-1) / len(weights))


def _pyhessian(probes: int, steps: int, seed: int) -> list[Measure]:
    """Its formulas, with the function that torch no longer has put back: eigenvalues in a column,
    eigenvectors as columns.
    """

    def eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        return values[:, None], vectors

    with mock.patch.object(torch, "eig", eig):
        return _pyhessian_from_pypi(probes, steps, seed)


def _pyhessian_from_pypi(probes: int, steps: int, seed: int) -> list[Measure]:
    objective, params, batch = small_problem(torch.float32)
    module = LossModule(objective, params)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(seed)
        package = importlib.import_module("pyhessian")
        solver = package.hessian(module, lambda value, _: value, data=(batch, None), cuda=False)
        return [_probes_average(*solver.density(iter=steps, n_v=probes))]


def _eigenthings(probes: int, steps: int, seed: int) -> list[Measure]:
    objective, params, batch = small_problem(torch.float32)
    package = importlib.import_module("hessian_eigenthings")
    operator = package.HessianOperator(
        LossModule(objective, params), [batch], lambda module, batch: module(batch)
    )
    # It seeds its probes with seed, seed + 1, ...
    found = package.spectral_density(
        operator, num_runs=probes, lanczos_steps=steps, seed=1000 * seed
    )
    curve = found.density.double().numpy()
    smooth = Measure(found.grid.double().numpy(), curve / curve.sum())
    return [_probes_average(found.raw_eigenvalues, found.raw_weights), smooth]


# The names of the measures that each tool returns, and how to get them.
TOOLS: dict[tuple[str, ...], Callable[[int, int, int], list[Measure]]] = {
    ("landscape density",): _ours,
    ("pyhessian, its torch.eig put back",): _pyhessian,
    ("pyhessian, as PyPI has it",): _pyhessian_from_pypi,
    ("eigenthings, quadrature", "eigenthings, its smooth curve"): _eigenthings,
}


@dataclass(frozen=True)
class DensityRow:
    """Mean distance over seeds with its standard error, in units of the mean |eigenvalue|, for the
    best number of steps.
    """

    tool: str
    products: int
    steps: int = 0
    distance: float = float("nan")
    standard_error: float = float("nan")
    failure: str = ""


def exact_task() -> list[float]:
    torch.set_num_threads(1)
    return cast(list[float], exact_eigenvalues(*small_problem(torch.float64)).tolist())


def density_task(
    tool: int, probes: int, steps: int, seeds: Sequence[int], eigenvalues: list[float]
) -> list[list[float]]:
    """Distances of each measure of a tool, one list per seed."""
    torch.set_num_threads(1)
    run, exact = list(TOOLS.values())[tool], np.array(eigenvalues)
    return [[measure.distance(exact) for measure in run(probes, steps, seed)] for seed in seeds]


def compare_densities(
    python: str, *, budgets: Sequence[int] = BUDGETS, num_seeds: int = 20
) -> list[DensityRow]:
    eigenvalues = run_task("peers.density.exact_task", {})
    scale = float(np.abs(eigenvalues).mean())
    rows: list[DensityRow] = []
    for budget in budgets:
        for index, names in enumerate(TOOLS):
            rows += _best_rows(
                index,
                names,
                budget,
                scale,
                python=python,
                eigenvalues=eigenvalues,
                num_seeds=num_seeds,
            )
    return rows


def _best_rows(
    index: int,
    names: Sequence[str],
    budget: int,
    scale: float,
    *,
    python: str,
    eigenvalues: list[float],
    num_seeds: int,
) -> list[DensityRow]:
    """One row per measure of a tool, with the steps that serve it best."""
    best: dict[str, DensityRow] = {}
    for steps in (steps for steps in STEPS if budget // steps >= 2):
        arguments = {
            "tool": index,
            "probes": budget // steps,
            "steps": steps,
            "seeds": list(range(num_seeds)),
        }
        try:
            found = run_task(
                "peers.density.density_task",
                {**arguments, "eigenvalues": eigenvalues},
                python=python,
            )
        except TaskFailed as error:
            return [DensityRow(name, budget, failure=str(error)) for name in names]
        for name, distances in zip(names, zip(*found)):
            error = (
                statistics.stdev(distances) / len(distances) ** 0.5
                if len(distances) > 1
                else float("nan")
            )
            row = DensityRow(name, budget, steps, statistics.mean(distances) / scale, error / scale)
            if name not in best or row.distance < best[name].distance:
                best[name] = row
    return list(best.values())


def density_table(rows: Sequence[DensityRow]) -> str:
    names, budgets = (
        list(dict.fromkeys(getattr(row, key) for row in rows)) for key in ("tool", "products")
    )
    lines = [
        "1-Wasserstein distance to the exact spectrum of 2,950 eigenvalues, over the mean "
        "|eigenvalue|, ± a standard error",
        f"{'':34}" + "".join(f"{f'{budget} products':>26}" for budget in budgets),
    ]
    for name in names:
        cells = []
        for row in (row for row in rows if row.tool == name):
            if row.failure:
                cells = [f"  failed: {row.failure[:70]}"]
                break
            cells.append(
                f"{f'{row.distance:.3f} ± {row.standard_error:.3f} ({row.steps} steps)':>26}"
            )
        lines.append(f"{name:34}" + "".join(cells))
    return "\n".join(lines)
