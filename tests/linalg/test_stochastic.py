"""Estimates over a whole spectrum, held against prescribed spectra.

A statistical law is tested on seeded trials, so that it either always holds or never. Where a law
says "three standard errors in 99 % of 300 trials", up to three misses are let through.
"""

import math
import re

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from landscape.errors import NumericalError
from landscape.linalg import (
    DenseOperator,
    Estimate,
    NegativeCounts,
    Quadrature,
    SpectralDensity,
    SymmetricOperator,
    dense_spectrum,
    density,
    eigsh,
    power_iteration,
    trace,
)
from landscape.linalg.krylov import KrylovBasis
from landscape.linalg.number_text import unknown, with_error
from landscape.linalg.operator import seeded
from landscape.linalg.quadrature_bounds import cumulative_bounds, mass_below, negative_part
from tests.helpers.matrices import Counting, with_spectrum

RNG = np.random.default_rng(3)
SPECTRA = {
    "symmetric": RNG.standard_normal(80),
    "positive": RNG.uniform(0.5, 2, 80),
    "outliers": np.r_[100, 60, -30, 20, RNG.standard_normal(96) * 0.1],
    "mostly_zero": np.r_[10, 5, -3, -1, RNG.standard_normal(16), np.zeros(80)],
    "one_value_that_is_not_zero": np.r_[10, np.zeros(79)],
    "few_negatives": np.r_[-2, -1, RNG.uniform(0.1, 5, 78)],
    "copies": np.r_[10, 10, 10, -7, -7, RNG.uniform(-1, 1, 75)],
    "decaying": 100 * 0.8 ** np.arange(80) * np.where(np.arange(80) % 3 == 2, -1, 1),
}


class Diagonal(SymmetricOperator):
    """A diagonal matrix: for probes that no direction is special to, the same as any matrix of its
    spectrum, and cheap.
    """

    def __init__(self, values: np.ndarray, dtype: torch.dtype = torch.float64) -> None:
        self.values = torch.tensor(values, dtype=dtype)
        self.n, self.dtype, self.device = len(values), dtype, torch.device("cpu")

    def matmat(self, V):
        return self.values[:, None] * V


class Padded(Diagonal):
    """A diagonal matrix with zeros after it, of which it knows."""

    def __init__(self, values: np.ndarray, num_zeros: int) -> None:
        super().__init__(np.r_[values, np.zeros(num_zeros)])
        self.support = torch.arange(len(values))


class Overflowing(Diagonal):
    """A diagonal matrix whose products are NaN from the one after `good` on."""

    def __init__(self, values: np.ndarray, good: int) -> None:
        super().__init__(values)
        self.good = good

    def matmat(self, V):
        self.good -= V.shape[1]
        return super().matmat(V) * (1.0 if self.good >= 0 else math.nan)


def exact_sums(values: np.ndarray) -> dict[str, float]:
    return {
        "trace": values.sum(),
        "sum_of_squares": (values**2).sum(),
        "negative_share": (values < 0).mean(),
        "negative_mass": -values[values < 0].sum() / np.abs(values).sum(),
    }


def misses(values: np.ndarray, make, num_trials: int) -> dict[str, int]:
    """Trials in which an estimate is more than three of its standard errors off."""
    count = dict.fromkeys(exact_sums(values), 0)
    for trial in range(num_trials):
        estimates = make(trial)
        for name, exact in exact_sums(values).items():
            found = getattr(estimates, name)()
            count[name] += not abs(found.value - exact) <= 3 * found.standard_error
    return count


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(
    "settings",
    [{"num_probes": 1, "num_matvecs": 6, "num_deflation": 0}, {"num_probes": 2, "num_matvecs": 8}],
    ids=["one plain probe", "after deflation"],
)
def test_three_standard_errors_hold_the_truth_in_99_percent_of_trials(name, settings):
    values = SPECTRA[name]
    count = misses(
        values, lambda seed: density(Diagonal(values), seed=seed, **settings), num_trials=40
    )
    assert max(count.values()) <= 1, count


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECTRA)
def test_the_law_of_three_standard_errors_in_300_trials(name):
    values = SPECTRA[name]
    for settings in (
        {"num_probes": 1, "num_matvecs": 10, "num_deflation": 0},
        {"num_probes": 3, "num_matvecs": 12},
    ):
        count = misses(
            values, lambda seed: density(Diagonal(values), seed=seed, **settings), num_trials=300
        )
        assert max(count.values()) <= 3, (settings, count)


@pytest.mark.parametrize(
    "name", ["symmetric", "outliers", "one_value_that_is_not_zero", "decaying"]
)
def test_the_trace_is_within_three_standard_errors_in_99_percent_of_300_trials(name):
    values = SPECTRA[name]
    found = [trace(Diagonal(values), num_matvecs=12, seed=seed) for seed in range(300)]
    assert sum(abs(one.value - values.sum()) > 3 * one.standard_error for one in found) <= 3


def test_standard_errors_are_no_larger_than_they_must_be():
    # For many probes of a spectrum without outliers the theory is exact: the scaled errors have
    # variance 1.
    values = SPECTRA["symmetric"]
    found = [
        density(Diagonal(values), num_probes=10, num_matvecs=4, num_deflation=0, seed=seed)
        for seed in range(120)
    ]
    for name in ("trace", "sum_of_squares"):
        errors = [
            (getattr(one, name)().value - exact_sums(values)[name])
            / getattr(one, name)().standard_error
            for one in found
        ]
        # The root mean square of 120 scaled errors is 1 within 6 % or so.
        assert 0.82 < np.sqrt(np.mean(np.square(errors))) < 1.18


@pytest.mark.parametrize("name", SPECTRA)
def test_the_bracket_of_every_probe_holds_the_measure_it_saw(name):
    values = np.sort(SPECTRA[name])
    scale = np.abs(values).max()
    for seed in range(0, 30, 2):
        basis = KrylovBasis(Diagonal(values), generator=seeded(seed))
        basis.start_chain()
        measure = np.square(basis.row(0).numpy())
        while basis.pending and basis.num_matvecs < 1 + seed:
            basis.expand()
        H, coupling = basis.projected()
        nodes, vectors = np.linalg.eigh(H)
        weights = vectors[0] ** 2
        remainder = float(coupling[0, -1]) if len(coupling) else 0.0
        # Rounding moves an eigenvalue by 1e-15 of the scale or so: no step is put that near to one.
        for point in (-1e-12 * scale, 1e-12 * scale, 0.3, -0.01 * scale):
            below = measure[values <= point].sum()
            for rest in (None, remainder):
                low, high = mass_below(nodes, weights, point, remainder=rest)
                assert low <= below + 1e-12 and below <= high + 1e-12
            low, high = cumulative_bounds(nodes, weights, np.array([point]))
            assert low[0] <= below + 1e-12 and below <= high[0] + 1e-12
        mass = (measure * np.maximum(-values, 0)).sum()
        for rest in (None, remainder):
            value, (low, high) = negative_part(nodes, weights, remainder=rest)
            assert low - 1e-12 * scale <= mass <= high + 1e-12 * scale and low <= value <= high


def test_a_bulk_near_zero_that_no_probe_resolves_is_said_to_be_unknown():
    bulk, others = RNG.standard_normal(500), RNG.uniform(0.5, 5, 20)
    unknown = density(
        Diagonal(np.r_[others, 1e-6 * bulk]), num_probes=3, num_matvecs=8
    ).negative_share()
    assert unknown.low < 0.02 and unknown.high > 0.9 and unknown.standard_error > 0.1
    known = density(Diagonal(np.r_[others, bulk]), num_probes=3, num_matvecs=60).negative_share()
    assert known.high - known.low < 0.1


def test_eigenvalues_that_are_zero_count_as_zero_once_a_probe_has_exhausted_the_others():
    values = np.r_[10, 5, -3, np.zeros(60)]
    found = density(Diagonal(values), num_probes=2, num_matvecs=10)
    assert (
        found.num_negative().value == pytest.approx(1, abs=1e-9)
        and found.num_negative().high < 1.01
    )
    assert found.trace().value == pytest.approx(12, abs=1e-12)


def test_zeros_outside_of_the_support_are_counted_exactly_and_add_no_error():
    values = SPECTRA["symmetric"]
    inside = density(Diagonal(values), num_probes=2, num_matvecs=10, seed=4)
    whole = density(Padded(values, 920), num_probes=2, num_matvecs=10, seed=4)
    assert whole.n == 1000 and whole.num_zeros.tolist() == [920]
    for name in ("trace", "sum_of_squares", "num_negative"):
        one, other = getattr(inside, name)(), getattr(whole, name)()
        assert other.value == pytest.approx(one.value, rel=1e-12)
        assert other.probe_error == pytest.approx(one.probe_error, rel=1e-12)


def test_the_zero_block_of_an_eigsh_quadrature_is_found_again():
    values = SPECTRA["symmetric"]
    quadratures = [eigsh(Padded(values, 920), 3, seed=seed).quadrature for seed in range(4)]
    found = SpectralDensity.from_quadratures(
        quadratures, 1000, dtype=torch.float64, operators=[0] * 4
    )
    assert found.num_zeros.tolist() == [920]
    assert np.allclose(found.weights.nansum(dim=1), 1)
    assert abs(found.trace().value - values.sum()) < 3 * found.trace().standard_error
    # The probes differ in the support alone: its 80 eigenvalues and not a thousand make the error.
    assert found.trace().probe_error == pytest.approx(
        math.sqrt(2 * (values**2).sum() / 4), rel=0.35
    )


def test_the_errors_of_batches_and_of_probes_are_told_apart():
    # The operators are c_b times one matrix, so the traces spread by a known amount and each probe
    # adds its own.
    values, factors = RNG.uniform(0.5, 1.5, 400), 1 + 0.3 * RNG.standard_normal(40)
    parts = [
        density(Diagonal(c * values), num_probes=1, num_matvecs=6, num_deflation=0, seed=b)
        for b, c in enumerate(factors)
    ]
    found = SpectralDensity.pooled(parts).trace()
    assert found.batch_error == pytest.approx(
        (factors * values.sum()).std(ddof=1) / math.sqrt(40), rel=0.15
    )
    spread = math.sqrt(
        2 * (factors**2).mean() * (values - values.mean()).dot(values - values.mean()) / 40
    )
    assert found.probe_error == pytest.approx(spread, rel=0.15)
    assert SpectralDensity.pooled(parts[:1]).trace().batch_error is None


def test_equal_operators_have_no_batch_error_to_speak_of():
    values = RNG.uniform(-1, 1, 200)
    runs = [
        density(Diagonal(values), num_probes=1, num_matvecs=5, num_deflation=0, seed=seed)
        for seed in range(60)
    ]
    quadratures = [Quadrature(run.nodes[0], run.weights[0]) for run in runs]
    found = SpectralDensity.from_quadratures(quadratures, 200, dtype=torch.float64).trace()
    assert found.batch_error < found.probe_error
    assert abs(found.value - values.sum()) < 3 * found.standard_error


@pytest.mark.parametrize("name", SPECTRA)
def test_the_density_integrates_to_one(name):
    found = density(Diagonal(SPECTRA[name]), num_probes=2, num_matvecs=10)
    scale = np.abs(SPECTRA[name]).max()
    width = scale / 50
    # Eight kernel widths beyond the spectrum nothing is left; the trapezoidal rule on steps of a
    # width / 4 is exact to 1e-12.
    grid = np.arange(-scale - 8 * width, scale + 8 * width, width / 4)
    smooth = found.density(grid, width=width)
    assert np.trapezoid(smooth.value, grid) == pytest.approx(1, abs=1e-10)
    assert np.isfinite(smooth.standard_error).all()


def test_the_cumulative_distribution_of_the_spectrum_lies_within_its_errors():
    values = SPECTRA["symmetric"]
    grid = np.linspace(-3, 3, 61)
    exact = (values[:, None] <= grid).mean(axis=0)
    for seed in range(20):
        found = density(Diagonal(values), num_probes=3, num_matvecs=15, seed=seed).cumulative(grid)
        assert (np.abs(found.value - exact) <= 3 * found.standard_error + 1e-12).mean() > 0.98
        assert (np.diff(found.value) >= -1e-12).all() and (found.low <= found.value).all()


def test_the_distance_to_the_spectrum_falls_with_the_products():
    values = np.r_[50, 30, -20, 10, 8, RNG.standard_normal(400)]
    distances = []
    for num_matvecs in (5, 15, 45):
        runs = [
            density(Diagonal(values), num_probes=2, num_matvecs=num_matvecs, seed=seed).measure()
            for seed in range(5)
        ]
        distances.append(
            np.mean([wasserstein_distance(points, values, shares) for points, shares in runs])
        )
    assert distances[0] > 2 * distances[1] and distances[1] > 1.5 * distances[2]


def test_deflation_beats_plain_probes_at_equal_products_where_eigenvalues_stand_out():
    values = np.r_[500, 400, 300, -200, 150, RNG.standard_normal(400)]

    def distance(**settings):
        runs = [density(Diagonal(values), seed=seed, **settings) for seed in range(8)]
        assert {run.num_matvecs for run in runs} == {60}
        return np.mean(
            [
                wasserstein_distance(points, values, shares)
                for points, shares in (run.measure() for run in runs)
            ]
        )

    assert distance(num_probes=2, num_matvecs=20, num_deflation=20) < 0.3 * distance(
        num_probes=3, num_matvecs=20, num_deflation=0
    )


def test_products_are_counted_and_the_arguments_checked():
    A = Counting(Diagonal(SPECTRA["symmetric"]))
    found = density(A, num_probes=3, num_matvecs=7, num_deflation=5)
    assert found.num_matvecs == A.count == 26
    for wrong in ({"num_probes": 0}, {"num_matvecs": 0}, {"num_deflation": -1}):
        with pytest.raises(ValueError, match="at least"):
            density(A, **wrong)
    with pytest.raises(ValueError, match="width"):
        found.density(np.zeros(3), width=0.0)
    A.count = 0
    assert isinstance(trace(A, num_matvecs=20), Estimate) and A.count == 20
    with pytest.raises(ValueError, match="at least 4"):
        trace(A, num_matvecs=3)


@pytest.mark.parametrize("good", [0, 5, 12, 19])
def test_a_product_that_is_not_finite_is_an_error_wherever_it_comes(good):
    # Of 20 products, 10 span the Krylov space of a trace and 10 are probes; of a density, 10 are
    # deflation and 10 the probe.
    values = SPECTRA["symmetric"]
    with pytest.raises(NumericalError, match="not finite"):
        trace(Overflowing(values, good), num_matvecs=20)
    with pytest.raises(NumericalError, match="not finite"):
        density(Overflowing(values, good), num_probes=1, num_matvecs=10)
    with pytest.raises(NumericalError, match="not finite"):
        dense_spectrum(Overflowing(values, good))
    assert math.isfinite(trace(Overflowing(values, 20), num_matvecs=20).value)


@pytest.mark.parametrize("num_matvecs", [1, 2, 3])
def test_too_few_products_to_know_their_own_error_are_refused(num_matvecs):
    for A in (Diagonal(SPECTRA["symmetric"]), Padded(np.r_[1.0, 2, 3, 4], 10)):
        with pytest.raises(
            ValueError,
            match=f"num_matvecs must be at least 4, got {num_matvecs}.*error would be false",
        ):
            density(A, num_matvecs=num_matvecs)
    # So many dimensions are exhausted by so many products.
    values = np.array([1.0, -2, 3])[:num_matvecs]
    for A in (Diagonal(values), Padded(values, 10)):
        found = density(A, num_matvecs=num_matvecs, num_deflation=0).sum_of_squares()
        assert abs(found.value - (values**2).sum()) <= 3 * found.standard_error + 1e-12
    if num_matvecs < 3:
        with pytest.raises(ValueError, match="num_matvecs must be at least 3"):
            density(Padded(np.r_[1.0, 2, 3], 10), num_matvecs=num_matvecs)


@pytest.mark.parametrize("num_trials", [20, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["symmetric", "outliers", "copies", "decaying"])
def test_the_law_holds_from_four_products_a_probe_on_however_few_are_spent_on_deflation(
    name, num_trials
):
    values = SPECTRA[name]
    for settings in (
        {"num_matvecs": 4},
        *({"num_matvecs": 4, "num_deflation": few} for few in (0, 1, 2, 3)),
    ):
        count = misses(
            values,
            lambda seed: density(Diagonal(values), num_probes=1, seed=seed, **settings),
            num_trials,
        )
        assert max(count["trace"], count["sum_of_squares"]) <= 1, (settings, count)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_vector_that_saw_only_what_is_known_exactly_serves_as_no_probe_of_the_rest():
    # It meets 9 eigenspaces in 9 products; the tenth direction of these two runs is rounding, of
    # weight 0 where all is kept.
    for seed, size in ((959938594, 43), (0, 45)):
        values = np.repeat(
            [
                -0.18322736,
                -0.96557219,
                -1.59069453,
                -0.02837087,
                -0.22586044,
                0.00943665,
                -0.00740634,
                0.12288948,
                0.81843669,
            ],
            5,
        )[:size]
        found = density(Diagonal(values), num_probes=1, num_matvecs=10, seed=seed)
        assert torch.allclose(
            found.weights.nansum(dim=1), torch.ones(found.num_probes, dtype=torch.float64)
        )
        assert abs(found.trace().value - values.sum()) <= 3 * found.trace().standard_error


def test_a_quadrature_of_too_few_nodes_is_refused_unless_it_exhausts_the_space():
    values = SPECTRA["symmetric"]
    few, enough = (eigsh(Padded(values, 20), 3, max_matvecs=count).quadrature for count in (3, 4))
    with pytest.raises(ValueError, match="quadrature 1 has 3 nodes.*at least 4"):
        SpectralDensity.from_quadratures([enough, few], 100, dtype=torch.float64)
    assert SpectralDensity.from_quadratures([enough], 100, dtype=torch.float64).nodes.shape == (
        1,
        4,
    )
    three = eigsh(Padded(np.array([1.0, -2, 3]), 20), 3).quadrature
    found = SpectralDensity.from_quadratures([three] * 2, 23, dtype=torch.float64)
    assert found.num_zeros.tolist() == [20, 20]


def test_enough_products_make_everything_exact():
    values = np.array([3.0, 1.0, -2.0, 0.5])
    A = with_spectrum(values)
    for found, exact in zip(
        (density(A).trace(), trace(A), density(A).num_negative()), (2.5, 2.5, 1.0)
    ):
        assert found.value == pytest.approx(exact, abs=1e-12) and found.standard_error < 1e-10
    assert density(A).measure()[0] == pytest.approx(np.sort(values), abs=1e-12)


def test_no_ghosts_live_in_the_basis_where_plain_lanczos_makes_them():
    values = np.r_[1000, 500, RNG.uniform(-1, 1, 300)]
    for dtype in (torch.float64, torch.float32):
        found = density(Diagonal(values, dtype), num_probes=1, num_matvecs=100, num_deflation=0)
        assert found.orthogonality_defect < 10 * torch.finfo(dtype).eps
        # Plain Lanczos: three terms, no reorthogonalisation. It loses all digits and finds copies
        # of 1000.
        v, last, beta = (
            torch.randn(302, generator=seeded(0), dtype=torch.float64).to(dtype),
            0.0,
            0.0,
        )
        v, rows, alphas, betas = v / v.norm(), [], [], []
        for _ in range(100):
            rows.append(v)
            w = Diagonal(values, dtype) @ v - beta * last
            alphas.append(float(v @ w))
            w, last = w - alphas[-1] * v, v
            beta = w.norm()
            betas.append(float(beta))
            v = w / beta
        V = torch.stack(rows)
        assert (V @ V.T - torch.eye(100)).abs().max() > 0.1
        ghosts = np.linalg.eigvalsh(
            np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
        )
        assert (ghosts > 900).sum() > 1
        assert (found.nodes[0] > 900).sum() == 1


def test_certified_and_estimated_counts_stand_side_by_side_under_their_names():
    values = np.r_[-8, -5, -4, RNG.uniform(-1, 1, 200)]
    A = Diagonal(values)
    counts = NegativeCounts.of(eigsh(A, 3), density(A))
    exact = (values < 0).sum()
    assert 3 <= counts.certified <= exact
    assert abs(counts.estimated.value - exact) <= 3 * counts.estimated.standard_error
    assert f"certified: at least {counts.certified}" in repr(counts) and "estimated: about" in repr(
        counts
    )
    with pytest.raises(ValueError, match="certifies no count"):
        NegativeCounts.of(power_iteration(A, 1, max_iterations=3), density(A))
    with pytest.raises(ValueError, match="alone"):
        NegativeCounts.of(
            eigsh(A, 3),
            SpectralDensity.pooled([density(A, num_matvecs=5), density(A, num_matvecs=5)]),
        )


def test_an_estimate_says_which_error_is_which():
    one = Estimate(10.0, 3.0, 4.0, 8.0, 14.0)
    assert one.standard_error == pytest.approx(5 + 4 / 2)
    text = repr(one * 2)
    assert (
        "20 ± 14" in text
        and "probes 6" in text
        and "batches 8" in text
        and "quadrature 16 to 28" in text
    )
    assert "batches" not in repr(Estimate(1.0, 0.1, None, 1.0, 1.0))


def test_an_estimate_is_unknown_where_its_bracket_says_all_that_is_known():
    share = Estimate(0.4979, 1e-5, 1e-4, 0.000573, 0.9953, whole=1.0)
    assert not share.is_known and str(share) == "unknown (0.06 to 99.5 %)"
    # Between an end and three times it, a first digit is known; beyond, none is.
    assert (
        Estimate(0.2, 0.001, None, 0.101, 0.299).is_known
        and not Estimate(0.2, 0.001, None, 0.099, 0.301).is_known
    )
    # What may be nothing, and is at most a thousandth of the whole, is known.
    assert (
        Estimate(0.0, 0.0, None, 0.0, 9e-4, whole=1.0).is_known
        and not Estimate(0.0, 0.0, None, 0.0, 2e-3, whole=1.0).is_known
    )
    # A sum near zero that probes leave open more than rounding does is a number with an error.
    assert str(Estimate(0.3, 70.0, None, -1.4, 2.0)) == "0 ± 71"
    assert str(Estimate(math.nan, 0.0, None, math.nan, math.nan)) == "unknown"


def test_an_interval_holds_the_bracket_and_around_it_the_error_of_sampling():
    low, high = Estimate(0.05, 0.02, None, 0.03, 0.07).interval(0.95)
    assert (low, high) == pytest.approx((0.03 - 1.96 * 0.02, 0.07 + 1.96 * 0.02), abs=1e-4)
    assert Estimate(0.05, 0.02, None, 0.03, 0.07, whole=1.0).interval(0.95)[0] == 0
    assert Estimate(5.0, 3.0, 4.0, 5.0, 5.0).interval(0.6827) == pytest.approx((0, 10), abs=1e-3)


@pytest.mark.parametrize(
    "value, error, text",
    [
        (627.162, 184.0, "630 ± 180"),
        (0.383, 0.14, "0.38 ± 0.14"),
        (3.5e-4, 1.02e-4, "(3.5 ± 1.0)e-04"),
        (-3.6e-4, 1.02e-3, "-0.0004 ± 0.0010"),
        (1234567.0, 18000.0, "(1.235 ± 0.018)e+06"),
        (-0.2, 70.0, "0 ± 70"),
        (9.96, 0.0996, "9.96 ± 0.10"),
        (2.5, 0.0, "2.5 ± 0"),
        (0.0, 0.0, "0 ± 0"),
        (math.nan, 1.0, "unknown"),
        (2.5, math.inf, "2.50 ± unknown"),
    ],
)
def test_a_number_is_rounded_to_its_error(value, error, text):
    assert with_error(value, error) == text


def test_a_share_is_written_in_percent():
    assert with_error(0.383, 0.14, percent=True) == "38 ± 14 %"
    assert unknown(2.646e-05, 0.7656, percent=True) == "unknown (0.003 to 76.6 %)"
    assert unknown(1033.2, 1.7934e6) == "unknown (1033 to 1.79e+06)"


def test_single_precision_keeps_the_law():
    values = SPECTRA["outliers"]
    count = misses(
        values,
        lambda seed: density(
            Diagonal(values, torch.float32), num_probes=1, num_matvecs=10, seed=seed
        ),
        60,
    )
    assert max(count.values()) <= 1, count


def test_quadratures_need_owners_without_gaps():
    one = Quadrature(torch.ones(1), torch.ones(1))
    for owners in ([0], [0, 2], [1, 1]):
        with pytest.raises(ValueError, match="without gaps"):
            SpectralDensity.from_quadratures([one, one], 5, dtype=torch.float64, operators=owners)
    with pytest.raises(ValueError, match="at least one"):
        SpectralDensity.from_quadratures([], 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="one dimension"):
        SpectralDensity.pooled(
            [density(DenseOperator(torch.eye(n, dtype=torch.float64))) for n in (2, 3)]
        )


def test_a_density_prints_as_one_line_with_its_errors():
    found = repr(
        density(
            with_spectrum(np.r_[-2.0, np.linspace(0.1, 1, 199)]),
            num_probes=2,
            num_matvecs=40,
            seed=0,
        )
    )
    pattern = (
        r"SpectralDensity\(n=200, \d+ probes, \d+ exact eigenvalues, "
        r"trace \S+ ± .*negative share \S+ ± .*\)"
    )
    assert re.fullmatch(pattern, found)
