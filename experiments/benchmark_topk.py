"""Top-5 eigenvalues of one batch, side by side: products, CPU seconds, and the true residuals of what comes out.

    python experiments/benchmark_topk.py --json topk.json

Contenders: this project's eigsh; the pyhessian package at its defaults; the pyhessian package with its tolerance lowered,
by factors of about three, until every residual is at most 1e-3. All take the same model, the same batch of 15 pairs and float32;
building the graph of the gradient is part of everybody's time. Residuals are recomputed with products in float64. The
runs take turns, and the medians over their rounds are reported, because these machines are noisy.

By default the model is vit_tiny_64, trained for three epochs on OpenMoji in --run (about a minute, once).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from landscape.clip.checkpoint import load_checkpoint
from landscape.clip.image_text import curvature_batches, open_pairs
from landscape.clip.model import build_model, preprocess_for, tokenizer_for
from landscape.clip.objectives import contrastive_objective
from landscape.curvature import Batch, HessianOperator, Objective, Params, gradient, pyhessian_eigenpairs
from landscape.curvature.reference import run_pyhessian
from landscape.linalg import eigsh
from landscape.manifest import DataSettings

K, TOL, ITERATIONS = 5, 1e-3, 1000


@dataclass(frozen=True)
class Row:
    """One contender: products, median CPU seconds, and the worst relative residual judged in float64."""

    name: str
    products: int
    cpu_seconds: float
    worst_residual: float


def trained(run: Path, model: str, epochs: int) -> Path:
    """The checkpoint of the last epoch of a run, trained if it is not there."""
    from landscape.pipeline import train_run

    last = run / "checkpoints" / f"epoch_{epochs}.pt"
    if not last.exists():
        train_run(
            model=model, output=run, source="openmoji", split="train", image_size=None, recipe="openmoji_demo", epochs=epochs
        )
    return last


def problem(model: str, checkpoint: Path, dtype: torch.dtype) -> tuple[Objective, Params, Batch]:
    """The contrastive loss of the first batch of the published protocol."""
    network = build_model(model, dtype=dtype)
    load_checkpoint(network, checkpoint)
    size = preprocess_for(model).size[0]
    pairs = open_pairs(DataSettings(source="openmoji", image_size=size, num_samples=15, batch_size=15))
    batches = curvature_batches(
        pairs, num_samples=15, batch_size=15, seed=0, transform=preprocess_for(model), tokenizer=tokenizer_for(model)
    )
    objective, params = contrastive_objective(network)
    batch = batches[0]
    return objective, params, {"image": batch["image"].to(dtype), "text": batch["text"]}


def worst_residual(referee: HessianOperator, values: Tensor, vectors: Tensor) -> float:
    V = vectors.double()
    V = V / V.norm(dim=0)
    return float(((referee @ V - V * values.double()).norm(dim=0) / values.abs().double()).max())


def measure(run: Callable[[], tuple[Tensor, Tensor, int]], referee: HessianOperator) -> tuple[int, float, float]:
    begun = time.process_time()
    values, vectors, products = run()
    return products, time.process_time() - begun, worst_residual(referee, values, vectors)


def contenders(
    objective: Objective, params: Params, batch: Batch, tol: float
) -> dict[str, Callable[[], tuple[Tensor, Tensor, int]]]:
    def ours() -> tuple[Tensor, Tensor, int]:
        pairs = eigsh(HessianOperator(objective, params, batch), K, tol=TOL)
        assert pairs.vectors is not None
        return pairs.values, pairs.vectors, pairs.num_matvecs

    def defaults() -> tuple[Tensor, Tensor, int]:
        return run_pyhessian(objective, params, batch, k=K)

    def driven() -> tuple[Tensor, Tensor, int]:
        return run_pyhessian(objective, params, batch, k=K, max_iterations=ITERATIONS, tol=tol)

    return {
        "landscape eigsh, tol 1e-3": ours,
        "pyhessian, defaults": defaults,
        f"pyhessian, maxIter={ITERATIONS} tol={tol:.0e}": driven,
    }


def tolerance_that_reaches(objective: Objective, params: Params, batch: Batch) -> float:
    """The largest of pyhessian's tolerances 1e-4, 3e-5, 1e-5, ... with which all of its residuals are at most TOL."""
    for tol in (factor * 10.0**-exponent for exponent in range(5, 10) for factor in (10, 3)):
        pairs = pyhessian_eigenpairs(objective, params, batch, k=K, max_iterations=ITERATIONS, tol=tol)
        if (pairs.residuals <= TOL).all():
            return tol
    raise SystemExit(f"pyhessian does not reach a residual of {TOL} on this batch with tolerances down to 3e-9.")


def product_in_gradients(objective: Objective, params: Params, batch: Batch, rounds: int = 15) -> float:
    """Median CPU time of one product on the retained graph over that of one gradient, taking turns."""
    operator = HessianOperator(objective, params, batch)
    vector = torch.randn(operator.n, generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {"product": [], "gradient": []}
    work: dict[str, Callable[[], object]] = {
        "product": lambda: operator @ vector,
        "gradient": lambda: gradient(objective, params, batch),
    }
    for _ in range(rounds):
        for name, call in work.items():
            begun = time.process_time()
            call()
            times[name].append(time.process_time() - begun)
    return statistics.median(times["product"][2:]) / statistics.median(times["gradient"][2:])


def report(rows: list[Row], ratio: float, n: int, threads: int) -> str:
    first = rows[0].cpu_seconds
    lines = [
        f"n = {n:,} parameters, batch of 15, k = {K}, float32, {threads} CPU threads, torch {torch.__version__}",
        f"{'':36} {'products':>8} {'CPU s':>8} {'worst residual':>15} {'time / ours':>12}",
    ]
    lines += [
        f"{row.name:36} {row.products:8d} {row.cpu_seconds:8.2f} {row.worst_residual:15.1e} {row.cpu_seconds / first:12.1f}"
        for row in rows
    ]
    return "\n".join([*lines, f"one product costs {ratio:.2f} gradients"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_64")
    parser.add_argument("--checkpoint", type=Path, help="weights to measure; default: train them in --run")
    parser.add_argument("--run", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    checkpoint = options.checkpoint or trained(options.run, options.model, options.epochs)
    objective, params, batch = problem(options.model, checkpoint, torch.float32)
    referee = HessianOperator(*problem(options.model, checkpoint, torch.float64))
    runs = contenders(objective, params, batch, tolerance_that_reaches(objective, params, batch))
    results: dict[str, list[tuple[int, float, float]]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            results[name].append(measure(run, referee))
    rows = [
        Row(name, found[0][0], statistics.median(seconds for _, seconds, _ in found), max(worst for *_, worst in found))
        for name, found in results.items()
    ]
    print(report(rows, product_in_gradients(objective, params, batch), referee.n, options.threads))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
