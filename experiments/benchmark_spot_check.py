"""What the check of an operator's first product costs, what it catches and whom it accuses.

Usage: python experiments/benchmark_spot_check.py [--only cost|catches|alarms] [--seeds 100]
[--models 200]

Cost: CPU seconds of building a Hessian and multiplying 25 random vectors, with the check and
without, in turn; medians.
Catches: models with a wrong derivative (tests/helpers/wrong_derivatives.py), one per seed, that the
first product refuses.
Alarms: random healthy models (tests/helpers/random_models.py), each in float32 and float64, that it
refuses.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import landscape
from landscape.clip.model import build_model
from landscape.clip.objectives import contrastive_objective
from landscape.curvature import HessianOperator
from landscape.curvature.audits.spot_check import forget
from landscape.errors import ObjectiveError
from landscape.linalg.operator import seeded
from tests.helpers.random_models import random_model
from tests.helpers.wrong_derivatives import FAULTS, faulty

_TOWERS = ("vit_tiny_64", "vmamba_tiny_64", "simba_tiny_64")
_PRODUCTS, _PAIRS, _REPEATS = 25, 15, 5


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--only", choices=["cost", "catches", "alarms"])
    asked.add_argument("--seeds", type=int, default=100)
    asked.add_argument("--models", type=int, default=200)
    options = asked.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if options.only in (None, "cost"):
        for name in _TOWERS:
            print(cost(name), flush=True)
    if options.only in (None, "alarms"):
        for dtype in (torch.float32, torch.float64):
            print(alarms(options.models, dtype), flush=True)
    if options.only in (None, "catches"):
        # The scan last: it is traced anew by every evaluation.
        for fault in sorted(FAULTS, key=lambda fault: "scan" in fault):
            for dtype in (torch.float32, torch.float64):
                print(catches(fault, options.seeds, dtype), flush=True)


def cost(name: str) -> str:
    """The share of a run of 25 products that the check takes."""
    model = build_model(name, seed=0).eval()
    side = model.visual.image_size
    batch = {
        "image": torch.randn(
            _PAIRS, 3, *(side if isinstance(side, tuple) else (side, side)), generator=seeded(0)
        ),
        "text": torch.randint(1, 400, (_PAIRS, model.context_length), generator=seeded(1)),
    }
    spent: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(_REPEATS):
        for check in (False, True):
            forget(model)
            begun = time.process_time()
            objective, params = contrastive_objective(model, parameters="image")
            H = HessianOperator(objective, params, batch, check=check)
            for seed in range(_PRODUCTS):
                H @ torch.randn(H.n, generator=seeded(seed))
            spent[check].append(time.process_time() - begun)
    without, checked = statistics.median(spent[False]), statistics.median(spent[True])
    ratios = sorted(b / a - 1 for a, b in zip(spent[False], spent[True]))
    return (
        f"cost of {name}, n = {H.n:,}: {without:.2f} s without, {checked:.2f} s with the check, "
        f"{statistics.median(ratios):+.1%} (from {ratios[0]:+.1%} to {ratios[-1]:+.1%}); "
        f"{H.checked}"
    )


def catches(fault: str, seeds: int, dtype: torch.dtype) -> str:
    """How many of the faulty models are refused."""
    caught = 0
    for seed in range(seeds):
        model, loss, batch = faulty(fault, seed, dtype)
        try:
            H = landscape.hessian(model, loss, batch)
            H @ torch.randn(H.n, generator=seeded(seed), dtype=torch.float64).to(dtype)
        except ObjectiveError:
            caught += 1
    return f"{fault}, {dtype}: caught {caught} of {seeds}"


def alarms(models: int, dtype: torch.dtype) -> str:
    """How many of the healthy models are refused, and what is said of the others."""
    said: Counter[str] = Counter()
    for seed in range(models):
        model, batch = random_model(seed)
        model, batch = model.to(dtype), batch.to(dtype)
        try:
            H = landscape.hessian(model, lambda model, batch: model(batch).square().mean(), batch)
            H @ torch.randn(H.n, generator=seeded(seed), dtype=torch.float64).to(dtype)
        except ObjectiveError as error:
            said["ALARM"] += 1
            print(f"  seed {seed}: {error}")
        else:
            said[
                "passed at once"
                if "within" in H.checked
                else "passed by the audit"
                if "audit" in H.checked
                else H.checked
            ] += 1
    return f"{models} healthy models, {dtype}: " + ", ".join(
        f"{count} {what}" for what, count in said.most_common()
    )


if __name__ == "__main__":
    main()
