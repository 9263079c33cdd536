"""Stored checks of the products: the audit, and the first products."""

from collections.abc import Mapping
from typing import Any


def verdicts(extras: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the stored verdicts on a checkpoint.

    Several if its runs disagree.
    """
    verdict = extras.get("audit")
    if not isinstance(verdict, Mapping):
        return []
    return list(verdict["several"]) if set(verdict) == {"several"} else [verdict]


def is_audited(extras: Mapping[str, Any]) -> bool:
    """Tell whether all products behind these facts passed an audit."""
    stored = verdicts(extras)
    return bool(stored) and all(verdict.get("passed") is True for verdict in stored)


def operator_checks(extras: Mapping[str, Any]) -> list[str]:
    """Summarize the stored checks of the operators' first products.

    A line for each kind of message: the first of it, and how many more there are.
    """
    stored = extras.get("operator", "")
    several = [
        str(check)
        for check in (stored["several"] if isinstance(stored, Mapping) else [stored])
        if check
    ]
    kinds: dict[str, list[str]] = {}
    for said in several:
        kinds.setdefault(said.partition(":")[0], []).append(said)
    return [
        said[0] + (f" (and {len(said) - 1} more like it)" if len(said) > 1 else "")
        for said in kinds.values()
    ]
