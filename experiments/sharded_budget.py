"""Bytes per parameter that each process needs for `eigsh` of a language model, measured and
extrapolated, beside two others.

    python experiments/sharded_budget.py --json sharded_budget.json

Llama models of transformers with random float32 weights, eager attention, 8 layers, on a block of
16 tokens in each process, on CPUs. Each process keeps --vectors Krylov vectors and makes as many
products. Freed memory goes back to the system at once, so the peak of the resident memory, less
that before the model, is what was held. Activations grow with the square root of the parameters, so
bytes per parameter fall with the size; `slope` is what each further parameter needs between the two
largest.

`eigenthings` is DDPHessianOperator and `lanczos` of hessian-eigenthings, in an environment that
this makes in --environment. HessFormer is not on PyPI and was not run; its column is the formula of
its code (commit 5adcfbd).
"""

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from peers.environment import PEERS, make_environment
from peers.processes import MEMORY_OF_TENSORS, TaskFailed, peak_mebibytes, run_together, write_json

# Widths of the hidden states.
WIDTHS = (256, 512, 768)
LAYERS, HEAD, TOKENS, VOCABULARY = 8, 64, 16, 256
EIGENTHINGS = next(peer for peer in PEERS if peer.module == "hessian_eigenthings")
MEBIBYTE = 1 << 20
# Layers, width, width of the feed-forward part and vocabulary of TinyLlama-1.1B and Llama-2-7B;
# heads share no keys here.
LARGE = {"1 B": (22, 2048, 5632, 32000), "7 B": (32, 4096, 11008, 32000)}


@dataclass(frozen=True)
class Row:
    """One model on so many processes; bytes of the process that has most, above those before the
    model.

    Attributes:
        product_bytes: After the first product and its check.
        peak_bytes: After `eigsh` or `lanczos` as well.
        formula_bytes: What `memory_of_rank` says, for ours.
    """

    tool: str
    processes: int
    n: int
    product_bytes: float
    peak_bytes: float
    formula_bytes: float = math.nan


def config_of(layers: int, width: int, inner: int, vocabulary: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        num_key_value_heads=width // HEAD,
        vocab_size=vocabulary,
        max_position_embeddings=TOKENS,
        attn_implementation="eager",
        use_cache=False,
    )


def small_config(width: int) -> Any:
    return config_of(LAYERS, width, 8 * width // 3 // 32 * 32, VOCABULARY)


def begun() -> tuple[int, int, Any]:
    """Rank, number of processes and their mesh."""
    import torch
    import torch.distributed as dist
    import transformers
    from torch.distributed.device_mesh import init_device_mesh

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    return rank, size, init_device_mesh("cpu", (size,))


def block_of(rank: int) -> dict[str, Any]:
    import torch

    return {
        "tokens": torch.randint(
            VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(rank)
        )
    }


def ours_task(width: int, vectors: int) -> dict[str, Any]:
    """What one process measures on cut weights."""
    import torch
    import torch.distributed as dist
    from benchmark_sharded import rows_of
    from transformers import LlamaForCausalLM

    import landscape
    from landscape.clip.meta_model import parameters_on_meta, place_rows
    from landscape.language.objective import LossPath, causal_lm_objective
    from landscape.linalg import seeded
    from landscape.pipeline.shard_memory import memory_of_rank
    from landscape.sharded import ShardedHessianOperator

    rank, size, mesh = begun()
    # The first product, its check and a solve load more of torch, and Numba.
    tiny = torch.nn.Linear(512, 512)
    A = landscape.hessian(
        tiny,
        lambda model, batch: model(batch["x"]).square().mean(),
        {"x": torch.ones(2, 512)},
        mesh=mesh,
    )
    landscape.eigsh(A, k=1, max_matvecs=4)
    idle = peak_mebibytes()
    with parameters_on_meta():
        model = LlamaForCausalLM(small_config(width)).eval()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    estimate = memory_of_rank(model, shapes, num_processes=size, num_vectors=vectors)
    place_rows(
        model, {name: rows_of(name, shape, rank, size) for name, shape in shapes.items()}, mesh
    )
    objective, params = causal_lm_objective(model, path=LossPath(VOCABULARY))
    H = ShardedHessianOperator(objective, params, block_of(rank), mesh=mesh)
    del params
    model.to("meta")
    _ = H @ H.random(seeded(0))
    at_product = peak_mebibytes()
    landscape.eigsh(H, k=2, max_matvecs=vectors, return_vectors=False)
    peak = peak_mebibytes()
    dist.destroy_process_group()
    return {
        "n": H.n,
        "product_bytes": (at_product - idle) * MEBIBYTE,
        "peak_bytes": (peak - idle) * MEBIBYTE,
        "formula_bytes": estimate.total,
    }


def eigenthings_task(width: int, vectors: int) -> dict[str, Any]:
    """What one process measures on whole weights."""
    import torch
    import torch.distributed as dist
    from hessian_eigenthings import lanczos
    from hessian_eigenthings.operators.distributed import DDPHessianOperator
    from transformers import LlamaForCausalLM

    rank, _, _ = begun()

    def loss(model: Any, batch: Any) -> Any:
        return model(input_ids=batch["tokens"], labels=batch["tokens"]).loss

    tiny = torch.nn.Linear(512, 512)
    square = DDPHessianOperator(
        tiny, [{"x": torch.ones(2, 512)}], lambda model, batch: model(batch["x"]).square().mean()
    )
    lanczos(square, k=1, max_iter=4)
    idle = peak_mebibytes()
    model = LlamaForCausalLM(small_config(width)).eval()
    H = DDPHessianOperator(model, [block_of(rank)], loss)
    H.matvec(torch.randn(H.size))
    at_product = peak_mebibytes()
    lanczos(H, k=2, max_iter=vectors)
    peak = peak_mebibytes()
    dist.destroy_process_group()
    return {
        "n": H.size,
        "product_bytes": (at_product - idle) * MEBIBYTE,
        "peak_bytes": (peak - idle) * MEBIBYTE,
    }


def measure(tool: str, width: int, processes: int, vectors: int, python: Mapping[str, str]) -> Row:
    """The memory of the process that has most.

    Raises:
        TaskFailed: If one fails.
    """
    answers = run_together(
        f"sharded_budget.{tool}_task",
        {"width": width, "vectors": vectors},
        processes,
        threads=1,
        variables=MEMORY_OF_TENSORS,
        **({"python": python[tool]} if tool in python else {}),
    )
    return Row(
        tool, processes, **{key: max(answer[key] for answer in answers) for key in answers[0]}
    )


def slope(rows: Sequence[Row]) -> float:
    """Compute the bytes that each further parameter needs, between the two largest models."""
    smaller, larger = sorted(rows, key=lambda row: row.n)[-2:]
    return (larger.peak_bytes - smaller.peak_bytes) / (larger.n - smaller.n)


def needed(name: str, processes: int, vectors: int) -> tuple[int, float, float, float]:
    """n of a large model, and gigabytes that each process needs beside activations: ours,
    eigenthings', HessFormer's.

    Ours is `memory_of_rank`. Each process of eigenthings holds the weights, its basis of m vectors
    and k eigenvectors, and while it multiplies the gradient of the graph, the product in pieces and
    in one, and the vector before: 4 (m + k + 5) bytes a parameter. HessFormer holds the weights
    spread over the devices, and its basis of m vectors, the vector, the product and the one before
    on the device of the first parameter: 4 (m + 3) bytes a parameter there in float32.
    """
    from transformers import LlamaForCausalLM

    from landscape.clip.meta_model import parameters_on_meta
    from landscape.pipeline.shard_memory import memory_of_rank

    with parameters_on_meta():
        model = LlamaForCausalLM(config_of(*LARGE[name]))
    n = sum(parameter.numel() for parameter in model.parameters())
    ours = memory_of_rank(
        model, dict(model.named_parameters()), num_processes=processes, num_vectors=vectors
    )
    return n, ours.total / 1e9, 4 * (vectors + 2 + 5) * n / 1e9, 4 * (vectors + 3) * n / 1e9


def line(row: Row) -> str:
    formula = "" if math.isnan(row.formula_bytes) else f"{row.formula_bytes / row.n:9.1f}"
    return (
        f"{row.tool:12}{row.processes:5} {row.n:12,} {row.product_bytes / row.n:9.1f} "
        f"{row.peak_bytes / row.n:9.1f} {formula:>9}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--widths", type=int, nargs="+", default=list(WIDTHS), help="default: %(default)s"
    )
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2], help="default: %(default)s"
    )
    parser.add_argument(
        "--vectors",
        type=int,
        default=12,
        help="Krylov vectors that are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--large-vectors", type=int, default=30, help="of the large models (default: %(default)s)"
    )
    parser.add_argument(
        "--environment",
        type=Path,
        default=Path("runs/benchmark/eigenthings"),
        help="of hessian-eigenthings",
    )
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    options = parser.parse_args()
    environment = make_environment(options.environment.resolve(), [EIGENTHINGS])
    for failure in environment.failures.values():
        print(f"hessian-eigenthings: {failure}")
    tools = ["ours", *("eigenthings" for _ in environment.versions)]
    python = {"eigenthings": environment.python}
    print(
        f"{date.today()}, load {os.getloadavg()[0]:.1f}, float32, {options.vectors} Krylov "
        "vectors, hessian-eigenthings "
        f"{', '.join(environment.versions.values()) or 'not installed'}"
    )
    print(
        f"bytes per parameter in each process\n{'':12}{'':5} {'n':>12} {'product':>9} {'peak':>9} "
        f"{'formula':>9}"
    )
    rows: list[Row] = []
    for tool in tools:
        for processes in options.processes:
            of_tool = []
            for width in options.widths:
                try:
                    of_tool.append(measure(tool, width, processes, options.vectors, python))
                except TaskFailed as error:
                    print(f"{tool:12}{processes:5} width {width}: {error}")
                    continue
                print(line(of_tool[-1]), flush=True)
            if len(of_tool) > 1:
                print(f"{'':17} slope {slope(of_tool):.1f}", flush=True)
            rows += of_tool
            if options.json:
                write_json(options.json, [asdict(row) for row in rows])
    print(
        f"\nGB in each process beside activations, {options.large_vectors} vectors, by the formulas"
    )
    print(
        f"{'':6}{'n':>15}{'processes':>11}{'ours':>9}{'eigenthings':>13}"
        f"{'HessFormer, first device':>26}"
    )
    for name in LARGE:
        for processes in (1, 2, 4, 8, 16):
            n, ours, eigenthings, hessformer = needed(name, processes, options.large_vectors)
            print(f"{name:6}{n:15,}{processes:11}{ours:9.1f}{eigenthings:13.1f}{hessformer:26.1f}")


if __name__ == "__main__":
    main()
