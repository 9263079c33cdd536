"""Top-5 eigenvalues of one batch by every public tool, side by side: products, CPU seconds, memory,
and what is true of them.

    python experiments/benchmark_peers.py --json peers.json

Peers: pyhessian, hessian-eigenthings (power iteration and Lanczos), curvlinops with SciPy's eigsh,
landscaper, as PyPI has them, in an environment that this makes in --environment. Beside them
SciPy's eigsh on this project's operator, the fifteen lines that anyone could write around it. All
take the same weights, the same batch of 15 OpenMoji pairs, float32 and one thread; three
architectures (Mamba towers with this project's scan, which can be differentiated twice; --scan
reference takes a plain loop in PyTorch, whose graph is too long to compile), at their
initialisation and after a little training, done once in --run. None of the peers takes this loss as
it is; each gets the help it needs. What is done once for a model, as compiling, is stated apart.

Each run is a process of its own. "defaults" are the contender's own settings, "driven" the loosest
on a ladder that reach a true residual of 1e-3 for all five, or the best; the search is not charged.
Then, with the clocks stopped:

    residual   the worst of the five, ||Hv - value v|| / |value|, from products in float64
    error      the worst of the five values, relative, against ARPACK in float64 to 1e-10
    gradients  the CPU seconds in gradients of the same process, which a busy machine changes less
    / ours     the ratio of those
    / limit    the same against what no solver can beat: the matrix products and convolutions of a
               product, timed alone, for each product of the smallest Krylov space that
               holds the five pairs

Then on how many of 20 batches five converged values are not the top five; the products a batch over
50 batches, from random starts and recycled from the batch before or from one epoch earlier; and how
far the density of a spectrum is from the exact one, against the densities of pyhessian and
hessian-eigenthings.

--contenders measures some of them only, --only one of the four parts; --quick the first
architecture after training, three batches, and one density.
"""

import argparse
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peers.density import DensityRow, compare_densities, density_table
from peers.environment import Environment, make_environment
from peers.problem import Case, save_batches, trained
from peers.processes import run_task, write_json
from peers.recycling import RecyclingRow, measure_recycling, recycling_table
from peers.rows import Row, Truth, drive, measure
from peers.sets import SetsRow, measure_sets, sets_table
from peers.solvers import CONTENDERS, OURS, Contender
from peers.tables import architecture_table, summary_table

MODELS = ("vit_tiny_64", "vmamba_tiny_64", "simba_tiny_64")
PARTS = ("solvers", "sets", "recycling", "densities")
NUM_BATCHES, NUM_SETS = 50, 20
QUICK_DENSITIES: dict[str, Any] = {"budgets": (80,), "num_seeds": 2}


def cases(
    run: Path, models: tuple[str, ...], epochs: int, *, scan: str, quick: bool
) -> Iterator[Case]:
    for model in models[:1] if quick else models:
        batches = save_batches(run, model, 1)
        checkpoints = trained(run, model, epochs)
        for epoch in (epochs,) if quick else sorted({0, epochs}):
            yield Case(
                model, epoch, str(checkpoints[epoch].resolve()), str(batches.resolve()), scan=scan
            )


def compare(case: Case, environment: Environment, names: Sequence[str]) -> tuple[Truth, list[Row]]:
    """Contenders on one case: each at its defaults, then driven."""
    truth = Truth(**run_task("peers.rows.truth_task", {"case": asdict(case)}))
    rows: list[Row] = []
    for contender in (CONTENDERS[name] for name in names):
        if contender.package is not None and contender.package in environment.failures:
            failure = environment.failures[contender.package]
            rows.append(
                Row(case.model, case.epoch, contender.name, "defaults", {}, failure=failure)
            )
            continue
        rows.append(
            measure(
                case, truth, contender, "defaults", contender.defaults, python=environment.python
            )
        )
        if contender.ladder and not rows[-1].failure:
            first = first_rung(contender, truth, rows)
            rows.append(drive(case, truth, contender, python=environment.python, first=first))
    return truth, rows


def sets(run: Path, models: tuple[str, ...], epochs: int, *, quick: bool) -> list[SetsRow]:
    """With the scan that this project runs on a CPU, as for recycling."""
    rows = []
    for model in models[:1] if quick else models:
        batches = save_batches(run, model, 3 if quick else NUM_BATCHES)
        checkpoints = trained(run, model, epochs)
        for epoch in (epochs,) if quick else sorted({0, epochs}):
            case = Case(
                model, epoch, str(checkpoints[epoch].resolve()), str(batches.resolve()), scan="auto"
            )
            rows.append(measure_sets(case, 3 if quick else NUM_SETS))
    return rows


def recycling(
    run: Path, models: tuple[str, ...], epochs: int, *, quick: bool
) -> list[RecyclingRow]:
    """After training, with the scan that this project runs on a CPU: it is counts that are
    compared.
    """
    rows = []
    for model in models[:1] if quick else models:
        batches = save_batches(run, model, 3 if quick else NUM_BATCHES)
        checkpoints = trained(run, model, epochs)
        earlier, case = (
            Case(
                model, epoch, str(checkpoints[epoch].resolve()), str(batches.resolve()), scan="auto"
            )
            for epoch in (max(epochs - 1, 0), epochs)
        )
        rows.append(measure_recycling(case, earlier, 3 if quick else NUM_BATCHES))
    return rows


def first_rung(contender: Contender, truth: Truth, rows: Sequence[Row]) -> int:
    """The first setting of a ladder that is not known to be too loose.

    landscaper's power iteration is pyhessian's; Lanczos does not get there with fewer products than
    the smallest Krylov space, give or take the start vector.
    """
    if contender.name == "landscaper":
        known = [
            row.settings["tol"]
            for row in rows
            if row.contender == "pyhessian" and row.mode == "driven"
        ]
        return next((i for i, rung in enumerate(contender.ladder) if rung["tol"] in known), 0)
    steps = [rung.get("max_iter", 0) for rung in contender.ladder if "reorthogonalize" in rung]
    return sum(count < truth.krylov_products - 4 for count in steps)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, default=Path("runs/benchmark"), help="weights and batches are kept here"
    )
    parser.add_argument(
        "--environment", type=Path, default=Path("runs/benchmark/environment"), help="of the peers"
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--epochs", type=int, default=3, help="of the little training (default 3)")
    parser.add_argument(
        "--quick", action="store_true", help="one architecture, after training only"
    )
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument(
        "--scan",
        choices=("auto", "reference"),
        default="auto",
        help="back end of the scan of Mamba towers",
    )
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=list(CONTENDERS),
        default=list(CONTENDERS),
        help="default: all",
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    environment = make_environment(options.environment.resolve())
    print(
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, 1 thread, torch "
        f"{torch.__version__}, float32"
    )
    print(
        "  ".join(f"{name} {version}" for name, version in environment.versions.items()), end="\n\n"
    )
    chosen, models = (options.only,) if options.only else PARTS, tuple(options.models)
    results: list[tuple[Truth, list[Row]]] = []
    compared: list[SetsRow] = []
    recycled: list[RecyclingRow] = []
    densities: list[DensityRow] = []
    if "solvers" in chosen:
        names = [name for name in CONTENDERS if name in (OURS, *options.contenders)]
        for case in cases(
            options.run, models, options.epochs, scan=options.scan, quick=options.quick
        ):
            results.append(compare(case, environment, names))
            print(architecture_table(*results[-1]), end="\n\n", flush=True)
        print(summary_table(results), end="\n\n", flush=True)
    if "sets" in chosen:
        compared = sets(options.run, models, options.epochs, quick=options.quick)
        print(sets_table(compared), end="\n\n", flush=True)
    if "recycling" in chosen:
        recycled = recycling(options.run, models, options.epochs, quick=options.quick)
        print(recycling_table(recycled), end="\n\n", flush=True)
    if "densities" in chosen:
        densities = compare_densities(
            environment.python, **QUICK_DENSITIES if options.quick else {}
        )
        print(density_table(densities))
    if options.json:
        document = {
            "date": time.strftime("%Y-%m-%d"),
            "cores": os.cpu_count(),
            "processor": platform.machine(),
            "torch": torch.__version__,
            "peers": dict(environment.versions),
            "cases": [
                {"truth": asdict(truth), "rows": [asdict(row) for row in rows]}
                for truth, rows in results
            ],
            "sets": [asdict(row) for row in compared],
            "recycling": [asdict(row) for row in recycled],
            "densities": [asdict(row) for row in densities],
        }
        write_json(options.json, document)


if __name__ == "__main__":
    main()
