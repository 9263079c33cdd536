"""What a sharpness monitor costs and how many products a measurement takes; prints tables.

    python experiments/benchmark_monitor.py cost
    python experiments/benchmark_monitor.py products

`cost`: CPU seconds of 2,000 steps of a small classifier, with and without a monitor. `products`:
products of a measurement on the small CLIP ViT, 200 steps in a row: all of them, and those until
the eigenpairs had converged. The rest confirm that nothing larger was missed.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import landscape
from landscape.curvature import HessianOperator, select_parameters
from landscape.linalg import lanczos
from landscape.monitor import Measurement, SharpnessMonitor

OPTIMIZERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "SGD momentum": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9),
    "AdamW": lambda params, lr: torch.optim.AdamW(params, lr=lr, weight_decay=0.1),
}


def known(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    """The optimizer where this version knows its threshold."""
    return optimizer if hasattr(landscape, "stability_threshold") else None


def classifier() -> nn.Module:
    torch.manual_seed(0)
    sizes = [64, 256, 256, 10]
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes, sizes[1:]):
        layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.Tanh(), nn.Dropout(0.1)]
    return nn.Sequential(*layers[:-3])


def cross_entropy(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def train(
    name: str, num_steps: int, *, budget: float | None
) -> tuple[float, list[float], list[Measurement]]:
    """CPU seconds of a training, its losses, and what was measured; without a monitor where there
    is no budget.
    """
    model = classifier()
    optimizer = OPTIMIZERS[name](model.parameters(), {"SGD momentum": 0.02, "AdamW": 1e-3}[name])
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(4096, 64, generator=generator)
    classes = (inputs @ torch.randn(64, 10, generator=generator)).argmax(1)
    measured = inputs[:512], classes[:512]
    begun = time.process_time()
    monitor = (
        None if budget is None else SharpnessMonitor(model, cross_entropy, measured, budget=budget)
    )
    losses = []
    for _ in range(num_steps):
        rows = torch.randint(4096, (512,), generator=generator)
        optimizer.zero_grad()
        loss = cross_entropy(model, (inputs[rows], classes[rows]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if monitor is not None:
            monitor.step(loss=loss)
    return time.process_time() - begun, losses, [] if monitor is None else monitor.measurements


def cost(num_steps: int, budget: float, repeats: int) -> None:
    """CPU seconds with and without a monitor, in turn, so that a busy machine disturbs both
    alike.
    """
    train("AdamW", 50, budget=budget)
    for name in OPTIMIZERS:
        pairs = []
        for _ in range(repeats):
            without, plain, _ = train(name, num_steps, budget=None)
            with_monitor, losses, made = train(name, num_steps, budget=budget)
            assert losses == plain, "the monitor changed the training"
            pairs.append((without, with_monitor))
            shown = (
                f"{name:13} {num_steps} steps: {without:6.2f} CPU s without, {with_monitor:6.2f} "
                "with: "
            )
            products = np.mean([one.hessian.num_matvecs for one in made if one.hessian])
            share = made[-1].share
            extra = (
                f"+{100 * (with_monitor / without - 1):.1f} %, {len(made)} measurements of "
                f"{products:.1f} products"
            )
            print(f"{shown}{extra}, {100 * (share or 0):.1f} % by its own clock", flush=True)
        extra = np.array([b / a - 1 for a, b in pairs])
        print(
            f"{name:13} median +{100 * np.median(extra):.1f} % of CPU time, budget "
            f"{100 * budget:g} %; losses the same bits"
        )


@contextmanager
def counting_converged(counts: list[int]) -> Iterator[None]:
    """Append the products of each run of Lanczos at which its pairs had converged."""
    exclude = lanczos._exclude_missed

    def counting(basis: Any, *arguments: Any) -> Any:
        counts.append(basis.num_matvecs)
        return exclude(basis, *arguments)

    lanczos._exclude_missed = counting
    try:
        yield
    finally:
        lanczos._exclude_missed = exclude


def products(num_steps: int, name: str, k: int, tol: float, noises: list[float]) -> None:
    """Measure after every step of a training of vit_tiny_64 on OpenMoji, from the last eigenvectors
    and at random.
    """
    from landscape.clip.image_text import curvature_batches, open_pairs
    from landscape.clip.model import build_model, preprocess_for, tokenizer_for
    from landscape.clip.objectives import contrastive_objective
    from landscape.manifest import DataSettings
    from landscape.monitor import meter

    model = build_model("vit_tiny_64", seed=0)
    data = DataSettings(
        source="openmoji", image_size=64, num_samples=3000, batch_size=15, split="train"
    )
    batches = curvature_batches(
        open_pairs(data),
        num_samples=3000,
        batch_size=15,
        seed=0,
        transform=preprocess_for(model),
        tokenizer=tokenizer_for(model),
    )
    objective, params = contrastive_objective(model)
    optimizer = OPTIMIZERS[name](model.parameters(), {"SGD momentum": 0.01, "AdamW": 1e-3}[name])
    monitors = {}
    for noise in noises:
        monitors[noise] = SharpnessMonitor(
            model, objective, batches[0], budget=None, k=k, tol=tol, optimizer=known(optimizer)
        )
    kept: dict[float, list[Measurement]] = {noise: [] for noise in noises}
    converged: dict[float, list[list[int]]] = {noise: [] for noise in noises}
    cold: list[tuple[int, int]] = []
    begun = time.process_time()
    for step in range(num_steps):
        batch = batches[1 + step % (len(batches) - 1)]
        optimizer.zero_grad()
        leaves = dict(model.named_parameters())
        objective({name: leaves[name] for name in params}, batch).backward()
        optimizer.step()
        for noise, monitor in monitors.items():
            meter._NOISE = noise
            converged[noise].append([])
            with counting_converged(converged[noise][-1]):
                made = monitor.step()
            assert made is not None and made.hessian is not None
            kept[noise].append(made)
        if step % 20 == 19:
            model.eval()
            H = HessianOperator(objective, select_parameters(model), batches[0], check=False)
            counts = [
                landscape.eigsh(H, k, "LA", tol=tol, seed=step).num_matvecs,
                landscape.eigsh(H, 5, "LM", tol=1e-3, seed=step).num_matvecs,
            ]
            model.train()
            cold.append((counts[0], counts[1]))
            last = kept[noises[0]][-1]
            print(f"{last}, {last.hessian.num_matvecs} products, cold {counts}", flush=True)
    n = sum(tensor.numel() for tensor in params.values())
    print(f"{name}, vit_tiny_64, n = {n:,}, k = {k}, tol = {tol}, {num_steps} steps in a row")
    for noise in noises:
        for place, matrix in enumerate(("hessian", "preconditioned")):
            # The first ten are the warm-up.
            spectra = [
                spectrum
                for made in kept[noise][10:]
                if (spectrum := getattr(made, matrix)) is not None
            ]
            if spectra:
                counts = np.array([one.num_matvecs for one in spectra])
                told = np.mean([one.missed_distance <= 0.05 for one in spectra])
                sure = np.mean([all(one.converged) for one in spectra])
                first = np.mean([runs[place] for runs in converged[noise][10:]])
                print(
                    f"  {matrix:15} noise {noise:5g}: {counts.mean():.2f} products ({counts.min()} "
                    f"to {counts.max()}), the pairs after {first:.2f}, {100 * sure:.0f} % "
                    f"converged, look complete in {100 * told:.0f} %"
                )
    same, five = np.mean(cold, axis=0)
    print(f"  at random: {same:.1f} products; k = 5, LM, tol 1e-3 at random: {five:.1f}")
    print(f"  {time.process_time() - begun:.0f} CPU seconds in all")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["cost", "products"])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), action="append")
    parser.add_argument("--k", type=int, default=1)
    parser.add_argument("--tol", type=float, default=1e-2)
    parser.add_argument("--noise", type=float, action="append")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "cost":
        cost(asked.steps or 2000, asked.budget, asked.repeats)
        return
    for name in asked.optimizer or list(OPTIMIZERS):
        products(asked.steps or 200, name, asked.k, asked.tol, asked.noise or [30.0])


if __name__ == "__main__":
    main()
