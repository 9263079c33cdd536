"""Power iteration: a faithful repetition of the published package, judged by its residuals."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape.errors import NumericalError
from landscape.linalg import power_iteration
from landscape.linalg.operator import seeded
from tests.helpers.matrices import Counting, with_spectrum

SPREAD = np.r_[10, -7, 5, 3, 2, np.random.default_rng(0).uniform(-1, 1, 95)]


def test_well_separated_eigenvalues_are_found_in_the_order_of_their_size():
    pairs = power_iteration(with_spectrum(SPREAD), 3, tol=1e-8, max_iterations=2000)
    # The + 1e-6 in the published normalisation leaves the values low by up to 2e-6.
    np.testing.assert_allclose(pairs.values.numpy(), [10, -7, 5], rtol=3e-6)


def test_the_rule_stops_early_and_the_residual_says_so():
    pairs = power_iteration(with_spectrum(SPREAD), 3)
    assert not pairs.converged.any() and (pairs.residuals > 1e-3).all()


def test_the_residuals_belong_to_the_returned_vectors():
    A = with_spectrum(SPREAD)
    pairs = power_iteration(A, 3)
    V = pairs.vectors / pairs.vectors.norm(dim=0)
    exact = (A.matrix @ V - V * pairs.values).norm(dim=0) / pairs.values.abs()
    torch.testing.assert_close(pairs.residuals, exact, rtol=1e-4, atol=0)


def test_products_are_counted():
    A = Counting(with_spectrum(SPREAD))
    pairs = power_iteration(A, 3)
    assert pairs.num_matvecs == A.count


def test_it_repeats_the_pyhessian_package_number_for_number():
    """Same matrix, same starting vectors: a quadratic loss whose Hessian is the matrix."""
    pyhessian = pytest.importorskip("pyhessian")
    for values in (SPREAD, np.r_[10, -9.9, SPREAD[5:]]):
        A = with_spectrum(values, dtype=torch.float32)

        class Quadratic(nn.Module):
            def __init__(self):
                super().__init__()
                self.theta = nn.Parameter(torch.ones(A.n))

            def forward(self, matrix):
                return 0.5 * self.theta @ matrix @ self.theta

        with torch.random.fork_rng():
            torch.manual_seed(4)
            starts = [torch.randn(A.n) for _ in range(3)]
            torch.manual_seed(4)
            theirs, _ = pyhessian.hessian(
                Quadratic(), lambda out, _: out, data=(A.matrix, None), cuda=False
            ).eigenvalues(top_n=3)
        ours = power_iteration(A, 3, generator=_Replay(starts))
        # Two runs of the same float32 recurrence that differ in rounding only.
        np.testing.assert_allclose(ours.values.numpy(), theirs, rtol=1e-3)


class _Replay:
    """Hands out recorded starting vectors where a generator is expected (see `replayed_randn`)."""

    def __init__(self, vectors):
        self.vectors = list(vectors)


@pytest.fixture(autouse=True)
def replayed_randn(monkeypatch):
    original = torch.randn

    def randn(*size, generator=None, **options):
        if isinstance(generator, _Replay):
            return generator.vectors.pop(0).to(options.get("dtype", torch.float32))
        return original(*size, generator=generator, **options)

    monkeypatch.setattr(torch, "randn", randn)


def test_the_last_iteration_counts_even_when_the_rule_never_stops_it():
    A = with_spectrum(np.r_[10, -9.999, SPREAD[5:]])
    v = torch.randn(A.n, generator=seeded(3), dtype=torch.float64)
    for _ in range(7):
        v = v / v.norm()
        product = A.matrix @ v
        quotient, v = float(v @ product), product
    pairs = power_iteration(A, 1, seed=3, max_iterations=7, tol=1e-12)
    assert pairs.values.item() == pytest.approx(quotient, rel=1e-4)
    assert pairs.num_matvecs == 7 + 1


def test_the_zero_matrix_gives_zeros():
    pairs = power_iteration(with_spectrum(np.zeros(10)), 2)
    assert (pairs.values == 0).all() and (pairs.residuals == 0).all()


def test_a_product_that_is_not_finite_is_an_error():
    A = with_spectrum(SPREAD)
    A.matrix = A.matrix * float("inf")
    with pytest.raises(NumericalError, match="not finite"):
        power_iteration(A, 1)


@pytest.mark.parametrize(
    "arguments",
    [{"k": 0}, {"k": 101}, {"k": 1.5}, {"k": 1, "tol": 0}, {"k": 1, "max_iterations": 0}],
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        power_iteration(with_spectrum(SPREAD), **arguments)
