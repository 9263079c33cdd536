"""How observers look in figures of answers: people are red with diamonds, each model has a colour and a marker.

An observer looks the same in every figure of the same answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landscape.answers import DATASETS, HUMANS, Answers
from landscape.errors import AnswersError
from landscape.figures.style import line_styles

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

# rgb(165, 30, 55), in which the benchmark draws people.
PEOPLE_COLOR = "#A51E37"
PEOPLE_MARKER = "D"
PEOPLE_LABEL = "people"
# Chosen by a search for what is farthest from the style's eight colours and from people's red, for every kind of vision.
_NINTH = "#6F48F5"
_MARKERS = ("o", "s", "^", "v", "P", "X", "<", ">", "p")
MAX_MODELS = len(_MARKERS)
# Of models beyond, where each has its name beside it.
_PLAIN = "#8C8C8C"
# Edges of markers, so that each is seen where they overlap.
MARKER_EDGE: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.4}


@dataclass(frozen=True)
class Look:
    """How an observer is drawn.

    Args:
        label: For legends; any text.
        color: As "#rrggbb".
        marker: One of matplotlib's; tells observers apart without colour.
        is_people: Whether it stands for all people together.
    """

    label: str
    color: str
    marker: str
    is_people: bool = False

    @property
    def size(self) -> float:
        """Points; filled markers of one size look differently large."""
        return {"D": 3.6, "s": 3.6, "P": 4.6, "X": 4.6, "p": 4.8}.get(self.marker, 4.2)

    def sample(self) -> "Line2D":
        """Draw a piece of line for legends."""
        from matplotlib.lines import Line2D

        marker: dict[str, Any] = {"marker": self.marker, "markersize": self.size}
        return Line2D(
            [], [], color=self.color, linestyle="-", linewidth=0.9, **marker, **MARKER_EDGE
        )


def model_looks(models: Sequence[str], labels: Mapping[str, str] | None = None) -> dict[str, Look]:
    """Choose a look for each model, by its place.

    Args:
        labels: What to call models; a model without one has its name.
    """
    colors = [*(style.color for style in line_styles()), _NINTH]
    looks = {}
    for at, name in enumerate(models):
        known = at < MAX_MODELS
        label = (labels or {}).get(name, name)
        looks[name] = Look(label, colors[at] if known else _PLAIN, _MARKERS[at] if known else "o")
    return looks


def observer_looks(answers: Answers, labels: Mapping[str, str] | None = None) -> dict[str, Look]:
    """Choose a look for people, where there are any, and for each model.

    Args:
        labels: What to call observers, by their names; "humans" are all people together.

    Returns:
        People first, then models in the order of the answers.
    """
    has_people = bool((answers.table.kind == "human").any())
    people = Look(
        (labels or {}).get(HUMANS, PEOPLE_LABEL), PEOPLE_COLOR, PEOPLE_MARKER, is_people=True
    )
    return ({HUMANS: people} if has_people else {}) | model_looks(answers.models, labels)


def check_num_models(num_models: int) -> None:
    """Refuse more models than can be told apart in one panel.

    Raises:
        AnswersError: If so.
    """
    if num_models > MAX_MODELS:
        raise AnswersError(
            f"figure: there are {num_models} models, but more than {MAX_MODELS} in a panel cannot be told apart. "
            "Draw some of them."
        )


def check_datasets(datasets: Sequence[str]) -> None:
    """Refuse names that are no data set of the benchmark, and none at all.

    Raises:
        ValueError: If so.
    """
    unknown = [name for name in datasets if name not in DATASETS]
    if unknown or not datasets:
        problem = f"there is no {unknown[0]!r}" if unknown else "none is named"
        raise ValueError(f"datasets: {problem}; there are {', '.join(DATASETS)}.")
