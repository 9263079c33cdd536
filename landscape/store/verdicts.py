"""What records say about the products that they were made by: the audit's verdict, and the check of the first."""

from collections.abc import Mapping
from typing import Any


def verdicts(extras: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The verdicts among the facts stored with a checkpoint's records; several where its runs disagree."""
    verdict = extras.get("audit")
    if not isinstance(verdict, Mapping):
        return []
    return list(verdict["several"]) if set(verdict) == {"several"} else [verdict]


def is_audited(extras: Mapping[str, Any]) -> bool:
    """Whether every record behind these facts was made by a product that passed."""
    found = verdicts(extras)
    return bool(found) and all(one.get("passed") is True for one in found)


def operator_checks(extras: Mapping[str, Any]) -> list[str]:
    """What was said of the operators' first products, a line for each kind of saying: the first, and how many more there are."""
    stored = extras.get("operator", "")
    several = [
        str(one) for one in (stored["several"] if isinstance(stored, Mapping) else [stored]) if one
    ]
    kinds: dict[str, list[str]] = {}
    for said in several:
        kinds.setdefault(said.partition(":")[0], []).append(said)
    return [
        said[0] + (f" (and {len(said) - 1} more like it)" if len(said) > 1 else "")
        for said in kinds.values()
    ]
