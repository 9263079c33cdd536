"""Names of the samples of a protocol: image-text pairs, or blocks of text."""

from collections.abc import Mapping
from typing import Any


def unit_of_samples(block_size: int | None) -> tuple[str, str]:
    """Return the names of one sample and of several.

    Args:
        block_size: Tokens of a block of text; None for image-text pairs.
    """
    return ("pair", "pairs") if block_size is None else ("block", "blocks")


def samples_of(data: Mapping[str, Any]) -> str:
    """Name the samples of a stored protocol's data."""
    return unit_of_samples(data.get("block_size"))[1]


def samples_in_full(data: Mapping[str, Any]) -> str:
    """Name the samples of a stored protocol's data with their size.

    That is "pairs", or "blocks of 32 tokens".
    """
    size = data.get("block_size")
    return samples_of(data) if size is None else f"{samples_of(data)} of {size} tokens"


def source_in_full(data: Mapping[str, Any]) -> str:
    """Name the source of a stored protocol's data, with its split.

    Text has no split.
    """
    return (
        str(data["source"])
        if data.get("block_size") is not None
        else f"{data['source']} ({data['split']})"
    )
