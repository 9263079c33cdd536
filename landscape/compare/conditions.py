"""What series must share besides the protocol, for their difference to be one of the weights; sentences where they do not."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from landscape.compare.result import Comparison
from landscape.compare.series import Series
from landscape.store import SpectraTable, models_as_trained, value_text


def conditions(comparison: Comparison, series: Sequence[Series]) -> list[str]:
    """What the protocol leaves free and records were measured under differently, each with who was measured how."""
    said = []
    for name, of in _FREE.items():
        found: dict[str, list[str]] = {}
        for one in series:
            tables = [one.tables[epoch] for epoch in comparison.epochs if epoch in one.tables]
            for value in dict.fromkeys(value for table in tables for value in of(table)):
                found.setdefault(value, []).append(comparison.label(one.info.name))
        if len(found) > 1:
            parts = ", ".join(f"{value} ({'; '.join(labels)})" for value, labels in found.items())
            said.append(f"Measured in different ways, {name}: {parts}.")
    return said


def same_weights(comparison: Comparison, series: Sequence[Series]) -> list[str]:
    """Pairs that are one file of weights: their difference is one of measurement."""
    said = []
    for one, other in itertools.combinations(series, 2):
        same = [
            epoch
            for epoch in comparison.epochs
            if epoch in one.tables
            and epoch in other.tables
            and one.tables[epoch].checkpoint_sha256 == other.tables[epoch].checkpoint_sha256
        ]
        if same:
            labels = " and ".join(comparison.label(which.info.name) for which in (one, other))
            epochs = f"epoch{'s' * (len(same) > 1)} {', '.join(map(str, same))}"
            said.append(
                f"{labels} are the same file of weights at {epochs}: a difference there is one of how it was measured."
            )
    return said


def _several(facts: Mapping[str, Any], key: str) -> list[Any]:
    """All values of a fact; none where it was not stored."""
    if key not in facts:
        return []
    value = facts[key]
    return (
        list(value["several"])
        if isinstance(value, Mapping) and set(value) == {"several"}
        else [value]
    )


def _products(table: SpectraTable) -> list[str]:
    """Kinds of products: those of one kind compute the same matrix, however they save time or memory."""
    exact = ("double backward", "jvp")
    return [
        "second derivatives" if text.startswith(exact) else text
        for text in map(str, _several(table.settings, "product"))
    ]


def _tf32(table: SpectraTable) -> list[str]:
    choices = [
        one for one in _several(table.settings, "product_choice") if isinstance(one, Mapping)
    ]
    return ["allowed" if one.get("allow_tf32") else "off" for one in choices]


def _trained(*names: str) -> Callable[[SpectraTable], list[str]]:
    """Values of settings of the model as it was trained, joined; nothing in stores that do not know them."""

    def of(table: SpectraTable) -> list[str]:
        models = models_as_trained(table.settings)
        known = [used for used in models if used.keys() & set(names)]
        return [
            " ".join(value_text(used[name][0]) for name in names if name in used) for used in known
        ]

    return of


_FREE: dict[str, Callable[[SpectraTable], list[str]]] = {
    "products": _products,
    "loss": _trained("loss"),
    "label smoothing": _trained("label_smoothing"),
    "activation": _trained("activation"),
    "text tower": _trained("text_tower", "context_length"),
    "copy of the weights": _trained("weights"),
    "size of the pictures": _trained("picture_size"),
    "normalisation of the pictures": _trained("mean", "std"),
    "resizing of the pictures": _trained(
        "interpolation", "resize_mode", "fill_color", "crop_pct", "crop_mode"
    ),
    "TF32": _tf32,
    "device": lambda table: list(map(str, _several(table.settings, "device"))),
    "torch": lambda table: list(map(str, _several(table.versions, "torch"))),
}
