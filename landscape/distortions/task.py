"""The tasks of a process: distort a picture, or sum some amplitude spectra."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from landscape.distortions.false_colour import check_lut
from landscape.distortions.layout import relative_path
from landscape.distortions.pointwise import Plane, Rgb, to_bytes
from landscape.distortions.registry import Inputs, Picture, distort, kind_of
from landscape.distortions.sources import SourcePicture, read_picture
from landscape.distortions.spectrum import amplitude_spectrum, check_amplitudes
from landscape.errors import DataError, DistortionError, PictureError
from landscape.files import check_regular, write_atomically

FORMATS = {"png": {}, "webp": {"lossless": True}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The settings that hold for all pictures of a run.

    Attributes:
        size: Side of the pictures in pixels.
        suffix: "png" or "webp".
        gamma_lut, mean_spectrum: .npy files; None for sRGB's table, and where no mean spectrum is
            needed.
    """

    output: Path
    size: int
    seed: int
    suffix: str
    gamma_lut: Path | None
    mean_spectrum: Path | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for a clean picture.

    Attributes:
        num_written: Number of distorted pictures that were written.
        problem: Why the picture cannot be read; None if it could.
        opaque: Whether a silhouette was left out since nothing of the picture is transparent.
    """

    num_written: int = 0
    problem: str | None = None
    opaque: bool = False


# A distortion and the name of its level.
Wanted = tuple[str, str]


def write_distorted(job: Job, picture: SourcePicture, wanted: Sequence[Wanted]) -> Outcome:
    """Distort a picture in several ways, and write a file for each.

    Raises:
        DataError: If a file cannot be written.
        DistortionError: If something does not fit the pictures.
    """
    kinds = {name: kind_of(name) for name, _ in wanted}
    try:
        clean = read_picture(picture, job.size, needs={kind.needs for kind in kinds.values()})
    except PictureError as error:
        return Outcome(problem=error.problem)
    opaque = "silhouette" in kinds and clean.alpha is None
    num_written = 0
    for name, level in wanted:
        if name == "silhouette" and opaque:
            continue
        result = distort(clean, name, level, seed=job.seed, key=picture.key, inputs=_inputs(job))
        path = job.output / relative_path(
            kinds[name], kinds[name].level(level), picture, job.suffix
        )
        _save(path, result, job.suffix)
        num_written += 1
    return Outcome(num_written=num_written, opaque=opaque)


def _save(path: Path, picture: Rgb, suffix: str) -> None:
    content = io.BytesIO()
    Image.fromarray(to_bytes(picture)).save(content, suffix, **FORMATS[suffix])
    try:
        write_atomically(path, content.getvalue())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}). Written pictures are kept; "
            "run the same command to resume."
        ) from error


@lru_cache(maxsize=1)
def _inputs(job: Job) -> Inputs:
    return Inputs(
        gamma_lut=None if job.gamma_lut is None else load_gamma_lut(job.gamma_lut),
        amplitudes=None
        if job.mean_spectrum is None
        else load_amplitudes(job.mean_spectrum, job.size),
    )


def load_gamma_lut(path: Path) -> Plane:
    """Read a table of linear light.

    Raises:
        DistortionError: If the file cannot be read, or holds no such table.
    """
    try:
        return check_lut(_load(path))
    except DistortionError as error:
        raise DistortionError(f"{path}: {error}") from error


def load_amplitudes(path: Path, size: int) -> Plane:
    """Read a mean amplitude spectrum for pictures of a size.

    Raises:
        DistortionError: If the file cannot be read, or does not fit.
    """
    amplitudes = _load(path)
    try:
        check_amplitudes(amplitudes, size, size)
    except DistortionError as error:
        raise DistortionError(f"{path}: {error}") from error
    return amplitudes


def _load(path: Path) -> Plane:
    try:
        check_regular(path)
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
    except (OSError, ValueError, TypeError, EOFError, AttributeError, SyntaxError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise DistortionError(
            f"{path}: cannot be read as one array of numbers ({reason}). Give an .npy file."
        ) from error


def sum_amplitudes(size: int, pictures: Sequence[SourcePicture]) -> tuple[Plane, int]:
    """Sum the amplitude spectra of pictures in order.

    Pictures that cannot be read are left out.

    Returns:
        The sum, and the number of pictures in it.
    """
    total, number = np.zeros((size, size)), 0
    for picture in pictures:
        try:
            clean: Picture = read_picture(picture, size)
        except PictureError:
            continue
        total += amplitude_spectrum(clean.rgb)
        number += 1
    return total, number
