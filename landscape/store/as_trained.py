"""Facts in records about the model as it was trained."""

from collections.abc import Mapping
from typing import Any

Used = Mapping[str, tuple[Any, str]]


def models_as_trained(settings: Mapping[str, Any]) -> list[Used]:
    """Return how the measured models were trained, by name.

    Each name has the value that was used and its source.

    Args:
        settings: Settings of a table of records.

    Returns:
        A single mapping; several where records disagree; none in files older than this entry.
    """
    stored = settings.get("as_trained")
    if not isinstance(stored, Mapping):
        return []
    several = list(stored["several"]) if set(stored) == {"several"} else [stored]
    return [
        {name: (value, str(source)) for name, (value, source) in model.items()} for model in several
    ]


def described_as_trained(settings: Mapping[str, Any]) -> list[str]:
    """Describe each model in a line: the values of each source.

    Values that the user or a file states come before defaults.
    """
    return ["as trained: " + "; ".join(_by_source(used)) for used in models_as_trained(settings)]


def notes_of(extras: Mapping[str, Any]) -> list[str]:
    """Return the stored notes on a checkpoint and its data.

    They were made when checkpoint, run and data were read; a sentence each, without repetition.
    """
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
    """Format a value for readers.

    [64, 64] becomes 64 x 64; other lists are joined by blanks.
    """
    if isinstance(value, (list, tuple)):
        whole = all(isinstance(item, int) for item in value)
        return (" x " if whole else " ").join(
            f"{item:.4g}" if isinstance(item, float) else str(item) for item in value
        )
    return (
        {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    )
