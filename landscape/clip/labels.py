"""Pairs whose captions are class numbers, for the cross-entropy of a classifier."""

import hashlib
from collections.abc import Iterable

from landscape.clip.pair_files import FilePairs
from landscape.clip.pairs import Pair, Pairs
from landscape.errors import DataError


def with_labels(pairs: Pairs) -> Pairs:
    """Return the same pictures with integer labels.

    Labels are the source's own (KEY.cls of shards), or captions such as "7" read as numbers. Pairs
    that hold labels already are returned unchanged.

    Raises:
        DataError: If only some pairs have a class, or a caption is no class number. The first
            caption is checked at once, the others when they are read.
    """
    if isinstance(pairs, FilePairs) and (labelled := pairs.labelled()) is not None:
        return labelled
    return _Labelled(pairs) if len(pairs) and isinstance(pairs.target(0), str) else pairs


class _Labelled(Pairs):
    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs
        self.name, self.notes = pairs.name, pairs.notes
        self.target(0)

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"labels of {self._pairs.digest}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        picture, caption = self._pairs[index]
        return picture, self._label(index, caption)

    def target(self, index: int) -> int:
        return self._label(index, self._pairs.target(index))

    def _label(self, index: int, caption: str | int) -> int:
        if not (isinstance(caption, str) and caption.strip().isdecimal()):
            raise DataError(
                f"{self.name}: the caption of pair {index} is {caption!r}, but objective "
                "cross_entropy needs a class number, 0 or more. Name the column of the labels as "
                "caption_key, or use objective: contrastive."
            )
        return int(caption)

    def problem(self, index: int) -> str | None:
        return self._pairs.problem(index)

    def check(self, indices: Iterable[int]) -> None:
        self._pairs.check(indices)
