"""Loading of a manifest's series: image-text models, or language models.

The objective determines which.
"""

from typing import TYPE_CHECKING, Any

from landscape import clip
from landscape.manifest import CheckpointSeries, Manifest
from landscape.manifest.language import is_language

if TYPE_CHECKING:
    import torch

    from landscape.clip.loaded_series import LoadedSeries


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
