"""Matching of the data's labels with class names, never by position.

Two spellings are one name if they agree, in this order of preference:
1. as words: lower case, without apostrophes, with a space for every other character that is no
   letter or digit;
2. as words written together ("AnnualCrop", "annual crop");
3. both again after the numbering at the front of the label ("001.", "017_") has been removed.
The first rule that finds a class decides; two classes under one rule are refused.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from landscape.errors import DataError
from landscape.suggestions import close_names

_NUMBERING = re.compile(r"^\s*\d+[\s._-]+(?=\S)")


def words(text: str) -> str:
    """Normalise a name to lower-case words with one space between them."""
    plain = "".join(
        c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c)
    )
    return " ".join(re.sub(r"[\W_]+", " ", re.sub(r"['’`]", "", plain)).split())


def compact(text: str) -> str:
    """Normalise a name and write its words together."""
    return words(text).replace(" ", "")


def without_numbering(text: str) -> str:
    """Remove digits and a separator at the front of a name."""
    return _NUMBERING.sub("", text)


def readable(label: str) -> str:
    """Turn a folder name into words of a prompt."""
    return " ".join(without_numbering(label).replace("_", " ").split()) or label


def nearest(text: str, choices: Iterable[str], *, count: int = 3) -> list[str]:
    """List the choices whose spelling is most like a text."""
    return close_names(text, choices, count=count, cutoff=0.5, key=words)


class ClassIndex:
    """An index of classes by all their spellings.

    Args:
        spellings: All spellings of each class: synonyms, folder names, official numbers.
    """

    def __init__(self, spellings: Sequence[Sequence[str]]) -> None:
        self._shown = [group[0] for group in spellings]
        self._all = [spelling for group in spellings for spelling in group]
        self._by_words: dict[str, list[int]] = {}
        self._by_compact: dict[str, list[int]] = {}
        for i, group in enumerate(spellings):
            for table, normalise in ((self._by_words, words), (self._by_compact, compact)):
                for key in {normalise(spelling) for spelling in group} - {""}:
                    table.setdefault(key, []).append(i)

    def find(self, label: str) -> list[int]:
        """List the classes that a label names.

        The first rule that finds any decides.
        """
        for text in dict.fromkeys((label, without_numbering(label))):
            for table, normalise in ((self._by_words, words), (self._by_compact, compact)):
                if hits := table.get(normalise(text)):
                    return hits
        return []

    def match(self, labels: Sequence[str], *, where: str) -> list[int]:
        """Find the class of each label of a data set.

        Labels that are spelled alike (ImageNet's two "sunglasses") are assigned in order to as many
        classes of that name.

        Args:
            where: Name of the data set for messages.

        Raises:
            DataError: If a label matches no class or several, or two labels one class.
        """
        alike, seen = Counter(words(label) for label in labels), Counter[str]()
        taken: dict[int, str] = {}
        indices = []
        for label in labels:
            hits = self.find(label)
            if not hits:
                raise DataError(self._no_class(label, where))
            if len(hits) > 1 and alike[words(label)] == len(hits):
                hits = [hits[seen[words(label)]]]
            if len(hits) > 1:
                raise DataError(
                    f"{where}: {label!r} matches {len(hits)} classes, {self._list(hits)}, so its "
                    "label is not defined. Rename the folder, or write classes.txt beside the "
                    "folders: a line FOLDER TAB CLASS NAME each."
                )
            seen[words(label)] += 1
            if hits[0] in taken:
                raise DataError(
                    f"{where}: {taken[hits[0]]!r} and {label!r} both match class "
                    f"{self._shown[hits[0]]!r}, so one of them would be counted as wrong. Rename "
                    "one, or join them."
                )
            taken[hits[0]] = label
            indices.append(hits[0])
        return indices

    def _list(self, indices: Sequence[int]) -> str:
        return ", ".join(f"{self._shown[i]!r} (number {i})" for i in indices[:4]) + (
            ", ..." if len(indices) > 4 else ""
        )

    def _no_class(self, label: str, where: str) -> str:
        candidates = nearest(label, self._all) or self._shown[:3]
        return (
            f"{where}: {label!r} matches none of {len(self._shown)} classes (nearest: "
            f"{', '.join(map(repr, candidates))}), so its pictures have no label. Rename it, "
            "remove it, or write classes.txt beside the folders: a line FOLDER TAB CLASS NAME each."
        )
