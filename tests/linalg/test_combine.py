"""Sums, multiples, averages, shifts and restrictions against the same done to dense matrices; SciPy
on their products.
"""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from landscape.linalg import (
    DenseOperator,
    SymmetricOperator,
    average,
    eigsh,
    restricted,
    seeded,
    shifted,
)
from tests.helpers.matrices import Counting, with_spectrum

# One product sums 30 terms in float64.
EXACT = {"rtol": 1e-13, "atol": 1e-13}


def symmetric(n=30, *, seed, rows=None, dtype=torch.float64):
    """A dense operator, zero outside of `rows`, which it then states as its support."""
    M = torch.randn(n, n, generator=seeded(seed), dtype=torch.float64)
    M = M + M.T
    if rows is not None:
        mask = torch.zeros(n, dtype=torch.float64)
        mask[rows] = 1
        M = M * mask[:, None] * mask
    operator = DenseOperator(M.to(dtype))
    operator.support = rows
    return operator


@pytest.fixture
def three():
    return symmetric(seed=0), symmetric(seed=1), symmetric(seed=2)


def dense(operator):
    return operator @ torch.eye(operator.n, dtype=operator.dtype)


def test_sums_differences_and_multiples_are_those_of_the_matrices(three):
    A, B, C = three
    a, b, c = (one.matrix for one in three)
    torch.testing.assert_close(dense(A + B), a + b, **EXACT)
    torch.testing.assert_close(dense(2 * (A - 0.5 * B) + C / 4 - A), a - b + c / 4, **EXACT)
    torch.testing.assert_close(dense(-A), -a, **EXACT)
    torch.testing.assert_close(dense(np.float32(0.5) * A), 0.5 * a, **EXACT)
    torch.testing.assert_close(dense(A * 3), 3 * a, **EXACT)


def test_a_shift_moves_every_eigenvalue_and_goes_along_with_later_factors(three):
    A, B, _ = three
    identity = torch.eye(30, dtype=torch.float64)
    torch.testing.assert_close(dense(shifted(A, -1.5)), A.matrix - 1.5 * identity, **EXACT)
    combined = 2 * (shifted(A, 3.0) + shifted(B, 0.5))
    assert combined.shift == 7.0 and len(combined.terms) == 2
    torch.testing.assert_close(dense(combined), 2 * (A.matrix + B.matrix) + 7 * identity, **EXACT)
    exact = np.linalg.eigvalsh(A.matrix.numpy())[::-1][:3] - 1.5
    np.testing.assert_allclose(
        eigsh(shifted(A, -1.5), 3, "LA", tol=1e-9).values.numpy(), exact, rtol=1e-10
    )


def test_an_average_weighs_its_operators_and_its_weights_need_not_sum_to_one(three):
    a, b, c = (one.matrix for one in three)
    torch.testing.assert_close(dense(average(iter(three))), (a + b + c) / 3, **EXACT)
    torch.testing.assert_close(
        dense(average(three, weights=[1, 2, 5])), a / 8 + b / 4 + 5 * c / 8, **EXACT
    )


def test_an_operator_with_factor_zero_is_not_multiplied():
    A, B = Counting(symmetric(seed=0)), Counting(symmetric(seed=1))
    v = torch.ones(30, dtype=torch.float64)
    torch.testing.assert_close((A + 0 * B) @ v, A.inner.matrix @ v, **EXACT)
    assert (A.count, B.count) == (1, 0)
    assert not ((A - A) @ v).any() and not ((0 * A) @ v).any()


def test_supports_combine_to_exactly_the_coordinates_that_any_term_reaches():
    A = symmetric(seed=0, rows=torch.tensor([1, 4, 7]))
    B = symmetric(seed=1, rows=torch.tensor([0, 4, 29]))
    assert (A + 3 * B).support.tolist() == [0, 1, 4, 7, 29]
    assert (A + 0 * B).support.tolist() == [1, 4, 7]
    assert (A + symmetric(seed=2)).support is None
    assert shifted(A, 1.0).support is None and shifted(shifted(A, 1.0), -1.0).support.tolist() == [
        1,
        4,
        7,
    ]
    exact = np.linalg.eigvalsh((A.matrix + 3 * B.matrix).numpy())
    np.testing.assert_allclose(
        eigsh(A + 3 * B, 2, "LA", tol=1e-9).values.numpy(), exact[::-1][:2], rtol=1e-10
    )


def test_a_restriction_is_the_rows_and_columns_in_the_order_that_was_asked_for():
    A = symmetric(seed=0, rows=torch.tensor([1, 4, 7, 9]))
    rows = torch.tensor([9, 2, 4, 1])
    part = restricted(A, rows)
    torch.testing.assert_close(dense(part), A.matrix[rows][:, rows], **EXACT)
    assert part.support.tolist() == [0, 2, 3]
    assert restricted(A, torch.tensor([7, 1])).support is None
    # Where all is zero an eigensolver still finds the zeros.
    assert eigsh(restricted(A, torch.tensor([0, 2])), 2).values.tolist() == [0, 0]
    torch.testing.assert_close(
        dense(restricted(part, torch.tensor([2, 0]))), A.matrix[[4, 9]][:, [4, 9]], **EXACT
    )


def test_a_sum_of_restrictions_is_the_restriction_of_the_sum(three):
    A, B, _ = three
    rows = torch.arange(3, 20)
    torch.testing.assert_close(
        dense(restricted(A, rows) + restricted(B, rows)), dense(restricted(A + B, rows)), **EXACT
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda A: A + symmetric(7, seed=1), "n = 30 .* and n = 7"),
        (
            lambda A: A + symmetric(seed=1, dtype=torch.float32),
            "float64 on cpu and n = 30 in torch.float32",
        ),
        (lambda A: average([]), "at least one"),
        (lambda A: average([A, A], weights=[1.0]), "2 finite weights"),
        (lambda A: average([A, A], weights=[1.0, -1.0]), ">= 0"),
        (lambda A: average([A, A], weights=[0.0, 0.0]), "not all 0"),
        (lambda A: shifted(A, float("nan")), "finite"),
        (lambda A: float("inf") * A, "finite"),
        (lambda A: A / 0, "divided by 0"),
        (lambda A: A / 0.0, "divided by 0"),
        (lambda A: average([A.matrix]), "SymmetricOperator, got a Tensor.*DenseOperator"),
        (lambda A: shifted(A.matrix, 1.0), "SymmetricOperator, got a Tensor.*DenseOperator"),
        (
            lambda A: restricted(A.matrix, torch.tensor([0])),
            "SymmetricOperator, got a Tensor.*DenseOperator",
        ),
        (lambda A: restricted(A, torch.tensor([0, 30])), r"0\.\.29"),
        (lambda A: restricted(A, torch.tensor([-1])), r"0\.\.29"),
        (lambda A: restricted(A, torch.tensor([3, 3])), "twice"),
        (lambda A: restricted(A, torch.tensor([True, False])), "int64"),
    ],
)
def test_what_does_not_go_together_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(symmetric(seed=0))


def test_pythons_sum_adds_operators(three):
    v = torch.randn(three[0].n, generator=seeded(5), dtype=torch.float64)
    torch.testing.assert_close(
        sum(three) @ v, sum(A.matrix for A in three) @ v, rtol=1e-13, atol=1e-13
    )


NOT_SYMMETRIC = [
    *(
        lambda A: A + 1,
        lambda A: 1 + A,
        lambda A: A * torch.tensor(2.0),
        lambda A: A * A,
        lambda A: 1j * A,
        lambda A: A / "2",
    ),
    lambda A: np.ones(30) * A,
]


@pytest.mark.parametrize("make", NOT_SYMMETRIC)
def test_what_is_no_combination_of_symmetric_matrices_is_a_type_error(make):
    with pytest.raises(TypeError, match="unsupported operand"):
        make(symmetric(seed=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scipy_finds_the_prescribed_spectrum_through_to_scipy(dtype):
    values = np.concatenate([[9.0, -7.0, 5.0], np.linspace(-1, 1, 57)])
    A = with_spectrum(values, dtype=dtype).to_scipy()
    assert A.dtype == torch.empty(0, dtype=dtype).numpy().dtype and A.shape == (60, 60)
    start = np.random.default_rng(0).standard_normal(60).astype(A.dtype)
    found = scipy.sparse.linalg.eigsh(A, k=3, which="LM", v0=start, return_eigenvectors=False)
    # Rounding of 60 terms in float32 is about 1e-6 of the largest value.
    np.testing.assert_allclose(
        np.sort(found), [-7, 5, 9], rtol=1e-12 if dtype == torch.float64 else 2e-6
    )


def test_to_scipy_multiplies_blocks_is_its_own_adjoint_and_takes_arrays_of_any_layout(three):
    A = three[0]
    S = A.to_scipy()
    V = np.random.default_rng(0).standard_normal((5, 30)).T
    M = A.matrix.numpy()
    np.testing.assert_allclose(S @ V, M @ V, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(S.H @ V[:, 0], M @ V[:, 0], rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(S.T.matmat(V), M @ V, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(S @ np.ones(30, dtype=np.float32), M.sum(1), rtol=1e-13, atol=1e-13)
    with pytest.raises(ValueError, match="complex"):
        S @ (1j * V)


def test_scipys_conjugate_gradients_solve_with_a_shifted_operator():
    A = with_spectrum(np.linspace(-1, 5, 40))
    b = np.ones(40)
    x, failed = scipy.sparse.linalg.cg(shifted(A, 2.0).to_scipy(), b, rtol=1e-12)
    assert not failed
    np.testing.assert_allclose(x, np.linalg.solve(A.matrix.numpy() + 2 * np.eye(40), b), rtol=1e-9)


def test_what_scipy_cannot_hold_is_refused():
    class Half(SymmetricOperator):
        n, dtype, device = 3, torch.float16, torch.device("cpu")

        def matmat(self, V):
            return V

    with pytest.raises(ValueError, match="float16"):
        Half().to_scipy()
