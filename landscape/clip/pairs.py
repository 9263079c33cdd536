"""Image-text pairs: the common interface of all sources, splits and digests.

Also the pairs in memory and those of torch data sets.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from landscape.clip.openmoji import PairArrays, digest_arrays
from landscape.errors import DataError, PictureError

Picture = Image.Image | Tensor
Pair = tuple[Picture, str | int]

SPLITS = ("train", "held_out", "all")
# One pair in ten is held out.
_HELD_OUT_EVERY = 10


class Pairs(ABC, Dataset[Pair]):
    """Image-text pairs in a fixed order.

    Item i is (picture, caption), or (picture, label) for a classifier. A picture is a PIL image, or
    a float tensor (3, h, w) that another transform has already made.

    Attributes:
        name: Name for messages: which split of which source.
        digest: sha256 that identifies the pairs and their order.
        notes: What was left out or is read differently than elsewhere, a sentence each.
    """

    name: str
    notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def digest(self) -> str: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Pair: ...

    def target(self, index: int) -> str | int:
        """Return the caption or label of a pair.

        Its picture is not decoded where that is possible.
        """
        return self[index][1]

    def problem(self, index: int) -> str | None:
        """Explain why a pair's picture cannot be read; None if it can.

        Each picture is read only once.
        """
        if index not in self._problems:
            try:
                self[index]
                self._problems[index] = None
            except PictureError as error:
                self._problems[index] = error.problem
        return self._problems[index]

    @cached_property
    def _problems(self) -> dict[int, str | None]:
        return {}

    def check(self, indices: Iterable[int]) -> None:
        """Refuse what can be refused without decoding pictures.

        So a long run fails at its start.

        Raises:
            DataError: If the picture of one of the pairs is not there.
        """

    def notes_on(
        self, indices: Sequence[int], model_size: tuple[int, int] | None = None
    ) -> tuple[str, ...]:
        """List notes on some pairs' pictures for a model's size.

        Each is a sentence. The pictures are not decoded.
        """
        return ()


def split_of(key: str, caption: str) -> str:
    """Return "train" or "held_out", computed from the pair alone.

    So adding or removing other pairs never moves it to the other split.

    Args:
        key: Name of the picture in its source: code points, path as written, key within a shard.
    """
    digest = hashlib.sha256(f"{key}\t{caption}".encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") % _HELD_OUT_EVERY == 0 else "train"


def select_split(
    keys: Sequence[str], captions: Sequence[str], *, split: str, source: str
) -> list[int]:
    """List the positions of a split's pairs, in ascending order.

    Raises:
        DataError: If there is no such split, or it holds no pair.
    """
    if split not in SPLITS:
        raise DataError(
            f"{source}: there is no split {split!r}; choose one of {', '.join(SPLITS)}."
        )
    chosen = [
        i for i in range(len(keys)) if split == "all" or split_of(keys[i], captions[i]) == split
    ]
    if not chosen:
        raise DataError(
            f"{source}: split {split!r} is empty ({len(keys)} pairs in all). Choose another split, "
            "or other data."
        )
    return chosen


class ArrayPairs(Pairs):
    """Pairs held in memory, such as the embedded data set.

    Raises:
        DataError: If the split is unknown or holds nothing.
    """

    def __init__(self, arrays: PairArrays, *, split: str, source: str) -> None:
        self.name = f"split {split!r} of {source}"
        self._arrays = arrays
        self._chosen = select_split(arrays.names, arrays.captions, split=split, source=source)

    @cached_property
    def digest(self) -> str:
        names, captions = (
            [column[i] for i in self._chosen]
            for column in (self._arrays.names, self._arrays.captions)
        )
        return digest_arrays(self._arrays.images[self._chosen], names, captions)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        i = self._chosen[index]
        return Image.fromarray(self._arrays.images[i]), self._arrays.captions[i]


class PairsFromDataset(Pairs):
    """The pairs of any map-style torch data set.

    Its items are (picture, caption) or, for a classifier, (picture, label). An item must not change
    from call to call: a random transform belongs in `curvature_batches`, under a seed.

    Args:
        dataset: Its pictures are PIL images, uint8 tensors (c, h, w), or finished float tensors; a
            label is an integer.
        name: Name for messages; by default the type's.
        digest: Identifies the pairs and their order. By default sha256 over every item, which reads
            the whole data set once.

    Raises:
        DataError: If the data set is empty; on reading, if an item is something else.
    """

    def __init__(self, dataset: Any, *, name: str | None = None, digest: str | None = None) -> None:
        self.name = type(dataset).__name__ if name is None else name
        self._dataset = dataset
        self._digest = digest
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ValueError(
                f"{self.name}: expected a map-style data set (len and [index]), got "
                f"{type(dataset).__name__}."
            )
        if len(dataset) == 0:
            raise DataError(
                f"{self.name}: the data set is empty, so there is nothing to measure on."
            )

    @cached_property
    def digest(self) -> str:
        if self._digest is not None:
            return self._digest
        digest = hashlib.sha256()
        for i in range(len(self)):
            digest.update(pair_digest(*self[i]))
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Pair:
        item = self._dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(
                f"{self.name}, item {index}: expected a pair (picture, caption or label), got "
                f"{type(item).__name__}."
            )
        return self._picture(item[0], index), self._target(item[1], index)

    def _picture(self, picture: Any, index: int) -> Picture:
        if isinstance(picture, Image.Image):
            return picture if picture.mode in ("RGB", "L") else picture.convert("RGB")
        if isinstance(picture, Tensor) and picture.ndim == 3 and picture.dtype == torch.uint8:
            from torchvision.transforms.functional import to_pil_image

            return to_pil_image(picture)
        if isinstance(picture, Tensor) and picture.ndim == 3 and picture.is_floating_point():
            return picture
        got = type(picture).__name__
        if isinstance(picture, Tensor):
            got = f"{picture.dtype} tensor {tuple(picture.shape)}"
        raise DataError(
            f"{self.name}, item {index}: expected a PIL image or a uint8 or float tensor (c, h, "
            f"w), got {got}."
        )

    def _target(self, target: Any, index: int) -> str | int:
        if isinstance(target, str):
            return target
        try:
            return int(target.__index__())
        except (AttributeError, TypeError) as error:
            raise DataError(
                f"{self.name}, item {index}: expected a caption (str) or a label (int), got "
                f"{type(target).__name__}."
            ) from error


def pair_digest(picture: Picture, target: str | int) -> bytes:
    """Compute the sha256 of a pair before the model's transform.

    It covers kind, size and bytes of the picture, then caption or label. A PIL image is hashed as
    the line "RGB w h", a tensor as "DTYPE c h w"; the bytes follow row by row; then "caption " or
    "label " and the text.
    """
    if isinstance(picture, Tensor):
        header = " ".join(
            [str(picture.dtype).removeprefix("torch."), *(str(size) for size in picture.shape)]
        )
        content = picture.detach().cpu().contiguous().numpy().tobytes()
    else:
        header = f"{picture.mode} {picture.width} {picture.height}"
        content = picture.tobytes()
    kind = "caption" if isinstance(target, str) else "label"
    return hashlib.sha256(f"{header}\n".encode() + content + f"\n{kind} {target}".encode()).digest()
