"""Deterministic image-text batches: fixed ones for curvature, shuffled ones for training.

Every random choice is a function of named integers (seed, epoch, index), never of global state, of
the number of worker processes, or of the order of calls. Shapes: b = pairs per batch, l = tokens
per caption, h, w = size that the transform makes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from landscape.clip.openmoji import load_openmoji
from landscape.clip.pair_shards import open_shards
from landscape.clip.pair_tables import open_csv
from landscape.clip.pairs import ArrayPairs, Pairs, PairsFromDataset, Picture, pair_digest, split_of
from landscape.clip.seeding import (
    call_plainly,
    derive_seed,
    draw_without_replacement,
    seeded_globals,
)
from landscape.errors import DataError
from landscape.linalg.operator import seeded
from landscape.manifest import DataSettings

__all__ = [
    "CurvatureBatches",
    "EpochSampler",
    "Pairs",
    "PairsFromDataset",
    "TrainingPairs",
    "curvature_batches",
    "epoch_loader",
    "open_pairs",
    "split_of",
]

Transform = Callable[[Any], Tensor]
Tokenizer = Callable[[list[str]], Tensor]


def open_pairs(
    settings: DataSettings, *, cache: Path | None = None, progress: bool | None = None
) -> Pairs:
    """Open the pairs that a manifest names.

    Args:
        settings: `source` is "openmoji", the path of a .csv or .tsv file, or a path pattern of .tar
            shards. openmoji is drawn at `image_size`; pictures from files are scaled and cut to it
            where it is given.
        cache, progress: As in `load_openmoji`; used for nothing else.

    Raises:
        MissingDependencyError: If openmoji is asked for and the extra `demo` is not installed.
        DataError: If the source is of no known kind, is missing or damaged, or has no pair in this
            split.
    """
    source = settings.source
    if source == "openmoji":
        if settings.image_size is None:
            raise DataError(
                "openmoji: image_size is missing, and the pictures are drawn at it. Set it to 64, "
                "say."
            )
        arrays = load_openmoji(settings.image_size, cache=cache, progress=progress)
        return ArrayPairs(arrays, split=settings.split, source=source)
    if source.lower().endswith((".csv", ".tsv")):
        return open_csv(
            Path(source),
            split=settings.split,
            image_size=settings.image_size,
            separator=settings.separator,
            image_key=settings.image_key,
            caption_key=settings.caption_key,
            encoding=settings.encoding,
            quoting=settings.quoting,
        )
    if settings.in_shards:
        return open_shards(
            source,
            split=settings.split,
            image_size=settings.image_size,
            caption_key=settings.caption_key,
        )
    raise DataError(
        f"{source}: unknown kind of source. Expected openmoji, a .csv or .tsv file, or a pattern "
        "of .tar shards."
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class CurvatureBatches:
    """The fixed batches of one measurement, each read on demand.

    Made by `curvature_batches`.

    Attributes:
        indices: Positions in `pairs` in the order of the draw; batch i holds entries i * batch_size
            and following.
        replaced: Entries that replace pairs whose pictures cannot be read, each with the error of
            the replaced pair.
        on_bad_picture: The option of `curvature_batches`.
    """

    pairs: Pairs
    indices: tuple[int, ...]
    batch_size: int
    seed: int
    transform: Transform | None
    tokenizer: Tokenizer | None
    augmentation: str
    augmentation_seed: int | None
    on_bad_picture: str = "fail"
    replaced: tuple[tuple[int, str], ...] = ()

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """List notes on the pairs and the drawn pictures.

        Each is a sentence that says what was left out, or is read differently than it looks.
        """
        drawn = (
            *self.pairs.notes,
            *self.pairs.notes_on(self.indices, getattr(self.transform, "size", None)),
        )
        if not self.replaced:
            return drawn
        shown = " ".join(problem for _, problem in self.replaced[:3])
        more = f" And {len(self.replaced) - 3} more." if len(self.replaced) > 3 else ""
        skipped = (
            f"{self.pairs.name}: of {len(self.indices)} drawn pictures {len(self.replaced)} cannot "
            f"be read; the next pairs of the draw replace them. {shown}{more}"
        )
        return (*drawn, skipped)

    def __len__(self) -> int:
        return len(self.indices) // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """Read batch i: "image", and "text" or "label".

        "image" is (b, 3, h, w) float, "text" (b, l) int64. Without a tokenizer there is "label"
        (b,) int64 in place of the text.

        Raises:
            IndexError: If there is no batch i.
            DataError: If a picture cannot be read, or the pictures of the batch differ in size.
        """
        indices = self._batch_indices(i)
        images, targets = [], []
        # Transform each picture before reading the next: untransformed ones can be far larger.
        for index in indices:
            picture, target = self.pairs[index]
            images.append(self._image(index, picture))
            targets.append(target)
        if len({image.shape for image in images}) != 1:
            shapes = ", ".join(sorted({str(tuple(image.shape)) for image in images}))
            raise DataError(
                f"{self.pairs.name}, batch {i}: the pictures differ in size ({shapes}), so they "
                "make no batch. Give a transform that resizes them."
            )
        return {"image": torch.stack(images), **_targets(targets, self.tokenizer, self.pairs.name)}

    def _batch_indices(self, i: int) -> tuple[int, ...]:
        position = range(len(self))[i]
        return self.indices[position * self.batch_size : (position + 1) * self.batch_size]

    def _image(self, index: int, picture: Picture) -> Tensor:
        if self.transform is None:
            if not isinstance(picture, Tensor):
                raise ValueError(
                    f"{self.pairs.name}: the pictures are PIL images, so a transform to tensors is "
                    "needed."
                )
            return picture
        if self.augmentation_seed is None:
            return call_plainly(self.transform, picture)
        with seeded_globals(derive_seed("augmentation", self.augmentation_seed, index)):
            return self.transform(picture)

    def digest(self, i: int) -> str:
        """Compute the sha256 of batch i: its pairs and their augmentation.

        The pairs enter before the model's transform. The model, its normalisation and its tokenizer
        do not enter: equal digests mean that two models saw the same pairs. The preimage is one
        line of JSON {"augmentation", "augmentation_seed", "indices"} with sorted keys, where the
        indices are null unless augmented, then `pair_digest` of each pair in order.
        """
        indices = self._batch_indices(i)
        augmented = self.augmentation_seed is not None
        protocol = {
            "augmentation": self.augmentation,
            "augmentation_seed": self.augmentation_seed,
            "indices": list(indices) if augmented else None,
        }
        digest = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode() + b"\n")
        for index in indices:
            digest.update(pair_digest(*self.pairs[index]))
        return digest.hexdigest()

    @cached_property
    def protocol_digest(self) -> str:
        """Compute the sha256 of the settings of the whole measurement.

        They are hashed as one JSON line with sorted keys; "pairs" is `pairs.digest`.
        """
        protocol = {
            "pairs": self.pairs.digest,
            "num_samples": len(self.indices),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "augmentation": self.augmentation,
            "augmentation_seed": self.augmentation_seed,
        } | ({} if self.on_bad_picture == "fail" else {"on_bad_picture": self.on_bad_picture})
        return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()


def _targets(
    targets: Sequence[str | int], tokenizer: Tokenizer | None, name: str
) -> dict[str, Tensor]:
    captions = [target for target in targets if isinstance(target, str)]
    if tokenizer is not None and len(captions) == len(targets):
        return {"text": tokenizer(captions).long()}
    if tokenizer is None and not captions:
        return {"label": torch.tensor(targets, dtype=torch.int64)}
    if tokenizer is not None:
        raise ValueError(
            f"{name}: a tokenizer was given, but there are labels in place of captions; pass "
            "tokenizer=None."
        )
    raise ValueError(f"{name}: the pairs have captions, so a tokenizer is needed.")


def curvature_batches(
    pairs: Pairs,
    *,
    num_samples: int,
    batch_size: int,
    seed: int,
    transform: Transform | None,
    tokenizer: Tokenizer | None,
    augmentation: str = "none",
    augmentation_seed: int | None = None,
    on_bad_picture: Literal["fail", "skip"] = "fail",
) -> CurvatureBatches:
    """Draw the pairs to measure curvature on and cut them into batches.

    Which pairs are drawn, and in which order, depends on the number of pairs and the seed alone. So
    every checkpoint and every architecture sees the same ones, and more samples only add batches at
    the end.

    Args:
        num_samples: 3000 in Park & Kim (arXiv 2202.06709) as followed by arXiv 2404.19394.
        batch_size: 15 in arXiv 2404.19394. Each batch is one empirical risk.
        transform: The model's: PIL picture -> float tensor (3, h, w). None if the pairs hold
            finished tensors.
        tokenizer: The model's: captions -> (b, l). None for a classifier: the batches then hold
            labels.
        augmentation: Name of the training recipe whose augmentation `transform` applies; enters the
            digests.
        augmentation_seed: The augmentation of pair i is a function of this seed and i. None: the
            transform is not random.
        on_bad_picture: "fail" raises when the batch of an unreadable picture is read. "skip" reads
            every drawn picture now and replaces unreadable ones by the next pairs in the order of
            the draw, the same for every model.

    Raises:
        ValueError: If an augmentation comes without a seed or a seed without an augmentation.
        DataError: If the samples cannot be drawn or cut into such batches, a drawn picture is not
            there, or too few pairs are left to replace others.
    """
    if (augmentation == "none") != (augmentation_seed is None):
        raise ValueError(
            f"augmentation {augmentation!r} with augmentation_seed {augmentation_seed}: give both, "
            "or neither."
        )
    _check_counts(
        len(pairs), pairs.name, num_samples, batch_size, contrastive=tokenizer is not None
    )
    indices = tuple(draw_without_replacement(len(pairs), num_samples, seed=seed))
    replaced: tuple[tuple[int, str], ...] = ()
    if on_bad_picture == "skip":
        indices, replaced = _replace_bad(pairs, indices, seed=seed)
    else:
        pairs.check(indices)
    return CurvatureBatches(
        pairs=pairs,
        indices=indices,
        batch_size=batch_size,
        seed=seed,
        transform=transform,
        tokenizer=tokenizer,
        augmentation=augmentation,
        augmentation_seed=augmentation_seed,
        on_bad_picture=on_bad_picture,
        replaced=replaced,
    )


def _replace_bad(
    pairs: Pairs, indices: tuple[int, ...], *, seed: int
) -> tuple[tuple[int, ...], tuple[tuple[int, str], ...]]:
    """Replace unreadable pairs by the next pairs of the draw.

    Returns:
        The indices; and each index that came in, in the order of the batches, with the error of the
        pair that it replaces.

    Raises:
        DataError: If there are no more pairs.
    """
    problems = {
        index: problem for index in indices if (problem := pairs.problem(index)) is not None
    }
    spare: list[int] = []
    drawn = len(indices)
    while len(spare) < len(problems):
        wanted = drawn + len(problems) - len(spare)
        if wanted > len(pairs):
            raise DataError(
                f"{pairs.name}: {len(problems)} of the {len(indices)} drawn pictures cannot be "
                "read, and too few other pairs can replace them; the first: "
                f"{next(iter(problems.values()))} Restore them, or lower num_samples."
            )
        further = draw_without_replacement(len(pairs), wanted, seed=seed)[drawn:]
        spare += [index for index in further if pairs.problem(index) is None]
        drawn = wanted
    stand_ins = iter(spare)
    taken = tuple(next(stand_ins) if index in problems else index for index in indices)
    replaced = tuple((new, problems[old]) for old, new in zip(indices, taken) if old in problems)
    return taken, replaced


def _check_counts(
    available: int, name: str, num_samples: int, batch_size: int, *, contrastive: bool
) -> None:
    if num_samples < 1 or batch_size < 1:
        raise DataError(
            f"{name}: num_samples and batch_size must be at least 1, got {num_samples} and "
            f"{batch_size}."
        )
    if batch_size == 1 and contrastive:
        raise DataError(
            f"{name}: batch_size is 1, but a contrastive loss over one pair is constant. Take at "
            "least 2."
        )
    if batch_size > num_samples:
        raise DataError(
            f"{name}: batch_size {batch_size} is larger than num_samples {num_samples}. Lower "
            "batch_size."
        )
    if num_samples % batch_size:
        raise DataError(
            f"{name}: num_samples {num_samples} is not a multiple of batch_size {batch_size}, so "
            "the last batch would be smaller and its loss another one. Take "
            f"{num_samples - num_samples % batch_size} samples."
        )
    if num_samples > available:
        raise DataError(
            f"asked for {num_samples} pairs, there are {available} in {name}; they are drawn "
            "without replacement. Lower num_samples, or take another split."
        )


class TrainingPairs(Dataset[tuple[Tensor, Tensor | int]]):
    """Pairs as open_clip's training loop takes them.

    Each is (image (3, h, w), tokens (l,)), or (image, label) without a tokenizer. An item is asked
    for by (epoch, index), as `EpochSampler` does, or by index, which means epoch 0. The epoch is
    part of the index because a worker process can live longer than an epoch, and is not told of the
    next one.
    """

    def __init__(
        self, pairs: Pairs, transform: Transform, tokenizer: Tokenizer | None, *, seed: int
    ) -> None:
        self.pairs = pairs
        self._transform = transform
        self._tokenizer = tokenizer
        self._seed = seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, Tensor | int]:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        picture, target = self.pairs[index]
        with seeded_globals(derive_seed("training", self._seed, epoch, index)):
            image = self._transform(picture)
        targets = _targets([target], self._tokenizer, self.pairs.name)
        return image, targets["text"][0] if "text" in targets else int(targets["label"])


class EpochSampler(DistributedSampler):
    """A new order of the pairs per epoch, divided among processes; yields (epoch, index).

    The indices are for `TrainingPairs`. The order is a function of seed and epoch. Process r of p
    takes entries r, r + p, ... of it, so the p batches of one step together are one batch of the
    single-process run. Entries that do not fill all processes are left out. It is a
    DistributedSampler, because open_clip's trainer calls `set_epoch` on nothing else.

    Args:
        pairs: Anything with a length.
        rank, num_replicas: By default those of torch.distributed where it runs (torchrun), else 0
            of 1.
    """

    def __init__(
        self, pairs: Any, *, seed: int, rank: int | None = None, num_replicas: int | None = None
    ) -> None:
        running = torch.distributed.is_available() and torch.distributed.is_initialized()
        if rank is None:
            rank = torch.distributed.get_rank() if running else 0
        if num_replicas is None:
            num_replicas = torch.distributed.get_world_size() if running else 1
        super().__init__(pairs, num_replicas=num_replicas, rank=rank, seed=seed, drop_last=True)

    def __len__(self) -> int:
        return len(self.dataset) // self.num_replicas  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = seeded(derive_seed("shuffle", self.seed, self.epoch))
        order = torch.randperm(len(self.dataset), generator=generator).tolist()  # type: ignore[arg-type]
        epoch = self.epoch
        return (
            (epoch, index)
            for index in order[self.rank : len(self) * self.num_replicas : self.num_replicas]
        )


def epoch_loader(
    pairs: Pairs,
    *,
    transform: Transform,
    tokenizer: Tokenizer | None,
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    rank: int | None = None,
    num_replicas: int | None = None,
) -> DataLoader[Any]:
    """Make training batches (images, tokens) of `batch_size` pairs per process.

    Call `loader.sampler.set_epoch(epoch)` before each epoch. The batches of an epoch depend on seed
    and epoch only, whatever the number of workers. A last batch that would be incomplete is left
    out.

    Raises:
        DataError: If there are fewer pairs than one batch over all processes takes.
    """
    sampler = EpochSampler(pairs, seed=seed, rank=rank, num_replicas=num_replicas)
    if len(sampler) < batch_size:
        raise DataError(
            f"asked for batches of {batch_size} pairs in each of {sampler.num_replicas} processes, "
            f"there are {len(pairs)} in {pairs.name}. Lower the batch size."
        )
    return DataLoader(
        TrainingPairs(pairs, transform, tokenizer, seed=seed),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        # The loader seeds its workers; without a generator of its own it would draw that seed from
        # the global one.
        generator=seeded(derive_seed("workers", seed)),
    )
