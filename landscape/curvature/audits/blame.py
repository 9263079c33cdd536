"""Search for the module whose derivative is wrong.

Modules are tested separately, on the inputs that they get in the real evaluation.

They are tested from the outside in, each as a function of its own parameters and inputs. The search
goes on only inside modules that fail. A module that fails and has no failing part is to blame.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from landscape.curvature.audits.differences import PRECISION, Params, PlainProduct, Point, displaced
from landscape.curvature.audits.judgement import Outcome, judge_derivatives
from landscape.curvature.objective import Objective, call_with_tensors, flatten
from landscape.linalg.operator import seeded

# A module with more parts than this is searched no further: a test costs several evaluations of the
# part.
_MAX_TESTS = 1000


@dataclass(frozen=True)
class FaultyModule:
    """A module that failed: dotted name and class, the test, the error."""

    name: str
    test: str
    outcome: Outcome


@dataclass(frozen=True)
class _Call:
    """The arguments of a module's first call.

    They are split into tensors that can be differentiated, and everything else.
    """

    leaves: tuple[Any, ...]
    structure: TreeSpec


def find_faulty_modules(model: nn.Module, point: Point, *, seed: int) -> list[FaultyModule]:
    """List the innermost modules that fail a test of their own.

    Empty if each is right by itself.
    """
    calls = _recorded(model, point)
    tested: dict[str, FaultyModule | None] = {}

    def test(name: str, part: nn.Module) -> FaultyModule | None:
        # A module that is reached under several names is tested once.
        key = str(id(part))
        if key not in tested:
            within = dict(_own_parameters(point.params, name))
            tested[key] = (
                None
                if len(tested) >= _MAX_TESTS
                else _test(name, part, within, calls[id(part)], seed=seed)
            )
        return tested[key]

    def search(name: str, part: nn.Module) -> list[FaultyModule]:
        faulty = None
        if id(part) in calls and name:
            faulty = test(name, part)
            if faulty is None:
                return []
        children = (
            (f"{name}.{key}" if name else key, child) for key, child in part.named_children()
        )
        # A module that holds a wrong one fails too, so the innermost that fails is to blame.
        inner = [culprit for path, child in children for culprit in search(path, child)]
        return inner or ([faulty] if faulty else [])

    return search("", model)


def _own_parameters(params: Params, name: str) -> Iterator[tuple[str, Tensor]]:
    for path, value in params.items():
        if path.startswith(f"{name}."):
            yield path[len(name) + 1 :], value


def _recorded(model: nn.Module, point: Point) -> dict[int, _Call]:
    """Record the arguments of each module's first call in an evaluation."""
    calls: dict[int, _Call] = {}

    def record(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if id(part) not in calls:
            leaves, structure = tree_flatten((args, kwargs))
            copies = tuple(
                leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves
            )
            calls[id(part)] = _Call(copies, structure)

    with _calls_watched(model, record):
        point.evaluate(point.leaves())
    return calls


@contextlib.contextmanager
def _calls_watched(model: nn.Module, record: Any) -> Iterator[None]:
    """Call `record` before each call of a part of the model.

    Uses hooks that are removed afterwards.

    PyTorch's hooks on all modules of the process do not see keyword arguments.
    """
    handles = [part.register_forward_pre_hook(record, with_kwargs=True) for part in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _test(
    name: str, part: nn.Module, params: Params, call: _Call, *, seed: int
) -> FaultyModule | None:
    """Test a single module, the quickest tests first.

    None if it passes, or cannot be run by itself.
    """
    title = f"{name} ({type(part).__name__})"
    inputs = {
        f"input {index}": _as_real(leaf)
        for index, leaf in enumerate(call.leaves)
        if _is_floating(leaf)
    }
    variables = {**{f"own {key}": value for key, value in params.items()}, **inputs}
    if not variables or len({value.dtype for value in variables.values()}) > 1:
        return None
    if next(iter(variables.values())).dtype not in PRECISION:
        return None
    # Inputs are variables like parameters: a backward that is wrong for its input spoils the
    # derivatives of all that comes before it.
    point = Point(_scalarised(part, call, seed=seed), variables, None)
    try:
        if point.digits not in PRECISION:
            return None
    # What a part raises that works only inside its model is not known; it is judged with the part
    # around it.
    except Exception:
        return None
    faulty = _examined(title, point, seed=seed)
    if faulty is None:
        return None
    # Inputs may lie exactly on a kink, as the zeros behind a ReLU do for the maximum of a window; a
    # fault is next to them too.
    beside = Point(point.objective, displaced(variables, seeded(seed + 4)), None)
    with contextlib.suppress(Exception):
        if math.isfinite(beside.loss_and_gradient()[0]):
            return _examined(title, beside, seed=seed)
    # Next to its inputs the part cannot be run: a root or a logarithm, say.
    return faulty


def _examined(title: str, point: Point, *, seed: int) -> FaultyModule | None:
    try:
        slope, again = (point.loss_and_gradient()[1] for _ in range(2))
    # It was evaluated before, so what is raised now comes from a backward pass.
    except Exception:
        return FaultyModule(title, "gradient", Outcome(math.inf, "failed", ""))
    size = max(float(flatten(slope).norm()), torch.finfo(torch.float64).tiny)
    change = float((flatten(slope) - flatten(again)).norm()) / size
    if change > point.precision.repeat:
        return FaultyModule(title, "determinism", Outcome(change, "failed", ""))
    try:
        return _compared(title, point, point.random_direction(seeded(seed + 2)), slope)
    # As above, of inputs next to those that it got.
    except Exception:
        return None


def _compared(title: str, point: Point, direction: Params, slope: Params) -> FaultyModule | None:
    product = None
    refused = False
    try:
        product = PlainProduct(point)(direction)
    except Exception:
        refused = True
    first, second = judge_derivatives(point, direction, slope, product)
    if first.verdict == "failed":
        return FaultyModule(title, "gradient", first)
    if refused:
        return FaultyModule(title, "product", Outcome(math.inf, "failed", ""))
    return (
        FaultyModule(title, "product", second)
        if second is not None and second.verdict == "failed"
        else None
    )


def _scalarised(part: nn.Module, call: _Call, *, seed: int) -> Objective:
    """Build a random quadratic form of a module's outputs.

    It is a function of the module's parameters and inputs.

    Quadratic, because the gradient that comes into an operation has to depend on what it computes:
    a linear operation whose backward drops that dependence would look right under a linear form.
    """
    buffers = {name: buffer.detach().clone() for name, buffer in part.named_buffers()}
    # Sizes of the outputs in the first evaluation, which is at the recorded inputs: constants of
    # the form.
    sizes: list[float] = []

    def forward(variables: Params, batch: Any) -> list[Tensor]:
        own = {
            key[len("own ") :]: value for key, value in variables.items() if key.startswith("own ")
        }
        leaves = [
            _restored(leaf, variables.get(f"input {index}"))
            for index, leaf in enumerate(call.leaves)
        ]
        args, kwargs = tree_unflatten(leaves, call.structure)
        state = {**{name: value.clone() for name, value in buffers.items()}, **own}
        output = call_with_tensors(part, state, args, kwargs)
        return [_as_real(leaf) for leaf in tree_flatten(output)[0] if _is_floating(leaf)]

    def loss(outputs: list[Tensor], batch: Any) -> Tensor:
        generator = seeded(seed + 3)
        terms = []
        if not sizes:
            sizes.extend(
                max(float(output.detach().square().mean().sqrt()), 1e-6) for output in outputs
            )
        for output, size in zip(outputs, sizes):
            linear, square = (
                torch.randn(output.shape, generator=generator, dtype=torch.float64).to(
                    output.device, output.dtype
                )
                for _ in range(2)
            )
            # Divided by its size, every output counts alike, whatever its units.
            # The gradient that comes into the part is linear / size + square * output / size^2: of
            # the size of 1 / size in both terms, and dependent on the output.
            terms.append(
                (linear * output).sum() / size + 0.5 * (square * output.square()).sum() / size**2
            )
        return torch.stack(terms).sum()

    return Objective(forward, loss, rowwise=False)


def _is_floating(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def _as_real(value: Tensor) -> Tensor:
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def _restored(leaf: Any, variable: Tensor | None) -> Any:
    """Copy a recorded argument, because a module may work in place."""
    if variable is None:
        return leaf.clone() if isinstance(leaf, Tensor) else leaf
    return torch.view_as_complex(variable.clone()) if leaf.is_complex() else variable.clone()
