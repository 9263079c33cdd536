"""Pairs whose captions are class numbers, for the cross-entropy of a classifier."""

import hashlib
from collections.abc import Iterable

from landscape.clip.pairs import Pair, Pairs
from landscape.errors import DataError


def with_labels(pairs: Pairs) -> Pairs:
    """The same pictures with integers in place of captions such as "7"; pairs that hold labels already are returned as they are.

    Raises:
        DataError: On reading a pair whose caption is no class number; the first is read at once.
    """
    return _Labelled(pairs) if len(pairs) and isinstance(pairs[0][1], str) else pairs


class _Labelled(Pairs):
    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs
        self.name = pairs.name
        self[0]

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"labels of {self._pairs.digest}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        picture, caption = self._pairs[index]
        if not (isinstance(caption, str) and caption.strip().isdecimal()):
            raise DataError(
                f"{self.name}: the caption of pair {index} is {caption!r}, but objective cross_entropy needs a class number, 0 "
                "or more. Name the column of the labels as caption_key, or use objective: contrastive."
            )
        return picture, int(caption)

    def check(self, indices: Iterable[int]) -> None:
        self._pairs.check(indices)
