"""Files that a training program wrote about its run.

They lie beside the checkpoints, and are read as text, never executed. Imports no torch.

    params.txt                 open_clip_train; one folder above the checkpoints
    open_clip_config.json      open_clip's hub folders: architecture and preprocessing
    args.yaml                  timm's train.py
    hparams.yaml               Lightning; what the LightningModule was constructed with
    config.json                transformers (CLIP), with its image processor; timm's hub folders
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from landscape.manifest.run_files.arguments import of_arguments, of_swin, read_arguments
from landscape.manifest.run_files.files import RunFile, read_json, unreadable
from landscape.manifest.run_files.hubs import of_timm_hub, read_open_clip_config
from landscape.manifest.run_files.params import read_params
from landscape.manifest.run_files.transformers import of_clip_config

__all__ = ["RunFile", "inside_checkpoint", "run_files", "unreadable"]


def run_files(checkpoint: Path) -> list[RunFile]:
    """Read every file about the run of a checkpoint.

    Files are searched beside the checkpoint as it is named, and beside the file that a link leads
    to.

    Args:
        checkpoint: A file, or the folder that is a checkpoint.

    Raises:
        ManifestError: If such a file exists and cannot be read: what the run was is then not known.
    """
    files: dict[Path, RunFile] = {}
    for folder in _folders(checkpoint):
        for name, read, above in _FILES:
            parents = [folder.parent] if above == "always" or above == folder.name else []
            for path in (place / name for place in (folder, *parents)):
                if (
                    path.is_file()
                    and path.resolve() not in files
                    and (file := read(path)) is not None
                ):
                    files[path.resolve()] = file
                    break
    return list(files.values())


def _folders(checkpoint: Path) -> Iterator[Path]:
    seen = set()
    for path in (checkpoint, checkpoint.resolve()):
        folder = path if path.is_dir() else path.parent
        if folder not in seen:
            seen.add(folder)
            yield folder


def inside_checkpoint(settings: Mapping[str, Any], checkpoint: Path) -> list[RunFile]:
    """Read what a checkpoint itself holds about its run.

    This is timm's `args`, or Lightning's `hyper_parameters`.

    Args:
        settings: Plain values by the entry of the file in which they stand.

    Raises:
        ManifestError: If a value is invalid.
    """
    files = []
    for entry in ("args", "hyper_parameters", "config"):
        values = settings.get(entry)
        source = f"{entry} in {checkpoint.name}"
        if isinstance(values, Mapping) and isinstance(values.get("MODEL"), Mapping):
            files.append(of_swin(checkpoint, source, values))
        elif isinstance(values, Mapping) and values:
            files.append(of_arguments(checkpoint, source, values))
    return files


def _read_config(path: Path) -> RunFile | None:
    contents = read_json(path)
    if not isinstance(contents, dict):
        return None
    if contents.get("model_type") == "clip":
        return of_clip_config(path, contents)
    # Before timm 0.9.8 the configuration of the weights was not a separate part.
    if isinstance(contents.get("architecture"), str) and (
        "pretrained_cfg" in contents or "num_features" in contents
    ):
        return of_timm_hub(path, contents)
    return None


# Name of each file, its reader, and whether it also stands one folder above the checkpoints:
# "always", "never", or only if their folder has this name.
_FILES: tuple[tuple[str, Callable[[Path], RunFile | None], str], ...] = (
    ("params.txt", read_params, "always"),
    ("open_clip_config.json", read_open_clip_config, "never"),
    ("args.yaml", read_arguments, "never"),
    ("hparams.yaml", read_arguments, "checkpoints"),
    ("config.json", _read_config, "never"),
)
