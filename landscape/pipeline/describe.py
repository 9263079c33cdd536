"""What is inside a file: a store, a loss surface, a manifest or a checkpoint."""

from pathlib import Path

from landscape.errors import LandscapeError
from landscape.manifest import Manifest
from landscape.store import describe as describe_store
from landscape.store import describe_densities, describe_surface, is_density_file, is_store, is_surface


def describe(path: Path) -> list[str]:
    """The lines that `landscape info` prints.

    Raises:
        LandscapeError: If the file is missing, or is none of these.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        return Manifest.load(path).describe()
    if path.is_file() and is_surface(path):
        return describe_surface(path)
    if is_density_file(path):
        return describe_densities(path)
    if is_store(path):
        return describe_store(path)
    if path.is_dir():
        raise LandscapeError(f"{path}: is a folder. Name a store (.h5), a manifest (.yaml) or a checkpoint in it.")
    if not path.exists():
        raise LandscapeError(f"{path}: there is no such file. Name a store (.h5), a manifest (.yaml) or a checkpoint.")
    return _describe_checkpoint(path)


def _describe_checkpoint(path: Path) -> list[str]:
    # Reads tensors, so torch is needed from here on.
    from landscape.clip.checkpoint import describe_checkpoint

    info = describe_checkpoint(path)
    epoch = "no epoch stored" if info.epoch is None else f"epoch {info.epoch}"
    name = f" of {info.name}" if info.name else ""
    return [
        f"checkpoint, {info.layout} ({info.kind} file){name}, {epoch}",
        f"{info.num_tensors} tensors with {info.num_parameters:,} numbers, {', '.join(info.dtypes)}, {info.num_bytes:,} bytes",
        f"first tensors: {', '.join(info.keys)}",
        f"sha256 {info.sha256}",
        *info.notes,
    ]
