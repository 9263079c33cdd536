"""Colours and markers of observers in figures of answers.

People are red with diamonds; each model has a colour and a marker. An observer looks the same in
every figure of the same answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landscape.answers import DATASETS, HUMANS, Answers
from landscape.errors import AnswersError
from landscape.figures.style import line_styles
from landscape.suggestions import did_you_mean

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

# rgb(165, 30, 55), the colour of people in the benchmark's figures.
PEOPLE_COLOR = "#A51E37"
PEOPLE_MARKER = "D"
PEOPLE_LABEL = "people"
# Chosen by a search for the colour farthest from the style's eight colours and from people's red,
# for normal and for colour-blind vision.
_NINTH = "#6F48F5"
_MARKERS = ("o", "s", "^", "v", "P", "X", "<", ">", "p")
MAX_MODELS = len(_MARKERS)
# Colour of further models, where each has its name beside it.
_PLAIN = "#8C8C8C"
# Edges of markers, so that overlapping ones stay visible.
MARKER_EDGE: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.4}


@dataclass(frozen=True)
class Look:
    """Label, colour and marker of an observer.

    Args:
        label: Text for legends; any text.
        color: Colour as "#rrggbb".
        marker: Marker of matplotlib; it distinguishes observers without colour.
        is_people: Whether it stands for all people together.
    """

    label: str
    color: str
    marker: str
    is_people: bool = False

    @property
    def size(self) -> float:
        """Return the marker size in points.

        It differs by marker, since filled markers of the same size look differently large.
        """
        return {"D": 3.6, "s": 3.6, "P": 4.6, "X": 4.6, "p": 4.8}.get(self.marker, 4.2)

    def sample(self) -> "Line2D":
        """Draw a piece of line for legends."""
        from matplotlib.lines import Line2D

        marker: dict[str, Any] = {"marker": self.marker, "markersize": self.size}
        return Line2D(
            [], [], color=self.color, linestyle="-", linewidth=0.9, **marker, **MARKER_EDGE
        )


def model_looks(models: Sequence[str], labels: Mapping[str, str] | None = None) -> dict[str, Look]:
    """Choose a look for each model, by its position.

    Args:
        labels: Labels of models; a model without a label is called by its name.
    """
    colors = [*(style.color for style in line_styles()), _NINTH]
    looks = {}
    for at, name in enumerate(models):
        known = at < MAX_MODELS
        label = (labels or {}).get(name, name)
        looks[name] = Look(label, colors[at] if known else _PLAIN, _MARKERS[at] if known else "o")
    return looks


def observer_looks(answers: Answers, labels: Mapping[str, str] | None = None) -> dict[str, Look]:
    """Choose a look for people, if any, and for each model.

    Args:
        labels: Labels of observers, by their names; "humans" are all people together.

    Returns:
        People first, then models in the order of the answers.
    """
    has_people = bool((answers.table.kind == "human").any())
    people = Look(
        (labels or {}).get(HUMANS, PEOPLE_LABEL), PEOPLE_COLOR, PEOPLE_MARKER, is_people=True
    )
    return ({HUMANS: people} if has_people else {}) | model_looks(answers.models, labels)


def check_num_models(num_models: int) -> None:
    """Refuse more models than can be distinguished in one panel.

    Raises:
        AnswersError: If so.
    """
    if num_models > MAX_MODELS:
        raise AnswersError(
            f"figure: there are {num_models} models, but more than {MAX_MODELS} in a panel cannot "
            "be told apart. Draw some of them."
        )


def check_datasets(datasets: Sequence[str]) -> None:
    """Refuse unknown data sets of the benchmark, and an empty list.

    Raises:
        ValueError: If so.
    """
    unknown = [name for name in datasets if name not in DATASETS]
    if unknown or not datasets:
        problem = f"there is no {unknown[0]!r}" if unknown else "none is named"
        hint = did_you_mean(unknown[0], DATASETS) if unknown else ""
        raise ValueError(f"datasets: {problem}; there are {', '.join(DATASETS)}.{hint}")
