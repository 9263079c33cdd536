"""Memory and time of one Hessian-vector product of a large batch, by every way of computing it.

    python experiments/measure_products.py

Each way has a process of its own. Printed: the resident memory that the operator and its first
product add to the process, at their peak, their CPU seconds together, and how far the product is
from the first one's.
"""

import argparse
import multiprocessing
import time
from typing import Any

import torch
from measure_memory import peak_mebibytes
from torch import Tensor

WAYS: dict[str, dict[str, Any]] = {
    "retained": {"hvp": "retained"},
    "rebuilt": {"hvp": "rebuilt"},
    "jvp": {"hvp": "jvp"},
    "rows=64": {"rows": 64},
    "rows=16": {"rows": 16},
}


def measure(model: str, num_pairs: int, options: dict[str, Any]) -> tuple[float, float, Tensor]:
    """MiB added, CPU seconds, and the product with a seeded vector."""
    from landscape.clip.model import build_model
    from landscape.clip.objectives import contrastive_objective
    from landscape.curvature import HessianOperator

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    objective, params = contrastive_objective(build_model(model, seed=0), parameters="image")

    def batch(rows: int) -> dict[str, Tensor]:
        text = torch.randint(1, 49405, (rows, 16), generator=generator)
        text[:, -1] = 49407
        return {"image": torch.randn(rows, 3, 64, 64, generator=generator), "text": text}

    large = batch(num_pairs)
    vector = torch.randn(sum(tensor.numel() for tensor in params.values()), generator=generator)
    # Kernels are compiled and libraries loaded on first use.
    small = HessianOperator(objective, params, batch(4), hvp="retained")
    small @ vector
    del small
    before, begun = peak_mebibytes(), time.process_time()
    product = HessianOperator(objective, params, large, **options) @ vector
    return peak_mebibytes() - before, time.process_time() - begun, product


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_tiny_64")
    parser.add_argument("--pairs", type=int, default=256)
    options = parser.parse_args()
    print(f"{options.model}, {options.pairs} pairs, float32, one thread, torch {torch.__version__}")
    print(f"{'':10} {'MiB':>6} {'CPU s':>7} {'difference':>11}")
    context, first = multiprocessing.get_context("spawn"), None
    for name, way in WAYS.items():
        with context.Pool(1) as pool:
            added, seconds, product = pool.apply(measure, (options.model, options.pairs, way))
        first = product if first is None else first
        difference = float((product - first).norm() / first.norm())
        print(f"{name:10} {added:6.0f} {seconds:7.2f} {difference:11.1e}", flush=True)


if __name__ == "__main__":
    main()
