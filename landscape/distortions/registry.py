"""The table of distortions, and a function that applies any of them.

`KINDS` maps a name to what the distortion does, its levels and what it needs. The name is that of
model-vs-human's data set where there is one. Random numbers depend on the seed, the distortion, the
level and the picture's key, and on nothing else.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from landscape.distortions import eidolon as eidolons
from landscape.distortions import false_colour as colours
from landscape.distortions import filters, levels, pointwise, shapes, spectrum
from landscape.distortions.levels import Level, Rule
from landscape.distortions.pointwise import Plane, Rgb
from landscape.errors import DistortionError
from landscape.suggestions import did_you_mean

_EIDOLON_GRAIN = 10


@dataclass(frozen=True, eq=False, kw_only=True)
class Picture:
    """A clean picture.

    Attributes:
        rgb: The picture, on white where it is transparent.
        alpha: Its opacity in [0, 1]; None where it has none.
        lines: Its line drawing alone, on white; None where there is none.
    """

    rgb: Rgb
    alpha: Plane | None = None
    lines: Rgb | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Inputs:
    """The inputs of distortions beside the picture.

    Attributes:
        gamma_lut: Linear light of each byte for false colour; None for sRGB's.
        amplitudes: Mean amplitude spectrum for power equalisation, as from `amplitude_spectrum`.
    """

    gamma_lut: colours.Lut | None = None
    amplitudes: Plane | None = None


_Apply = Callable[[Picture, float, "np.random.Generator | None", Inputs], Rgb]
_Check = Callable[[float, int, int], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Kind:
    """A distortion.

    Attributes:
        name: Name in commands, and of the folder of its pictures.
        what: Its formula or effect in a few words.
        experiment: Second field of its file names, as in model-vs-human.
        levels: The published levels, in published order.
        control: The level that people saw as the undistorted picture; None where there is only one
            level.
        check: Refuses a value that pictures of some height and width cannot have.
        is_random: Whether it needs a seed.
        needs: "picture", "alpha" (transparency) or "svg" (a line layer).
        in_all: Whether it is one of model-vs-human's sets.
    """

    name: str
    what: str
    experiment: str
    levels: tuple[Level, ...]
    control: str | None
    is_random: bool = False
    needs: str = "picture"
    in_all: bool = True
    rule: Rule
    apply: _Apply
    check: _Check = lambda value, height, width: None

    @property
    def is_parametric(self) -> bool:
        """Tell whether it has several levels, which are in its file names."""
        return len(self.levels) > 1

    def level(self, given: str | float) -> Level:
        """Read a level, by the benchmark's name or as a number.

        Raises:
            DistortionError: If it is none.
        """
        return levels.read_level(self.name, given, self.levels, self.rule)

    def check_size(self, level: Level, height: int, width: int) -> None:
        """Refuse a level that pictures of this size cannot have.

        Raises:
            DistortionError: If it is a filter wider than the picture, or the picture too small for
                the noise.
        """
        self.check(level.value, height, width)


def distort(
    picture: Picture | Rgb,
    kind: str,
    level: str | float,
    *,
    seed: int = 0,
    key: str = "",
    inputs: Inputs = Inputs(),
) -> Rgb:
    """Distort a picture.

    Args:
        picture: An array (h, w, 3) in [0, 1], or a `Picture` with its opacity or line drawing.
        kind: A name in `KINDS`.
        level: The benchmark's name of the level, or a number.
        seed: Seed of random distortions.
        key: Name of the picture; pictures of other names get other random numbers.
        inputs: Inputs of false colour and power equalisation.

    Returns:
        The distorted picture in [0, 1], of the same size; rotation by 90 degrees swaps height and
        width. The same arguments give the same bits, in whatever order and process pictures are
        distorted. Save it with `to_bytes`.

    Raises:
        DistortionError: If kind or level are unknown, or something that the distortion needs is
            missing.
        ValueError: If the array is no picture.
    """
    clean = picture if isinstance(picture, Picture) else Picture(rgb=picture)
    pointwise.check_picture(clean.rgb)
    chosen = kind_of(kind)
    wanted = chosen.level(level)
    generator = generator_for(seed, kind, wanted, key) if chosen.is_random else None
    return chosen.apply(clean, wanted.value, generator, inputs)


def kind_of(name: str) -> Kind:
    """Return the distortion of a name.

    Raises:
        DistortionError: If there is none of this name.
    """
    if name not in KINDS:
        raise DistortionError(
            f"{name!r}: there is no distortion of this name; choose from {', '.join(KINDS)}."
            f"{did_you_mean(name, KINDS)}"
        )
    return KINDS[name]


def generator_for(seed: int, kind: str, level: Level, key: str) -> np.random.Generator:
    """Make the random generator of a picture, from these arguments alone."""
    digest = hashlib.sha256(json.dumps([seed, kind, level.text, key]).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def _parametric(
    name: str, what: str, experiment: str, published: str, rule: Rule, apply: _Apply, **more: Any
) -> Kind:
    """Describe a distortion with several levels.

    The levels are words separated by blanks; the first is the control.
    """
    names = published.split()
    return Kind(
        name=name,
        what=what,
        experiment=experiment,
        levels=levels.published_levels(names, rule),
        control=names[0],
        rule=rule,
        apply=apply,
        **more,
    )


def _single(name: str, what: str, experiment: str, apply: _Apply, **more: Any) -> Kind:
    rule = levels.choices(**{"0": 0.0})
    only = levels.published_levels(["0"], rule)
    return Kind(
        name=name,
        what=what,
        experiment=experiment,
        levels=only,
        control=None,
        rule=rule,
        apply=apply,
        **more,
    )


def _random(generator: np.random.Generator | None) -> np.random.Generator:
    assert generator is not None
    return generator


def _eidolon(name: str, tenths: int) -> Kind:
    coherence = tenths / 10
    published = " ".join(f"{2**power}-{tenths}-{_EIDOLON_GRAIN}" for power in range(8))
    return _parametric(
        name,
        f"scales displaced at random with coherence {coherence:g}; the level's first number is the "
        "reach",
        "eid",
        published,
        levels.reaches(tenths, _EIDOLON_GRAIN),
        lambda picture, reach, generator, _: eidolons.eidolon(
            picture.rgb, reach, _random(generator), coherence=coherence, grain=_EIDOLON_GRAIN
        ),
        check=lambda _, height, width: eidolons.check_sides(
            height, width, coherence=coherence, grain=_EIDOLON_GRAIN
        ),
        is_random=True,
    )


def _colour(picture: Picture, is_grey: float, _: object, __: object) -> Rgb:
    return pointwise.greyscale(picture.rgb) if is_grey else picture.rgb


def _equalised(picture: Picture, is_equalised: float, _: object, inputs: Inputs) -> Rgb:
    if not is_equalised:
        return pointwise.greyscale(picture.rgb)
    if inputs.amplitudes is None:
        raise DistortionError(
            "power-equalisation: no mean spectrum is given, and its amplitudes replace those of "
            "the picture. Give the mean of amplitude_spectrum over your pictures as "
            "Inputs(amplitudes=...)."
        )
    return spectrum.power_equalisation(picture.rgb, inputs.amplitudes)


def _false_colour(picture: Picture, is_true: float, _: object, inputs: Inputs) -> Rgb:
    return picture.rgb if is_true else colours.false_colour(picture.rgb, inputs.gamma_lut)


def _silhouette(picture: Picture, *_: object) -> Rgb:
    if picture.alpha is None:
        raise DistortionError(
            "silhouette: the picture has no transparency, which gives the shape. Use a PNG with "
            "alpha."
        )
    return shapes.silhouette(picture.alpha)


def _sketch(picture: Picture, *_: object) -> Rgb:
    if picture.lines is None:
        raise DistortionError(
            "sketch: the picture has no line layer; only OpenMoji's SVG files have one. Use edge "
            "instead."
        )
    return picture.lines


def _scrambled(mirrored: bool) -> _Apply:
    return lambda picture, width, generator, _: spectrum.phase_scrambling(
        picture.rgb, width, _random(generator), mirrored=mirrored
    )


_PHASES, _DEGREES = (
    "0 30 60 90 120 150 180",
    levels.numbers(0, 180, "largest phase shift in degrees"),
)

_ALL = (
    _parametric(
        "colour", "cr: as it is; bw: grey", "cl", "cr bw", levels.choices(cr=0, bw=1), _colour
    ),
    _parametric(
        "contrast",
        "(1 - c)/2 + c g",
        "cop",
        "c100 c50 c30 c15 c10 c05 c03 c01",
        levels.fractions_in_percent,
        lambda picture, level, *_: pointwise.contrast(picture.rgb, level),
    ),
    _parametric(
        "high-pass",
        "g less its Gaussian blur, around the grey .4423; the level is sigma in pixels",
        "hp",
        "inf 3.0 1.5 1.0 0.7 0.55 0.45 0.4",
        levels.numbers(0.01, 1e5, "sigma in pixels", infinite=True),
        lambda picture, sigma, *_: filters.high_pass(picture.rgb, sigma),
        check=lambda sigma, height, width: (
            None if math.isinf(sigma) else filters.check_sigma(sigma, height, width)
        ),
    ),
    _parametric(
        "low-pass",
        "Gaussian blur of g; the level is sigma in pixels",
        "lp",
        "0 1 3 5 7 10 15 40",
        levels.numbers(0, 1e5, "sigma in pixels"),
        lambda picture, sigma, *_: filters.low_pass(picture.rgb, sigma),
        check=filters.check_sigma,
    ),
    _parametric(
        "phase-scrambling",
        "Fourier phases of g shifted at random as published, which lowers the contrast; the level "
        "is the largest shift",
        "ps",
        _PHASES,
        _DEGREES,
        _scrambled(False),
        is_random=True,
    ),
    _parametric(
        "phase-scrambling-mirrored",
        "the same with shifts that keep the amplitudes; not a set of the benchmark",
        "psm",
        _PHASES,
        _DEGREES,
        _scrambled(True),
        is_random=True,
        in_all=False,
    ),
    _parametric(
        "power-equalisation",
        "amplitude spectrum of g replaced by a mean",
        "pow",
        "0 pow",
        levels.choices(**{"0": 0, "pow": 1}),
        _equalised,
    ),
    _parametric(
        "false-colour",
        "True: as it is; False: opponent colours",
        "fc",
        "True False",
        levels.choices(**{"True": 1, "False": 0}),
        _false_colour,
    ),
    _parametric(
        "rotation",
        "g turned counter-clockwise; the level is in degrees",
        "rot",
        "0 90 180 270",
        levels.choices(**{"0": 0, "90": 90, "180": 180, "270": 270}),
        lambda picture, degrees, *_: pointwise.rotation(picture.rgb, degrees),
    ),
    _eidolon("eidolonI", 10),
    _eidolon("eidolonII", 3),
    _eidolon("eidolonIII", 0),
    _parametric(
        "uniform-noise",
        "contrast 30 %, then noise from -w to w added; the level is w",
        "nse",
        "0.0 0.03 0.05 0.1 0.2 0.35 0.6 0.9",
        levels.numbers(0, 10, "half the width of the noise"),
        lambda picture, width, generator, _: pointwise.uniform_noise(
            picture.rgb, width, _random(generator)
        ),
        is_random=True,
    ),
    _single("sketch", "OpenMoji's line layer", "ske", _sketch, needs="svg"),
    _single("silhouette", "black where opaque, white elsewhere", "sif", _silhouette, needs="alpha"),
    _single(
        "edge", "Canny edges, black on white", "edg", lambda picture, *_: shapes.edge(picture.rgb)
    ),
)

KINDS: Mapping[str, Kind] = MappingProxyType({kind.name: kind for kind in _ALL})
