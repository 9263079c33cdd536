"""Rounding errors of products with a small matrix of a large network.

A Krylov space measures the rounding of products by the symmetry that they break. A matrix with few
rows has too few products for that, and one with a single row is always symmetric; yet its product
goes through the whole network. There, rounding is measured by computing the product again at
parameters that differ by rounding alone.
Shapes: n = dimension of the operator.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.curvature.objective import Params
from landscape.linalg.operator import SymmetricOperator, seeded

# Moves one tensor by rounding.
Move = Callable[[Tensor, torch.Generator], Tensor]
# Several draws, because the difference of two rounding errors may be small by chance, and a safety
# factor for what they miss.
_NUM_MOVES, _SAFETY, _MAX_UNITS = 4, 2.0, 4


def product_errors(
    A: SymmetricOperator,
    at: Callable[[Params], SymmetricOperator],
    params: Params,
    v: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """Estimate the sizes of the rounding errors in A @ v.

    There is an estimate for every entry.

    Args:
        at: Makes the same operator at other parameters.
        params: Parameters of A; each entry is moved by up to four units in its last place, up or
            down at random.
    """

    def everywhere(generator: torch.Generator, move: Move) -> Params:
        return {name: move(tensor, generator) for name, tensor in params.items()}

    return moved_products(A, at, everywhere, v)


def moved_products(
    A: SymmetricOperator,
    at: Callable[[Params], SymmetricOperator],
    moved: Callable[[torch.Generator, Move], Params],
    v: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """Estimate errors where the parameters may be in several processes.

    See `product_errors`.

    Args:
        moved: Moves all parameters by the function that it is given, which draws for one tensor.
    """
    # Changes of the size of rounding pass through the same operations as rounding errors do, and
    # are amplified by the same cancellation. The largest over the draws, entry by entry.
    product, worst = A @ v, torch.zeros_like(v)
    for seed in range(_NUM_MOVES):
        worst = torch.maximum(worst, (at(moved(seeded(seed), _moved)) @ v - product).abs())
    return _SAFETY * worst


def _moved(tensor: Tensor, generator: torch.Generator) -> Tensor:
    units = torch.randint(1, _MAX_UNITS + 1, tensor.shape, generator=generator)
    signs = 2 * torch.randint(2, tensor.shape, generator=generator) - 1
    # 1 + k eps is exact in the tensor's type for whole |k| <= 4. An entry of zero stays zero.
    return tensor.detach() * (
        1 + torch.finfo(tensor.dtype).eps * (signs * units).to(tensor.device, tensor.dtype)
    )
