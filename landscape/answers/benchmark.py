"""Facts of the model-vs-human benchmark.

17 data sets, their conditions, 16 categories and the ImageNet classes of these. Everything here is
fixed text, nothing is computed from answers.

Source: Geirhos et al., Partial success in closing the gap between human and machine vision, NeurIPS
2021 (arXiv 2106.07411), and its toolbox, github.com/bethgelab/model-vs-human.
"""

from dataclasses import dataclass

CATEGORIES = tuple(
    (
        "airplane bear bicycle bird boat bottle car cat chair clock dog elephant keyboard knife "
        "oven truck"
    ).split()
)
# Response of a person who did not answer in time; it counts as wrong.
NO_ANSWER = "na"
CHANCE = 1 / len(CATEGORIES)


@dataclass(frozen=True)
class Condition:
    """One level of a distortion.

    Args:
        name: Name in the benchmark, such as "c05".
        tick: Text on axes, such as "5".
        excluded: Whether it is left out of means over conditions; line plots always show it.
    """

    name: str
    tick: str
    excluded: bool = False


@dataclass(frozen=True)
class Dataset:
    """One of the 17 data sets.

    Args:
        name: Name of its folders and files.
        label: Name in titles.
        axis_label: Quantity of the conditions; "" where there is one condition only.
        conditions: Conditions in the order of the plots, the undistorted first.
    """

    name: str
    label: str
    axis_label: str
    conditions: tuple[Condition, ...]

    @property
    def kept(self) -> tuple[Condition, ...]:
        """Return the conditions that count in means."""
        return tuple(condition for condition in self.conditions if not condition.excluded)

    @property
    def is_parametric(self) -> bool:
        """Tell whether it has levels of a distortion.

        Then it has a line plot.
        """
        return len(self.conditions) > 1

    def condition_named(self, text: str) -> str | None:
        """Find the condition that a file's text means.

        Texts are compared exactly, else ignoring case, which finds truth values, else as numbers.
        Files write 0.10 for 0.1, 1 for 1.0 and true for True. Where there is only one condition,
        models have NaN for it.

        Returns:
            The benchmark's name of the condition, or None if there is none.
        """
        names = [condition.name for condition in self.conditions]
        if text in names:
            return text
        folded = {name.lower(): name for name in names}
        if text.lower() in folded:
            return folded[text.lower()]
        number = _number(text)
        if number is None:
            return names[0] if not self.is_parametric and text.lower() in ("nan", "") else None
        return next((name for name in names if _number(name) == number), None)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if number != number else number


def _dataset(
    name: str, label: str, axis_label: str = "", conditions: str = "0", ticks: str = ""
) -> Dataset:
    """Make a data set; "-" before a condition excludes it."""
    names = conditions.split()
    shown = ticks.split() if ticks else [text.removeprefix("-") for text in names]
    levels = [
        Condition(text.removeprefix("-"), tick, text.startswith("-"))
        for text, tick in zip(names, shown, strict=True)
    ]
    return Dataset(name, label, axis_label, tuple(levels))


_REACH = "log2 of the reach"

# Excluded are the undistorted condition and those in which people have about 20 % right or fewer,
# as the toolbox lists them. The list follows no exact rule: at low-pass 15, which is excluded,
# people have exactly 20 % right.
_DATASETS = (
    _dataset("colour", "Colour", "Colour", "-cr bw", "colour greyscale"),
    _dataset(
        "contrast",
        "Contrast",
        "Contrast (%)",
        "-c100 c50 c30 c15 c10 c05 -c03 -c01",
        "100 50 30 15 10 5 3 1",
    ),
    _dataset(
        "high-pass",
        "High-pass",
        "Standard deviation of the filter (pixels)",
        "-inf 3.0 1.5 1.0 0.7 -0.55 -0.45 -0.4",
        "inf 3 1.5 1 0.7 0.55 0.45 0.4",
    ),
    _dataset(
        "low-pass", "Low-pass", "Standard deviation of the filter (pixels)", "-0 1 3 5 7 10 -15 -40"
    ),
    _dataset(
        "phase-scrambling",
        "Phase scrambling",
        "Width of the phase noise (degrees)",
        "-0 30 60 90 120 -150 -180",
    ),
    _dataset(
        "power-equalisation", "Power equalisation", "Power spectrum", "-0 pow", "original equalised"
    ),
    _dataset("false-colour", "False colour", "Colour", "-True False", "true opponent"),
    _dataset("rotation", "Rotation", "Angle (degrees)", "-0 90 180 270"),
    _dataset(
        "eidolonI",
        "Eidolon I",
        _REACH,
        "-1-10-10 2-10-10 4-10-10 8-10-10 16-10-10 32-10-10 -64-10-10 -128-10-10",
        "0 1 2 3 4 5 6 7",
    ),
    _dataset(
        "eidolonII",
        "Eidolon II",
        _REACH,
        "-1-3-10 2-3-10 4-3-10 8-3-10 16-3-10 -32-3-10 -64-3-10 -128-3-10",
        "0 1 2 3 4 5 6 7",
    ),
    _dataset(
        "eidolonIII",
        "Eidolon III",
        _REACH,
        "-1-0-10 2-0-10 4-0-10 8-0-10 -16-0-10 -32-0-10 -64-0-10 -128-0-10",
        "0 1 2 3 4 5 6 7",
    ),
    _dataset(
        "uniform-noise",
        "Uniform noise",
        "Width of the noise",
        "-0.0 0.03 0.05 0.1 0.2 0.35 -0.6 -0.9",
        "0 0.03 0.05 0.1 0.2 0.35 0.6 0.9",
    ),
    _dataset("sketch", "Sketch"),
    _dataset("stylized", "Stylized"),
    _dataset("edge", "Edge"),
    _dataset("silhouette", "Silhouette"),
    _dataset("cue-conflict", "Cue conflict"),
)

DATASETS = {dataset.name: dataset for dataset in _DATASETS}
# A picture of this set has the shape of one category and the texture of another.
CUE_CONFLICT = "cue-conflict"
# The toolbox's leaderboard averages over all 17; the paper's 16 panels are without cue-conflict,
# which measures shape bias.
SEVENTEEN = tuple(DATASETS)
SIXTEEN = tuple(name for name in DATASETS if name != CUE_CONFLICT)


def _indices(text: str) -> tuple[int, ...]:
    """Read "8 10-12" as 8, 10, 11, 12."""
    spans = [part.split("-") for part in text.split()]
    return tuple(index for span in spans for index in range(int(span[0]), int(span[-1]) + 1))


# Positions among the 1000 ImageNet classes in the order of their WordNet identifiers; 207 classes
# are in a category.
IMAGENET_INDICES = {
    "airplane": _indices("404"),
    "bear": _indices("294-297"),
    "bicycle": _indices("444 671"),
    "bird": _indices("8 10-16 18-20 22-24 80-83 87-96 98-100 127-133 135-145"),
    "boat": _indices("472 554 625 814 914"),
    "bottle": _indices("440 720 737 898-899 901 907"),
    "car": _indices("436 511 817"),
    "cat": _indices("281-286"),
    "chair": _indices("423 559 765 857"),
    "clock": _indices("409 530 892"),
    "dog": _indices("152-191 193-203 205-226 228-241 243-250 252-257 259 261-263 265-268"),
    "elephant": _indices("385-386"),
    "keyboard": _indices("508 878"),
    "knife": _indices("499"),
    "oven": _indices("766"),
    "truck": _indices("555 569 656 675 717 734 864 867"),
}


def image_key(imagename: str) -> str:
    """Name the picture that a trial showed, the same for every observer.

    File names of trials begin with parts that differ between observers: trial, experiment,
    observer, condition, category. The last part between "_" is the picture. If the picture is from
    ImageNet, the WordNet identifier before it belongs to it:
    "0001_cl_s01_cr_oven_40_n04111531_14126.png" is "n04111531_14126.png".
    """
    parts = imagename.split("_")
    return "_".join(parts[-2:]) if len(parts) > 1 and parts[-2].startswith("n0") else parts[-1]


def texture_of(image: str) -> str:
    """Name the category of the texture of a cue-conflict picture.

    It is "bird" for "dog10-bird2.png".
    """
    stem = image.split("_")[-1].split(".")[0]
    return "".join(character for character in stem.split("-")[-1] if not character.isdigit())
