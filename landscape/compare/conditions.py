"""Conditions that series must share besides the protocol.

Only then is their difference one of the weights. The functions give sentences where series differ.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from landscape.compare.result import Comparison
from landscape.compare.series import Series
from landscape.store import SpectraTable, models_as_trained, value_text


def conditions(comparison: Comparison, series: Sequence[Series]) -> list[str]:
    """Name settings that the protocol leaves free and in which records differ.

    Each sentence says which series was measured how.
    """
    said = []
    for name, of in _FREE.items():
        labels_by_value: dict[str, list[str]] = {}
        for member in series:
            tables = [member.tables[epoch] for epoch in comparison.epochs if epoch in member.tables]
            for value in dict.fromkeys(value for table in tables for value in of(table)):
                labels_by_value.setdefault(value, []).append(comparison.label(member.info.name))
        if len(labels_by_value) > 1:
            parts = ", ".join(
                f"{value} ({'; '.join(labels)})" for value, labels in labels_by_value.items()
            )
            said.append(f"Measured in different ways, {name}: {parts}.")
    return said


def same_weights(comparison: Comparison, series: Sequence[Series]) -> list[str]:
    """Name pairs that are one file of weights.

    Their difference is one of measurement.
    """
    said = []
    for first, second in itertools.combinations(series, 2):
        same = [
            epoch
            for epoch in comparison.epochs
            if epoch in first.tables
            and epoch in second.tables
            and first.tables[epoch].checkpoint_sha256 == second.tables[epoch].checkpoint_sha256
        ]
        if same:
            labels = " and ".join(comparison.label(which.info.name) for which in (first, second))
            epochs = f"epoch{'s' * (len(same) > 1)} {', '.join(map(str, same))}"
            said.append(
                f"{labels} are the same file of weights at {epochs}: a difference there is due to "
                "the measurement."
            )
    return said


def _several(facts: Mapping[str, Any], key: str) -> list[Any]:
    """List all values of a fact; none where it was not stored."""
    if key not in facts:
        return []
    value = facts[key]
    return (
        list(value["several"])
        if isinstance(value, Mapping) and set(value) == {"several"}
        else [value]
    )


def _products(table: SpectraTable) -> list[str]:
    """List the kinds of products.

    Products of one kind compute the same matrix, however they save time or memory.
    """
    exact = ("double backward", "jvp")
    return [
        "second derivatives" if text.startswith(exact) else text
        for text in map(str, _several(table.settings, "product"))
    ]


def _tf32(table: SpectraTable) -> list[str]:
    choices = [
        choice
        for choice in _several(table.settings, "product_choice")
        if isinstance(choice, Mapping)
    ]
    return ["allowed" if choice.get("allow_tf32") else "off" for choice in choices]


def _trained(*names: str) -> Callable[[SpectraTable], list[str]]:
    """Build a function that reads settings of the trained model.

    It joins their values; it gives nothing for stores that do not know them.
    """

    def of(table: SpectraTable) -> list[str]:
        models = models_as_trained(table.settings)
        known = [used for used in models if used.keys() & set(names)]
        return [
            " ".join(value_text(used[name][0]) for name in names if name in used) for used in known
        ]

    return of


def _transformers(table: SpectraTable) -> list[str]:
    """List versions of `transformers`, the code of language models.

    Other models do not use it, so the list is empty for them.
    """
    if not any("tokens" in used for used in models_as_trained(table.settings)):
        return []
    return list(map(str, _several(table.versions, "transformers")))


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
    "transformers": _transformers,
}
