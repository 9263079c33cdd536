"""Search for a run in a folder, and for its checkpoints.

They are recognised by the names that trainers give them.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from landscape.errors import ManifestError
from landscape.files import open_regular

RUN_MANIFEST = "checkpoints.yaml"
_RUN_HEADER = b"# Written by `landscape train`"
_CHECKPOINTS = "checkpoints"
_DEPTH = 4
# Enough for any tree of runs; stops the search of a home folder that was named by mistake.
_MAX_FOLDERS = 20_000
_NUM_SHOWN = 10

_FILE = re.compile(
    r".+\.(pt|pth|ckpt|safetensors|tar)|(open_clip_)?pytorch_model[\w.-]*\.bin",
    re.IGNORECASE | re.DOTALL,
)
_TAR = re.compile(r".+\.(pt|pth)\.tar", re.IGNORECASE)
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.(safetensors|bin)")
_NO_WEIGHTS = re.compile(
    r"(optim(izer)?|(lr_)?scheduler|scaler|rng_state|random_states|training_args"
    r"|sampler)([_.-].*)?\.\w+"
)
_FOLDER = re.compile(r"checkpoint[-_]\d+|.+\.(ckpt|pt|pth|dcp)", re.IGNORECASE)
# Files of a hub's folder; the first that exists is read. The others hold the same weights in
# another format.
_HUB_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)


@dataclass(frozen=True)
class Run:
    """A training run on disk.

    Attributes:
        folder: Folder of the run.
        checkpoints: Files and folders that may be checkpoints, in the order of the numbers in their
            names.
        manifest: The manifest of a run of `landscape train`, which needs no other; None elsewhere.
    """

    folder: Path
    checkpoints: tuple[Path, ...]
    manifest: Path | None = None


def find_run(folder: Path) -> Run:
    """Find the run in a folder.

    Raises:
        ManifestError: If there is no such folder, no checkpoint in it, or several runs.
    """
    _check_folder(folder)
    for place in (folder, folder.parent):
        if (place is folder or folder.name == _CHECKPOINTS) and _is_run_of_ours(
            place / RUN_MANIFEST
        ):
            return Run(place, (), place / RUN_MANIFEST)
    if checkpoints := _checkpoints_of_run(folder):
        # The folder is a hub's, or holds only checkpoints; then the run is the folder above.
        is_inner = folder.name == _CHECKPOINTS and folder.resolve().parent != folder.resolve()
        return Run(Path(os.path.abspath(folder)).parent if is_inner else folder, checkpoints)
    runs = list(dict.fromkeys(_runs_below(folder)))
    if not runs:
        raise ManifestError(
            f"{folder}: holds no checkpoint, so there is nothing to list; looked for .pt, .pth, "
            ".ckpt, .safetensors and .pth.tar files and for folders checkpoint-N, down to "
            f"{_DEPTH} levels. Name the folder of a training run."
        )
    if len(runs) > 1:
        names = [f"'{run.relative_to(folder)}'" for run in runs]
        more = f" and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else ""
        raise ManifestError(
            f"{folder}: holds {len(names)} runs ({', '.join(names[:_NUM_SHOWN])}{more}), but a "
            "series is one. Name the folder of one of them; a manifest may list several series, "
            "each from a file of its own."
        )
    return find_run(runs[0])


def _check_folder(folder: Path) -> None:
    try:
        if not folder.exists():
            raise ManifestError(
                f"{folder}: there is no such folder; name the folder of a training run."
            )
        if not folder.is_dir():
            raise ManifestError(
                f"{folder}: is a file, but a run is a folder; name {str(folder.parent)!r}."
            )
        next(folder.iterdir(), None)
    except OSError as error:
        raise ManifestError(
            f"{folder}: cannot be read ({error.strerror}). Check its permissions."
        ) from error


def _is_run_of_ours(path: Path) -> bool:
    try:
        with open_regular(path) as stream:
            return stream.read(len(_RUN_HEADER)) == _RUN_HEADER
    except OSError:
        return False


def _checkpoints_of_run(folder: Path) -> tuple[Path, ...]:
    inner = folder / _CHECKPOINTS
    return (*(_checkpoints_in(inner) if inner.is_dir() else ()), *_checkpoints_in(folder))


def _checkpoints_in(folder: Path) -> tuple[Path, ...]:
    """List the checkpoints directly in a folder.

    If the folder itself is a checkpoint of several files, it comes first.
    """
    if _is_sharded(folder):
        return (folder, *_numbered_folders(folder))
    try:
        children = sorted(folder.iterdir(), key=natural_order)
    except OSError:
        return ()
    files = [child for child in children if _is_weights(child)]
    hub = [folder / name for name in _HUB_FILES if folder / name in files]
    files = [file for file in files if file not in hub[1:]]
    return (*sorted((*files, *_numbered_folders(folder)), key=natural_order),)


def _numbered_folders(folder: Path) -> list[Path]:
    """List the checkpoints of several files in a folder.

    Each has its own folder.
    """
    try:
        children = [child for child in folder.iterdir() if child.is_dir()]
    except OSError:
        return []
    inside = (
        (child, _inside(child))
        for child in children
        if _FOLDER.fullmatch(child.name) or (child / ".metadata").is_file()
    )
    return [path for _, path in inside if path is not None]


def _inside(folder: Path) -> Path | None:
    """Return the weights in the folder of a checkpoint.

    A file, or the folder itself for weights in several files.
    """
    if _is_sharded(folder):
        return folder
    return next((folder / name for name in _HUB_FILES if (folder / name).is_file()), None)


def _is_sharded(folder: Path) -> bool:
    if (folder / ".metadata").is_file():
        return True
    names = ("*.safetensors.index.json", "pytorch_model.bin.index.json")
    return any(next(folder.glob(name), None) is not None for name in names)


def _is_weights(path: Path) -> bool:
    name = path.name
    if (
        name.startswith(".")
        or not _FILE.fullmatch(name)
        or _SHARD.fullmatch(name)
        or _NO_WEIGHTS.fullmatch(name.lower())
    ):
        return False
    # Archives of data also end in .tar.
    if name.lower().endswith(".tar") and not _TAR.fullmatch(name):
        return False
    # A broken link is reported with its reason. A pipe is refused, since reading it would never
    # end.
    return path.is_file() or (path.is_symlink() and not path.exists())


def natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Return a sort key by which epoch_2 comes before epoch_10."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _runs_below(folder: Path) -> Iterator[Path]:
    """Yield folders of runs, each above the checkpoints that it holds."""
    seen: set[Path] = set()
    waiting = [(folder, 0)]
    while waiting and len(seen) < _MAX_FOLDERS:
        place, depth = waiting.pop(0)
        real = place.resolve()
        if real in seen:
            continue
        seen.add(real)
        if depth and (_is_run_of_ours(place / RUN_MANIFEST) or _checkpoints_of_run(place)):
            yield place
        elif depth < _DEPTH:
            waiting += [(child, depth + 1) for child in _folders_in(place)]


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(
            (child for child in folder.iterdir() if child.is_dir() and child.name[0] != "."),
            key=natural_order,
        )
    except OSError:
        return []
