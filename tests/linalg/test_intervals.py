"""Intervals of what few-step quadratures say of a whole spectrum, over 301 trials of prescribed
spectra in random bases.

Here every family takes a seventh of them. With 300 trials each, 290 or more of the intervals held
the truth. The quadratures are made here, by Lanczos with full reorthogonalisation on dense
matrices, from random unit vectors.
"""

import math

import numpy as np
import pytest

from landscape.linalg import ProbedSpectrum

TRIALS, SIZE, BATCHES = 43, 80, 3
QUANTITIES = ("trace", "sum_of_squares", "num_negative", "negative_mass")


def spectrum_of(family: str, rng: np.random.Generator) -> np.ndarray:
    if family == "outliers beside zeros":
        return np.r_[50, 20, -30, 10, -20, np.zeros(SIZE - 5)]
    if family == "outliers beside a bulk that is nearly zero":
        return np.r_[rng.uniform(5, 50, 6), -20, 1e-6 * rng.standard_normal(SIZE - 7)]
    if family == "symmetric":
        return rng.standard_normal(SIZE)
    if family == "few negatives":
        return np.r_[-2, -1.5, -1, rng.uniform(0.5, 5, SIZE - 3)]
    if family == "positive":
        return rng.uniform(0.5, 2, SIZE)
    assert family == "two bulks"
    return np.r_[rng.uniform(-2, -1, SIZE // 4), rng.uniform(1, 3, SIZE - SIZE // 4)]


def quadrature(
    values: np.ndarray, steps: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a random probe, in a random basis."""
    basis, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    matrix = (basis * values) @ basis.T
    v = rng.standard_normal(len(values))
    rows = [v / np.linalg.norm(v)]
    while len(rows) < steps:
        w = matrix @ rows[-1]
        for _ in range(2):
            w = w - np.array(rows).T @ (np.array(rows) @ w)
        if np.linalg.norm(w) < 1e-10 * np.abs(values).max():
            break
        rows.append(w / np.linalg.norm(w))
    V = np.array(rows)
    nodes, vectors = np.linalg.eigh(V @ matrix @ V.T)
    return nodes, vectors[0] ** 2


def truths(spectra: list[np.ndarray]) -> dict[str, float]:
    pooled = np.concatenate(spectra)
    negative = float((pooled < 0).mean())
    return {
        "trace": pooled.sum() / len(spectra),
        "sum_of_squares": (pooled**2).sum() / len(spectra),
        "num_negative": negative * SIZE,
        "negative_mass": np.maximum(-pooled, 0).sum() / np.abs(pooled).sum(),
    }


def outcomes(family: str, steps: int) -> dict[str, tuple[int, int]]:
    """How many of the trials hold the truth in their interval, and how many say unknown, by
    quantity.
    """
    good, open_ = dict.fromkeys(QUANTITIES, 0), dict.fromkeys(QUANTITIES, 0)
    for trial in range(TRIALS):
        rng = np.random.default_rng([trial, steps])
        spectra = [spectrum_of(family, rng) for _ in range(BATCHES)]
        rules = [quadrature(values, steps, rng) for values in spectra]
        found = ProbedSpectrum.from_rules(rules, SIZE, rounding=float(np.finfo(np.float64).eps))
        for name, truth in truths(spectra).items():
            estimate = getattr(found, name)()
            low, high = estimate.interval(0.95)
            slack = 1e-9 * (1 + abs(truth))
            # An estimate that says unknown says its bracket, which is held to the same law.
            good[name] += low - slack <= truth <= high + slack
            open_[name] += not estimate.is_known
    return {name: (good[name], open_[name]) for name in QUANTITIES}


# Family, steps of Lanczos, and whether the number of negative eigenvalues is unknown; None where
# some probes tell it.
CASES = (
    # That the probe has met every eigenvalue is not written in its quadrature.
    ("outliers beside zeros", 6, True),
    ("outliers beside a bulk that is nearly zero", 8, True),
    ("symmetric", 24, False),
    ("symmetric", 5, None),
    ("few negatives", 12, False),
    ("positive", 8, False),
    ("two bulks", 16, False),
)


@pytest.fixture(scope="module")
def measured():
    return [outcomes(family, steps) for family, steps, _ in CASES]


@pytest.mark.parametrize("name", QUANTITIES)
def test_intervals_hold_the_truth_in_95_percent_of_all_trials_and_in_90_of_each_family(
    measured, name
):
    good = [found[name][0] for found in measured]
    assert sum(good) >= math.ceil(0.95 * TRIALS * len(CASES)) and min(good) >= math.ceil(
        0.9 * TRIALS
    ), good


def test_a_number_is_unknown_where_the_quadratures_do_not_tell_it_and_known_where_they_do(measured):
    for (family, steps, unknown), found in zip(CASES, measured, strict=True):
        assert max(found[name][1] for name in ("trace", "sum_of_squares")) == 0, family
        assert found["negative_mass"][1] <= 0.05 * TRIALS, family
        if unknown is not None:
            missed = TRIALS - found["num_negative"][1] if unknown else found["num_negative"][1]
            assert missed <= 0.05 * TRIALS, (family, steps, found)


def test_a_share_is_the_count_over_the_dimension_and_a_mean_the_trace_over_it():
    rng = np.random.default_rng(0)
    rules = [quadrature(spectrum_of("two bulks", rng), 12, rng) for _ in range(2)]
    found = ProbedSpectrum.from_rules(rules, SIZE, rounding=1e-16)
    for part, whole in (
        (found.negative_share(), found.num_negative()),
        (found.trace_per_parameter(), found.trace()),
    ):
        ends = [
            (one.value, one.probe_error, one.batch_error, one.low, one.high)
            for one in (part, whole)
        ]
        np.testing.assert_allclose(np.array(ends[0]) * SIZE, ends[1], rtol=1e-12)
        assert part.is_known == whole.is_known


def test_where_a_probe_meets_nothing_but_zero_everything_is_zero_and_known():
    found = ProbedSpectrum.from_rules([(np.zeros(1), np.ones(1))] * 2, 30, rounding=1e-7)
    for name, estimate in found.estimates().items():
        if name != "negative mass":
            assert estimate.is_known and (estimate.value, estimate.standard_error) == (0, 0), name
    assert str(found.negative_share()) == "0 ± 0 %" and str(found.negative_mass()) == "unknown"
