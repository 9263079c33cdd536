"""Loading of a manifest's series: image-text models, or language models.

The objective determines which.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape import clip
from landscape.errors import LandscapeError
from landscape.manifest import CheckpointSeries, Manifest
from landscape.manifest.language import is_language
from landscape.manifest.trained import LOCAL_DIR

if TYPE_CHECKING:
    import torch

    from landscape.clip.loaded_series import LoadedSeries


def check_model_name(source: str, kinds: str) -> None:
    """Refuse a path that names no model: a missing file, a folder, or another file.

    Args:
        kinds: The kinds of source that the command takes, for the message.

    Raises:
        LandscapeError: If the source looks like such a path.
    """
    path = Path(source)
    if source.startswith((LOCAL_DIR, "timm:")) or path.suffix.lower() == ".json":
        return
    if path.is_dir():
        manifest = path / "checkpoints.yaml"
        advice = f"Name {manifest}" if manifest.is_file() else f"`landscape init {path}` writes one"
        raise LandscapeError(f"{source}: is a folder, not {kinds}. {advice}.")
    if path.exists():
        raise LandscapeError(f"{source}: is not {kinds}; name one of these.")
    if path.suffix or path.name != source:
        raise LandscapeError(f"{source}: there is no such file; name {kinds}.")


def open_data(manifest: Manifest) -> Any:
    """Open the data that all series of a manifest share: the pairs.

    None for text, which each tokenizer splits by itself.

    Raises:
        LandscapeError: If the data cannot be read.
    """
    if is_language(manifest.hessian.objective):
        return None
    return clip.open_pairs(manifest.data)


def load_series(
    manifest: Manifest,
    series: CheckpointSeries,
    data: Any,
    *,
    device: "torch.device",
    on_meta: bool = False,
) -> "LoadedSeries":
    """Build a series on its batches, with random weights.

    Args:
        on_meta: Build the model without numbers, for processes that hold parts of it.

    Raises:
        LandscapeError: As `LoadedSeries.of` and `LanguageSeries.of`.
    """
    if is_language(manifest.hessian.objective):
        from landscape.language.loaded_series import LanguageSeries

        return LanguageSeries.of(manifest, series, None, device=device, on_meta=on_meta)
    return clip.LoadedSeries.of(manifest, series, data, device=device, on_meta=on_meta)
