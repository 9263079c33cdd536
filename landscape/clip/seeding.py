"""Randomness as a function of named integers, also in libraries that use global generators."""

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def derive_seed(*parts: str | int) -> int:
    """Compute a seed for one named random choice.

    It lies in 0 .. 2^63 - 1 and is the same on every machine and in every library version.
    """
    digest = hashlib.sha256("\t".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_without_replacement(population: int, count: int, *, seed: int) -> list[int]:
    """Draw `count` of the numbers 0 .. population - 1 in random order.

    The entries of a smaller count are the first ones of a larger count. Hashes are used instead of
    a library's generator, so that no new version of it changes which pairs were measured.

    Source: Fisher-Yates shuffle, Knuth, The Art of Computer Programming, volume 2, algorithm
    3.4.2P, stopped early.
    """
    moved: dict[int, int] = {}
    drawn = []
    for step in range(count):
        position = step + derive_seed("draw", seed, step) % (population - step)
        drawn.append(moved.get(position, position))
        moved[position] = moved.get(step, step)
    return drawn


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global generators for the block, and restore them afterwards.

    These are those of torch (CPU), Python and NumPy. torchvision, timm and open_clip transforms
    draw from these three and take no generator.
    """
    states = _global_states()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def _global_states() -> tuple[Tensor, Any, Any]:
    return torch.default_generator.get_state(), random.getstate(), np.random.get_state(legacy=True)


def call_plainly(transform: Callable[[Any], Tensor], picture: Any) -> Tensor:
    """Apply a transform that must not be random.

    The state of the global generators is restored.

    Raises:
        ValueError: If it drew from a global generator.
    """
    with seeded_globals(0):
        before = _global_states()
        result = transform(picture)
        after = _global_states()
    same_numpy = all(np.array_equal(old, new) for old, new in zip(before[2], after[2]))
    if not (torch.equal(before[0], after[0]) and before[1] == after[1] and same_numpy):
        raise ValueError(
            "The transform draws random numbers, but no augmentation_seed was given: two passes "
            "would see two losses. Give the seed, or the transform that the model is evaluated "
            "with."
        )
    return result
