"""What five eigenvalues cost: against the number of parameters, of pairs in a batch, of
eigenvalues, and of batches.

    python experiments/benchmark_scaling.py --json scaling.json

Every row is a process of its own, one thread, float32, random weights, random pictures and
captions: the cost of a product does not depend on what they are, the number of products does a
little. Models are CLIP models of open_clip with a ViT for pictures of 64 pixels and a text tower of
a small vocabulary, from 0.1 to 30 million parameters, and the small models of this project. Batches
are of 15 pairs unless they are what is varied; k = 5, tol = 1e-3 likewise.

    products   with the Hessian, until every residual is at most 1e-3, or --max-products, a third of
               that above 10 million parameters, so that all of it takes ten minutes on one free
               core; then "no" under converged
    CPU s      from the objective to the pairs, the graph included
    / product  CPU milliseconds of one product, and the same in gradients of that process
    MiB        peak resident memory of the process, above what it held before (libraries, weights,
               batch)

--quick runs the small sizes only, in about a minute.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peers.processes import peak_mebibytes, run_task, write_json
from peers.rows import gradient_seconds

from landscape.curvature import HessianOperator
from landscape.linalg import eigsh, seeded

TOL = 1e-3
# Width and layers of both towers, and heads of 32: about 0.1, 0.4, 1.4, 5, 13 and 30 million
# parameters.
FAMILY = ((32, 3), (64, 4), (128, 4), (224, 4), (320, 5), (416, 7))
PROJECT_MODELS = (
    "vit_tiny_64",
    "vmamba_tiny_64",
    "simba_tiny_64",
    "vit_medium_64",
    "vmamba_medium_64",
    "simba_medium_64",
)
VOCABULARY, CONTEXT = 512, 16


@dataclass(frozen=True)
class Job:
    """One measurement: `model` is a name of the project, or "width x layers" of the family."""

    model: str
    num_pairs: int = 15
    k: int = 5
    num_batches: int = 1
    max_products: int = 300


@dataclass(frozen=True)
class Row:
    """What one job took; `products` and `cpu_seconds` are of all its batches."""

    job: Job
    n: int
    products: int
    cpu_seconds: float
    product_seconds: float
    gradient_seconds: float
    added_mebibytes: float
    peak_mebibytes: float
    converged: bool
    seconds_by_batch: list[float] = field(default_factory=list)


def family_model(name: str) -> torch.nn.Module:
    """A CLIP model of open_clip with both towers of one width and depth."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    width, layers = map(int, name.split("x"))
    return CLIP(
        embed_dim=64,
        vision_cfg=CLIPVisionCfg(
            layers=layers, width=width, head_width=32, patch_size=8, image_size=64
        ),
        text_cfg=CLIPTextCfg(
            context_length=CONTEXT,
            vocab_size=VOCABULARY,
            width=width,
            heads=width // 32,
            layers=layers,
        ),
    ).eval()


def random_batch(
    num_pairs: int, vocabulary: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Pictures of noise, captions of any tokens that end with the largest one, where open_clip
    reads the text.
    """
    text = torch.randint(1, vocabulary - 1, (num_pairs, CONTEXT), generator=generator)
    text[:, -1] = vocabulary - 1
    return {"image": torch.randn(num_pairs, 3, 64, 64, generator=generator), "text": text}


def scaling_task(job: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Row."""
    from landscape.clip.model import build_model
    from landscape.clip.objectives import contrastive_objective

    torch.set_num_threads(1)
    torch.manual_seed(0)
    what = Job(**job)
    model = (
        family_model(what.model)
        if "x" in what.model and what.model[0].isdigit()
        else build_model(what.model)
    )
    objective, params = contrastive_objective(model)
    generator = seeded(0)
    vocabulary = (
        model.state_dict()["token_embedding.weight"].shape[0]
        if hasattr(model, "token_embedding")
        else 49408
    )
    batches = [random_batch(what.num_pairs, vocabulary, generator) for _ in range(what.num_batches)]
    gradients = gradient_seconds(objective, params, batches[0], rounds=3)
    idle, products, converged, seconds = peak_mebibytes(), 0, True, []
    # First, so that the kernels of a scan are compiled before the clock of the solver runs.
    one_product = product_seconds(HessianOperator(objective, params, batches[0]))
    for batch in batches:
        begun = time.process_time()
        pairs = eigsh(
            HessianOperator(objective, params, batch),
            what.k,
            tol=TOL,
            max_matvecs=what.max_products,
        )
        seconds.append(time.process_time() - begun)
        products += pairs.num_matvecs
        converged &= bool(pairs.converged.all())
    row = Row(
        job=what,
        n=sum(tensor.numel() for tensor in params.values()),
        products=products,
        cpu_seconds=sum(seconds),
        product_seconds=one_product,
        gradient_seconds=statistics.median(gradients),
        peak_mebibytes=peak_mebibytes(),
        added_mebibytes=peak_mebibytes() - idle,
        converged=converged,
        seconds_by_batch=seconds,
    )
    return asdict(row)


def product_seconds(operator: HessianOperator, rounds: int = 3) -> float:
    """CPU seconds of one product, median, after one that is not counted."""
    vector = torch.randn(operator.n, generator=seeded(0))
    times = []
    for _ in range(rounds + 1):
        begun = time.process_time()
        operator @ vector
        times.append(time.process_time() - begun)
    return statistics.median(times[1:])


def sections(*, quick: bool, max_products: int) -> dict[str, list[Job]]:
    """What is varied, and the jobs."""
    family = [f"{width}x{layers}" for width, layers in FAMILY]
    small, middle = family[1], family[2]
    limit = {"max_products": max_products}
    large = {"max_products": max_products // 3}
    if quick:
        return {
            "parameters": [Job(name, **limit) for name in family[:2]],
            "pairs in a batch": [Job(family[0], num_pairs=count, **limit) for count in (8, 16)],
            "eigenvalues": [Job(family[0], k=k, **limit) for k in (1, 5)],
            "batches": [Job(family[0], num_batches=count, **limit) for count in (1, 2)],
        }
    return {
        "parameters": [Job(name, **limit) for name in family[:4]]
        + [Job(name, **large) for name in family[4:]],
        "the project's models": [Job(name, **limit) for name in PROJECT_MODELS],
        "pairs in a batch": [
            Job(small, num_pairs=count, **limit) for count in (8, 15, 30, 60, 120)
        ],
        "eigenvalues": [Job(middle, k=k, max_products=300) for k in (1, 2, 5, 10, 20, 40)],
        "batches": [Job(small, num_batches=count, **limit) for count in (1, 2, 4, 8, 16)],
    }


def table(title: str, rows: Sequence[Row]) -> str:
    lines = [
        f"against {title}",
        f"{'model':17} {'n':>11} {'pairs':>5} {'k':>3} {'batches':>7} {'products':>8} {'CPU s':>7} "
        f"{'ms / product':>12} {'gradients':>9} {'MiB':>6} {'converged':>9}",
    ]
    lines += [
        f"{row.job.model:17} {row.n:11,d} {row.job.num_pairs:5d} {row.job.k:3d} "
        f"{row.job.num_batches:7d} {row.products:8d} {row.cpu_seconds:7.2f} "
        f"{1e3 * row.product_seconds:12.1f} {row.product_seconds / row.gradient_seconds:9.2f} "
        f"{row.added_mebibytes:6.0f} {'yes' if row.converged else 'no':>9}"
        for row in rows
    ]
    return "\n".join(lines)


def measure(job: Job) -> Row:
    print(f"{job} ...", file=sys.stderr, flush=True)
    found = run_task("benchmark_scaling.scaling_task", {"job": asdict(job)})
    return Row(**{**found, "job": Job(**found["job"])})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument(
        "--max-products", type=int, default=60, help="limit per batch; a third of it above 10 M"
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    print(
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, 1 thread, torch "
        f"{torch.__version__}, float32",
        end="\n\n",
    )
    results: dict[str, list[Row]] = {}
    for title, jobs in sections(quick=options.quick, max_products=options.max_products).items():
        results[title] = [measure(job) for job in jobs]
        print(table(title, results[title]), end="\n\n", flush=True)
    if options.json:
        document = {title: [asdict(row) for row in rows] for title, rows in results.items()}
        write_json(options.json, {"torch": torch.__version__, **document})


if __name__ == "__main__":
    main()
