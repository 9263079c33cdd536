"""What records say of the model that they were measured on, as it was trained."""

from collections.abc import Mapping
from typing import Any

Used = Mapping[str, tuple[Any, str]]


def models_as_trained(settings: Mapping[str, Any]) -> list[Used]:
    """What was used of how the model was trained, by name the value and who states it.

    Args:
        settings: Of a table of records.

    Returns:
        One mapping; several where records disagree; none in files that are older than this entry.
    """
    stored = settings.get("as_trained")
    if not isinstance(stored, Mapping):
        return []
    several = list(stored["several"]) if set(stored) == {"several"} else [stored]
    return [
        {name: (value, str(source)) for name, (value, source) in one.items()} for one in several
    ]


def described_as_trained(settings: Mapping[str, Any]) -> list[str]:
    """A line per model: the values of each source, those that somebody stated first."""
    return ["as trained: " + "; ".join(_by_source(used)) for used in models_as_trained(settings)]


def notes_of(extras: Mapping[str, Any]) -> list[str]:
    """What was said of a checkpoint, its run and the data when they were read, a sentence each."""
    stored = extras.get("notes", [])
    several = stored["several"] if isinstance(stored, Mapping) else [stored]
    return list(dict.fromkeys(str(note) for notes in several for note in notes))


def _by_source(used: Used) -> list[str]:
    sources = sorted(
        {source for _, source in used.values()}, key=lambda source: (source == "default", source)
    )
    return [
        f"{source}: "
        + ", ".join(
            f"{name} {value_text(value)}"
            for name, (value, whose) in used.items()
            if whose == source
        )
        for source in sources
    ]


def value_text(value: Any) -> str:
    """A value as a reader writes it: [64, 64] is 64 x 64, a list of others is joined by blanks."""
    if isinstance(value, (list, tuple)):
        whole = all(isinstance(item, int) for item in value)
        return (" x " if whole else " ").join(
            f"{item:.4g}" if isinstance(item, float) else str(item) for item in value
        )
    return (
        {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    )
