"""What a scan without second derivatives does to the Hessian of a Mamba model: the same batches,
right and incomplete.

    cd experiments
    python opaque_kernel.py --json opaque_kernel.json --figure ../docs/opaque_kernel.png

The published selective scans are autograd functions around compiled code: their gradients are
right, and carry no graph. Differentiated again they drop terms, and nothing is raised. Here a small
VMamba CLIP is trained on OpenMoji (in --run, once; what is interrupted goes on), and at chosen
epochs the five eigenvalues of largest magnitude are measured on fixed batches of 15 pairs:

    right       the Hessian, by eigsh with residuals at most 1e-3, and by power iteration
    incomplete  double backward through a stand-in for the published scans, by power iteration

Power iteration runs as the PyHessian package publishes it (at most 100 products per eigenvalue,
tolerance 1e-3), since the incomplete operator is not symmetric and has no certificates. It keeps
the gradients that have a graph and drops the others; PyHessian itself stops at the latter, unless
their parameters are left out. In float64, both operators are held against central differences of
the stand-in's own gradients, on the same random directions.

HessianOperator refuses the stand-in; the plain operator below asks no questions.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from jaxtyping import Float
from opaque_kernel_report import Row, Spectrum, Verdict, draw, print_table, summarise
from torch import Tensor

from landscape import kernels
from landscape.clip.checkpoint import load_checkpoint
from landscape.clip.image_text import curvature_batches, open_pairs
from landscape.clip.model import build_model, preprocess_for, tokenizer_for
from landscape.clip.objectives import contrastive_objective
from landscape.curvature import (
    Batch,
    HessianOperator,
    Objective,
    Params,
    flatten,
    gradient,
    unflatten,
)
from landscape.curvature.hvp.evaluation import as_differentiated
from landscape.kernels import selective_scan
from landscape.linalg import SymmetricOperator, eigsh, power_iteration, seeded
from landscape.linalg.support import SupportedPart
from landscape.manifest import DataSettings

MODEL, RECIPE, BATCH_SIZE = "vmamba_tiny_64", "openmoji_demo", 15
K, TOL, MAX_ITERATIONS = 5, 1e-3, 100
NUM_DIRECTIONS = 4
# Length of the steps of the differences, relative to that of the parameters.
STEP = 1e-4
# Products of two correct operators in float64 differ by the order of additions.
ROUNDING = 1e-10
SETTINGS = {
    "model": MODEL,
    "recipe": RECIPE,
    "batch_size": BATCH_SIZE,
    "k": K,
    "tol": TOL,
    "max_iterations": MAX_ITERATIONS,
    "num_directions": NUM_DIRECTIONS,
    "step": STEP,
    "torch": torch.__version__,
}


class OpaqueScan(torch.autograd.Function):
    """The selective scan as the published kernels offer it: exact first derivatives, and no graph
    on them.
    """

    @staticmethod
    def forward(ctx: Any, softplus: bool, *tensors: Tensor) -> Tensor:
        ctx.softplus = softplus
        ctx.save_for_backward(*tensors)
        return _scan(softplus, tensors)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        tensors = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            y = _scan(ctx.softplus, tensors)
        return None, *torch.autograd.grad(y, tensors, dy.detach())


def _scan(softplus: bool, tensors: Sequence[Tensor]) -> Tensor:
    u, delta, A, B, C, D, delta_bias = tensors
    return cast(
        Tensor, selective_scan(u, delta, A, B, C, D, delta_bias=delta_bias, delta_softplus=softplus)
    )


@contextmanager
def opaque_scan() -> Iterator[None]:
    """For as long as the context lasts, the towers run the stand-in."""

    def scan(*inputs: Tensor, delta_bias: Tensor, delta_softplus: bool) -> Tensor:
        return OpaqueScan.apply(delta_softplus, *inputs, delta_bias)

    with mock.patch.object(kernels, "selective_scan", scan):
        yield


class PlainHessian(SymmetricOperator):
    """Double backward with no questions asked. Symmetric, as its type promises, only if no term is
    dropped.

    Attributes:
        without_graph: Names of the parameters whose gradient has no graph, and so no row.
    """

    def __init__(self, objective: Objective, params: Params, batch: Batch) -> None:
        self.params = params
        self._leaves = {
            name: tensor.detach().clone().requires_grad_() for name, tensor in params.items()
        }
        first = next(iter(params.values()))
        self.n, self.dtype, self.device = (
            sum(tensor.numel() for tensor in params.values()),
            first.dtype,
            first.device,
        )
        with as_differentiated():
            loss = objective.data_term(self._leaves, batch)
        gradients = torch.autograd.grad(loss, list(self._leaves.values()), create_graph=True)
        self._kept = {name: piece for name, piece in zip(params, gradients) if piece.requires_grad}
        self.without_graph = tuple(name for name in params if name not in self._kept)

    def matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        return torch.stack([self._multiply(v) for v in V.T], dim=1)

    def _multiply(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        pieces = unflatten(v, self.params)
        products = torch.autograd.grad(
            list(self._kept.values()),
            list(self._leaves.values()),
            [pieces[name] for name in self._kept],
            retain_graph=True,
            materialize_grads=True,
        )
        return flatten(dict(zip(self.params, products)))


Problem = tuple[Objective, Params, Batch]


def train(run: Path, epochs: int) -> None:
    """The checkpoints of all epochs in `run`; those that are there stay."""
    from landscape.pipeline import train_run

    train_run(
        model=MODEL,
        output=run,
        source="openmoji",
        split="train",
        image_size=None,
        recipe=RECIPE,
        epochs=epochs,
    )


def open_batches(num_batches: int) -> Sequence[Batch]:
    """The first batches of the protocol, of pairs that the model is trained on."""
    size = preprocess_for(MODEL).size[0]
    settings = DataSettings(
        source="openmoji",
        split="train",
        image_size=size,
        num_samples=BATCH_SIZE,
        batch_size=BATCH_SIZE,
    )
    pairs = open_pairs(settings)
    batches = curvature_batches(
        pairs,
        num_samples=num_batches * BATCH_SIZE,
        batch_size=BATCH_SIZE,
        seed=0,
        transform=preprocess_for(MODEL),
        tokenizer=tokenizer_for(MODEL),
    )
    return list(batches)


def problem(checkpoint: Path, batch: Batch, dtype: torch.dtype) -> Problem:
    network = build_model(MODEL, dtype=dtype)
    load_checkpoint(network, checkpoint)
    objective, params = contrastive_objective(network)
    return objective, params, {"image": batch["image"].to(dtype), "text": batch["text"]}


def differences(at: Problem, U: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """The Hessian times U by central differences of gradients, of fourth order in the step: first
    derivatives only.
    """
    objective, params, batch = at
    centre = flatten(params)
    step = STEP * float(centre.norm())

    def slope(offset: Tensor) -> Tensor:
        return gradient(objective, unflatten(centre + offset, params), batch)

    def difference(u: Tensor, h: float) -> Tensor:
        v = u / u.norm()
        return (slope(h * v) - slope(-h * v)) * (u.norm() / (2 * h))

    return torch.stack(
        [(4 * difference(u, step / 2) - difference(u, step)) / 3 for u in U.T], dim=1
    )


def asymmetry(U: Float[Tensor, "n k"], product: Float[Tensor, "n k"]) -> float:
    forms = U.T @ product
    forms = forms - torch.diag(forms.diagonal())
    return float((forms - forms.T).norm() / forms.norm())


def spectrum(operator: str, solver: str, A: SymmetricOperator) -> Spectrum:
    """The eigenvalues of A, whose vectors are kept to its support: outside, both operators are
    exactly zero.
    """
    if solver == "eigsh":
        pairs = eigsh(A, K, tol=TOL, return_vectors=False)
    else:
        pairs = power_iteration(SupportedPart(A), K, tol=TOL, max_iterations=MAX_ITERATIONS)
    values = sorted(pairs.values.tolist(), key=abs, reverse=True)
    return Spectrum(
        operator, solver, tuple(values), float(pairs.residuals.max()), pairs.num_matvecs
    )


def spectra(at: Problem) -> tuple[tuple[Spectrum, ...], float, tuple[str, ...]]:
    """The right operator by both solvers and the incomplete one; the loss; the parameters without a
    row.
    """
    guarded, plain = HessianOperator(*at), PlainHessian(*at)
    with opaque_scan():
        opaque = PlainHessian(*at)
    plain.support = opaque.support = guarded.support
    found = (
        spectrum("right", "eigsh", guarded),
        spectrum("right", "power iteration", plain),
        spectrum("incomplete", "power iteration", opaque),
    )
    return found, guarded.loss, opaque.without_graph


def judge(at: Problem) -> tuple[dict[str, Verdict], float]:
    """The verdicts on both operators, and the relative difference of their gradients."""
    operator, plain = HessianOperator(*at), PlainHessian(*at)
    U = torch.randn(operator.n, NUM_DIRECTIONS, generator=seeded(0), dtype=torch.float64)
    product = operator @ U
    if not (product - plain @ U).norm() <= ROUNDING * product.norm():
        raise SystemExit(
            "The plain operator differs from HessianOperator although nothing is opaque, so it is "
            "no control."
        )
    slope = gradient(*at)
    with opaque_scan():
        incomplete = PlainHessian(*at) @ U
        gradient_error = float((gradient(*at) - slope).norm() / slope.norm())
        truth = differences(at, U)
    verdicts = {
        name: Verdict(asymmetry(U, HU), float((HU - truth).norm() / truth.norm()))
        for name, HU in (("right", product), ("incomplete", incomplete))
    }
    return verdicts, gradient_error


def measure(checkpoint: Path, epoch: int, batch: Batch, number: int) -> Row:
    found, loss, without_graph = spectra(problem(checkpoint, batch, torch.float32))
    verdicts, gradient_error = judge(problem(checkpoint, batch, torch.float64))
    return Row(epoch, number, loss, gradient_error, without_graph, verdicts, found)


def measured(run: Path, epoch: int, batch: Batch, number: int) -> Row:
    """`measure`, or what an earlier call with the same settings left in the folder of the run."""
    checkpoint = run / "checkpoints" / f"epoch_{epoch}.pt"
    settings = {**SETTINGS, "checkpoint": hashlib.sha256(checkpoint.read_bytes()).hexdigest()}
    kept = run / "measured" / f"epoch_{epoch}_batch_{number}.json"
    if kept.exists() and (stored := json.loads(kept.read_text()))["settings"] == settings:
        return Row.from_dict(stored["row"])
    row = measure(checkpoint, epoch, batch, number)
    write_json(kept, {"settings": settings, "row": asdict(row)})
    return row


def write_json(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, default=Path("runs/opaque_kernel"), help="Folder of the training run."
    )
    parser.add_argument("--epochs", type=int, default=10, help="Length of the training.")
    parser.add_argument(
        "--measure", type=int, nargs="+", default=[0, 1, 3, 10], help="Epochs to measure."
    )
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    if unknown := [epoch for epoch in options.measure if not 0 <= epoch <= options.epochs]:
        parser.error(f"--measure {unknown[0]} is not an epoch of a training of {options.epochs}.")
    train(options.run, options.epochs)
    rows = []
    batches = open_batches(options.batches)
    for epoch in options.measure:
        for number, batch in enumerate(batches):
            rows.append(measured(options.run, epoch, batch, number))
            print(f"epoch {epoch}, batch {number + 1} of {len(batches)}", flush=True)
    title = (
        f"Top {K} eigenvalues of {MODEL}, {BATCH_SIZE} pairs a batch, and the operators they come "
        "from"
    )
    print_table(rows, title=title)
    if options.json:
        summaries = [asdict(one) for one in summarise(rows)]
        write_json(
            options.json,
            {"settings": SETTINGS, "epochs": summaries, "rows": [asdict(row) for row in rows]},
        )
    if options.figure:
        from landscape.figures.style import save_figure

        save_figure(draw(rows), options.figure)


if __name__ == "__main__":
    main()
