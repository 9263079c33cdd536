"""Measure the first and second derivatives of one operation, and print them as a line of JSON.

Usage: python measure.py PACKAGE/OPERATION, with the package's folder on PYTHONPATH; run.py calls it
for every operation.

The inputs of the operation are x = t + 0.3 sin(t) of a leaf t, as the layers before it would make
them, and the loss is sum cos(i) tanh(y_i) of its outputs. Truth: autograd through the same function
written as a plain loop in float64, whose product is compared with central differences of its
gradients first. An error is ||result - truth|| / ||truth||.
"""

import contextlib
import io
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import landscape
from landscape.curvature.audits import WHOLE, AuditReport

Inputs = Mapping[str, Tensor]
Function = Callable[..., Tensor]

# What counts as right, by the precision of the inputs; float32 kernels sum in another order than
# the loop.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
# Of central differences of gradients in float64.
_STEP = 1e-5


@dataclass(frozen=True)
class Case:
    """One operation.

    Attributes:
        function: The operation; takes the inputs by name.
        reference: The same written plainly, differentiated by autograd alone.
        shapes: Shape of every input.
        dtype: In which the operation runs.
        how: How it was run, where that is not plain PyTorch on a CPU.
    """

    function: Function
    reference: Function
    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype = torch.float64
    how: str = "CPU"


def split(flat: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> Inputs:
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    return {
        name: part.view(shape) for part, (name, shape) in zip(flat.split(sizes), shapes.items())
    }


def loss_of(
    function: Function, shapes: Mapping[str, tuple[int, ...]]
) -> Callable[[Tensor], Tensor]:
    """The loss as a function of the leaf."""

    def loss(leaf: Tensor) -> Tensor:
        y = function(**split(leaf + 0.3 * leaf.sin(), shapes)).flatten()
        return (torch.arange(len(y), dtype=y.dtype).cos() * y.tanh()).sum()

    return loss


class _Measurement:
    """All columns but the audit, each as text."""

    def __init__(self, case: Case, *, seed: int = 0) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(seed)
        size = sum(torch.Size(shape).numel() for shape in case.shapes.values())
        points, self.direction = (
            torch.randn(2, size, generator=generator, dtype=torch.float64) for _ in range(2)
        )
        self.points = 0.7 * points
        self.direction /= self.direction.norm(dim=1, keepdim=True)
        self.loss = loss_of(case.function, case.shapes)
        self.reference = loss_of(case.reference, case.shapes)

    def truth(self) -> tuple[Tensor, Tensor]:
        """Gradients at both points, and products with both directions at the first."""

        def gradient(leaf: Tensor) -> Tensor:
            leaf = leaf.detach().requires_grad_()
            return torch.autograd.grad(self.reference(leaf), leaf, create_graph=True)[0]

        leaf = self.points[0].clone().requires_grad_()
        slope = torch.autograd.grad(self.reference(leaf), leaf, create_graph=True)[0]
        products = [
            torch.autograd.grad(slope, leaf, v, retain_graph=True)[0] for v in self.direction
        ]
        v = self.direction[0]
        difference = (
            gradient(self.points[0] + _STEP * v) - gradient(self.points[0] - _STEP * v)
        ) / (2 * _STEP)
        agreement = float((difference - products[0]).norm() / products[0].norm())
        assert agreement < 1e-6, f"the reference's product is {agreement:.1e} off its differences"
        return torch.stack([gradient(point).detach() for point in self.points]), torch.stack(
            products
        )

    def _leaf(self) -> Tensor:
        return self.points[0].to(self.case.dtype).requires_grad_()

    def first(self) -> Tensor:
        return torch.autograd.grad(self.loss(leaf := self._leaf()), leaf)[0]

    def double(self) -> Tensor:
        slope = torch.autograd.grad(self.loss(leaf := self._leaf()), leaf, create_graph=True)[0]
        return torch.autograd.grad(slope, leaf, self.direction[0].to(slope))[0]

    def double_by_backward(self) -> Tensor:
        """As PyHessian does: .backward twice."""
        self.loss(leaf := self._leaf()).backward(create_graph=True)
        slope = leaf.grad
        assert slope is not None
        leaf.grad = None
        (slope @ self.direction[0].to(slope)).backward()
        return leaf.grad

    def jvp(self) -> Tensor:
        leaf = self._leaf().detach()
        return torch.func.jvp(torch.func.grad(self.loss), (leaf,), (self.direction[0].to(leaf),))[1]

    def batched(self) -> Tensor:
        slope = torch.autograd.grad(self.loss(leaf := self._leaf()), leaf, create_graph=True)[0]
        return torch.autograd.grad(slope, leaf, self.direction.to(slope), is_grads_batched=True)[0]

    def vmap(self) -> Tensor:
        return torch.func.vmap(torch.func.grad(self.loss))(self.points.to(self.case.dtype))

    def columns(self) -> dict[str, str]:
        gradients, products = self.truth()
        wanted = {
            "first": gradients[0],
            "double": products[0],
            "double_by_backward": products[0],
            "jvp": products[0],
            "batched": products,
            "vmap": gradients,
        }
        return {name: self._judged(getattr(self, name), truth) for name, truth in wanted.items()}

    def _judged(self, measure: Callable[[], Tensor], truth: Tensor) -> str:
        try:
            result = measure()
        # Whatever a package raises is what this column reports.
        except Exception as error:
            return "raises: " + _in_short(error)
        error = float((result.detach().double() - truth).norm() / truth.norm())
        return (
            f"right {error:.0e}" if error <= _TOLERANCE[self.case.dtype] else f"WRONG {error:.2g}"
        )


# Fragments of long messages -> what the table says.
_SHORT = {
    "setup_context": "no setup_context",
    "modified by an inplace operation": "modified by an inplace operation",
    "generate_vmap_rule": "no vmap rule",
    "vmap staticmethod": "no vmap rule",
    "must implement the jvp": "no jvp",
    "UncapturedHigherOrderOp": "UncapturedHigherOrderOpError",
    "Cannot access data pointer": "needs a data pointer",
    "doesn't have storage": "needs a data pointer",
    "does not require grad": "does not require grad",
    "differentiate twice a function that was marked": "marked once_differentiable",
    "could not find kernel for HigherOrderOperator": "no kernel of the higher-order operator",
    "(self, *extra_args) is not possible": "writes in place under vmap",
}


def _in_short(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    for fragment, short in _SHORT.items():
        if fragment in text:
            return short
    return text.strip().splitlines()[0][:70]


class Mixer(nn.Module):
    """The operation, with its inputs in one vector."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(self, flat: Tensor) -> Tensor:
        return self.case.function(**split(flat, self.case.shapes)).flatten()


class Outer(nn.Module):
    """A linear layer that makes the inputs, the operation, a linear layer behind it."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        size = sum(torch.Size(shape).numel() for shape in case.shapes.values())
        self.stem, self.mixer = nn.Linear(4, size), Mixer(case)
        outputs = self.mixer(torch.zeros(size, dtype=case.dtype)).numel()
        self.head = nn.Linear(outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mixer(self.stem(x)))


def audited(case: Case) -> str:
    """What landscape.audit says of a model with the operation inside."""
    torch.manual_seed(0)
    model = Outer(case).to(case.dtype)
    start = time.monotonic()
    try:
        report = landscape.audit(
            model, lambda model, x: model(x).square().sum(), torch.randn(4, dtype=case.dtype)
        )
    # A crash of the audit is news, too.
    except Exception as error:
        return f"raises {type(error).__name__}: {str(error)[:90]}"
    return f"{judged(report)}, {time.monotonic() - start:.0f} s"


def judged(report: AuditReport) -> str:
    """The verdict of an AuditReport in a few words: the tests that did not pass, and whom it
    blames.
    """
    if report.passed:
        return "passed"
    tests = dict.fromkeys(
        f"{row.test} {row.verdict}" for row in report.rows if row.verdict != "passed"
    )
    modules = dict.fromkeys(
        name.partition(" ")[0] for name in report.faulty_modules if name != WHOLE
    )
    return f"{', '.join(tests)}; names {', '.join(modules) or 'no module'}"


def main(key: str) -> None:
    from operations import load_operations

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    # Packages print while they are imported and run.
    with contextlib.redirect_stdout(io.StringIO()):
        case = load_operations()[key]()
        row = {"key": key, "how": case.how, "dtype": str(case.dtype).removeprefix("torch.")}
        row |= _Measurement(case).columns()
        row["audit"] = audited(case)
    print(json.dumps(row))


if __name__ == "__main__":
    main(sys.argv[1])
