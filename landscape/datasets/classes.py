"""Classes of a labelled set: names, prompts, and the source of both."""

import hashlib
import json
from dataclasses import dataclass

from landscape.errors import DataError

GENERIC_TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class Classes:
    """Names and prompts of the classes that labels number.

    Attributes:
        names: Synonyms of each class; most sets have one, FER-2013 up to three. The prompts of all
            are pooled in one mean.
        templates: Prompts with one "{}" for the name.
        names_source, templates_source: Sources of both, with a digest where the source is a file.
        notes: What was guessed or differs from the paper, a sentence each.

    Raises:
        DataError: If there is no class, a class without a name, no template, or one without exactly
            one "{}".
    """

    names: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]
    names_source: str
    templates_source: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise DataError(
                f"{self.names_source}: there is no class, so there is nothing to choose from. Name "
                "at least one."
            )
        for i, synonyms in enumerate(self.names):
            if not synonyms or not all(isinstance(name, str) and name.strip() for name in synonyms):
                raise DataError(
                    f"{self.names_source}: class {i} has an empty name, so no prompt can be made. "
                    "Name it."
                )
        if not self.templates:
            raise DataError(
                f"{self.templates_source}: there is no prompt. Write one with {{}} for the name, a "
                "line each."
            )
        for template in self.templates:
            if template.count("{}") != 1:
                raise DataError(
                    f"{self.templates_source}: the prompt {template!r} has {template.count('{}')} "
                    f"places {{}} for the name, expected one. Correct it."
                )

    @property
    def digest(self) -> str:
        """Compute the sha256 of names and templates, in their order."""
        return hashlib.sha256(json.dumps([self.names, self.templates]).encode()).hexdigest()

    def prompts(self, index: int) -> list[str]:
        """List all prompts of a class: each synonym in each template."""
        return [
            template.replace("{}", name)
            for name in self.names[index]
            for template in self.templates
        ]

    def duplicates(self) -> list[tuple[int, int]]:
        """List pairs (first, later) of classes with equal names, whose scores tie."""
        first: dict[tuple[str, ...], int] = {}
        return [
            (first[names], i)
            for i, names in enumerate(self.names)
            if first.setdefault(names, i) != i
        ]
