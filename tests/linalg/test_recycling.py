"""eigsh from vectors of a nearby problem: the same answers under the same certificates as from a
random start.

The nearby problem is the prescribed one with its eigenvectors turned a little, as those of the next
batch are.
"""

import numpy as np
import pytest
import torch

from landscape.linalg import DenseOperator, eigsh
from landscape.linalg.operator import seeded
from tests.helpers.matrices import Counting, wanted, with_spectrum
from tests.linalg.test_lanczos import SPECTRA, true_residuals
from tests.linalg.test_support import TOKENS, Bag, loss


def nearby(
    values: np.ndarray, angle: float, *, seed: int = 0
) -> tuple[DenseOperator, DenseOperator]:
    """A matrix with these eigenvalues, and one whose eigenvectors are turned by about this
    angle.
    """
    A = with_spectrum(values, seed=seed)
    n = len(values)
    turn = torch.randn(n, n, generator=seeded(seed), dtype=torch.float64) * angle / n**0.5
    R = torch.linalg.matrix_exp(turn - turn.T)
    matrix = R @ A.matrix @ R.T
    return A, DenseOperator((matrix + matrix.T) / 2)


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
@pytest.mark.parametrize("name", SPECTRA)
def test_a_warm_start_finds_what_a_random_one_finds(name, which):
    values = SPECTRA[name]
    A, other = nearby(values, 0.3)
    start = eigsh(other, 5, which, tol=1e-3).vectors
    pairs = eigsh(A, 5, which, tol=1e-6, start=start)
    np.testing.assert_allclose(
        np.sort(pairs.values.numpy()),
        np.sort(wanted(values, 5, which)),
        rtol=2e-6,
        atol=1e-13 * np.abs(values).max(),
    )
    cold = eigsh(A, 5, which, tol=1e-6)
    assert (pairs.converged == cold.converged).all()


def test_a_start_that_is_orthogonal_to_what_is_wanted_does_not_hide_it():
    values = SPECTRA["isolated"]
    A = with_spectrum(values)
    vectors = torch.linalg.eigh(A.matrix).eigenvectors
    for seed in range(20):
        unwanted = vectors[:, 100 + seed : 105 + seed]
        pairs = eigsh(A, 5, tol=1e-3, start=unwanted, seed=seed)
        np.testing.assert_allclose(pairs.values.numpy(), wanted(values, 5, "LM"), rtol=1e-5)


def test_near_vectors_save_products_and_bounds_stay_true():
    saved = []
    for seed in range(8):
        A, other = nearby(SPECTRA["isolated"], 0.1, seed=seed)
        counting = Counting(A)
        warm = eigsh(counting, 5, tol=1e-4, start=eigsh(other, 5, tol=1e-4).vectors, seed=seed)
        assert warm.num_matvecs == counting.count and warm.converged.all()
        exact = true_residuals(A, warm) / warm.values.abs().numpy()
        np.testing.assert_allclose(warm.residuals.numpy(), exact, rtol=0.1, atol=1e-12)
        saved.append(eigsh(A, 5, tol=1e-4, seed=seed).num_matvecs - warm.num_matvecs)
    assert np.median(saved) >= 2


def test_a_warm_start_gives_no_quadrature_because_it_would_be_biased():
    A, other = nearby(SPECTRA["isolated"], 0.1)
    assert eigsh(A, 5, start=eigsh(other, 5).vectors).quadrature is None
    assert eigsh(A, 5).quadrature is not None


def test_on_an_operator_with_a_support_the_start_is_cut_to_it():
    from landscape import hessian

    H = hessian(Bag(tied=False), loss, TOKENS)
    cold = eigsh(H, 3, tol=1e-8)
    torch.testing.assert_close(
        eigsh(H, 3, tol=1e-8, start=cold.vectors).values, cold.values, rtol=1e-9, atol=0
    )
    outside = torch.ones(H.n, 1, dtype=torch.float64)
    outside[H.support] = 0
    torch.testing.assert_close(
        eigsh(H, 3, tol=1e-8, start=outside).values, cold.values, rtol=1e-9, atol=0
    )


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (torch.ones(305, dtype=torch.float64), "shape"),
        (torch.ones(304, 2, dtype=torch.float64), "shape"),
        (torch.zeros(305, 1, dtype=torch.float64), "zero or not finite"),
        (torch.full((305, 1), float("nan"), dtype=torch.float64), "zero or not finite"),
    ],
)
def test_a_start_that_is_no_direction_is_refused(start, words):
    with pytest.raises(ValueError, match=words):
        eigsh(with_spectrum(SPECTRA["isolated"]), 5, start=start)
