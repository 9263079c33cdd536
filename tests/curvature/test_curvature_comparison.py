"""A Hessian beside its approximations, against dense matrices.

A statistical law is tested on seeded trials, so that it either always holds or never.
"""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torch.nn import functional as F

import landscape
from landscape.curvature import Objective, coordinates_of, modules_of, select_parameters
from landscape.errors import NumericalError, ObjectiveError
from landscape.linalg import DenseOperator, DiagonalOperator, EigenPairs, seeded
from landscape.linalg.angles import tilt_of
from tests.helpers.oracles import dense_hessian, dense_jacobian

DOUBLE = torch.float64
TRIALS = 200


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def batch(count=15):
    generator = seeded(1)
    return torch.randn(count, 5, generator=generator, dtype=DOUBLE), torch.randint(
        3, (count,), generator=generator
    )


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def scores(model, batch):
    return model(batch[0])


def head(scores, batch):
    return F.cross_entropy(scores, batch[1])


def dense_matrices(model, data):
    """H, the Gauss-Newton matrix and the empirical Fisher matrix."""
    params = select_parameters(model)
    H = dense_hessian(Objective.from_closure(model, loss), params, data)

    def called(function):
        return lambda leaves: function(
            lambda inputs: torch.func.functional_call(model, leaves, (inputs,)), data
        )

    J, J_losses = (dense_jacobian(called(f), params) for f in (scores, losses))
    p = model(data[0]).detach().softmax(1)
    count = len(p)
    inner = torch.block_diag(*(row.diag() - torch.outer(row, row) for row in p)) / count
    return H, J.T @ inner @ J, J_losses.T @ J_losses / count


def random_matrix(generator, n=40, outliers=(30.0, -12.0, 8.0)):
    """A symmetric matrix with a few large eigenvalues, as Hessians have."""
    rest = torch.randn(n - len(outliers), generator=generator, dtype=DOUBLE)
    values = torch.cat([torch.tensor(outliers, dtype=DOUBLE), rest])
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=DOUBLE))[0]
    return (Q * values) @ Q.T


def symmetric_noise(generator, n=40):
    noise = torch.randn(n, n, generator=generator, dtype=DOUBLE)
    return (noise + noise.T) / 2


def likeness(A, H):
    """Cosine, relative error, ratio of norms and best factor of two dense matrices."""
    inner, a, h = float((A * H).sum()), float(A.norm()), float(H.norm())
    return inner / (a * h), float((A - H).norm()) / h, a / h, inner / a**2


def read(row):
    return row.cosine, row.relative_error, row.norm_ratio, row.scale


# --- the empirical Fisher matrix ------------------------------------------------------------------


def test_the_empirical_fisher_matrix_is_the_mean_of_outer_products_of_gradients():
    model, data = net(), batch()
    operator = landscape.empirical_fisher(model, losses, data)
    exact = torch.zeros(operator.n, operator.n, dtype=DOUBLE)
    for row in range(len(data[0])):
        value = losses(model, (data[0][row : row + 1], data[1][row : row + 1]))[0]
        gradients = torch.autograd.grad(value, list(model.parameters()))
        g = torch.cat([gradient.reshape(-1) for gradient in gradients])
        exact += torch.outer(g, g) / len(data[0])
    dense = operator @ torch.eye(operator.n, dtype=DOUBLE)
    torch.testing.assert_close(dense, exact, rtol=1e-10, atol=1e-13)
    assert operator.loss == pytest.approx(float(loss(model, data).detach()), rel=1e-14)
    assert operator.num_samples == 15 and "within" in operator.checked
    pairs = landscape.eigsh(operator, 2, "LM")
    torch.testing.assert_close(
        pairs.values, torch.linalg.eigvalsh(exact).flip(0)[:2], rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("wrong", [loss, lambda model, batch: model(batch[0]), lambda m, b: 1.0])
def test_losses_that_are_no_vector_are_refused(wrong):
    with pytest.raises(ObjectiveError, match="must be a vector") as error:
        landscape.empirical_fisher(net(), wrong, batch())
    assert "\n" not in str(error.value)


def test_a_wrong_gradient_of_a_loss_is_refused():
    def detached(model, batch):
        return losses(model, batch) * model(batch[0]).detach().square().mean(1)

    with pytest.raises(ObjectiveError, match="gradient is not the derivative"):
        landscape.empirical_fisher(net(), detached, batch()) @ torch.ones(57, dtype=DOUBLE)


# --- cosine and relative error --------------------------------------------------------------------


def test_with_n_probes_a_comparison_of_a_network_is_exact():
    model, data = net(), batch()
    H = landscape.hessian(model, loss, data)
    others = {
        "Gauss-Newton": landscape.gauss_newton(model, scores, head, data),
        "empirical Fisher": landscape.empirical_fisher(model, losses, data),
    }
    compared = landscape.compare_curvature(H, others, num_probes=H.n, k=3)
    dense, *truths = dense_matrices(model, data)
    assert compared.is_exact
    for name, matrix in zip(others, truths):
        for number, exact in zip(read(compared.rows[name]), likeness(matrix, dense)):
            assert number.value == pytest.approx(exact, rel=1e-9) and number.probe_error == 0
    assert "Gauss-Newton" in str(compared) and "principal angles" in str(compared)


@pytest.mark.parametrize("k", [0, 3])
def test_a_comparison_of_a_network_is_within_four_standard_errors(k):
    model, data = net(), batch()
    H = landscape.hessian(model, loss, data)
    others = {"G": landscape.gauss_newton(model, scores, head, data),
              "F": landscape.empirical_fisher(model, losses, data)}  # fmt: skip
    dense, *truths = dense_matrices(model, data)
    for seed in range(6):
        compared = landscape.compare_curvature(H, others, num_probes=20, k=k, seed=seed)
        for name, matrix in zip(others, truths):
            for number, exact in zip(read(compared.rows[name]), likeness(matrix, dense)):
                assert abs(number.value - exact) <= 4 * number.probe_error


@pytest.mark.parametrize("k", [0, 3])
def test_intervals_of_a_comparison_cover_the_truth_in_nineteen_of_twenty_trials(k):
    covered = []
    for trial in range(TRIALS):
        generator = seeded(trial)
        H = random_matrix(generator)
        A = 0.8 * H + 0.5 * symmetric_noise(generator)
        row = landscape.compare_curvature(
            DenseOperator(H), {"A": DenseOperator(A)}, num_probes=12, k=k, tol=0.1, seed=trial
        ).rows["A"]
        covered.append([
            low <= exact <= high
            for (low, high), exact in zip(
                (number.interval(0.95) for number in read(row)), likeness(A, H)
            )
        ])  # fmt: skip
    # Of 200 trials at 95 %, 181 or fewer has the probability 0.5 %; and no interval is so wide that
    # it always holds the truth by far: see the next test.
    shares = np.mean(covered, axis=0)
    assert (shares >= 0.91).all(), shares


def test_errors_of_a_comparison_are_those_of_repeated_estimates():
    generator = seeded(5)
    H = random_matrix(generator)
    A = 0.8 * H + 0.5 * symmetric_noise(generator)
    estimates, errors = [], []
    for seed in range(TRIALS):
        row = landscape.compare_curvature(
            DenseOperator(H), {"A": DenseOperator(A)}, num_probes=30, k=0, seed=seed
        ).rows["A"]
        estimates.append([number.value for number in read(row)])
        errors.append([number.probe_error for number in read(row)])
    # Student's t widens errors of 29 degrees of freedom by 8 %.
    ratios = np.sqrt(np.mean(np.square(errors), axis=0)) / np.std(estimates, axis=0)
    assert ((ratios > 0.9) & (ratios < 1.4)).all(), ratios


def test_leading_eigenvectors_that_are_treated_exactly_make_errors_smaller():
    generator = seeded(7)
    H = random_matrix(generator, outliers=(300.0, -120.0, 80.0))
    A = H + 0.3 * symmetric_noise(generator)
    plain, deflated = (
        landscape.compare_curvature(DenseOperator(H), {"A": DenseOperator(A)}, num_probes=12, k=k)
        for k in (0, 3)
    )
    ratio = plain.rows["A"].norm_ratio, deflated.rows["A"].norm_ratio
    assert ratio[1].probe_error < ratio[0].probe_error / 10
    assert deflated.num_matvecs == 12 + 6 or deflated.num_matvecs == 12 + 8


def test_equal_matrices_have_no_error_and_opposite_ones_point_apart():
    H = DenseOperator(random_matrix(seeded(1)))
    rows = landscape.compare_curvature(H, {"same": 2 * H, "opposite": -H}, num_probes=10, k=2).rows
    assert rows["same"].cosine.value == pytest.approx(1, rel=1e-14)
    assert rows["same"].cosine.probe_error < 1e-14
    assert rows["same"].scale.value == pytest.approx(0.5) and rows["opposite"].cosine.value < -0.999
    assert rows["opposite"].relative_error.value == pytest.approx(2)
    assert rows["same"].angles.angles.max() <= rows["same"].angles.error


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_errors_of_a_comparison_are_at_least_rounding(dtype):
    """Matrices of rank 1 are treated exactly, so that the probes see rounding alone."""
    eps = torch.finfo(dtype).eps
    for seed in range(20):
        v, w = torch.randn(2, 50, 1, generator=seeded(seed), dtype=DOUBLE).to(dtype)
        H, A = v @ v.T, 3 * w @ w.T
        others = {"A": DenseOperator(A), "nearly": DenseOperator(H * 3 / 3)}
        rows = landscape.compare_curvature(DenseOperator(H), others, num_probes=10, k=2).rows
        for name, matrix in (("A", A), ("nearly", H * 3 / 3)):
            for number, exact in zip(read(rows[name]), likeness(matrix.double(), H.double())):
                assert number.probe_error >= eps * abs(number.value)
                assert abs(number.value - exact) <= 3 * number.probe_error
                assert number.probe_error < 100 * eps * max(abs(exact), 1)


def test_a_matrix_of_zeros_has_no_cosine():
    H = DenseOperator(random_matrix(seeded(1)))
    zero = DenseOperator(torch.zeros(40, 40, dtype=DOUBLE))
    row = landscape.compare_curvature(H, {"zero": zero}, num_probes=10, k=0).rows["zero"]
    assert math.isnan(row.cosine.value) and row.relative_error.value == pytest.approx(1)
    assert row.norm_ratio.value == 0 and str(row.cosine) == "unknown"


# --- principal angles -----------------------------------------------------------------------------


@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-6])
def test_principal_angles_are_within_their_error_of_those_of_dense_eigenvectors(tol):
    known = 0
    for seed in range(12):
        generator = seeded(seed)
        H = random_matrix(generator, n=60)
        A = H + 0.4 * symmetric_noise(generator, 60)
        first, second = (
            landscape.eigsh(DenseOperator(matrix), 4, "LM", tol=tol, seed=seed) for matrix in (H, A)
        )
        measured = landscape.principal_angles(first, second)
        spaces = []
        for matrix in (H, A):
            values, vectors = torch.linalg.eigh(matrix)
            spaces.append(vectors[:, values.abs().argsort(descending=True)[:3]].numpy())
        exact = np.sort(scipy.linalg.subspace_angles(*spaces))
        assert np.abs(measured.angles.numpy() - exact).max() <= measured.error + 1e-12
        known += measured.error < 0.1
        assert measured.overlap == pytest.approx(
            np.mean(np.cos(exact) ** 2), abs=2 * measured.error + 1e-12
        )
    assert known >= (12 if tol < 1e-3 else 6)


def test_the_tilt_of_a_computed_space_is_within_its_bound():
    # The bound is compared with the tilt itself, not with a difference of angles, which may cancel.
    for seed in range(8):
        H = random_matrix(seeded(seed), n=60)
        pairs = landscape.eigsh(DenseOperator(H), 4, "LM", tol=0.1, seed=seed)
        values, vectors = torch.linalg.eigh(H)
        exact = vectors[:, values.abs().argsort(descending=True)[:3]].numpy()
        tilt = scipy.linalg.subspace_angles(pairs.vectors[:, :3].numpy(), exact).max()
        assert tilt <= tilt_of(pairs) + 1e-12


@pytest.mark.parametrize("next_value", [0.999, -0.999])
def test_the_bound_of_a_tilt_is_the_tilt_where_the_rest_lies_at_the_gap(next_value):
    # The first vector is tilted towards the third eigenvector, whose eigenvalue is as near as any.
    A, t = torch.tensor([2.0, 1.0, next_value], dtype=DOUBLE), 0.05
    vectors = torch.tensor([[math.cos(t), 0], [0, 1], [math.sin(t), 0]], dtype=DOUBLE)
    products = A[:, None] * vectors
    values = (vectors * products).sum(0)
    residuals = (products - vectors * values).norm(dim=0) / values
    yes = torch.ones(2, dtype=torch.bool)
    pairs = EigenPairs(values, vectors, residuals, yes, num_matvecs=2, settled=True)
    # Davis and Kahan: |R| = (2 - next) sin t cos t over the gap.
    assert t <= tilt_of(pairs) <= 1.02 * t * (2 - next_value)


def test_without_a_gap_angles_are_unknown():
    pairs = landscape.eigsh(DiagonalOperator(torch.ones(30, dtype=DOUBLE)), 3, "LM")
    measured = landscape.principal_angles(pairs, pairs)
    assert measured.error == math.pi / 2 and "unknown" in str(measured)


# --- the diagonal ---------------------------------------------------------------------------------


def test_the_diagonal_of_a_network_is_exact_with_n_probes():
    model, data = net(), batch()
    H = landscape.hessian(model, loss, data)
    dense = dense_matrices(model, data)[0]
    measured = landscape.diagonal(H, num_probes=H.n)
    torch.testing.assert_close(measured.values, dense.diag(), rtol=1e-9, atol=1e-13)
    assert not measured.errors.any() and measured.num_matvecs == H.n


@pytest.mark.parametrize("num_deflated", [0, 3])
def test_errors_of_the_diagonal_cover_it_entry_by_entry(num_deflated):
    H = random_matrix(seeded(11), n=30)
    values, vectors = torch.linalg.eigh(H)
    Q = vectors[:, values.abs().argsort(descending=True)[:num_deflated]]
    within, scaled = [], []
    for seed in range(TRIALS):
        measured = landscape.diagonal(DenseOperator(H), num_probes=15, deflate=Q, seed=seed)
        off = (measured.values - H.diag()).abs() / measured.errors
        within.append((off <= 1.96).double().mean())
        scaled.append(off)
    # Student's t of 14 degrees of freedom: 1.96 widened errors leave out about 3 %.
    assert 0.93 <= float(torch.stack(within).mean()) <= 0.995
    assert float((torch.stack(scaled) <= 4).double().mean()) > 0.998
    assert measured.num_matvecs == 15 + num_deflated


def test_deflation_makes_the_errors_of_the_diagonal_smaller():
    H = random_matrix(seeded(11), n=30, outliers=(300.0, -120.0, 80.0))
    values, vectors = torch.linalg.eigh(H)
    Q = vectors[:, values.abs().argsort(descending=True)[:3]]
    plain, deflated = (
        landscape.diagonal(DenseOperator(H), num_probes=15, deflate=basis) for basis in (None, Q)
    )
    assert float(deflated.errors.max()) < float(plain.errors.min()) / 3


@pytest.mark.parametrize("spread", [1e-3, 1e-7, 1e-9])
def test_errors_of_a_large_diagonal_are_those_of_the_rest_of_its_matrix(spread):
    noise = spread * symmetric_noise(seeded(13), n=60)
    noise.fill_diagonal_(0)
    large = DenseOperator(noise + torch.eye(60, dtype=DOUBLE))
    errors = landscape.diagonal(large, num_probes=30).errors
    expected = landscape.diagonal(DenseOperator(noise), num_probes=30).errors
    # Rounding of products of size 1 is all that differs.
    torch.testing.assert_close(errors, expected, rtol=1e-12 / spread, atol=0)


def sparse(n, entries):
    """A symmetric matrix of a few ones."""
    matrix = torch.zeros(n, n, dtype=DOUBLE)
    for i, j in entries:
        matrix[i, j] = matrix[j, i] = 1
    return matrix


def test_the_fewest_probes_cover_entries_whose_samples_may_all_agree():
    pair, star = sparse(20, [(0, 1)]), sparse(40, [(0, 1), (0, 2)])
    # Three errors miss 0.27 % of the truths: 3 or more of 300 trials have the probability 5 %, 5 or
    # more 0.1 %.
    for matrix in (pair, star):
        operator, missed = DenseOperator(matrix), torch.zeros(len(matrix))
        for seed in range(300):
            measured = landscape.diagonal(operator, num_probes=10, seed=seed)
            assert (measured.errors > 0).all()
            missed += measured.values.abs() > 3 * measured.errors
        assert missed.max() <= 4, missed


def test_an_entry_that_is_sampled_is_known_to_rounding_at_best():
    diagonal = torch.tensor([1e6, 1.0, 0.0] * 10, dtype=torch.float32)
    for A in (DiagonalOperator(diagonal), DenseOperator(torch.diag(diagonal))):
        for deflate in (None, torch.eye(30)[:, :2]):
            measured = landscape.diagonal(A, num_probes=10, deflate=deflate)
            assert (measured.errors > 0).all()
            assert ((measured.values - diagonal).abs() <= 3 * measured.errors).all()
            assert measured.errors[0] < 1


# --- masses of blocks -----------------------------------------------------------------------------


def dense_masses(matrix, blocks):
    groups = list(blocks.values())
    return np.array(
        [[float(matrix[rows][:, columns].square().sum()) for columns in groups] for rows in groups]
    )


def test_masses_of_the_blocks_of_a_network_are_exact_with_enough_probes():
    model, data = net(), batch()
    H = landscape.hessian(model, loss, data)
    blocks = {
        name: coordinates_of(H.params, names) for name, names in modules_of(model, H.params).items()
    }
    assert set(blocks) == {"0", "2"}
    exact = dense_masses(dense_matrices(model, data)[0], blocks)
    measured = landscape.block_masses(H, blocks, num_probes=40)
    assert measured.names == ("0", "2") and not measured.errors.any()
    np.testing.assert_allclose(measured.masses, exact, rtol=1e-9)
    off = exact[0, 1] + exact[1, 0]
    assert measured.off_diagonal.value == pytest.approx(off / exact.sum(), rel=1e-9)
    assert measured.off_diagonal.probe_error == 0 and "off the diagonal" in str(measured)


def test_intervals_of_masses_cover_the_truth():
    H = random_matrix(seeded(4), n=45, outliers=(8.0, -5.0))
    # The last group has no more coordinates than there are probes.
    blocks = {"a": torch.arange(20), "b": torch.arange(20, 39), "c": torch.arange(39, 45)}
    exact = dense_masses(H, blocks)
    share = 1 - np.trace(exact) / exact.sum()
    within, shares = [], []
    for seed in range(TRIALS):
        measured = landscape.block_masses(DenseOperator(H), blocks, num_probes=12, seed=seed)
        assert np.array_equal(measured.masses, measured.masses.T)
        np.testing.assert_allclose(measured.masses[2], exact[2], rtol=1e-9)
        assert not measured.errors[2].any()
        inner = np.s_[:2, :2]
        off = np.abs(measured.masses - exact)[inner] / measured.errors[inner]
        within.append(off <= 1.96)
        low, high = measured.off_diagonal.interval(0.95)
        shares.append(low <= share <= high)
    assert np.mean(within, axis=0).min() >= 0.91, np.mean(within, axis=0)
    assert np.mean(shares) >= 0.91 and not np.all(shares)


def test_the_fewest_probes_cover_masses_whose_samples_may_all_agree():
    blocks = {"a": torch.arange(20), "b": torch.arange(20, 40)}
    for matrix in (sparse(40, [(0, 1), (0, 2)]), sparse(40, [(0, 21), (0, 22), (1, 2), (1, 3)])):
        exact, missed = dense_masses(matrix, blocks), np.zeros((2, 2))
        for seed in range(300):
            measured = landscape.block_masses(
                DenseOperator(matrix), blocks, num_probes=10, seed=seed
            )
            assert (measured.errors > 0).all()
            missed += np.abs(measured.masses - exact) > 3 * measured.errors
        assert missed.max() <= 4, missed


@pytest.mark.parametrize("num_probes", [10, 15])
def test_errors_of_masses_cover_blocks_of_rank_one(num_probes):
    """A mass of rank 1 is a square, about chi-squared of one degree of freedom, and so is skew."""
    v = torch.randn(60, generator=seeded(14), dtype=DOUBLE)
    matrix, blocks = torch.outer(v, v), {"a": torch.arange(30), "b": torch.arange(30, 60)}
    exact, missed = dense_masses(matrix, blocks), np.zeros((2, 2))
    for seed in range(300):
        operator = DenseOperator(matrix)
        measured = landscape.block_masses(operator, blocks, num_probes=num_probes, seed=seed)
        missed += np.abs(measured.masses - exact) > 3 * measured.errors
        # Three standard deviations below the mean, chi-squared of 10 degrees is 1 / 8 of it.
        assert (measured.errors < 7 / 3 * measured.masses).all()
    assert missed.max() <= 4, missed


def test_a_group_of_one_coordinate_is_exact():
    H = random_matrix(seeded(4))
    blocks = {"bias": torch.tensor([3]), "rest": torch.arange(4, 40)}
    measured = landscape.block_masses(DenseOperator(H), blocks, num_probes=10)
    np.testing.assert_allclose(measured.masses[0], dense_masses(H, blocks)[0], rtol=1e-12)
    assert not measured.errors[0].any() and measured.errors[1, 1] > 0


def test_samples_that_agree_do_not_count_as_exact():
    # Signs on "a" give the block ("b", "a") one mass or another; those on "b" always the same one.
    matrix = sparse(40, [(0, 20), (1, 20)])
    blocks = {"a": torch.arange(20), "b": torch.arange(20, 40)}
    measured = landscape.block_masses(DenseOperator(matrix), blocks, num_probes=10)
    assert measured.errors[0, 1] > 0.1 and measured.off_diagonal.probe_error > 0
    assert abs(measured.masses[0, 1] - 2) <= 3 * measured.errors[0, 1]


@pytest.mark.parametrize("n", [4, 30])
def test_blocks_of_a_matrix_of_zeros_are_zeros(n):
    blocks = {"a": torch.arange(n // 2), "b": torch.arange(n // 2, n)}
    measured = landscape.block_masses(DiagonalOperator(torch.zeros(n)), blocks)
    with np.errstate(all="raise"):
        first, *rows = str(measured).splitlines()
    assert first == "unknown of the squared norm lies off the diagonal blocks"
    assert [row.split() for row in rows] == [["a", "0.00", "0.00"], ["b", "0.00", "0.00"]]


# --- the preconditioner ---------------------------------------------------------------------------


def test_the_preconditioner_as_an_operator_is_that_of_adams_step():
    model, data = net(), batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model, data).backward()
        optimizer.step()
    H = landscape.hessian(model, loss, data)
    P = landscape.preconditioner_of(H, optimizer)
    moments = torch.cat([optimizer.state[p]["exp_avg_sq"].reshape(-1) for p in model.parameters()])
    exact = (1 - 0.9**3) * ((moments / (1 - 0.999**3)).sqrt() + 1e-8)
    torch.testing.assert_close(P @ torch.ones(P.n, dtype=DOUBLE), exact, rtol=1e-12, atol=0)
    row = landscape.compare_curvature(H, {"P": P}, num_probes=H.n, k=0).rows["P"]
    expected = likeness(exact.diag(), dense_matrices(model, data)[0])
    assert row.cosine.value == pytest.approx(expected[0], rel=1e-9)


# --- refusals -------------------------------------------------------------------------------------

SMALL = DenseOperator(torch.eye(4, dtype=DOUBLE))
LARGE = DenseOperator(torch.eye(30, dtype=DOUBLE))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: landscape.compare_curvature(SMALL, {}), "at least one operator"),
        (lambda: landscape.compare_curvature(SMALL, {"": SMALL}), "not empty"),
        (lambda: landscape.compare_curvature(SMALL, {"A": torch.eye(4)}), "SymmetricOperator"),
        (lambda: landscape.compare_curvature(
            SMALL, {"A": DenseOperator(torch.eye(3, dtype=DOUBLE))}), "A: has n = 3"),
        (lambda: landscape.compare_curvature(SMALL, {"A": DenseOperator(torch.eye(4))}), "float32"),
        (lambda: landscape.compare_curvature(SMALL, {"A": SMALL}, k=4), "between 0 and n - 1"),
        (lambda: landscape.compare_curvature(SMALL, {"A": SMALL}, k=0, num_probes=1), "at least 4"),
        (lambda: landscape.diagonal(SMALL, num_probes=1), "at least 4"),
        (lambda: landscape.diagonal(SMALL, deflate=torch.ones(4, 2)), "orthonormal"),
        (lambda: landscape.diagonal(SMALL, deflate=torch.ones(3, 1)), "4 entries"),
        (lambda: landscape.block_masses(SMALL, {}), "at least one group"),
        (lambda: landscape.block_masses(SMALL, {"a": torch.tensor([4])}), "between 0 and 3"),
        (lambda: landscape.block_masses(SMALL, {"a": torch.arange(3), "b": torch.arange(2, 4)}),
         "coordinate 2"),
        (lambda: landscape.block_masses(SMALL, {"a": torch.arange(3)}, num_probes=2), "at least 3"),
        (lambda: landscape.diagonal(LARGE, num_probes=9), "at least 10, got 9"),
        (lambda: landscape.block_masses(LARGE, {"a": torch.arange(30)}, num_probes=9), "least 10"),
        (lambda: landscape.compare_curvature(LARGE, {"A": LARGE}, k=0, num_probes=9), "least 10"),
        (lambda: landscape.principal_angles(*[landscape.eigsh(SMALL, 1)] * 2), "k + 1"),
        (lambda: landscape.principal_angles(
            landscape.eigsh(SMALL, 2), landscape.eigsh(SMALL, 3)), "one dimension"),
        (lambda: DiagonalOperator(torch.tensor([1.0, math.nan])), "finite"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_in_one_line(call, words):
    with pytest.raises(ValueError, match=words.replace("+", r"\+")) as error:
        call()
    assert "\n" not in str(error.value)


def test_products_that_are_not_finite_are_refused():
    huge = DiagonalOperator(torch.full((8,), 3e38, dtype=torch.float32))
    for call in (
        lambda: landscape.compare_curvature(huge + huge, {"A": huge}, k=0, num_probes=8),
        lambda: landscape.diagonal(huge + huge, num_probes=8),
        lambda: landscape.block_masses(huge + huge, {"a": torch.arange(8)}, num_probes=8),
    ):
        with pytest.raises(NumericalError, match="not finite"):
            call()
