"""The plan of a request: distortions, levels, pictures, and the results still missing."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from landscape.distortions.layout import relative_path
from landscape.distortions.levels import Level
from landscape.distortions.own_spectrum import SPECTRUM_FILE
from landscape.distortions.record import Settings, check_record
from landscape.distortions.registry import KINDS, Kind, kind_of
from landscape.distortions.sources import Source, SourcePicture, open_source
from landscape.distortions.task import Job, Wanted, load_amplitudes, load_gamma_lut
from landscape.errors import DataError, DistortionError, NoEffect, check_effects
from landscape.files import sha256_of_file

EVERY_KIND = "all"
# Seconds for one distorted picture of 224 x 224, its file included, on a core of 2026.
_SECONDS, _SECONDS_OF_EIDOLON = 0.02, 0.35
# Pictures that a message names.
_NUM_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class DistortRequest:
    """The pictures to distort, the distortions, and the output folder.

    Args:
        source: A folder with class folders, a folder of pictures, or "openmoji"; see `open_source`.
        kinds: Names in `KINDS`, or "all": every set of the benchmark that the pictures allow.
        levels: Levels of each of the kinds; empty for all published ones.
        num_workers: Number of processes; None for as many as save time.
        size: Side of the pictures in pixels.
        suffix: "png" or "webp".
        gamma_lut: .npy file for false colour; None for sRGB's transfer function.
        mean_spectrum: .npy file for power equalisation; None for the mean of the pictures' own.
        progress: As `shown` of `Progress`.
        stated: Options that the user stated; see `check_effects`.
    """

    source: str
    output: Path
    kinds: Sequence[str] = (EVERY_KIND,)
    levels: Sequence[str] = ()
    seed: int = 0
    num_workers: int | None = 1
    size: int = 224
    suffix: str = "png"
    gamma_lut: Path | None = None
    mean_spectrum: Path | None = None
    dry_run: bool = False
    progress: bool | None = None
    stated: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Plan:
    """The remaining work.

    Attributes:
        record: Settings of every set in the output folder, to be written before the first picture.
        wanted: Missing distortions and levels of each clean picture that lacks any, in order.
    """

    job: Job
    source: Source
    record: Mapping[str, Settings]
    wanted: Mapping[SourcePicture, tuple[Wanted, ...]]
    num_skipped: int
    notes: tuple[str, ...]

    @property
    def num_left(self) -> int:
        """Count the distorted pictures that are missing."""
        return sum(map(len, self.wanted.values()))

    def seconds(self) -> float:
        """Estimate how long one process takes."""
        scale = (self.job.size / 224) ** 2
        names = [name for wanted in self.wanted.values() for name, _ in wanted]
        return scale * sum(
            _SECONDS_OF_EIDOLON if name.startswith("eidolon") else _SECONDS for name in names
        )


def make_plan(request: DistortRequest) -> Plan:
    """Compare the request with the pictures and the output; write nothing.

    Raises:
        DistortionError: If a distortion or level is unknown, or does not fit the pictures' size or
            a given file.
        DataError: If there are no pictures, they lack what a distortion needs, or the output was
            made with other settings.
        MissingDependencyError: If OpenMoji's packages are needed and not installed.
    """
    kinds, levels_of = _kinds(request), {}
    for kind in kinds:
        levels_of[kind] = (
            tuple(dict.fromkeys(map(kind.level, request.levels))) if request.levels else kind.levels
        )
        for level in levels_of[kind]:
            kind.check_size(level, request.size, request.size)
    equalised = any(
        kind.name == "power-equalisation" and any(level.value for level in levels_of[kind])
        for kind in kinds
    )
    check_effects("distort", request.stated, _without_effect(levels_of))
    if request.gamma_lut is not None:
        load_gamma_lut(request.gamma_lut)
    if request.mean_spectrum is not None:
        load_amplitudes(request.mean_spectrum, request.size)
    source = open_source(request.source)
    notes = list(source.notes)
    levels_of, without = _offered(request, source, levels_of, notes)
    own_spectrum = request.output.absolute() / "power-equalisation" / SPECTRUM_FILE
    job = Job(
        output=request.output.absolute(),
        size=request.size,
        seed=request.seed,
        suffix=request.suffix,
        gamma_lut=None if request.gamma_lut is None else request.gamma_lut.absolute(),
        mean_spectrum=(request.mean_spectrum or own_spectrum).absolute() if equalised else None,
    )
    record = check_record(
        job.output, {kind.name: _settings(request, source, kind) for kind in levels_of}
    )
    wanted, num_skipped = _missing(job, source, levels_of, without)
    return Plan(job, source, record, wanted, num_skipped, tuple(notes))


def _without_effect(levels_of: Mapping[Kind, Sequence[Level]]) -> Iterator[NoEffect]:
    """Yield stated options that no chosen distortion uses."""
    names = ", ".join(kind.name for kind in levels_of)
    advice = "Leave it out, or add such a --kind."
    if not any(kind.is_random for kind in levels_of):
        yield NoEffect(("--seed",), f"nothing random is in {names}", advice)
    changed = {
        kind.name
        for kind, levels in levels_of.items()
        if any(level.text != kind.control for level in levels)
    }
    for option, kind in (
        ("--gamma-lut", "false-colour"),
        ("--mean-spectrum", "power-equalisation"),
    ):
        if kind not in changed:
            yield NoEffect((option,), f"it is of {kind}, which is not made", advice)


def _kinds(request: DistortRequest) -> list[Kind]:
    names = [name for name in request.kinds if name != EVERY_KIND]
    every = (
        [kind for kind in KINDS.values() if kind.in_all] if len(names) < len(request.kinds) else []
    )
    if every and request.levels:
        raise DistortionError(
            "level: --kind all has no level in common. Name one kind, or leave the level out."
        )
    return list(dict.fromkeys([*every, *map(kind_of, names)]))


def _offered(
    request: DistortRequest,
    source: Source,
    levels_of: Mapping[Kind, tuple[Level, ...]],
    notes: list[str],
) -> tuple[dict[Kind, tuple[Level, ...]], frozenset[SourcePicture]]:
    """Leave out the distortions that the pictures do not allow.

    A note reports each. Those that were asked for by name are refused.

    Returns:
        The others with their levels, and the pictures that get no silhouette.
    """
    offered = dict(levels_of)
    without: tuple[SourcePicture, ...] = ()
    for kind in levels_of:
        reason = None
        if kind.needs == "svg" and not source.has_lines:
            reason = (
                f"{source.name}: plain pictures have no line layer, so there is no {kind.name} of "
                "them; edge draws edges."
            )
        if kind.needs == "alpha":
            without = source.without_transparency()
            if len(without) == len(source.pictures):
                reason = (
                    f"{source.name}: none of {len(without)} pictures has transparency, so there is "
                    "no silhouette of them."
                )
            else:
                notes += left_out(without, len(source.pictures))
        if reason is not None and kind.name in request.kinds:
            raise DataError(f"{reason} Leave {kind.name} out.")
        if reason is not None:
            notes.append(reason)
            del offered[kind]
    return offered, frozenset(without)


def left_out(pictures: Sequence[SourcePicture], number: int) -> list[str]:
    """Report which pictures get no silhouette."""
    if not pictures:
        return []
    named = ", ".join(picture.where for picture in pictures[:_NUM_NAMED])
    more = f" and {len(pictures) - _NUM_NAMED} more" if len(pictures) > _NUM_NAMED else ""
    return [
        f"silhouette: {len(pictures)} of {number} pictures have no transparency and are left out: "
        f"{named}{more}."
    ]


def _settings(request: DistortRequest, source: Source, kind: Kind) -> Settings:
    """List the settings on which a set's pictures depend.

    Level and picture, which are in the file's name, are not listed.
    """
    settings: dict[str, str | int] = {
        "source": source.identity,
        "size": request.size,
        "format": request.suffix,
    }
    if kind.is_random:
        settings["seed"] = request.seed
    if kind.name == "false-colour":
        settings["gamma table"] = (
            "sRGB" if request.gamma_lut is None else f"sha256 {sha256_of_file(request.gamma_lut)}"
        )
    if kind.name == "power-equalisation":
        given = request.mean_spectrum
        settings["mean spectrum"] = (
            f"of {source.digest()}" if given is None else f"sha256 {sha256_of_file(given)}"
        )
    return settings


def _missing(
    job: Job,
    source: Source,
    levels_of: Mapping[Kind, tuple[Level, ...]],
    without: frozenset[SourcePicture],
) -> tuple[dict[SourcePicture, tuple[Wanted, ...]], int]:
    """List what is missing, and count what is there."""
    there = {
        os.path.relpath(os.path.join(folder, name), job.output)
        for kind in levels_of
        for folder, _, names in os.walk(job.output / kind.name)
        for name in names
    }
    wanted: dict[SourcePicture, tuple[Wanted, ...]] = {}
    num_skipped = 0
    for picture in source.pictures:
        missing = []
        for kind, levels in levels_of.items():
            for level in levels if kind.needs != "alpha" or picture not in without else ():
                if str(relative_path(kind, level, picture, job.suffix)) in there:
                    num_skipped += 1
                else:
                    missing.append((kind.name, level.text))
        if missing:
            wanted[picture] = tuple(missing)
    return wanted, num_skipped
