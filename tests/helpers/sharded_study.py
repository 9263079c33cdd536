"""Runs of `landscape spectra --shards N` for test_shards.py: a program that loads torch once and
forks every process of them.

`python -m tests.helpers.sharded_study FOLDER` measures small studies there, and writes what each
process of each run said to FOLDER/seen.json. With `FOLDER language` it does so with the language
models that are in FOLDER.
"""

import importlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner

from landscape.cli import main
from landscape.clip.checkpoint import save_checkpoint
from landscape.clip.model import build_model
from tests.helpers.spectra_study import MODEL, make_study
from tests.helpers.tiny_run import config_of

# Seconds after which a process is killed that should have ended.
_PATIENCE = 90.0
Change = Callable[[int], None]


def _nothing(rank: int) -> None:
    pass


def _child(
    rank: int, variables: dict[str, str], arguments: list[str], change: Change, file: Path
) -> None:
    """Run the command as one process of several, and note what it said."""
    os.environ.update(variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    torch.set_num_threads(1)
    change(rank)
    result = CliRunner().invoke(main, arguments)
    error = (
        None
        if result.exception is None or isinstance(result.exception, SystemExit)
        else repr(result.exception)
    )
    seen = {
        "status": result.exit_code,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "error": error,
    }
    file.write_text(json.dumps(seen))


def run(
    folder: Path, count: int, *arguments: object, change: Change = _nothing, shards: bool = True
) -> list[dict[str, Any]]:
    """What each of `count` processes said; None of one that was killed."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    place = {
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    variables = {name: str(value) for name, value in place.items()} if shards else {}
    variables["LANDSCAPE_REPORTER"] = str(folder / f"reporter.{port}")
    whole = [
        "spectra",
        *map(str, arguments),
        *(["--shards", str(count)] if shards else ["--workers", "1"]),
    ]
    children = {}
    for rank in range(count):
        if not (child := os.fork()):
            try:
                _child(rank, variables, whole, change, folder / f"said.{rank}")
            finally:
                os._exit(0)
        children[rank] = child
    limit = time.monotonic() + _PATIENCE
    # The first process has the store; the others end by themselves or not at all.
    while os.waitpid(children[0], os.WNOHANG)[0] == 0 and time.monotonic() < limit:
        time.sleep(0.02)
    time.sleep(0.2)
    for rank, child in children.items():
        if rank:
            ended = os.waitpid(child, os.WNOHANG)[0]
            while not ended and time.monotonic() < limit and change is not _hang_later:
                time.sleep(0.02)
                ended = os.waitpid(child, os.WNOHANG)[0]
            if not ended:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
    said = []
    for rank in range(count):
        file = folder / f"said.{rank}"
        said.append(json.loads(file.read_text()) if file.exists() else None)
        file.unlink(missing_ok=True)
    return said


# --- what goes wrong in one process ---------------------------------------------------------------


def _at_second_batch(act: Callable[[], None]) -> Change:
    """Act in the second process before it measures batch 1."""

    def change(rank: int) -> None:
        from landscape.pipeline import cut_series

        measure = cut_series.CutSeries.measure

        def measured(self: Any, checkpoint: Any, index: int) -> Any:
            if index == 1 and rank == 1:
                act()
            return measure(self, checkpoint, index)

        cut_series.CutSeries.measure = measured

    return change


def _fail() -> None:
    from landscape.errors import PictureError

    raise PictureError("7.png: is no picture here.")


_killed_later = _at_second_batch(lambda: os.kill(os.getpid(), signal.SIGKILL))
_hang_later = _at_second_batch(lambda: time.sleep(1000))
_fails_later = _at_second_batch(_fail)


def _other_version(rank: int) -> None:
    from landscape.pipeline import sharded

    if rank:
        sharded.VERSION = "0.0.1"


def _other_file(rank: int) -> None:
    """The second process sees a checkpoint of another size, as a copy that was cut short."""
    from landscape.clip import checkpoint_rows

    read = checkpoint_rows.read_weights

    def read_other(path: Path, **options: Any) -> Any:
        return read(path.with_name("other.pt") if rank else path, **options)

    checkpoint_rows.read_weights = read_other


# --- memory ---------------------------------------------------------------------------------------


def wide_study(folder: Path) -> Path:
    """A study of a model of many weights of about one size."""
    study = make_study(
        folder, epochs=(0,), names=("wide",), with_config=True, parameters=["visual.proj"], k=1
    )
    config = config_of(width=384, layers=6, head_width=64)
    (folder / "tiny.json").write_text(json.dumps(config))
    model = build_model("wide", config=folder / "tiny.json", seed=0)
    save_checkpoint(folder / "wide_0.pt", model=model, epoch=0, name="wide")
    return study


def _counting(folder: Path) -> Change:
    """Count the bytes of tensors that are alive, from the building of the model to the end of its
    last batch.
    """

    def change(rank: int) -> None:
        from landscape.curvature.hvp.memory import MemoryWatch
        from landscape.pipeline import cut_series, sharded

        watch = MemoryWatch(sys.maxsize)
        load_series, load = sharded.load_series, cut_series.CutSeries.load
        peaks: dict[str, int] = {}

        def built(*args: Any, **options: Any) -> Any:
            with watch:
                loaded = load_series(*args, **options)
            peaks["built"], peaks["after building"] = watch.peak, watch.live
            watch.peak = watch.live
            return loaded

        def loading(self: Any, checkpoint: Any) -> Any:
            with watch:
                info = load(self, checkpoint)
            peaks["loaded"] = watch.peak
            (folder / f"peaks.{rank}").write_text(json.dumps(peaks))
            return info

        sharded.load_series, cut_series.CutSeries.load = built, loading

    return change


# --- the program ----------------------------------------------------------------------------------


def vmamba_study(folder: Path) -> Path:
    """A study of a VMamba of which a few weights are measured, by its own kernels."""
    parameters = ["visual.trunk.layers.3.*.op.*", "visual.head.*"]
    study = make_study(
        folder,
        epochs=(0,),
        names=("vmamba",),
        with_config=True,
        dtype="float64",
        tol=1e-3,
        k=1,
        parameters=parameters,
    )
    config = config_of()
    config["vision_cfg"] = {
        "image_size": 32,
        "timm_model_name": "vmamba_tiny_64",
        "timm_pool": "avg",
        "timm_proj": "linear",
    }
    (folder / "tiny.json").write_text(json.dumps(config))
    model = build_model("vmamba", config=folder / "tiny.json", seed=0)
    save_checkpoint(folder / "vmamba_0.pt", model=model, epoch=0, name="vmamba")
    return study


def measure_all(folder: Path) -> dict[str, Any]:
    """Every run, by name."""
    options = {"dtype": "float64", "tol": 1e-6, "k": 2, "parameters": "image"}
    study = make_study(folder, epochs=(0, 1), names=("one",), with_config=True, **options)
    save_checkpoint(
        folder / "other.pt",
        model=build_model(MODEL, seed=0),
        epoch=0,
        name="a model of a long name" * 20,
    )
    seen: dict[str, Any] = {}
    first, two = ("--epochs", "0", "--batches", "1"), ("--epochs", "0", "--batches", "2")

    def said(name: str, count: int, *arguments: object, **options: Any) -> None:
        begun = time.monotonic()
        seen[name] = run(folder, count, *arguments, **options)
        print(f"{name}: {time.monotonic() - begun:.1f} s", file=sys.stderr)

    said("whole", 1, study, "-o", folder / "whole.h5", "--batches", 2, shards=False)
    kept = ("--keep-vectors", *first)
    said("kept in one", 1, study, "-o", folder / "kept_whole.h5", *kept, shards=False)
    said("kept", 3, study, "-o", folder / "kept.h5", *kept)
    mixed = folder / "mixed.h5"
    said("mixed, begun by two", 2, study, "-o", mixed, *first)
    said("mixed, continued by one", 1, study, "-o", mixed, *two, shards=False)
    said("mixed, ended by three", 3, study, "-o", mixed, "--batches", 2)
    said(
        "restarted", 3, study, "-o", folder / "restarted.h5", *first, "--max-basis-memory", "330kB"
    )
    lost = (study, "-o", folder / "lost.h5", *two)
    said("version", 2, *lost, change=_other_version)
    said("file", 2, *lost, change=_other_file)
    seen["nothing was written"] = not (folder / "lost.h5").exists()
    said("killed", 2, *lost, change=_killed_later)
    said("hung", 2, *lost, "--shard-timeout", 3, change=_hang_later)
    said("failed", 2, *lost, change=_fails_later)
    said("after all", 2, *lost)
    for name, make in {"wide": wide_study, "vmamba": vmamba_study}.items():
        (folder / name).mkdir()
        shared = (make(folder / name), "--batches", 1, "--unaudited")
        change = _counting(folder / name) if name == "wide" else _nothing
        said(name, 2, *shared, "-o", folder / f"{name}.h5", change=change)
        if name == "vmamba":
            said("vmamba in one", 1, *shared, "-o", folder / "vmamba_whole.h5", shards=False)
    return seen


# --- language models ------------------------------------------------------------------------------


def _one_by_one(rank: int) -> None:
    """Let weights of these small models be gathered as large ones are."""
    from landscape.sharded import weights

    weights._SMALL = 500


def measure_language(folder: Path) -> dict[str, Any]:
    """Every run of language models, by name; manifests are FOLDER/NAME/lm.yaml."""
    seen: dict[str, Any] = {}

    def said(
        name: str, count: int, study: str, output: str, *arguments: object, **options: Any
    ) -> None:
        begun = time.monotonic()
        seen[name] = run(
            folder, count, folder / study / "lm.yaml", "-o", folder / output, *arguments, **options
        )
        print(f"{name}: {time.monotonic() - begun:.1f} s", file=sys.stderr)

    first = ("--epochs", "100", "--batches", "1")
    said("whole", 1, "llama", "whole.h5", shards=False)
    said("mixed, begun by two", 2, "llama", "mixed.h5", *first, change=_one_by_one)
    said("mixed, continued by one", 1, "llama", "mixed.h5", "--epochs", "100", shards=False)
    said("mixed, ended by two", 2, "llama", "mixed.h5")
    said("gpt2", 2, "gpt2", "gpt2.h5", *first)
    said("differences", 2, "gpt2", "differences.h5", *first, "--hvp", "finite-difference")
    said("float32", 2, "float32", "float32.h5", "--epochs", "100", "--recycle")
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    for module in (
        "landscape.pipeline",
        "landscape.pipeline.sharded",
        "landscape.pipeline.spectra_command",
    ):
        importlib.import_module(module)
    target, is_language = Path(sys.argv[1]), sys.argv[2:] == ["language"]
    if is_language:
        importlib.import_module("landscape.language.loaded_series")
    measured = measure_language(target) if is_language else measure_all(target)
    (target / "seen.json").write_text(json.dumps(measured))
