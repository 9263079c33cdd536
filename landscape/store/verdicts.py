"""What records say about the audit of the products that they were made by."""

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
