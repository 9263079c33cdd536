"""The matrix products and convolutions of a computation, and the time that they take alone: a limit
of its speed.

    python experiments/matrix_products.py --run runs/benchmark --models vit_tiny_64

Every call is recorded at its real shapes and strides, and repeated on random numbers that stay in
the cache, on one thread. Recurrences, softmax, normalisations and additions count nothing, so no
way to compute the same products is as fast.
"""

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from landscape.linalg import SymmetricOperator

aten = torch.ops.aten
MATRIX = (aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.addmv)
CONVOLUTION = (aten.convolution, aten.convolution_backward)
# Calls are repeated until a measurement takes about so long.
SECONDS = 2e-3


@dataclass(frozen=True)
class TensorLike:
    """What the time of an operation on a tensor depends on."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorLike":
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    def random(self) -> Tensor:
        size = 1 + sum(
            (length - 1) * stride for length, stride in zip(self.shape, self.strides) if length
        )
        return torch.randn(size, dtype=self.dtype).as_strided(self.shape, self.strides)


@dataclass(frozen=True)
class Call:
    """A call of an operation, its tensors without their numbers."""

    operation: Any
    arguments: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def is_convolution(self) -> bool:
        return self.operation.overloadpacket in CONVOLUTION

    def prepared(self) -> Callable[[], Any]:
        """The call on random numbers."""
        arguments = [_thawed(argument) for argument in self.arguments]
        options = dict(self.options)
        return lambda: self.operation(*arguments, **options)


def _frozen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return TensorLike.of(value)
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _thawed(value: Any) -> Any:
    if isinstance(value, TensorLike):
        return value.random()
    return [_thawed(entry) for entry in value] if isinstance(value, tuple) else value


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Call] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func.overloadpacket in MATRIX + CONVOLUTION:
            self.calls[Call(func, _frozen(args), tuple(sorted(options.items())))] += 1
        return func(*args, **options)


def recorded(compute: Callable[[], object]) -> Counter[Call]:
    """The matrix products and convolutions of a computation, backward passes included, with how
    often each is made.
    """
    with _Recorder() as recorder:
        compute()
    return recorder.calls


def seconds_of(call: Call, *, rounds: int = 7) -> float:
    """CPU seconds of the call alone: the shortest of some measurements."""
    run = call.prepared()
    run()
    begun = time.process_time()
    run()
    repeats = max(1, round(SECONDS / max(time.process_time() - begun, 1e-6)))
    shortest = float("inf")
    for _ in range(rounds):
        begun = time.process_time()
        for _ in range(repeats):
            run()
        shortest = min(shortest, (time.process_time() - begun) / repeats)
    return shortest


@dataclass(frozen=True)
class Limit:
    """What the matrix products and convolutions of a computation take alone.

    Attributes:
        matrix_seconds, convolution_seconds: CPU seconds of all calls.
        flops: Additions and multiplications in them.
    """

    num_calls: int
    matrix_seconds: float
    convolution_seconds: float
    flops: int

    @property
    def seconds(self) -> float:
        return self.matrix_seconds + self.convolution_seconds


def limit_of(compute: Callable[[], object], *, rounds: int = 7) -> Limit:
    """Record a computation and time its matrix products and convolutions, on torch's present number
    of threads.
    """
    calls = recorded(compute)
    seconds = {False: 0.0, True: 0.0}
    flops = 0
    with torch.no_grad():
        for call, count in calls.items():
            seconds[call.is_convolution] += count * seconds_of(call, rounds=rounds)
            with FlopCounterMode(display=False) as counter:
                call.prepared()()
            flops += count * counter.get_total_flops()
    return Limit(calls.total(), seconds[False], seconds[True], flops)


def product_limit(operator: "SymmetricOperator") -> Limit:
    """The limit of one product of an operator, after a first one, in which it may choose and
    check.
    """
    from landscape.linalg import seeded

    v = torch.randn(operator.n, generator=seeded(0), dtype=torch.float64).to(operator.dtype)
    operator @ v
    return limit_of(lambda: operator @ v)


def main() -> None:
    from peers.problem import Case, load, save_batches, trained

    from landscape.curvature import HessianOperator, gradient
    from landscape.linalg import seeded

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, default=Path("runs/benchmark"), help="weights and batches are kept here"
    )
    parser.add_argument(
        "--models", nargs="+", default=["vit_tiny_64", "vmamba_tiny_64", "simba_tiny_64"]
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{date.today()}, {os.cpu_count()} cores, 1 thread, load {os.getloadavg()[0]:.1f}, torch "
        f"{torch.__version__}, CPU ms"
    )
    print(
        f"{'':16} {'calls':>6} {'Mflop':>7} {'matrices':>9} {'convolutions':>13} {'GF/s':>6} "
        f"{'product':>8} {'gradient':>9}"
    )
    for model in options.models:
        batches, checkpoint = save_batches(options.run, model, 1), trained(options.run, model, 0)[0]
        problem = load(
            Case(model, 0, str(checkpoint.resolve()), str(batches.resolve()), scan="auto"),
            torch.float32,
        )
        operator = HessianOperator(*problem)
        v = torch.randn(operator.n, generator=seeded(0))
        limit = product_limit(operator)
        times = [shortest_of(lambda: operator @ v), shortest_of(lambda: gradient(*problem))]
        print(
            f"{model:16} {limit.num_calls:6} {limit.flops / 1e6:7.0f} "
            f"{1e3 * limit.matrix_seconds:9.1f} {1e3 * limit.convolution_seconds:13.1f} "
            f"{limit.flops / limit.seconds / 1e9:6.1f} {1e3 * times[0]:8.1f} {1e3 * times[1]:9.1f}",
            flush=True,
        )


def shortest_of(compute: Callable[[], object], rounds: int = 7) -> float:
    """CPU seconds of a computation, the shortest of some."""
    seconds = []
    for _ in range(rounds):
        begun = time.process_time()
        compute()
        seconds.append(time.process_time() - begun)
    return min(seconds)


if __name__ == "__main__":
    main()
