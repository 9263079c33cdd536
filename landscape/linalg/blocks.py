"""How much of a matrix lies in which blocks, from random probes.

The mass of a block is the sum of the squares of its entries. Approximations that keep diagonal
blocks alone leave out the mass of the others.

Knows matrices, not networks: imports only torch, numpy and landscape.linalg.
Shapes: n = dimension of the operator, b = number of blocks, m = probes of a block.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from landscape.errors import NumericalError
from landscape.linalg.estimate import Estimate, mass_error, student_widening
from landscape.linalg.operator import SymmetricOperator, check_is_operator, refuse_cut, seeded
from landscape.linalg.signs import check_num_probes
from landscape.linalg.vectors import all_finite


@dataclass(frozen=True)
class BlockMasses:
    """Squared Frobenius norms of the blocks of a symmetric matrix.

    Attributes:
        names: (b,) names of the groups of coordinates.
        masses: (b, b), symmetric: sum of the squares of the entries between two groups.
        errors: (b, b) their standard errors, widened so that three of them hold the truth as often
            as three standard deviations do, for few probes and blocks of low rank too. At least
            rounding, and 0 where exact or where every product is zero.
        off_diagonal: Share of all these blocks' mass that lies off the diagonal.
        num_matvecs: Products spent.
    """

    names: tuple[str, ...]
    masses: Float[np.ndarray, "b b"]
    errors: Float[np.ndarray, "b b"]
    off_diagonal: Estimate
    num_matvecs: int

    def __str__(self) -> str:
        # Of a matrix of zeros, every share is written as 0.
        shares = 100 * self.masses / (self.masses.sum() or 1.0)
        width = max(map(len, self.names))
        lines = [f"{self.off_diagonal} of the squared norm lies off the diagonal blocks"]
        for name, row in zip(self.names, shares):
            lines.append(f"{name:{width}}  " + "  ".join(f"{share:6.2f}" for share in row))
        return "\n".join(lines)


def block_masses(
    A: SymmetricOperator,
    blocks: Mapping[str, Int64[Tensor, " s"]],
    *,
    num_probes: int = 20,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> BlockMasses:
    """Estimate the squared Frobenius norm of every block of A.

    For random signs z on group q, |(A z)_p|^2 has the expectation |A_pq|^2. Both triangles are
    estimated from probes of their own, and averaged. Costs num_probes products for each group.

    Args:
        A: The operator.
        blocks: Coordinates of each group by name, such as `landscape.curvature.coordinates_of` a
            module's parameters; no coordinate twice.
        num_probes: Random vectors on each group, at least 10; a group of no more coordinates gets
            its unit vectors, and is exact.
        seed: Seed of the random signs; ignored where `generator` is given.
        generator: CPU generator of the random signs.

    Raises:
        ValueError: If A is no operator or cut over processes, there is no group, one is empty,
            coordinates are out of range or occur twice, or there are too few probes.
        NumericalError: If a product is not finite.

    Examples:
        >>> import torch, landscape
        >>> from landscape.linalg import DenseOperator
        >>> values = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0], dtype=torch.float64)
        >>> A = DenseOperator(torch.diag(values))
        >>> blocks = {"first": torch.tensor([0, 1]), "rest": torch.tensor([2, 3, 4])}
        >>> masses = landscape.block_masses(A, blocks)
        >>> torch.tensor(masses.masses)
        tensor([[34.0000,  0.0000],
                [ 0.0000,  6.0000]], dtype=torch.float64)
    """
    check_is_operator(A)
    refuse_cut(A, "block_masses")
    groups = _checked(A, blocks, num_probes)
    generator = generator if generator is not None else seeded(seed)
    samples = [_column(A, groups, number, num_probes, generator) for number in range(len(groups))]
    exact = np.array([len(rows) <= num_probes for rows in groups])
    eps = torch.finfo(A.dtype).eps
    means = np.stack([column.mean(axis=0) for column in samples], axis=1)
    spread = [
        np.zeros(len(groups))
        if known
        else mass_error(column.mean(axis=0), _spread(column), len(column))
        for column, known in zip(samples, exact)
    ]
    rounding = _rounding(means, float(means.sum()), eps)
    errors = np.where(exact, 0.0, np.maximum(np.stack(spread, axis=1), rounding))
    # A block below the diagonal has the mass of its mirror image. One of the two may be exact.
    masses, combined = _mirrored(means, errors, exact)
    share = _share(samples, exact, eps)
    return BlockMasses(tuple(blocks), masses, combined, share, sum(map(len, samples)))


def _column(
    A: SymmetricOperator,
    groups: list[Int64[Tensor, " s"]],
    number: int,
    num_probes: int,
    generator: torch.Generator,
) -> Float[np.ndarray, "m b"]:
    """Sample the masses of the blocks of one column of blocks."""
    own, rows = groups[number], []
    exact = len(own) <= num_probes
    for probe in range(len(own) if exact else num_probes):
        z = torch.zeros(A.n, dtype=torch.float64, device=A.device)
        if exact:
            # The mean of z z^T over these s vectors is the identity of the group, as the
            # expectation over random signs is, but without spread.
            z[own[probe]] = math.sqrt(len(own))
        else:
            draws = torch.randn(len(own), generator=generator, dtype=torch.float64).to(A.device)
            z[own] = torch.where(draws < 0, -1.0, 1.0).double()
        product = A @ z.to(A.dtype)
        if not all_finite(product):
            raise NumericalError(
                f"the product of the {type(A).__name__} with a random probe is not finite, so its "
                "blocks have no mass. Check the loss and the parameters for overflow, or use dtype "
                "float64."
            )
        squares = product.double().square()
        rows.append(torch.stack([squares[group].sum() for group in groups]))
    return np.asarray(torch.stack(rows).cpu())


def _spread(samples: Float[np.ndarray, "m ..."]) -> Float[np.ndarray, "..."]:
    """Compute the standard error of the mean of few samples from their spread."""
    count = len(samples)
    spread = samples.std(axis=0, ddof=1) / math.sqrt(count)
    return np.asarray(spread * student_widening(count - 1))


def _rounding(
    masses: Float[np.ndarray, "..."], whole: float, eps: float
) -> Float[np.ndarray, "..."]:
    """Compute what rounding leaves open of masses that are parts of a whole.

    It moves a product by eps times its norm, the root of the whole, and so the norm of each part.
    """
    moved = eps * math.sqrt(whole)
    return np.asarray(2 * moved * np.sqrt(masses) + moved**2)


def _mirrored(
    means: Float[np.ndarray, "b b"], errors: Float[np.ndarray, "b b"], exact: Bool[np.ndarray, " b"]
) -> tuple[Float[np.ndarray, "b b"], Float[np.ndarray, "b b"]]:
    """Combine both estimates of each block; an exact one counts alone.

    Args:
        exact: Whether the estimates of a column of blocks are exact.
    """
    # weights + weights.T is 1 everywhere: an exact estimate counts alone, and otherwise, or if both
    # are exact, each counts half.
    known = np.broadcast_to(exact, means.shape)
    weights = np.where(known == known.T, 0.5, known)
    masses = weights * means + weights.T * means.T
    # Both estimates come from probes of different columns of blocks, which are independent, so
    # their variances add up.
    combined = np.hypot(weights * errors, weights.T * errors.T)
    # A diagonal block has a single estimate, which the mirror image repeats.
    np.fill_diagonal(combined, np.diag(errors))
    return masses, combined


def _share(
    samples: list[Float[np.ndarray, "m b"]], exact: Bool[np.ndarray, " b"], eps: float
) -> Estimate:
    """Estimate the share of the mass off the diagonal.

    The error is that of the delta method. Probes of different columns are independent.
    """
    diagonal = [column[:, number] for number, column in enumerate(samples)]
    off = [column.sum(axis=1) - own for column, own in zip(samples, diagonal)]
    whole = sum(float((own + rest).mean()) for own, rest in zip(diagonal, off))
    if not whole:
        return Estimate(math.nan, 0.0, None, math.nan, math.nan, whole=1.0)
    share = sum(float(rest.mean()) for rest in off) / whole
    if exact.all():
        return Estimate(share, 0.0, None, share, share, whole=1.0)
    # d share = ((1 - share) d off - share d diagonal) / whole.
    variance = sum(
        float(_spread(((1 - share) * rest - share * own) / whole)) ** 2
        for own, rest, known in zip(diagonal, off, exact)
        if not known
    )
    error = max(math.sqrt(variance), float(_rounding(np.array(share), 1.0, eps)))
    return Estimate(share, error, None, share, share, whole=1.0)


def _checked(
    A: SymmetricOperator, blocks: Mapping[str, Int64[Tensor, " s"]], num_probes: int
) -> list[Int64[Tensor, " s"]]:
    if not blocks:
        raise ValueError(
            "blocks must name at least one group of coordinates, got none. Pass those of the "
            "modules, from landscape.curvature.coordinates_of."
        )
    groups = [torch.as_tensor(rows, dtype=torch.int64, device=A.device) for rows in blocks.values()]
    for name, rows in zip(blocks, groups):
        if rows.ndim != 1 or not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= A.n:
            raise ValueError(
                f"{name}: must be a vector of coordinates between 0 and {A.n - 1}, at least one, "
                f"got shape {tuple(rows.shape)}. Take landscape.curvature.coordinates_of(params, "
                "names)."
            )
    check_num_probes(num_probes, max(map(len, groups)))
    counts = torch.bincount(torch.cat(groups), minlength=A.n)
    if int(counts.max()) > 1:
        raise ValueError(
            f"coordinate {int(counts.argmax())} is in {int(counts.max())} places of the blocks, so "
            "its entries would count twice. Give every coordinate to one group."
        )
    return groups
