"""The OpenMoji pictures at a small size, drawn once per test session and shared by every test
module that asks.
"""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from landscape.clip.openmoji import PairArrays, load_openmoji

# Drawing takes as long at 32 pixels as at 1: reading the vectors dominates.
SIZE = 32


@functools.cache
def openmoji_cache() -> Path:
    """A folder for LANDSCAPE_CACHE that holds the pictures at `SIZE`."""
    folder = Path(tempfile.mkdtemp(prefix="landscape-cache-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    load_openmoji(SIZE, cache=folder)
    return folder


@functools.cache
def openmoji() -> PairArrays:
    return load_openmoji(SIZE, cache=openmoji_cache())
