"""The labels of a data set, translated to class numbers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from landscape.datasets.classes import Classes
from landscape.datasets.labelled import OpenedPictures, RawPictures
from landscape.datasets.names import ClassIndex, compact
from landscape.datasets.sources import Found, class_ids, find_names, find_templates
from landscape.datasets.suite import KnownSet
from landscape.errors import DataError


def resolve(
    raw: RawPictures, known: KnownSet | None, *, name: str, path: str, slip: Path | None
) -> OpenedPictures:
    """Match the labels of a set to classes by name.

    Raises:
        DataError: If a label matches no class or several, two labels match one class, or a source
            cannot be read.
    """
    names, templates = find_names(known, raw, slip), find_templates(known, raw, slip)
    if names.own:
        indices = list(range(len(raw.classes)))
    else:
        indices = ClassIndex(_spellings(known, names, where=raw.where)).match(
            raw.classes, where=raw.where
        )
        if names.source == raw.names_file:
            _check_all_there(names, indices, where=raw.where)
    notes = [*raw.notes, *(known.notes if known is not None else ())]
    content, indices, missing = _drop_optional(known, names, indices)
    classes = Classes(
        content,
        templates.content,
        names.source,
        templates.source,
        notes=(*names.notes, *templates.notes),
    )
    notes += missing
    notes += _notes_on_classes(raw, known, classes, indices)
    return OpenedPictures(replace(raw, notes=tuple(notes)), classes, indices, name=name, path=path)


def _check_all_there(names: Found, indices: Sequence[int], *, where: str) -> None:
    there = set(indices)
    lacking = [synonyms[0] for i, synonyms in enumerate(names.content) if i not in there]
    if lacking:
        raise DataError(
            f"{where}: classnames.txt names {lacking[0]!r} ({len(lacking)} of {len(names.content)} "
            "such), which fits no folder, so a choice that nothing can be would be offered. Remove "
            "the line, or restore the folder."
        )


def _spellings(known: KnownSet | None, names: Found, *, where: str) -> list[list[str]]:
    """List all spellings of each class: synonyms, folder names, numbers, codes."""
    groups: dict[str, tuple[str, ...]] = {}
    for group in known.same if known is not None else ():
        groups.update({compact(spelling): group for spelling in group})
    spellings = []
    for synonyms in names.content:
        further = [spelling for name in synonyms for spelling in groups.get(compact(name), ())]
        spellings.append(list(dict.fromkeys([*synonyms, *further])))
    ids = class_ids(known) if known is not None and names.listed else ()
    if ids and len(ids) != len(spellings):
        raise DataError(
            f"{where}: {names.source} names {len(spellings)} classes, but the set's numbers or "
            f"codes are {len(ids)}, so it is unclear which belong together. Give another list of "
            "names."
        )
    if known is not None and ids:
        _check_order(known, names, where=where)
    for i, more in enumerate(ids):
        spellings[i] += [spelling for spelling in more if spelling not in spellings[i]]
    return spellings


def _check_order(known: KnownSet, names: Found, *, where: str) -> None:
    """Refuse names in another order than the set's numbers or codes.

    Raises:
        DataError: If a name is the one that the project's table has elsewhere.
    """
    index = ClassIndex(known.names) if known.names else None
    for i, synonyms in enumerate(names.content):
        hits = index.find(synonyms[0]) if index is not None else []
        if len(hits) == 1 and hits[0] != i:
            raise DataError(
                f"{where}: {names.source} has {synonyms[0]!r} as class {i}, but the set's numbers "
                f"or codes make it {hits[0]}, so its list is in another order. Give the published "
                "list, or leave it out."
            )


def _drop_optional(
    known: KnownSet | None, names: Found, indices: Sequence[int]
) -> tuple[tuple[tuple[str, ...], ...], list[int], list[str]]:
    """Leave out optional classes without a folder (Caltech's background)."""
    optional = known.may_lack if known is not None else ()
    lacking = [
        i
        for i, synonyms in enumerate(names.content)
        if synonyms[0] in optional and i not in set(indices)
    ]
    kept = [i for i in range(len(names.content)) if i not in lacking]
    place = {old: new for new, old in enumerate(kept)}
    notes = []
    if lacking:
        left_out = ", ".join(names.content[i][0] for i in lacking)
        notes.append(
            f"There are no pictures of {left_out!r}, so the choice is among {len(kept)} classes, "
            f"not {len(names.content)}."
        )
    elif any(synonyms[0] in optional for synonyms in names.content):
        notes.append(
            f"Pictures of {', '.join(map(repr, optional))} are there, so the choice is among "
            f"{len(kept)} classes."
        )
    return tuple(names.content[i] for i in kept), [place[i] for i in indices], notes


def _notes_on_classes(
    raw: RawPictures, known: KnownSet | None, classes: Classes, indices: Sequence[int]
) -> list[str]:
    notes = []
    occurring = {indices[label] for label in set(raw.labels)}
    absent = [synonyms[0] for i, synonyms in enumerate(classes.names) if i not in occurring]
    if absent:
        listed = ", ".join(map(repr, absent[:5])) + (", ..." if len(absent) > 5 else "")
        notes.append(f"{len(absent)} of {len(classes.names)} classes have no picture: {listed}.")
    count, usual = len(classes.names), known.num_classes if known is not None else None
    if (
        known is not None
        and usual is not None
        and count not in (usual, usual - len(known.may_lack))
    ):
        notes.append(
            f"The choice is among {count} classes; that of the published numbers is among {usual}."
        )
    if (
        known is not None
        and known.num_pictures is not None
        and known.num_pictures != len(raw.labels)
    ):
        notes.append(
            f"There are {len(raw.labels):,} pictures; split {known.split!r} of the published "
            f"numbers has {known.num_pictures:,}."
        )
    for first, later in classes.duplicates():
        notes.append(
            f"Classes {first} and {later} are both {classes.names[later][0]!r}: their prompts tie, "
            f"the lowest index wins, so class {later} can never be right."
        )
    return notes
