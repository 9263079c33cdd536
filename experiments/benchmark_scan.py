"""The scans against plain PyTorch on a CPU: forward, gradient and Hessian-vector product, in CPU
seconds and on the wall clock.

    python experiments/benchmark_scan.py --json scan.json

Contenders: the Numba kernels, a scan of logarithmic depth in PyTorch, and the recurrence as a
Python loop, which ordinary autograd differentiates. All take the same tensors, in float32. With a
fixed random w, "gradient" is the value y and the gradient of <w, y> in all inputs, and "product" is
one product with the Hessian of <w, y>, by double backward over a retained graph, as HessianOperator
makes it; a loss with arithmetic of its own would add the same time to all contenders. Every
contender does everything once before it is measured, so that compilation is not; then they take
turns, and medians over the rounds are reported, because machines are noisy. Each lives in a process
of its own, which keeps the memory that it
frees: in a common one, or with glibc's defaults, memory is given back to the system and taken again
on somebody else's time.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from landscape.kernels import linear_scan, selective_scan

# (batch, channels, states, length): a Mamba layer of a small picture, and a layer of VMamba at 224
# pixels.
SIZES = [(15, 192, 16, 64), (15, 384, 1, 784)]
# glibc's names: hold on to freed memory, and serve arrays of up to 32 MiB from it.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}
CONTENDERS = {"kernel": "cpu", "log depth": "log_depth", "loop": "reference"}


@dataclass(frozen=True)
class Row:
    """One measurement: medians over the rounds, in seconds, and how many times faster than the loop
    it is.
    """

    scan: str
    size: tuple[int, ...]
    task: str
    contender: str
    cpu_seconds: float
    wall_seconds: float
    cpu_speedup: float = 1.0
    wall_speedup: float = 1.0


def selective_inputs(size: tuple[int, int, int, int], generator: torch.Generator) -> list[Tensor]:
    """u, delta, A, B, C, D, delta_bias, as the layers of a tower initialise them."""
    b, d, n, length = size
    shapes = [(b, d, length), (b, d, length), (d, n), (b, n, length), (b, n, length), (d,), (d,)]
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    inputs[2] = -torch.arange(1.0, n + 1).expand(d, n).contiguous()
    inputs[6] = inputs[6] - 4
    return inputs


def linear_inputs(size: tuple[int, int, int, int], generator: torch.Generator) -> list[Tensor]:
    return [torch.rand(size, generator=generator), torch.randn(size, generator=generator)]


def run_selective(inputs: list[Tensor], backend: str) -> Tensor:
    u, delta, A, B, C, D, bias = inputs
    out = selective_scan(
        u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True, backend=backend
    )  # type: ignore[arg-type]
    assert isinstance(out, Tensor)
    return out


def run_linear(inputs: list[Tensor], backend: str) -> Tensor:
    return linear_scan(*inputs, backend=backend)  # type: ignore[arg-type]


SCANS: dict[str, tuple[Callable[..., list[Tensor]], Callable[[list[Tensor], str], Tensor]]] = {
    "selective_scan": (selective_inputs, run_selective),
    "linear_scan": (linear_inputs, run_linear),
}


def tasks(
    run: Callable[[list[Tensor], str], Tensor], inputs: list[Tensor], backend: str
) -> dict[str, Callable[[], object]]:
    """What is measured; the graph that "product" uses is built here."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    directions = [torch.randn_like(x) for x in inputs]
    weights = torch.randn_like(run(inputs, backend))
    graph = torch.autograd.grad(run(leaves, backend), leaves, weights, create_graph=True)

    def forward() -> Tensor:
        with torch.no_grad():
            return run(inputs, backend)

    return {
        "forward": forward,
        "gradient": lambda: torch.autograd.grad(run(leaves, backend), leaves, weights),
        "product": lambda: torch.autograd.grad(graph, leaves, directions, retain_graph=True),
    }


def work(
    pipe: Connection, backend: str, scan: str, size: tuple[int, int, int, int], threads: int
) -> None:
    """The process of one contender: does a task whenever it is told to, and answers with CPU and
    wall seconds.
    """
    torch.set_num_threads(threads)
    make, run = SCANS[scan]
    calls = tasks(run, make(size, torch.Generator().manual_seed(0)), backend)
    while (task := pipe.recv()) is not None:
        cpu, wall = time.process_time(), time.perf_counter()
        calls[task]()
        pipe.send((time.process_time() - cpu, time.perf_counter() - wall))


def measure(scan: str, size: tuple[int, int, int, int], rounds: int, threads: int) -> Iterator[Row]:
    os.environ.update(KEEP_MEMORY)
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name, backend in CONTENDERS.items():
        pipes[name], theirs = context.Pipe()
        context.Process(
            target=work, args=(theirs, backend, scan, size, threads), daemon=True
        ).start()
    for task in ("forward", "gradient", "product"):
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in pipes}
        for turn in range(rounds + 1):
            for name, pipe in pipes.items():
                pipe.send(task)
                pair = pipe.recv()
                if turn > 0:
                    times[name].append(pair)
        medians = {
            name: tuple(map(statistics.median, zip(*pairs))) for name, pairs in times.items()
        }
        slow_cpu, slow_wall = medians["loop"]
        for name, (cpu, wall) in medians.items():
            yield Row(scan, size, task, name, cpu, wall, slow_cpu / cpu, slow_wall / wall)
    for pipe in pipes.values():
        pipe.send(None)


def table(rows: list[Row]) -> str:
    """One line for each task: CPU milliseconds of all contenders, and how many times faster than
    the others the kernel is.
    """
    lines = [f"{'':37} {'CPU ms':^{10 * len(CONTENDERS)}} {'kernel is faster than':>24}"]
    names = "".join(f"{name:>10}" for name in CONTENDERS)
    lines += [f"{'scan':15}{'b, d, n, l':17}{'task':9}{names}{'log depth':>14}{'loop':>10}"]
    for task in dict.fromkeys((row.scan, row.size, row.task) for row in rows):
        times = {
            row.contender: row.cpu_seconds for row in rows if (row.scan, row.size, row.task) == task
        }
        name = f"{task[0]:15}{', '.join(map(str, task[1])):17}{task[2]:9}"
        ratios = times["log depth"] / times["kernel"], times["loop"] / times["kernel"]
        lines += [
            f"{name}{''.join(f'{1e3 * times[name]:10.2f}' for name in CONTENDERS)}"
            f"{ratios[0]:12.1f} x{ratios[1]:8.1f} x"
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns that are measured (default 7)")
    parser.add_argument(
        "--threads",
        type=int,
        default=None,
        help="threads of every contender (default: torch's own number)",
    )
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    threads = options.threads or torch.get_num_threads()
    rows = [
        row
        for scan in SCANS
        for size in SIZES
        for row in measure(scan, size, options.rounds, threads)
    ]
    machine = {
        "torch": torch.__version__,
        "threads": threads,
        "cores": os.cpu_count(),
        "processor": platform.machine(),
    }
    header = (
        f"{date.today()}, {platform.machine()} with {os.cpu_count()} cores, {threads} threads, "
        f"torch {torch.__version__}"
    )
    print(f"float32, medians of {options.rounds} alternating runs, {header}")
    print(table(rows))
    if options.json:
        options.json.write_text(
            json.dumps({**machine, "rows": [asdict(row) for row in rows]}, indent=1)
        )


if __name__ == "__main__":
    main()
