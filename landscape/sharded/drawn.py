"""Random weights, drawn when a layer reads them.

With them a model without numbers can be evaluated before it has any.

No more than a weight or two is in memory at a time, no other process is asked, and every process
draws the same.
"""

import math
import zlib
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from landscape.linalg.operator import seeded
from landscape.sharded.lent import Lent

# Numbers that are drawn; larger weights repeat them. A prime, so that rows of a table are not
# alike.
_NUM_DRAWN = 65_537


class _DrawnWeights:
    """Random weights by name: a name has the same numbers every time."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._like = dict(module.named_parameters())
        # In float64, so that the numbers of all types are roundings of the same.
        self._drawn = (2 * torch.rand(_NUM_DRAWN, generator=seeded(0), dtype=torch.float64) - 1).to(
            device
        )

    def weight(self, name: str) -> Tensor:
        """Draw a weight with the spread of common initialisations.

        Gains are about 1, and matrices are scaled by their width.
        """
        like = self._like[name]
        numbers = self._drawn.to(like.dtype).roll(-(zlib.crc32(name.encode()) % _NUM_DRAWN))
        size = math.prod(like.shape)
        whole = numbers.repeat(-(-size // _NUM_DRAWN))[:size].view(like.shape)
        return (
            whole.mul_((3 / max(1, like.shape[-1])) ** 0.5)
            if like.ndim > 1
            else whole.mul_(0.5).add_(1)
        )

    def reading_only(self) -> AbstractContextManager[None]:
        """Check nothing: what is written is discarded with the weight."""
        return nullcontext()


def with_random_weights(module: nn.Module, device: torch.device) -> Lent:
    """Lend random weights to a model that has no numbers.

    For evaluations without derivatives.

    Args:
        module: Parameters may be on the meta device; buffers have numbers.
        device: Where weights are made, which is that of the buffers.
    """
    return Lent.to_module(_DrawnWeights(module, device), module)
