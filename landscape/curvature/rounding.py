"""What rounding does to a product with a small matrix of a large network.

A Krylov space measures the rounding of products by the symmetry that they break. A matrix with few rows has too few products for
that, and one with a single row is always symmetric; yet its product goes through the whole network. There it is measured by
making it again at parameters that differ by rounding alone.
Shapes: n = dimension of the operator.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.curvature.objective import Params
from landscape.linalg.operator import SymmetricOperator, seeded

# Several draws, because the difference of two rounding errors may be small by chance, and as much again for what they miss.
_NUM_MOVES, _SAFETY, _MOST_UNITS = 4, 2.0, 4


def product_errors(
    A: SymmetricOperator,
    at: Callable[[Params], SymmetricOperator],
    params: Params,
    v: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """An estimate of the sizes of the errors in the entries of A @ v.

    Args:
        at: Makes the same operator at other parameters.
        params: Of A; each entry is moved by up to four units in its last place, up or down at random.
    """
    product, worst = A @ v, torch.zeros_like(v)
    for seed in range(_NUM_MOVES):
        generator = seeded(seed)
        moved = {name: _moved(tensor, generator) for name, tensor in params.items()}
        worst = torch.maximum(worst, (at(moved) @ v - product).abs())
    return _SAFETY * worst


def _moved(tensor: Tensor, generator: torch.Generator) -> Tensor:
    units = torch.randint(1, _MOST_UNITS + 1, tensor.shape, generator=generator)
    signs = 2 * torch.randint(2, tensor.shape, generator=generator) - 1
    return tensor.detach() * (
        1 + torch.finfo(tensor.dtype).eps * (signs * units).to(tensor.device, tensor.dtype)
    )
