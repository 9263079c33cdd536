"""What a damaged file raises, as a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from landscape.errors import StoreError


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what h5py raises on a damaged file into a sentence."""
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StoreError(
            f"{path}: damaged, or not written by landscape ({reason}). Restore it from a copy, or name another output."
        ) from error
