"""eigsh with a limited basis, held to the same truth as without: prescribed spectra.

Tolerances as in test_lanczos.py.
"""

import itertools

import numpy as np
import pytest
import torch

from landscape.linalg import eigsh
from landscape.linalg.krylov import KrylovBasis
from landscape.linalg.operator import seeded
from tests.helpers.matrices import Counting, wanted, with_spectrum
from tests.linalg.test_lanczos import SPECTRA, true_residuals

# Those of more rows than the limit, whose wanted values are not copies at the very edge of the
# bulk.
NAMES = ("isolated", "cluster", "multiplicity", "opposite_signs", "decaying")


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
@pytest.mark.parametrize("name", NAMES)
def test_a_basis_of_twenty_vectors_finds_the_prescribed_eigenvalues(name, which):
    values = SPECTRA[name]
    A = Counting(with_spectrum(values))
    pairs = eigsh(A, 5, which, tol=1e-6, max_basis=20, max_matvecs=2000)
    np.testing.assert_allclose(
        np.sort(pairs.values.numpy()), np.sort(wanted(values, 5, which)), rtol=2e-6, atol=1e-12
    )
    assert pairs.converged.all()
    assert pairs.num_matvecs == A.count > 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_after_many_restarts_the_residual_is_still_that_of_the_returned_vector(dtype):
    for seed in range(6):
        A = with_spectrum(SPECTRA["cluster"], seed=seed, dtype=dtype)
        pairs = eigsh(A, 5, tol=1e-4, seed=seed, max_basis=12, max_matvecs=3000)
        exact = true_residuals(A, pairs) / pairs.values.abs().numpy()
        assert pairs.num_matvecs > 36, "or nothing was restarted"
        # Within 10 %, or 1e-5 where rounding in float32 rules.
        np.testing.assert_allclose(pairs.residuals.numpy(), exact, rtol=0.1, atol=1e-5)
        assert pairs.ritz.orthogonality_defect < 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_value_of_a_restarted_run_lies_within_its_bound_and_counts_stay_lower_bounds(dtype):
    rng = np.random.default_rng(17)
    for trial in range(40):
        n = int(rng.integers(40, 250))
        values = rng.standard_normal(n) * 10 ** rng.uniform(-3, 3, n) ** rng.integers(0, 2)
        A = with_spectrum(values, seed=trial, dtype=dtype)
        exact = np.linalg.eigvalsh(A.matrix.double().numpy())
        k = int(rng.integers(1, 6))
        pairs = eigsh(
            A,
            k,
            tol=10 ** rng.uniform(-4, -2),
            seed=trial,
            max_basis=k + int(rng.integers(6, 20)),
            max_matvecs=1500,
        )
        bound = (pairs.residuals * pairs.values.abs()).numpy()
        distance = np.abs(exact[:, None] - pairs.values.numpy()).min(axis=0)
        assert (distance <= bound).all(), (trial, distance, bound)
        if pairs.converged.all():
            np.testing.assert_allclose(
                np.sort(pairs.values.numpy()),
                np.sort(wanted(exact, k, "LM")),
                atol=bound.max() * 1.001,
            )
        assert (
            pairs.ritz.num_negative <= (exact < 0).sum()
            and pairs.ritz.num_positive <= (exact > 0).sum()
        )


@pytest.mark.parametrize(
    "values",
    [
        [1.0] * 20,
        [1.0] * 10 + [-1.0] * 10,
        [1.0, 1, 2, 2, 3, 3] + [0.0] * 14,
        [*range(1, 11)] + [0.0] * 90,
    ],
)
def test_chains_that_end_early_leave_room_for_the_next_one(values):
    """A few different eigenvalues: every chain ends after as many products, whatever else the basis
    holds then.
    """
    for k, extra, seed in itertools.product((1, 2, 3, 5), range(6, 10), range(2)):
        A = with_spectrum(np.array(values), seed=seed)
        pairs = eigsh(A, k, max_basis=k + extra, seed=seed)
        bound = (pairs.residuals * pairs.values.abs()).numpy()
        assert (np.abs(np.array(values)[:, None] - pairs.values.numpy()).min(axis=0) <= bound).all()


def test_a_restart_keeps_the_krylov_relation_and_the_limit():
    A = with_spectrum(SPECTRA["isolated"])
    basis = KrylovBasis(A, generator=seeded(0), max_rows=20)
    while not basis.is_full:
        basis.expand()
    values, Y = np.linalg.eigh(basis.projected()[0])
    basis.restart(values[-7:], Y[:, -7:])
    for _ in range(5):
        basis.expand()
    rows = torch.stack([basis.row(i) for i in range(13)])
    H, coupling = basis.projected()
    done, pending = rows[basis.done], rows[basis.pending]
    image = done @ A.matrix
    expected = torch.from_numpy(H) @ done + torch.from_numpy(coupling).T @ pending
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-12)
    assert (basis.num_matvecs, len(basis.done), len(basis.pending)) == (24, 12, 1)


def test_the_quadrature_is_that_of_the_first_chain_before_the_first_restart():
    A = with_spectrum(SPECTRA["isolated"])
    basis = KrylovBasis(A, generator=seeded(3))
    basis.start_chain()
    v = basis.row(0).clone()
    pairs = eigsh(A, 5, tol=1e-8, max_basis=20, max_matvecs=500, seed=3)
    assert pairs.num_matvecs > 20 > len(pairs.quadrature.nodes) > 10
    # 11 nodes and more integrate polynomials up to degree 21 exactly.
    for degree in (0, 1, 3, 10):
        moment = float((pairs.quadrature.weights * pairs.quadrature.nodes**degree).sum())
        assert moment == pytest.approx(
            float(v @ torch.linalg.matrix_power(A.matrix, degree) @ v), rel=1e-9
        )


@pytest.mark.parametrize("max_basis", [0, 5, 10])
def test_a_basis_that_cannot_hold_the_wanted_pairs_is_refused(max_basis):
    with pytest.raises(ValueError, match=r"max_basis must be at least k \+ 6 = 11"):
        eigsh(with_spectrum(SPECTRA["isolated"]), 5, max_basis=max_basis)
