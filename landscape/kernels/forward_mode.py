"""Nested forward mode in the `jvp` rules of `autograd.Function`.

Imports only torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.autograd import forward_ad


@contextmanager
def forward_rule(ctx: Any) -> Iterator[tuple[Tensor, ...]]:
    """Yield saved tensors to a `jvp` rule, visible to outer forward modes.

    torch turns forward mode off while it runs a `jvp` rule, at every level: jvp of jvp through a
    custom Function is then silently wrong. Turned on again, the saved tensors must lose the
    tangents of the level that is being computed. TODO: remove once
    https://github.com/pytorch/pytorch/issues/197867 is closed and released.
    """
    with forward_ad._set_fwd_grad_enabled(True):
        yield tuple(forward_ad.unpack_dual(x).primal for x in ctx.saved_tensors)
