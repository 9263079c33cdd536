"""eigsh against prescribed spectra and SciPy.

Tolerances: a Ritz value whose residual is r |value| is right to r |value| in the worst case and to
about r^2 |value| / gap where it is isolated; tests compare with the guaranteed bound unless they
say otherwise.
"""

import re
from decimal import Decimal

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator
from scipy.sparse.linalg import eigsh as scipy_eigsh

from landscape.errors import NumericalError
from landscape.linalg import DenseOperator, EigenPairs, SymmetricOperator, eigsh, lanczos
from landscape.linalg.krylov import KrylovBasis
from landscape.linalg.operator import seeded
from landscape.linalg.vectors import inner, norm
from tests.helpers.matrices import Counting, Padded, wanted, with_spectrum

RNG = np.random.default_rng(7)
BULK = RNG.uniform(-1, 1, 300)
SPECTRA = {
    "isolated": np.r_[10, 8, -7, 5, 4, BULK],
    "cluster": np.r_[10, 9.999, 9.998, 9.5, 9.4999, 7, BULK],
    "multiplicity": np.r_[10, 10, 8, 8, 8, -9, BULK],
    "multiplicity_near_the_bulk": np.r_[5, 5, 4.9, 4.9, 4.8, RNG.uniform(-4.6, 4.6, 300)],
    "opposite_signs": np.r_[10, -10, 9.99, -9.99, 6, BULK],
    "tiny_negatives": np.r_[-3e-6, -2e-6, -1e-6, 10, 9, 8, RNG.uniform(1, 7, 100)],
    "decaying": 1000.0 * 0.7 ** np.arange(200) * np.where(np.arange(200) % 3 == 2, -1, 1),
    "three_values": np.r_[10, 10, np.ones(5), np.zeros(100)],
    "identity": np.ones(40),
    "fewer_than_the_krylov_dimension": np.r_[3, -2, 1, 0.5, 0.25, -0.1],
}


def true_residuals(A: SymmetricOperator, pairs: EigenPairs) -> np.ndarray:
    assert pairs.vectors is not None
    V = pairs.vectors.double()
    matrix = A.matrix.double() if isinstance(A, DenseOperator) else None
    product = matrix @ V if matrix is not None else A @ V
    return ((product - V * pairs.values).norm(dim=0) / V.norm(dim=0)).numpy()


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
@pytest.mark.parametrize("name", SPECTRA)
def test_eigsh_finds_the_prescribed_extreme_eigenvalues_with_their_multiplicities(name, which):
    values, k = SPECTRA[name], 5
    A = with_spectrum(values)
    pairs = eigsh(A, k, which, tol=1e-6)
    exact = wanted(values, k, which)
    # Where +x and -x are both wanted, rounding decides which comes first: compare as multisets.
    np.testing.assert_allclose(
        np.sort(pairs.values.numpy()), np.sort(exact), rtol=2e-6, atol=1e-13 * np.abs(values).max()
    )
    # An eigenvalue that is zero to rounding has no relative accuracy, and is never claimed.
    attainable = np.abs(exact) > 1e-9 * np.abs(values).max()
    assert (pairs.converged.numpy() == attainable).all() or name == "identity"


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
def test_eigsh_agrees_with_scipy_on_a_random_matrix(which):
    matrix = torch.randn(250, 250, generator=seeded(3), dtype=torch.float64)
    A = DenseOperator((matrix + matrix.T) / 2)
    ours = eigsh(A, 6, which, tol=1e-8)
    theirs = scipy_eigsh(
        LinearOperator(A.shape, matvec=lambda v: A.matrix.numpy() @ v),
        k=6,
        which=which,
        return_eigenvectors=False,
    )
    np.testing.assert_allclose(np.sort(ours.values.numpy()), np.sort(theirs), rtol=1e-10)
    assert ours.converged.all()


@pytest.mark.parametrize("num_seeds", [4, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("second", [-9, -9.9, -9.99, -10])
def test_eigenvalues_of_nearly_equal_size_and_opposite_sign_are_right_for_every_seed(
    second, num_seeds
):
    for seed in range(num_seeds):
        bulk = np.random.default_rng(seed).uniform(-1, 1, 298)
        pairs = eigsh(with_spectrum(np.r_[10, second, bulk], seed=seed), 2, seed=seed)
        np.testing.assert_allclose(np.sort(pairs.values.numpy()), [second, 10], rtol=1e-5)
        assert pairs.converged.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_reported_residual_is_the_residual_of_the_returned_vector(dtype):
    for seed in range(10):
        A = with_spectrum(SPECTRA["decaying"], seed=seed, dtype=dtype)
        pairs = eigsh(A, 5, tol=1e-4, seed=seed)
        exact = true_residuals(A, pairs) / pairs.values.abs().numpy()
        # Within 10 %, or 1e-5 where rounding in float32 rules.
        np.testing.assert_allclose(pairs.residuals.numpy(), exact, rtol=0.1, atol=1e-5)


@pytest.mark.parametrize("num_trials", [20, pytest.param(84, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
def test_an_eigenvalue_lies_within_the_printed_bound_and_a_converged_set_is_complete(
    dtype, which, num_trials
):
    """504 trials in all: random sizes, decays and, in a third, copies; the exact spectrum is that
    of the matrix as rounded.
    """
    rng = np.random.default_rng(11)
    for trial in range(num_trials):
        n = int(rng.integers(5, 250))
        values = rng.standard_normal(n) * 10 ** rng.uniform(-3, 3, n) ** rng.integers(0, 2)
        if trial % 3 == 0:
            values[: n // 2] = rng.choice(values, n // 2)
        A = with_spectrum(values, seed=trial, dtype=dtype)
        exact = np.linalg.eigvalsh(A.matrix.double().numpy())
        k = int(rng.integers(1, min(6, n)))
        pairs = eigsh(A, k, which, tol=10 ** rng.uniform(-4, -2), seed=trial)
        theta, bound = pairs.values.numpy(), (pairs.residuals * pairs.values.abs()).numpy()
        distance = np.abs(exact[:, None] - theta).min(axis=0)
        assert (distance <= bound).all(), (trial, distance, bound)
        if pairs.converged.all():
            np.testing.assert_allclose(
                np.sort(theta), np.sort(wanted(exact, k, which)), atol=bound.max() * 1.001
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_of_either_sign_are_lower_bounds_and_both_ends_lie_within_their_bounds(dtype):
    """Low ranks among them, whose zeros must not be counted for either sign however rounding moves
    them.
    """
    rng = np.random.default_rng(5)
    for trial in range(60):
        n = int(rng.integers(6, 200))
        values = rng.standard_normal(n) * 10 ** rng.uniform(-2, 2, n)
        values[: int(rng.integers(0, n))] = 0
        pairs = eigsh(with_spectrum(values, seed=trial, dtype=dtype), 3, tol=1e-3, seed=trial)
        assert (
            pairs.ritz.num_negative <= (values < 0).sum()
            and pairs.ritz.num_positive <= (values > 0).sum()
        )
        # The rounding of the matrix to dtype moves its spectrum by less than this.
        slack = 4 * torch.finfo(dtype).eps * np.abs(values).max()
        for which in ("SA", "LA"):
            found, residuals = (tensor.numpy() for tensor in pairs.ritz.end(which, 3))
            assert (np.diff(found) * (1 if which == "SA" else -1) >= 0).all()
            known = np.isfinite(residuals)
            distance = np.abs(values[:, None] - found).min(axis=0)
            assert (distance <= residuals * np.abs(found) + slack)[known].all(), (trial, which)


def test_a_long_chain_counts_every_eigenvalue_of_either_sign():
    values = np.r_[np.linspace(-9, -1, 17), np.zeros(40), np.linspace(1, 8, 23)]
    pairs = eigsh(with_spectrum(values), 5, tol=1e-12, max_matvecs=80, num_checks=80)
    assert (pairs.ritz.num_negative, pairs.ritz.num_positive) == (17, 23)
    assert pairs.ritz.orthogonality_defect < 1e-13


def test_the_zero_matrix_has_converged_zeros():
    pairs = eigsh(DenseOperator(torch.zeros(30, 30, dtype=torch.float64)), 5)
    assert (pairs.values == 0).all() and pairs.converged.all() and (pairs.residuals == 0).all()


def test_one_dimension_is_enough():
    pairs = eigsh(DenseOperator(torch.tensor([[-2.5]], dtype=torch.float64)), 1)
    assert pairs.values.item() == pytest.approx(-2.5) and pairs.converged.all()


def test_a_hundred_steps_in_float32_bring_no_ghosts():
    values = SPECTRA["decaying"]
    A = with_spectrum(values, dtype=torch.float32)
    # No residual of 1e-12 exists in float32, so the basis is driven to its limit.
    pairs = eigsh(A, 5, tol=1e-12, max_matvecs=100)
    np.testing.assert_allclose(pairs.values.numpy(), wanted(values, 5, "LM"), rtol=1e-5)
    assert not pairs.converged.any()
    basis = KrylovBasis(A, generator=seeded(0))
    for _ in range(100):
        basis.expand()
    V = torch.stack([basis.row(i) for i in range(basis.num_matvecs)]).double()
    defect = float((V @ V.T - torch.eye(basis.num_matvecs, dtype=torch.float64)).abs().max())
    assert (
        basis.orthogonality_defect() == pytest.approx(defect, rel=1e-6)
        and defect < 100 * torch.finfo(torch.float32).eps
    )
    H, _ = basis.projected()
    top = np.sort(np.linalg.eigvalsh(H))[::-1][:3]
    np.testing.assert_allclose(top, np.sort(values)[::-1][:3], rtol=1e-5)


def test_too_few_products_give_unconverged_pairs_and_not_an_exception():
    pairs = eigsh(with_spectrum(SPECTRA["multiplicity_near_the_bulk"]), 5, max_matvecs=8)
    assert pairs.num_matvecs == 8 and not pairs.converged.all()
    assert (pairs.converged == (pairs.residuals <= 1e-3)).all()


def test_the_number_of_products_reported_is_the_number_spent():
    A = Counting(with_spectrum(SPECTRA["isolated"]))
    pairs = eigsh(A, 5)
    assert pairs.num_matvecs == A.count


def test_whether_copies_were_searched_for_to_the_end_is_said():
    values = np.r_[10, 10, 9, 8, 8, 7, np.random.default_rng(0).standard_normal(1194)]
    A = DenseOperator(torch.diag(torch.from_numpy(values)))
    # The spot check of four products may miss copies in a large matrix, and then says so.
    assert not eigsh(A, 5, "LA").copies_checked
    thorough = eigsh(A, 5, "LA", num_checks=100, max_matvecs=1000)
    assert thorough.copies_checked
    np.testing.assert_allclose(thorough.values.numpy(), [10, 10, 9, 8, 8], rtol=1e-4)
    small = DenseOperator(torch.diag(torch.from_numpy(values[:900])))
    assert (
        eigsh(small, 5, "LA").copies_checked
        and not eigsh(small, 5, "LA", num_checks=2).copies_checked
    )


def test_what_is_printed_holds_what_the_bound_holds():
    rng = np.random.default_rng(3)
    for _ in range(300):
        value, bound = (
            float(rng.standard_normal() * 10 ** rng.uniform(-8, 8)),
            10 ** rng.uniform(-14, 0),
        )
        pairs = EigenPairs(
            *(torch.from_numpy(np.array(x)) for x in ([value], [[1.0]], [bound], [True])),
            num_matvecs=1,
        )
        shown, error = map(Decimal, re.search(r"\[(\S+) ± (\S+)\]", repr(pairs)).groups())
        low, high = (Decimal(value) + sign * Decimal(abs(value) * bound) for sign in (-1, 1))
        assert shown - error <= low and high <= shown + error, repr(pairs)
        # And little more: a bound of one digit.
        assert error <= 4 * Decimal(abs(value) * bound) + Decimal(abs(value)) * Decimal("1e-15"), (
            repr(pairs)
        )


def test_fewer_checks_cost_fewer_products_and_miss_a_second_copy():
    A = with_spectrum(SPECTRA["multiplicity"])
    without, with_checks = eigsh(A, 3, num_checks=0), eigsh(A, 3)
    assert without.num_matvecs < with_checks.num_matvecs
    # The point of the check: one Lanczos chain sees one copy of each eigenvalue, with perfect
    # residuals.
    np.testing.assert_allclose(without.values.numpy(), [10, -9, 8], rtol=1e-4)
    np.testing.assert_allclose(with_checks.values.numpy(), [10, 10, -9], rtol=1e-4)
    assert without.converged.all() and with_checks.converged.all()


def late_third_value():
    """The third value has many beside it, and the fourth, which stands alone at the other end,
    converges in its place.
    """
    truth = np.array([9.0, 8.0, 7.1, -7.08])
    return truth, with_spectrum(np.concatenate([truth, 7.05 - 0.05 * np.arange(120)]))


@pytest.mark.parametrize("seed", [4, 5, 7])
def test_a_run_goes_on_while_another_value_may_still_be_among_the_wanted(seed):
    truth, A = late_third_value()
    # With these starts residuals alone stop after 16 or 17 products, at the fourth.
    assert first_with_small_residuals(A, 3, tol=1e-3, seed=seed) == pytest.approx(
        truth[[0, 1, 3]], rel=1e-3
    )
    pairs = eigsh(A, 3, seed=seed, num_checks=0)
    np.testing.assert_allclose(pairs.values.numpy(), truth[:3], rtol=1e-4)
    assert pairs.num_matvecs > 20


@pytest.mark.parametrize("seed", [0, 1])
def test_the_check_finds_a_value_of_which_nothing_was_seen_when_others_had_converged(seed):
    truth, A = late_third_value()
    without, with_checks = eigsh(A, 3, seed=seed, num_checks=0), eigsh(A, 3, seed=seed)
    np.testing.assert_allclose(without.values.numpy(), truth[[0, 1, 3]], rtol=1e-4)
    assert without.converged.all()
    np.testing.assert_allclose(with_checks.values.numpy(), truth[:3], rtol=1e-4)


def test_a_run_that_ends_before_its_values_are_settled_says_so():
    truth, A = late_third_value()
    stopped = eigsh(A, 3, seed=4, max_matvecs=18)
    assert (
        stopped.converged.all()
        and not stopped.settled
        and "another value may belong among them" in repr(stopped)
    )
    np.testing.assert_allclose(stopped.values.numpy(), truth[[0, 1, 3]], rtol=1e-3)
    done = eigsh(A, 3, seed=4)
    assert done.settled and "another" not in repr(done)


def test_what_a_check_has_half_seen_is_looked_at_to_the_end():
    """Four products of a spot check see something beyond the third value, and leave open what: the
    third itself.
    """
    truth = np.array([9.0, 8.0, 7.1, -7.08])
    A = DenseOperator(
        torch.diag(torch.from_numpy(np.concatenate([truth, 6 - 0.005 * np.arange(1200)])))
    )
    assert eigsh(A, 3, seed=13, num_checks=0).values[2] == pytest.approx(-7.08, rel=1e-3)
    assert eigsh(A, 3, seed=13).values[2] == pytest.approx(7.1, rel=1e-3)


def first_with_small_residuals(A, k, *, tol, seed):
    """What a Lanczos finds that stops once k residuals are small, by powers in float64 kept apart
    by QR.
    """
    M, space = (
        A.matrix.numpy(),
        torch.randn(A.n, 1, generator=seeded(seed), dtype=torch.float64).numpy(),
    )
    space = space / np.linalg.norm(space)
    while True:
        values, coordinates = np.linalg.eigh(space.T @ M @ space)
        best = np.argsort(-np.abs(values))[:k]
        vectors = space @ coordinates[:, best]
        residuals = np.linalg.norm(M @ vectors - vectors * values[best], axis=0)
        if len(best) == k and (residuals <= tol * np.abs(values[best])).all():
            return values[best]
        space = np.linalg.qr(np.column_stack([space, M @ space[:, -1]]))[0]


@pytest.mark.parametrize(
    ("which", "values"),
    [("LM", [10, -8, 7.5, -7]), ("LA", [10, 8, 7.5, -7]), ("SA", [-10, -8, -7.5, 7])],
    ids=str,
)
def test_wanted_values_are_settled_when_no_other_ritz_value_can_reach_them(which, values):
    def satisfied(*norms, error=0.0):
        ritz = lanczos._Ritz(np.array(values, dtype=float), np.eye(4), np.array(norms))
        return lanczos._Wanted(2, which, 1e-2).satisfied(ritz, error)

    assert satisfied(0.0, 0.05, 0.4, 0.5) and not satisfied(0.0, 0.1, 0.0, 0.0)
    # 7.5 may be 8.1, but not 8.05, which the tolerance leaves open; the last is far off unless its
    # residual is large.
    assert satisfied(0.0, 0.0, 0.55, 0.5) and not satisfied(0.0, 0.0, 0.6, 0.5)
    assert satisfied(0.0, 0.0, 0.0, 1.0) and satisfied(0.0, 0.0, 0.0, 1.2) == (which != "LM")
    # Nor does it go on for what is left of rounding.
    assert satisfied(0.0, 0.0, 0.6, 0.5, error=0.06)


def test_the_same_seed_gives_the_same_bits_and_other_seeds_agree_within_their_bounds():
    A = with_spectrum(SPECTRA["decaying"], dtype=torch.float32)
    first, again, other = eigsh(A, 5, seed=1), eigsh(A, 5, seed=1), eigsh(A, 5, seed=2)
    assert torch.equal(first.values, again.values) and torch.equal(first.residuals, again.residuals)
    bound = first.residuals * first.values.abs() + other.residuals * other.values.abs()
    assert ((first.values - other.values).abs() <= bound).all()


def test_ritz_vectors_are_orthonormal():
    pairs = eigsh(with_spectrum(SPECTRA["multiplicity"]), 5)
    torch.testing.assert_close(
        pairs.vectors.T @ pairs.vectors, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_the_quadrature_integrates_low_powers_exactly_for_its_own_start_vector():
    """Gauss quadrature with m nodes is exact up to degree 2m - 1 for v^T A^j v."""
    A = with_spectrum(SPECTRA["isolated"])
    pairs = eigsh(A, 3, tol=1e-2, seed=5)
    v = torch.randn(A.n, generator=seeded(5), dtype=torch.float64)
    v /= v.norm()
    power = v.clone()
    assert pairs.quadrature.weights.sum().item() == pytest.approx(1, abs=1e-12)
    for j in range(1, 2 * len(pairs.quadrature.nodes)):
        power = A @ power
        expected, got = (
            float(v @ power),
            float((pairs.quadrature.weights * pairs.quadrature.nodes**j).sum()),
        )
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-9 * 10.0**j)


def test_a_product_that_is_not_finite_is_an_error_that_says_so():
    class Broken(Counting):
        def matmat(self, V):
            product = super().matmat(V)
            return product * float("nan") if self.count == 4 else product

    with pytest.raises(NumericalError, match="product 4 .* not finite"):
        eigsh(Broken(with_spectrum(BULK)), 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"k": 0}, "k must be between 1 and"),
        ({"k": 301}, "k must be between 1 and the operator's dimension 300, got 301"),
        ({"k": 2.5}, "k must be an integer, got 2.5"),
        ({"k": None}, "k must be an integer, got None"),
        ({"k": 2, "which": "SM"}, "which must be"),
        ({"k": 2, "tol": 0.0}, "tol must be"),
        ({"k": 2, "tol": float("nan")}, "tol must be"),
        ({"k": 2, "max_matvecs": 1}, "max_matvecs must be at least k"),
        ({"k": 2, "num_checks": -1}, "num_checks must be"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        eigsh(with_spectrum(BULK), **arguments)


def test_an_operator_refuses_vectors_of_another_shape_dtype_or_kind():
    A = with_spectrum(BULK)
    with pytest.raises(ValueError, match="shape"):
        A @ torch.zeros(5, dtype=torch.float64)
    with pytest.raises(ValueError, match="float32"):
        A @ torch.zeros(300)
    with pytest.raises(ValueError, match="torch tensors"):
        A @ np.zeros(300)
    with pytest.raises(ValueError, match="symmetric"):
        DenseOperator(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))


def test_inner_products_and_norms_of_float32_vectors_are_accumulated_in_float64():
    n = 3_000_001
    V = torch.randn(2, n, generator=seeded(0)) + 3
    w = V[0] * 1.5
    exact = V.double() @ w.double()
    np.testing.assert_allclose(inner(V, w), exact.numpy(), rtol=1e-13)
    assert norm(w) == pytest.approx(float(w.double().norm()), rel=1e-13)


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
@pytest.mark.parametrize(
    "values", [[5.0, -4, 3, -2, 1, -0.5], [5.0, 4, 3, 2, 1, 0.5], [-5.0, -4, -3]]
)
def test_the_zeros_outside_of_the_support_are_eigenvalues_like_all_others(which, values):
    inside = with_spectrum(np.array(values))
    A = Padded(inside, 12, torch.tensor([1, 4, 5, 7, 8, 11][: len(values)]))
    pairs = eigsh(A, 5, which, tol=1e-8)
    dense = A @ torch.eye(12, dtype=torch.float64)
    exact = wanted(np.linalg.eigvalsh(dense.numpy()), 5, which)
    np.testing.assert_allclose(np.sort(pairs.values.numpy()), np.sort(exact), atol=1e-12)
    assert pairs.converged.all()
    torch.testing.assert_close(
        dense @ pairs.vectors, pairs.vectors * pairs.values, rtol=0, atol=1e-10
    )
    torch.testing.assert_close(
        pairs.vectors.T @ pairs.vectors, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("return_vectors", [True, False])
def test_where_the_support_is_empty_all_eigenvalues_are_exact_zeros_at_no_cost(return_vectors):
    A = Padded(with_spectrum(np.ones(1)), 6, torch.zeros(0, dtype=torch.int64))
    pairs = eigsh(A, 3, start=torch.ones(6, 1, dtype=torch.float64), return_vectors=return_vectors)
    assert (
        pairs.values.tolist() == pairs.residuals.tolist() == pairs.ritz.values.tolist() == [0.0] * 3
    )
    assert (
        pairs.converged.all()
        and pairs.num_matvecs == pairs.ritz.num_negative == pairs.ritz.num_positive == 0
    )
    assert pairs.quadrature.weights[pairs.quadrature.nodes == 0].sum() == 1
    if return_vectors:
        torch.testing.assert_close(
            pairs.vectors.T @ pairs.vectors, torch.eye(3, dtype=torch.float64), rtol=0, atol=0
        )
    else:
        assert pairs.vectors is None


def test_the_quadrature_of_a_padded_operator_counts_the_zeros():
    inside = with_spectrum(SPECTRA["isolated"])
    A = Padded(inside, 2 * inside.n, torch.arange(inside.n))
    whole, part = eigsh(A, 3, seed=1).quadrature, eigsh(inside, 3, seed=1).quadrature
    assert whole.weights.sum().item() == pytest.approx(1)
    # n times the mean of f: for f(x) = x the zeros add nothing.
    assert A.n * (whole.weights @ whole.nodes) == pytest.approx(
        float(inside.n * (part.weights @ part.nodes))
    )
    assert whole.weights[whole.nodes == 0].sum().item() == pytest.approx(0.5)
