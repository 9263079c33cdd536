"""Runs of random probes: the density of a whole spectrum, and its trace, from products alone.

Both first spend products on the part of the spectrum that stands out, treat that exactly, and send their probes into the
orthogonal complement: a few large eigenvalues would otherwise make most of the error.
Knows matrices, not networks: imports only torch, numpy, landscape.threads and landscape.linalg.
Shapes: n = dimension of the operator, k = eigenpairs that stand out, m = products of a probe.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from landscape.errors import NumericalError
from landscape.linalg.estimate import Estimate, student_widening
from landscape.linalg.krylov import KrylovBasis, inner, norm
from landscape.linalg.operator import SymmetricOperator, check_is_operator, seeded
from landscape.linalg.probed import FEWEST_NODES
from landscape.linalg.stochastic import SpectralDensity, pad
from landscape.linalg.support import SupportedPart
from landscape.threads import single_blas_thread

# Relative residual at which an eigenpair counts as exact: its value is then right to about 1e-6, relative to the gap.
_EXACT = 1e-3
# Eigenvalues as near as this, relatively, may be copies of one.
_COPY = 1e-2
# Columns of the identity that are multiplied at once.
_COLUMNS = 64


@dataclass(frozen=True)
class _Cost:
    """What a Krylov basis leaves behind when it is thrown away."""

    num_matvecs: int
    rounding: float
    defect: float

    @classmethod
    def of(cls, basis: KrylovBasis) -> "_Cost":
        return cls(
            basis.num_matvecs,
            basis.error,
            basis.orthogonality_defect() if basis.num_matvecs else 0.0,
        )


@dataclass(frozen=True)
class _Rule:
    """The quadrature of one probe, and the entry that would go on with its tridiagonal matrix (NaN where it is not known)."""

    nodes: Float[np.ndarray, " m"]
    weights: Float[np.ndarray, " m"]
    remainder: float


@dataclass(frozen=True)
class _Exact:
    """Eigenpairs that stand out, with their residual norms, and what the vector that found them saw of the others."""

    values: Float[np.ndarray, " k"]
    vectors: Float[Tensor, "n k"]
    norms: Float[np.ndarray, " k"]
    rest: _Rule | None
    cost: _Cost

    def have_copies(self, rules: list[_Rule]) -> bool:
        """Whether a probe orthogonal to these eigenvectors has met an eigenvalue that cannot be told from one of theirs."""
        met = np.concatenate([rule.nodes for rule in rules])
        return bool((np.abs(met[:, None] - self.values) <= _COPY * np.abs(self.values)).any())


def density(
    A: SymmetricOperator,
    *,
    num_probes: int = 2,
    num_matvecs: int = 64,
    num_deflation: int | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> SpectralDensity:
    """Estimate how all eigenvalues of A are distributed, by stochastic Lanczos quadrature after deflation.

    Costs num_deflation + num_probes * num_matvecs products, fewer where a Krylov space is exhausted. Memory: max(num_deflation,
    num_matvecs + eigenvectors found) vectors.

    Args:
        A: The operator. Where it knows its support, the zeros outside are counted exactly and cost nothing.
        num_probes: Random probes; standard errors fall with its root.
        num_matvecs: Products per probe: the number of nodes, hence the resolution in eigenvalue. At least 4, or the dimension of
            the support where that is smaller: fewer nodes do not know the error of what they estimate.
        num_deflation: Products spent first on eigenvalues that stand out; default: `num_matvecs`. The vector that finds them
            serves as one more probe of the others, unless there are copies or fewer than 4 products. 0 is the plain method.
        seed: Seed of all random vectors; ignored where `generator` is given.
        generator: CPU generator of all random vectors.

    Raises:
        ValueError: If A is no operator, or a number is out of range.
        NumericalError: If a product is not finite.

    Source: Bhattacharjee, Jayaram, C. Musco, C. Musco & Ray, Improved spectral density estimation via explicit and implicit
    deflation (2025), arXiv 2410.21690.
    """
    check_is_operator(A)
    num_deflation = num_matvecs if num_deflation is None else num_deflation
    if num_probes < 1 or num_deflation < 0:
        raise ValueError(
            f"num_probes must be at least 1 and num_deflation at least 0, got {num_probes} and {num_deflation}."
        )
    generator = generator if generator is not None else seeded(seed)
    part = A if A.support is None else SupportedPart(A)
    fewest = max(1, min(FEWEST_NODES, part.n))
    if num_matvecs < fewest:
        raise ValueError(
            f"num_matvecs must be at least {fewest}, got {num_matvecs}: so few nodes do not know the variance of what they "
            "estimate, so its error would be false. Spend more products on fewer probes."
        )
    exact = _standing_out(part, num_deflation, generator)
    if len(exact.values) == part.n:
        # Nothing is left to probe; the rule stands for none of the eigenvalues.
        return _assemble(A, part.n, exact, [_Rule(np.zeros(1), np.ones(1), 0.0)], [exact.cost])
    rules, costs = map(
        list, zip(*(_probe(part, exact.vectors, num_matvecs, generator) for _ in range(num_probes)))
    )
    # The first vector saw the whole of each eigenspace as one direction, so of its copies the rest holds nothing.
    if exact.rest is not None and not exact.have_copies(rules):
        rules.append(exact.rest)
    return _assemble(A, part.n, exact, rules, [exact.cost, *costs])


def _assemble(
    A: SymmetricOperator, supported: int, exact: _Exact, rules: list[_Rule], costs: list[_Cost]
) -> SpectralDensity:
    return SpectralDensity(
        nodes=pad([torch.from_numpy(rule.nodes) for rule in rules]),
        weights=pad([torch.from_numpy(rule.weights) for rule in rules]),
        n=A.n,
        operators=torch.zeros(len(rules), dtype=torch.int64),
        remainders=torch.tensor([rule.remainder for rule in rules], dtype=torch.float64),
        exact=torch.from_numpy(exact.values)[None],
        exact_residuals=torch.from_numpy(exact.norms)[None],
        num_zeros=torch.tensor([A.n - supported]),
        resolution=max(cost.rounding for cost in costs),
        rounding=float(torch.finfo(A.dtype).eps),
        num_matvecs=sum(cost.num_matvecs for cost in costs),
        orthogonality_defect=max(cost.defect for cost in costs),
        checked=A.checked,
    )


def dense_spectrum(A: SymmetricOperator) -> Float[Tensor, " n"]:
    """All eigenvalues of A, ascending, in float64, from the matrix that products with unit vectors assemble: for small operators.

    Costs as many products as the support has coordinates, and memory for the square of that.

    Raises:
        ValueError: If A is no operator.
        NumericalError: If a product is not finite.
    """
    check_is_operator(A)
    part = A if A.support is None else SupportedPart(A)
    identity = torch.eye(part.n, dtype=A.dtype, device=A.device)
    M = torch.cat(
        [(part @ columns).double().cpu() for columns in identity.split(_COLUMNS, dim=1)], dim=1
    )
    _check_finite(M, "unit vectors")
    inside = torch.linalg.eigvalsh((M + M.T) / 2)
    return torch.cat([inside, torch.zeros(A.n - part.n, dtype=torch.float64)]).sort().values


def trace(
    A: SymmetricOperator,
    *,
    num_matvecs: int = 60,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Estimate the sum of all eigenvalues of A.

    Half of the products span a Krylov space Q, in which the trace is known; the others are random probes v orthogonal to it.
    v^T A v has the variance 2 (||B||_F^2 - (trace B)^2 / d) / (d (d + 2)), B being A on the complement of Q and d its
    dimension, and ||A v||^2 estimates ||B||_F^2: the error does not rest on the spread of few numbers.

    Args:
        A: The operator.
        num_matvecs: Products to spend, at least 4. From n on, the trace is exact.
        seed: Seed of all random vectors; ignored where `generator` is given.
        generator: CPU generator of all random vectors.

    Raises:
        ValueError: If A is no operator, or num_matvecs is below 4.
        NumericalError: If a product is not finite.

    Source: Meyer, Musco, Musco & Woodruff, Hutch++ (2021), arXiv 2010.09649, with the Krylov space in the place of the sketch:
    Chen & Hallman, Krylov-aware stochastic trace estimation (2023), arXiv 2205.01736.
    """
    check_is_operator(A)
    if num_matvecs < 4:
        raise ValueError(
            f"num_matvecs must be at least 4, two for the part that stands out and two probes, got {num_matvecs}."
        )
    generator = generator if generator is not None else seeded(seed)
    part = A if A.support is None else SupportedPart(A)
    basis = KrylovBasis(part, generator=generator)
    target = part.n if num_matvecs >= part.n else num_matvecs // 2
    while basis.num_matvecs < target and basis.expand():
        pass
    H, _ = basis.projected()
    known, eps = float(np.trace(H)), float(torch.finfo(A.dtype).eps)
    with single_blas_thread():
        slack = 4 * eps * float(np.abs(np.linalg.eigvalsh(H)).sum())
    num_probes = num_matvecs - basis.num_matvecs
    free = part.n - basis.num_matvecs
    if not free:
        return Estimate(known, 0.0, None, known - slack, known + slack)
    Q = basis.combine(np.eye(basis.num_matvecs))
    pairs = np.array([_quotients(part, Q, generator) for _ in range(num_probes)])
    quotient, square = pairs.mean(axis=0)
    size = (free + 2) * num_probes / 2
    variance = free**2 * max(square - quotient**2, 0) / max(size - 1, 0.5)
    # A form that a few eigenvalues rule has as many degrees of freedom as there are probes, and no form has fewer.
    error = math.sqrt(variance) * student_widening(num_probes)
    slack += 4 * eps * free * math.sqrt(square)
    value = known + free * quotient
    return Estimate(float(value), error, None, float(value - slack), float(value + slack))


def _standing_out(A: SymmetricOperator, num_matvecs: int, generator: torch.Generator) -> _Exact:
    """The eigenpairs that a Krylov space of so many products has found to a relative residual of `_EXACT`."""
    basis = KrylovBasis(A, generator=generator)
    while basis.num_matvecs < num_matvecs and basis.expand():
        pass
    H, coupling = basis.projected()
    with single_blas_thread():
        values, coordinates = np.linalg.eigh(H)
        norms = np.linalg.norm(coupling @ coordinates, axis=0) + basis.error
    kept = (norms <= _EXACT * np.abs(values)) | basis.is_complete
    seen = coordinates[0] ** 2 if len(values) else np.zeros(0)
    # With a second chain, the coordinates are no longer those of one random vector.
    one_chain = len(basis.chain_starts) == 1 and not kept.all()
    # Where it met exact eigenvalues alone, what is left of it is rounding.
    left = seen[~kept].sum()
    is_probe = one_chain and len(values) >= FEWEST_NODES and left > torch.finfo(A.dtype).eps
    rest = _Rule(values[~kept], seen[~kept] / left, math.nan) if is_probe else None
    return _Exact(
        values[kept], basis.combine(coordinates[:, kept]), norms[kept], rest, _Cost.of(basis)
    )


def _probe(
    A: SymmetricOperator, exact: Float[Tensor, "n k"], num_matvecs: int, generator: torch.Generator
) -> tuple[_Rule, _Cost]:
    """The quadrature of a random unit vector orthogonal to the columns of `exact`."""
    basis = KrylovBasis(A, generator=generator)
    basis.lock(exact)
    basis.start_chain()
    # Without a pending row the space is invariant and the rule exact; expand() would start another chain.
    while basis.num_matvecs < num_matvecs and basis.pending:
        basis.expand()
    H, coupling = basis.projected()
    with single_blas_thread():
        nodes, vectors = np.linalg.eigh(H)
    return _Rule(
        nodes, vectors[0] ** 2, float(coupling[0, -1]) if len(coupling) else 0.0
    ), _Cost.of(basis)


def _quotients(
    A: SymmetricOperator, Q: Float[Tensor, "n k"], generator: torch.Generator
) -> tuple[float, float]:
    """v^T A v and the squared length of A v without its part in Q, for a random unit vector v orthogonal to Q.

    Raises:
        NumericalError: If A v is not finite.
    """
    v = torch.randn(A.n, generator=generator, dtype=torch.float64).to(A.device, A.dtype)
    v = _orthogonal(v, Q)
    v /= norm(v)
    w = A @ v
    _check_finite(w, "a random probe")
    return float(inner(v[None], w)[0]), norm(_orthogonal(w, Q)) ** 2


def _check_finite(product: Tensor, multiplied: str) -> None:
    if not torch.isfinite(product).all():
        raise NumericalError(
            f"the product of the operator with {multiplied} is not finite: its eigenvalues do not exist. "
            "Check the loss and the parameters for overflow, or use dtype float64."
        )


def _orthogonal(w: Float[Tensor, " n"], Q: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """w without its components along the columns of Q, removed twice."""
    for _ in range(2):
        w = w - Q @ torch.as_tensor(inner(Q.T, w)).to(w)
    return w
