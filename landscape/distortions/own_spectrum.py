"""The mean amplitude spectrum of a set of pictures, for power equalisation."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from landscape.distortions.pointwise import Plane
from landscape.distortions.sources import SourcePicture
from landscape.distortions.task import sum_amplitudes
from landscape.errors import DataError
from landscape.files import write_atomically
from landscape.workers import Pool, call_all

SPECTRUM_FILE = "mean-spectrum.npy"
# Number of pictures whose spectra are added in one process. It is fixed, since the order of a sum
# decides how it is rounded.
_CHUNK = 32


def make_mean_spectrum(
    path: Path,
    pictures: Sequence[SourcePicture],
    size: int,
    pool: Pool,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Write the mean amplitude spectrum of the readable pictures.

    The bytes are the same for any number of processes.

    Args:
        path: An .npy file.
        size: Side of the pictures in pixels.
        tick: Called about every second.

    Raises:
        DataError: If none of them can be read, or the file cannot be written.
    """
    calls = [
        (size, tuple(pictures[start : start + _CHUNK])) for start in range(0, len(pictures), _CHUNK)
    ]
    waiting: dict[int, tuple[Plane, int]] = {}
    total, number, next_index = np.zeros((size, size)), 0, 0
    for index, result in call_all(pool, sum_amplitudes, calls, tick=tick):
        waiting[index] = result
        while next_index in waiting:
            part, count = waiting.pop(next_index)
            total += part
            number += count
            next_index += 1
    if not number:
        raise DataError(
            f"{pictures[0].where}: neither this nor any other of the {len(pictures)} pictures can "
            "be read, so they have no mean spectrum. Restore them, or give one with "
            "--mean-spectrum."
        )
    content = io.BytesIO()
    np.save(content, total / number)
    try:
        write_atomically(path, content.getvalue())
    except OSError as error:
        raise DataError(
            f"{path}: the mean spectrum cannot be written ({error.strerror or error}). Make room."
        ) from error
