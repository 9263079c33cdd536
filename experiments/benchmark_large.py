"""Seconds and peak memory of one Hessian-vector product of large models, of this checkout and of
another commit.

    python experiments/benchmark_large.py                          # this checkout alone
    python experiments/benchmark_large.py --before 4c0a0a5 --hvp traced --json large.json

Cases: a ViT of 30 million parameters at 64 pixels and VMamba-T220 at 224, both as CLIP models at
their initialisation, on a batch of 15 random pairs. Each version measures a case in a process of
its own. `first` is the first product, in which the operator chooses, checks and compiles; then the
median of --products further ones, and of as many gradients.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark_batch import cpu_seconds
from peers.processes import peak_mebibytes, write_json
from versions import Worker, WorkerFailed, commit_of, requests, source_of

if TYPE_CHECKING:
    import torch

PAIRS = 15
# A name of this project, or "width x layers" of both towers of a ViT at 64 pixels.
CASES = ("416x7", "vmamba_t220_clip")
VOCABULARY, CONTEXT = 512, 16


@dataclass(frozen=True)
class Row:
    """One version on one model; wall and CPU seconds, and MiB of the whole process.

    Attributes:
        idle_mebibytes: With the model and the batch, before the operator.
        failure: Why there is no number, or empty.
    """

    model: str
    version: str
    product: str
    n: int = 0
    first_seconds: float = float("nan")
    seconds: float = float("nan")
    cpu_seconds: float = float("nan")
    gradient_cpu_seconds: float = float("nan")
    idle_mebibytes: float = float("nan")
    peak_mebibytes: float = float("nan")
    chosen: str = ""
    failure: str = ""


def model_of(name: str) -> "torch.nn.Module":
    if not name[0].isdigit():
        from landscape.clip.model import build_model

        return build_model(name)
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    width, layers = map(int, name.split("x"))
    return CLIP(
        embed_dim=64,
        vision_cfg=CLIPVisionCfg(
            layers=layers, width=width, head_width=32, patch_size=8, image_size=64
        ),
        text_cfg=CLIPTextCfg(
            context_length=CONTEXT,
            vocab_size=VOCABULARY,
            width=width,
            heads=width // 32,
            layers=layers,
        ),
    ).eval()


def batch_of(model: "torch.nn.Module", pairs: int = PAIRS) -> "dict[str, torch.Tensor]":
    """Random pictures and captions; the end token, the largest, is the last of each."""
    import torch

    from landscape.linalg import seeded

    size = model.visual.image_size  # type: ignore[union-attr]
    height, width = (size, size) if isinstance(size, int) else size
    vocabulary, context = len(model.token_embedding.weight), model.context_length  # type: ignore[arg-type]
    text = torch.randint(1, vocabulary - 1, (pairs, context), generator=seeded(1))
    text[:, -1] = vocabulary - 1
    return {"image": torch.randn(pairs, 3, height, width, generator=seeded(0)), "text": text}


def timed(compute: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    begun, cpu_begun = time.perf_counter(), cpu_seconds()
    compute()
    return time.perf_counter() - begun, cpu_seconds() - cpu_begun


def work(name: str, product: str) -> None:
    """Answer each request, a number of products, with the measured fields of a row."""
    import torch

    from landscape.clip.objectives import contrastive_objective
    from landscape.curvature import HessianOperator, gradient
    from landscape.linalg import seeded

    model = model_of(name)
    batch = batch_of(model)
    objective, params = contrastive_objective(model)
    # Older versions know the keyword by another name, and are measured with its default.
    strategy = {} if product == "auto" else {"hvp": product}
    for count in requests():
        idle = peak_mebibytes()
        operator = HessianOperator(objective, params, batch, **strategy)
        v = torch.randn(operator.n, generator=seeded(0))
        first, _ = timed(lambda: operator @ v)
        products = [timed(lambda: operator @ v) for _ in range(count)]
        # Before the gradients, which need less.
        peak = peak_mebibytes()
        gradients = [timed(lambda: gradient(objective, params, batch)) for _ in range(count)]
        answer = {
            "n": operator.n,
            "first_seconds": first,
            "seconds": statistics.median(seconds for seconds, _ in products),
            "cpu_seconds": statistics.median(seconds for _, seconds in products),
            "gradient_cpu_seconds": statistics.median(seconds for _, seconds in gradients),
            "idle_mebibytes": idle,
            "peak_mebibytes": peak,
            "chosen": "" if operator.choice is None else operator.choice.title,
        }
        print(json.dumps(answer), flush=True)


def measure(
    model: str, version: str, source: Path, *, product: str, count: int, threads: int
) -> Row:
    worker = Worker(__file__, ["--work", model, product], source=source, threads=threads)
    try:
        answer: dict[str, Any] = worker.ask(count)
    except WorkerFailed as error:
        answer = {"failure": (str(error).strip().splitlines() or ["killed"])[-1]}
    finally:
        worker.close()
    return Row(model, version, product, **answer)


def line(row: Row) -> str:
    head = f"{row.model:18}{row.version:9}"
    if row.failure:
        return f"{head} failed: {row.failure}"
    ratio = row.cpu_seconds / row.gradient_cpu_seconds
    return (
        f"{head} {row.n:12,} {row.first_seconds:8.1f} {row.seconds:8.2f} {row.cpu_seconds:8.2f} "
        f"{ratio:9.2f} {row.idle_mebibytes:8.0f} {row.peak_mebibytes:8.0f}  {row.chosen}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", nargs="+", default=list(CASES), help="models (default: %(default)s)"
    )
    parser.add_argument("--before", help="a commit to measure as well, its products by auto")
    parser.add_argument(
        "--hvp",
        "--product",
        dest="product",
        default="auto",
        help="how this checkout computes products (default: %(default)s)",
    )
    parser.add_argument(
        "--products", type=int, default=3, help="products after the first (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return
    print(
        f"{date.today()}, {os.cpu_count()} cores, threads: {options.threads}, load "
        f"{os.getloadavg()[0]:.1f}, {PAIRS} pairs"
    )
    print(
        f"{'':27} {'n':>12} {'first s':>8} {'wall s':>8} {'CPU s':>8} {'gradients':>9} "
        f"{'idle MiB':>8} {'peak MiB':>8}"
    )
    versions = [(options.before, "auto")] if options.before else []
    rows = []
    for model in options.cases:
        for commit, product in [*versions, (None, options.product)]:
            with source_of(commit) as source:
                name = commit_of(commit) if commit else "this"
                rows.append(
                    measure(
                        model,
                        name,
                        source,
                        product=product,
                        count=options.products,
                        threads=options.threads,
                    )
                )
            print(line(rows[-1]), flush=True)
            if options.json:
                write_json(options.json, [asdict(row) for row in rows])
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
