"""Randomness as a function of named integers, also where a library draws from global generators."""

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def derive_seed(*parts: str | int) -> int:
    """A seed in 0 .. 2^63 - 1 for one named random choice; the same on every machine and in every library version."""
    digest = hashlib.sha256("\t".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_without_replacement(population: int, count: int, *, seed: int) -> list[int]:
    """The first `count` entries of a random order of 0 .. population - 1: those of a smaller count lead those of a larger.

    Hashes instead of a library's generator, so that no new version of it changes which pairs were measured.

    Source: Fisher-Yates shuffle, Knuth, The Art of Computer Programming, volume 2, algorithm 3.4.2P, stopped early.
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
    """Seed the global generators of torch (CPU), Python and NumPy, and put all three back on leaving.

    torchvision, timm and open_clip transforms draw from these three and take no generator.
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
    """Apply a transform that must not be random; leaves the global generators as they were.

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
            "The transform draws random numbers, but no augmentation_seed was given: two passes would see two losses. "
            "Give the seed, or the transform that the model is evaluated with."
        )
    return result
