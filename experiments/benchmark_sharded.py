"""Memory and time of one Hessian-vector product of a model that two processes share, against one
process that has it whole.

    python experiments/benchmark_sharded.py --json sharded.json
    python experiments/benchmark_sharded.py --models 208x7 416x7 --processes 1 2 3

A CLIP model of two Transformers, "width x layers", on 16 pictures of 64 pixels and captions,
float32, gloo, on CPUs of one machine. A single process has the ordinary operator; several have
`ShardedHessianOperator`, and none ever holds the whole model. They share the threads: two processes
have one each where one has two. Peak memory (VmHWM) is that of the process that needs most;
"without Python and torch" subtracts what it has before the model. `eigsh` makes two products more
than its basis holds, so it restarts once and does not converge. The C library keeps freed memory
for later, unless --exact-memory.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from peers.processes import MEMORY_OF_TENSORS, peak_mebibytes, run_together, write_json

PAIRS = 16
# 84.4 million parameters.
MODELS = ("704x7",)


@dataclass(frozen=True)
class Row:
    """One model on so many processes; the largest of all processes' MiB, the median of rank 0's
    seconds.
    """

    model: str
    processes: int
    n: int
    build_seconds: float
    first_seconds: float
    seconds: float
    num_products: int
    idle_mebibytes: float
    product_mebibytes: float
    eigsh_mebibytes: float
    value: float
    values: list[float]

    @property
    def model_mebibytes(self) -> float:
        return self.product_mebibytes - self.idle_mebibytes


def timed(compute: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = compute()
    return time.perf_counter() - begun, result


def rows_of(name: str, shape: Sequence[int], rank: int, size: int) -> Any:
    """A process's rows of a weight: the same numbers, however many processes there are."""
    import torch

    from landscape.linalg import seeded

    # As torch.chunk and DTensor divide them.
    count = -(-shape[0] // size)
    generator = seeded(sum(map(ord, name)))
    # One gain or bias is about 1 or 0, a matrix has rows of about unit length.
    whole = torch.randn(tuple(shape), generator=generator)
    whole = (
        1 + 0.1 * whole
        if len(shape) == 1 and name.endswith("weight")
        else whole / max(1, shape[-1]) ** 0.5
    )
    return whole[rank * count : (rank + 1) * count].clone()


def placed_model(name: str, mesh: Any, rank: int, size: int) -> Any:
    """The model with this process's rows of the weights as DTensors, or the whole of it where there
    is one process.
    """
    import torch
    from benchmark_large import model_of

    from landscape.clip.meta_model import parameters_on_meta, place_rows

    with parameters_on_meta():
        model = model_of(name)
    pieces = {
        key: rows_of(key, parameter.shape, rank, size) if parameter.ndim else torch.tensor(2.0)
        for key, parameter in model.named_parameters()
    }
    if mesh is not None:
        place_rows(model, pieces, mesh)
        return model.eval()
    for part_name, part in model.named_modules():
        for key, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[key] = torch.nn.Parameter(pieces[f"{part_name}.{key}".lstrip(".")])
    return model.eval()


def sharded_task(name: str, count: int, basis: int) -> dict[str, Any]:
    """What one of the processes measures: the fields of a row."""
    import torch
    import torch.distributed as dist
    from benchmark_large import batch_of
    from torch.distributed.device_mesh import init_device_mesh

    import landscape
    from landscape.clip.objectives import contrastive_objective
    from landscape.curvature import HessianOperator
    from landscape.linalg import seeded
    from landscape.sharded import ShardedHessianOperator

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    mesh = None
    if size > 1:
        dist.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (size,))
    idle = peak_mebibytes()
    model = placed_model(name, mesh, rank, size)
    rows = slice(rank * PAIRS // size, (rank + 1) * PAIRS // size)
    batch = {key: value[rows].clone() for key, value in batch_of(model, PAIRS).items()}
    objective, params = contrastive_objective(model)
    H: Any
    if mesh is None:
        build, H = timed(lambda: HessianOperator(objective, params, batch, hvp="retained"))
    else:
        build, H = timed(lambda: ShardedHessianOperator(objective, params, batch, mesh=mesh))
        del params
        # The operator has its rows; the ordinary one reads the buffers of the model.
        model.to("meta")
    v = H.random(seeded(0))
    first, product = timed(lambda: H @ v)
    times = []
    for _ in range(count):
        seconds, product = timed(lambda: H @ v)
        times.append(seconds)
    value = float(H.space.inner(v[None], product)[0])
    del product
    at_products = peak_mebibytes()
    pairs = landscape.eigsh(
        H, k=2, tol=1e-2, max_basis=basis, max_matvecs=basis + 2, return_vectors=False
    )
    at_eigsh = peak_mebibytes()
    if mesh is not None:
        dist.destroy_process_group()
    return {
        "n": H.n,
        "build_seconds": build,
        "first_seconds": first,
        "seconds": statistics.median(times),
        "num_products": pairs.num_matvecs,
        "idle_mebibytes": idle,
        "product_mebibytes": at_products,
        "eigsh_mebibytes": at_eigsh,
        "value": value,
        "values": pairs.values.tolist(),
    }


def measure(
    model: str,
    processes: int,
    *,
    count: int,
    basis: int,
    threads: int,
    variables: Mapping[str, str],
) -> Row:
    """The seconds of the first process, and the memory of that which has most.

    Raises:
        TaskFailed: If one fails.
    """
    task = {"name": model, "count": count, "basis": basis}
    answers = run_together(
        "benchmark_sharded.sharded_task",
        task,
        processes,
        threads=max(1, threads // processes),
        variables=variables,
    )
    most = {
        key: max(answer[key] for answer in answers)
        for key in answers[0]
        if key.endswith("mebibytes")
    }
    return Row(model, processes, **{**answers[0], **most})


def line(row: Row) -> str:
    return (
        f"{row.model:9}{row.processes:5} {row.n:12,} {row.first_seconds:8.1f} {row.seconds:8.2f} "
        f"{row.idle_mebibytes:8.0f} {row.product_mebibytes:8.0f} {row.eigsh_mebibytes:8.0f} "
        f"{row.num_products:9}  {row.value:.6g}"
    )


def against_one(rows: Sequence[Row]) -> str:
    """Ratios to the row of one process."""
    one, last = rows[0], rows[-1]
    peak = last.product_mebibytes / one.product_mebibytes
    beyond = last.model_mebibytes / one.model_mebibytes
    return (
        f"{'':9}{last.processes} against 1: time {last.seconds / one.seconds:.2f}, peak of "
        f"products {peak:.2f} ({beyond:.2f} without Python and torch), peak of eigsh "
        f"{last.eigsh_mebibytes / one.eigsh_mebibytes:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), help="width x layers (default: %(default)s)"
    )
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2], help="default: %(default)s"
    )
    parser.add_argument(
        "--products", type=int, default=5, help="products after the first (default: %(default)s)"
    )
    parser.add_argument(
        "--basis", type=int, default=10, help="Krylov vectors that are kept (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="of all processes together (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument(
        "--exact-memory", action="store_true", help="give freed memory back at once; slower"
    )
    options = parser.parse_args()
    variables = MEMORY_OF_TENSORS if options.exact_memory else {}
    load = f"load {os.getloadavg()[0]:.1f}"
    print(
        f"{date.today()}, {os.cpu_count()} cores, {options.threads} threads in all, {load}, "
        f"{PAIRS} pairs"
    )
    heads = (
        f"{'first s':>8} {'wall s':>8} {'idle MiB':>8} {'product':>8} {'eigsh':>8} {'products':>9}"
    )
    print(f"{'':9}{'':5} {'n':>12} {heads}  v H v")
    rows: list[Row] = []
    for model in options.models:
        of_model: list[Row] = []
        for processes in options.processes:
            of_model.append(
                measure(
                    model,
                    processes,
                    count=options.products,
                    basis=options.basis,
                    threads=options.threads,
                    variables=variables,
                )
            )
            print(line(of_model[-1]), flush=True)
            if len(of_model) > 1:
                print(against_one(of_model), flush=True)
            rows.append(of_model[-1])
            if options.json:
                write_json(options.json, [asdict(row) for row in rows])
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
