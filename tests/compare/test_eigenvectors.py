"""What is computed from kept eigenvectors, against closed forms, SciPy and dense eigenvectors."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch
from click.testing import CliRunner

from landscape.cli import main
from landscape.compare import eigenvectors
from landscape.compare.eigenvector_bounds import (
    angle_error,
    is_certified,
    participation_error,
    share_error,
    vector_error,
)
from landscape.compare.eigenvectors import (
    inverse_participation,
    moments_of,
    pair_interval,
    principal_angles,
    vectors_of_store,
)
from landscape.errors import StoreError
from landscape.linalg import DenseOperator, DiagonalOperator, eigsh, seeded
from landscape.pipeline.vectors import rest_of
from landscape.statistics import Bootstrap
from landscape.store import ParameterLayout, SpectrumStore, SpectrumWriter, VectorRecord
from tests.helpers.store_records import K, manifest_of, record_of
from tests.helpers.store_vectors import (
    CERTAIN,
    LAYOUT,
    N,
    vector_record_of,
    vectors_of,
    write_store,
)


def angles_of(first, second):
    return principal_angles(first.T @ first, second.T @ second, first.T @ second)


def orthonormal(n, k, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, k)))[0]


def test_the_participation_ratio_of_one_entry_is_1_and_of_equal_ones_1_over_n():
    assert inverse_participation(np.eye(50)[7]) == 1
    assert inverse_participation(np.full(50, -3.0)) == pytest.approx(1 / 50, rel=1e-14)
    # Half of the square in one entry, half in n - 1 equal ones.
    n = 101
    vector = np.concatenate([[1.0], np.full(n - 1, 1 / np.sqrt(n - 1))])
    assert inverse_participation(vector) == pytest.approx((1 + 1 / (n - 1)) / 4, rel=1e-14)
    # A normal vector has 3 / n in the mean.
    drawn = np.random.default_rng(0).standard_normal(100_000)
    assert inverse_participation(drawn) == pytest.approx(3e-5, rel=0.02)
    with pytest.raises(ValueError, match="no participation ratio"), np.errstate(invalid="ignore"):
        inverse_participation(np.zeros(3))


@pytest.mark.parametrize("planted", [[0.0, 0.3, 1.2], [1e-3, 0.01, np.pi / 2]])
def test_planted_rotations_are_found_whatever_the_basis(planted):
    basis = orthonormal(40, 6, seed=1)
    first = basis[:, :3]
    second = first * np.cos(planted) + basis[:, 3:] * np.sin(planted)
    mixed = second @ orthonormal(3, 3, seed=2)
    np.testing.assert_allclose(angles_of(first, mixed), planted, atol=3e-8)
    # Vectors that are only nearly orthonormal span the same space.
    skewed = mixed @ (np.eye(3) + 1e-3 * np.random.default_rng(3).standard_normal((3, 3)))
    np.testing.assert_allclose(angles_of(first, skewed), planted, atol=3e-8)


def test_angles_agree_with_scipy():
    first, second = orthonormal(30, 4, seed=4), orthonormal(30, 4, seed=5)
    exact = np.sort(scipy.linalg.subspace_angles(first, second))
    np.testing.assert_allclose(angles_of(first, second), exact, rtol=1e-12)


class Facts:
    """The numbers of kept vectors that the bound reads."""

    def __init__(self, values, residuals, rest, rounding):
        self.values, self.residuals, self.rounding = map(np.asarray, (values, residuals, rounding))
        self.rest = np.asarray(rest)

    @classmethod
    def of(cls, pairs):
        return cls(pairs.values, pairs.residuals, rest_of(pairs), np.zeros(len(pairs.values)))


REQUEST = {"which": "LM", "tol": 1e-2}


def test_the_bound_of_the_angle_is_residual_over_gap_plus_rounding():
    facts = Facts([10.0, 5.0], [1e-3, 2e-3], (-1.0, 1.0), [3e-4, 4e-4])
    # The second value with its residual reaches up to 5.01.
    expected = np.arcsin(1e-2 / (10 - 5.01)) + np.arcsin(3e-4)
    assert angle_error(facts, 1, **REQUEST) == pytest.approx(expected, rel=1e-12)
    expected = np.arcsin(np.hypot(1e-2, 1e-2) / (5 - 1)) + np.arcsin(5e-4)
    assert angle_error(facts, 2, **REQUEST) == pytest.approx(expected, rel=1e-12)
    facts = Facts([-10.0, -5.0], [1e-3, 2e-3], (-1.0, 1.0), [0.0, 0.0])
    assert angle_error(facts, 1, **REQUEST) == pytest.approx(
        np.arcsin(1e-2 / (10 - 5.01)), rel=1e-12
    )
    # Values at both ends, the rest between them.
    facts = Facts([-10.0, 9.0], [1e-3, 0.0], (-6.0, 8.0), [0.0, 0.0])
    assert angle_error(facts, 2, **REQUEST) == pytest.approx(np.arcsin(1e-2 / 1), rel=1e-12)


@pytest.mark.parametrize(
    ("values", "residuals", "rest"),
    [
        ([3.0, 2.0], [1e-3, 1e-3], (np.nan, np.nan)),
        ([3.0, 2.0], [1e-3, 1e-3], (-1.0, 2.5)),
        ([3.0, 2.0], [1e-3, np.nan], (-1.0, 1.0)),
        ([3.0, 2.0], [1e-3, np.inf], (-1.0, 1.0)),
    ],
)
def test_without_a_gap_nothing_is_known_of_the_angle(values, residuals, rest):
    facts = Facts(values, residuals, rest, [0.0, 0.0])
    assert angle_error(facts, 2, **REQUEST) == np.pi / 2


def test_a_whole_spectrum_leaves_no_error_but_rounding():
    facts = Facts([3.0, 2.0], [0.0, 0.0], (np.inf, -np.inf), [3e-4, 4e-4])
    assert angle_error(facts, 2, **REQUEST) == pytest.approx(np.arcsin(5e-4), rel=1e-12)


def test_the_bound_holds_for_perturbed_vectors_of_dense_matrices():
    generator = np.random.default_rng(6)
    for _ in range(50):
        exact = np.concatenate([[20.0, -15.0, 12.0], generator.uniform(-8, 8, 37)])
        basis = np.linalg.qr(generator.standard_normal((40, 40)))[0]
        A = basis * exact @ basis.T
        guess = np.linalg.qr(basis[:, :3] + 10 ** generator.uniform(-4, -1) * orthonormal(40, 3, 7))
        # Ritz pairs of the disturbed space, and those of what is left.
        values, mixing = np.linalg.eigh(guess[0].T @ A @ guess[0])
        order = np.argsort(-np.abs(values))
        values, vectors = values[order], guess[0] @ mixing[:, order]
        residuals = np.linalg.norm(A @ vectors - vectors * values, axis=0) / np.abs(values)
        half = vectors.astype(np.float16).astype(np.float64)
        rounding = np.linalg.norm(half - vectors, axis=0)
        facts = Facts(values, residuals, (exact[3:].min(), exact[3:].max()), rounding)
        for rank in (1, 2, 3):
            true = angles_of(half[:, :rank], basis[:, :rank])[-1]
            error = angle_error(facts, rank, which="LM", tol=1.0)
            assert true <= error * (1 + 1e-9) + 1e-8


def exact_pairs(spectrum, k, *, seed, **options):
    """Eigenpairs of a diagonal matrix, whose eigenvectors are the unit vectors."""
    operator = DiagonalOperator(torch.tensor(spectrum, dtype=torch.float64))
    return eigsh(operator, k, "LM", generator=seeded(seed), **options)


def test_the_sign_of_tied_magnitudes_is_no_property_of_the_matrix():
    spectrum = [20.0, 19.0, 5.0, -5.0, *np.linspace(-1, 1, 36)]
    runs = [exact_pairs(spectrum, 3, seed=seed, tol=1e-8) for seed in range(12)]
    assert {float(pairs.values[-1].sign()) for pairs in runs} == {-1.0, 1.0}
    for pairs in runs:
        facts = Facts.of(pairs)
        assert angle_error(facts, 3, which="LM", tol=1e-8) == np.pi / 2
        assert angle_error(facts, 2, which="LM", tol=1e-8) < 1e-6
    # Among the largest, 5 has no rival.
    facts = Facts([20.0, 19.0, 5.0], [1e-9] * 3, (-5.0, 1.0), [0.0] * 3)
    assert angle_error(facts, 3, which="LA", tol=1e-8) < 1e-6
    # Tied within the residuals is tied; and not within them, not.
    for size, is_known in ((4.99, False), (4.8, True)):
        facts = Facts([20.0, 19.0, 5.0], [0.0, 0.0, 5e-3], (-size, 1.0), [0.0] * 3)
        assert (angle_error(facts, 3, **REQUEST) < np.pi / 2) == is_known


def test_a_record_that_is_not_certified_bounds_no_angle():
    facts = Facts([10.0, 5.0], [1e-3, 2e-2], (-1.0, 1.0), [0.0, 0.0])
    assert not is_certified(facts, **REQUEST) and angle_error(facts, 1, **REQUEST) == np.pi / 2
    # All converged, but another value may be larger than the last.
    facts = Facts([10.0, 5.0], [1e-3, 2e-3], (-7.0, 1.0), [0.0, 0.0])
    assert not is_certified(facts, **REQUEST) and angle_error(facts, 1, **REQUEST) == np.pi / 2
    # Under "LA" it is at the other end.
    assert is_certified(facts, which="LA", tol=1e-2)


def test_bounds_of_runs_that_end_early_hold():
    """Exact spaces are spanned by unit vectors; a short Krylov space has not seen all of them."""
    spectrum = [4.0, 3.6, -3.3, *np.random.default_rng(3).uniform(-3, 3, 197)]
    num_known = 0
    for num_matvecs in (4, 6, 9, 14, 60, 120):
        for seed in range(15):
            pairs = exact_pairs(spectrum, 3, seed=seed, tol=1e-3, max_matvecs=num_matvecs)
            facts = Facts.of(pairs)
            for rank in (1, 2, 3):
                true = angles_of(pairs.vectors[:, :rank].numpy(), np.eye(200)[:, :rank])[-1]
                error = angle_error(facts, rank, which="LM", tol=1e-3)
                assert true <= error + 1e-7
                num_known += error < np.pi / 2
            certified = bool(pairs.settled and pairs.converged.all())
            assert is_certified(facts, which="LM", tol=1e-3) == certified
    assert num_known >= 60


def test_the_bound_of_a_vector_takes_the_gap_to_every_other_value():
    facts = Facts([10.0, 9.0, -5.0], [1e-3, 2e-3, 0.0], (-1.0, 1.0), [3e-4, 0.0, 0.0])
    # The second value with its residual reaches from 8.982 to 9.018.
    expected = np.arcsin(1e-2 / (10 - 9.018)) + np.arcsin(3e-4)
    assert vector_error(facts, 0, **REQUEST) == pytest.approx(expected, rel=1e-12)
    expected = np.arcsin(1.8e-2 / (9.99 - 9))
    assert vector_error(facts, 1, **REQUEST) == pytest.approx(expected, rel=1e-12)
    assert vector_error(facts, 2, **REQUEST) == 0
    for values, index in (([10.0, 10.0, 5.0], 0), ([10.0, 5.0, -5.0], 2), ([10.0, 5.0, -5.0], 1)):
        facts = Facts(values, [1e-9] * 3, (-1.0, 1.0), [0.0] * 3)
        assert vector_error(facts, index, **REQUEST) == np.pi / 2
    # Not certified, and equal to a value that is not kept.
    for residuals, rest in (([0.1, 0.0], (-1.0, 1.0)), ([0.0, 0.0], (-5.0, 1.0))):
        assert vector_error(Facts([10.0, 5.0], residuals, rest, [0.0] * 2), 1, **REQUEST) > 1.5


def test_bounds_of_single_vectors_hold_for_dense_matrices():
    spectrum = np.array([4.0, 3.9, -3.5, *np.random.default_rng(3).uniform(-3, 3, 97)])
    basis = orthonormal(100, 100, seed=12)
    operator = DenseOperator(torch.from_numpy(basis * spectrum @ basis.T))
    sharpest = []
    for seed in range(20):
        pairs = eigsh(operator, 3, "LM", tol=1e-2, generator=seeded(seed))
        for index in range(3):
            vector, exact = pairs.vectors[:, index].numpy(), basis[:, index]
            error = vector_error(Facts.of(pairs), index, which="LM", tol=1e-2)
            turned = np.arccos(min(abs(vector @ exact), 1.0))
            assert turned <= error + 1e-7
            ratio, share = inverse_participation(exact), float((exact[:30] ** 2).sum())
            computed = inverse_participation(vector)
            assert abs(computed - ratio) <= participation_error(computed, error) + 1e-12
            assert abs((vector[:30] ** 2).sum() - share) <= share_error(error) + 1e-12
            sharpest.append(error)
    assert np.median(sharpest) < 0.2


def test_bounds_of_ratios_and_shares_hold_for_every_turn_and_are_reached():
    generator = np.random.default_rng(13)
    reached = {"share": 0.0, "ratio": 0.0}
    for trial in range(300):
        n, angle = int(generator.integers(2, 60)), float(10 ** generator.uniform(-4, 0))
        vector = generator.standard_normal(n) ** (1, 3)[trial % 2]
        vector /= np.linalg.norm(vector)
        # Towards a single entry, where the ratio grows most, or anywhere.
        towards = (
            np.eye(n)[np.argmax(np.abs(vector))] if trial % 3 else orthonormal(n, 1, trial)[:, 0]
        )
        towards = towards - (towards @ vector) * vector
        turned = np.cos(angle) * vector + np.sin(angle) * towards / np.linalg.norm(towards)
        half = n // 2
        ratio = inverse_participation(vector)
        moved = {
            "ratio": abs(inverse_participation(turned) - ratio) / participation_error(ratio, angle),
            "share": abs((turned[:half] ** 2).sum() - (vector[:half] ** 2).sum())
            / share_error(angle),
        }
        assert max(moved.values()) <= 1 + 1e-9
        reached = {name: max(reached[name], moved[name]) for name in moved}
    assert reached["share"] > 0.9 and reached["ratio"] > 0.2, reached


def test_vectors_of_a_multiple_eigenvalue_have_no_participation_ratio():
    spectrum = [3.0, 3.0, *np.linspace(-1, 1, 30)]
    ratios = set()
    for seed in range(6):
        pairs = exact_pairs(spectrum, 1, seed=seed, tol=1e-8)
        ratios.add(round(inverse_participation(pairs.vectors[:, 0].numpy()), 2))
        assert vector_error(Facts.of(pairs), 0, which="LM", tol=1e-8) in (np.pi / 2,)
    assert len(ratios) > 1


@pytest.fixture(scope="module")
def store_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    write_store(folder / "x.h5", manifest_of(folder, num_batches=3), **CERTAIN)
    return folder / "x.h5"


def test_moments_in_any_blocks_are_those_of_the_dense_vectors(store_path, monkeypatch):
    keys = ["wide/0/0", "wide/0/2"]
    columns = np.concatenate([vectors_of(key) for key in keys], axis=1)
    squares = columns**2
    edges = np.cumsum([0, *LAYOUT.sizes])
    tensors = np.array([squares[a:b].sum(axis=0) for a, b in zip(edges, edges[1:])])
    shares = np.stack([tensors[0], tensors[1] + tensors[2], tensors[3]], axis=1)
    with SpectrumStore.open(store_path) as store:
        for most in (2**25, 6 * 100, 6 * 7):
            monkeypatch.setattr(eigenvectors, "_MAX_NUMBERS", most)
            with (
                store.vectors.open("wide", 0, 0) as first,
                store.vectors.open("wide", 0, 2) as last,
            ):
                moments = moments_of([first, last])
            # Half precision: 2^-11 relative for each entry.
            np.testing.assert_allclose(moments.gram, columns.T @ columns, atol=1e-3)
            ratios = [inverse_participation(column) for column in columns.T]
            np.testing.assert_allclose(moments.participation, ratios, rtol=2e-3)
            np.testing.assert_allclose(moments.shares, shares, atol=1e-3)
            np.testing.assert_allclose(moments.shares.sum(axis=1), 1, rtol=1e-12)


def test_the_analysis_of_a_store_is_that_of_its_vectors(store_path):
    with SpectrumStore.open(store_path) as store:
        wide, narrow = vectors_of_store(store, ranks=(2,))
    assert (wide.series, narrow.series) == ("wide", "narrow")
    assert (wide.num_params, wide.num_vectors) == (N, K)
    within, between, later = wide.displacements
    assert [(row.first, row.second) for row in wide.displacements] == [(0, 0), (0, 2), (2, 2)]
    vectors = {
        (epoch, batch): vectors_of(f"wide/{epoch}/{batch}")[:, :2]
        for epoch in (0, 2)
        for batch in range(3)
    }
    expected = {
        "within": [angles_of(vectors[0, a], vectors[0, b]) for a, b in ((0, 1), (0, 2), (1, 2))],
        "between": [angles_of(vectors[0, batch], vectors[2, batch]) for batch in range(3)],
    }
    for row, exact in ((within, expected["within"]), (between, expected["between"])):
        np.testing.assert_allclose(row.angles, np.mean(exact, axis=0), atol=2e-3)
        assert row.mean.value == pytest.approx(np.mean(exact), abs=2e-3)
        assert row.mean.low <= row.mean.value <= row.mean.high
        assert (row.num_batches, row.num_pairs, row.num_unknown) == (3, 3, 0)
    leading = next(row for row in wide.localisations if (row.epoch, row.index) == (2, 1))
    ratios = [inverse_participation(vectors_of(f"wide/2/{batch}")[:, 0]) for batch in range(3)]
    assert leading.participation.value == pytest.approx(np.mean(ratios), rel=2e-3)
    assert list(leading.shares) == ["embed", "block.0", "head"]
    assert sum(leading.shares.values()) == pytest.approx(1)


def write_with_unknown(path, folder):
    """Three batches an epoch; at epoch 0 one is certain, and at epoch 2 none."""
    with SpectrumWriter(path, manifest_of(folder, series=("wide",), num_batches=3)) as writer:
        for key in writer.plan.keys():
            changes = dict(CERTAIN)
            if key == "wide/0/1":
                changes["residuals"] = np.array([1e-5, 1e-5, 0.1])
            elif key != "wide/0/0":
                changes["rest"] = (-9.0, 1.0)
            writer.add_all(
                [record_of(key)], vectors=[vector_record_of(key, writer.plan, **changes)]
            )
        writer.merge()


def test_records_that_are_not_certified_are_left_out_and_counted(tmp_path):
    write_with_unknown(tmp_path / "x.h5", tmp_path)
    with SpectrumStore.open(tmp_path / "x.h5") as store:
        (wide,) = vectors_of_store(store)
    first, last = (row for row in wide.localisations if row.index == 1)
    assert (first.num_batches, first.num_unknown) == (1, 2)
    certain = vectors_of("wide/0/0")[:, 0]
    exact = inverse_participation(certain)
    assert abs(first.participation.value - exact) <= first.participation_error < exact
    shares = [float((certain[a:b] ** 2).sum()) for a, b in ((0, 800), (800, 1230), (1230, N))]
    np.testing.assert_allclose(list(first.shares.values()), shares, atol=first.share_error)
    assert 0 < first.share_error < 1e-3
    assert (last.num_batches, last.num_unknown) == (0, 3)
    assert np.isnan([last.participation.value, last.participation_error, last.share_error]).all()
    assert np.isnan(list(last.shares.values())).all()
    command = ["compare", str(tmp_path / "x.h5"), "--resamples", "99", "--format", "latex"]
    said = CliRunner().invoke(main, command).output
    rows = [line for line in said.splitlines() if line.startswith("ViT, wide & ")][-2:]
    assert "0 & 1 of 3 &" in rows[0] and "error at most" in rows[0]
    assert "2 & 0 of 3 & unknown & unknown & unknown & unknown" in rows[1]


def test_pairs_of_which_nothing_is_known_are_left_out_of_the_angles(tmp_path):
    """At epoch 0 two of three batches are certain, at epoch 2 the first alone."""
    path = tmp_path / "x.h5"
    with SpectrumWriter(path, manifest_of(tmp_path, series=("wide",), num_batches=3)) as writer:
        for key in writer.plan.keys():
            known = key in ("wide/0/0", "wide/0/2", "wide/2/0")
            changes = dict(CERTAIN) if known else {**CERTAIN, "rest": (-9.0, 1.0)}
            writer.add_all(
                [record_of(key)], vectors=[vector_record_of(key, writer.plan, **changes)]
            )
        writer.merge()
    with SpectrumStore.open(path) as store:
        (wide,) = vectors_of_store(store)
    vectors = {at: vectors_of(f"wide/{at[0]}/{at[1]}") for at in ((0, 0), (0, 2), (2, 0))}
    within, between, later = (row for row in wide.displacements if row.rank == 1)
    for row, a, b, left_out in (
        (within, (0, 0), (0, 2), 2),
        (between, (0, 0), (2, 0), 2),
    ):
        (exact,) = angles_of(vectors[a][:, :1], vectors[b][:, :1])
        assert abs(row.mean.value - exact) <= row.error < 0.01
        assert (row.num_pairs, row.num_unknown) == (1, left_out)
    assert (within.num_batches, between.num_batches, later.num_batches) == (2, 1, 0)
    assert (later.num_pairs, later.num_unknown) == (0, 3)
    assert np.isnan([later.mean.value, later.largest.value, later.error, *later.angles]).all()
    output = tmp_path / "c.json"
    assert CliRunner().invoke(main, ["compare", str(path), "-o", str(output)]).exit_code == 0
    rows = json.loads(output.read_text())["eigenvectors"][0]["displacements"]
    assert [row["num_unknown"] for row in rows if row["rank"] == 1] == [2, 2, 3]
    said = CliRunner().invoke(main, ["compare", str(path), "--format", "latex"]).output
    assert "& batches, epoch 0 & 1 of 3 & 1 &" in said
    assert "& batches, epoch 2 & 0 of 3 & 1 & unknown & unknown & unknown" in said


def test_vectors_that_do_not_turn_have_angles_of_rounding_alone(tmp_path):
    """The same vectors at every epoch and batch, so that all angles are 0."""
    columns = orthonormal(N, K, seed=8)
    with SpectrumWriter(tmp_path / "x.h5", manifest_of(tmp_path, series=("wide",))) as writer:
        for key in writer.plan.keys():
            record = record_of(key)
            facts = vector_record_of(key, writer.plan)
            names = ("batch_sha256", "checkpoint_sha256", "protocol_sha256")
            kept = VectorRecord.of(
                list(columns.T),
                series=record.series,
                epoch=record.epoch,
                batch=record.batch,
                values=np.array([3.0, 2.0, 1.5]),
                residuals=np.zeros(K),
                rest=(-1.0, 1.0),
                layout=LAYOUT,
                **{name: getattr(facts, name) for name in names},
            )
            writer.add_all([record], vectors=[kept])
        writer.merge()
    with SpectrumStore.open(tmp_path / "x.h5") as store:
        (wide,) = vectors_of_store(store)
    for row in wide.displacements:
        assert row.largest.value < 1e-6 <= row.error < 2e-3


def test_the_interval_of_pairs_covers_the_mean_of_a_known_law():
    """Numbers x_a + x_b of pairs of independent batches: their mean is 0."""
    generator, covered = np.random.default_rng(9), 0
    pairs = [(a, b) for a in range(10) for b in range(a)]
    for trial in range(200):
        x = generator.standard_normal(10)
        values = np.array([x[a] + x[b] for a, b in pairs])
        interval = pair_interval(values, pairs, Bootstrap(num_resamples=399, seed=trial))
        covered += interval.low <= 0 <= interval.high
    # 95 % nominal; percentile intervals of 10 batches reach about 90 %.
    assert 0.83 * 200 <= covered <= 0.98 * 200


def test_intervals_of_few_batches_are_missing_and_never_of_width_zero():
    bootstrap = Bootstrap(num_resamples=199)
    single = pair_interval(np.array([0.3]), [(0, 0)], bootstrap)
    two = pair_interval(np.array([0.3]), [(0, 1)], bootstrap)
    for interval in (single, two):
        assert interval.value == 0.3 and np.isnan(interval.low) and np.isnan(interval.high)


def test_compare_shows_the_vectors_in_every_format_that_can(store_path, tmp_path):
    said = CliRunner().invoke(main, ["compare", str(store_path), "--resamples", "99"])
    assert said.exit_code == 0, said.output
    assert "principal angles of the leading spaces in degrees" in said.output
    assert "epochs 0, 2" in said.output and "participation ratio" in said.output
    output = tmp_path / "c.json"
    command = ["compare", str(store_path), "-o", str(output), "--resamples", "99"]
    assert CliRunner().invoke(main, command).exit_code == 0
    (wide, narrow) = json.loads(output.read_text())["eigenvectors"]
    assert wide["series"] == "wide" and len(wide["displacements"]) == 2 * 3
    assert len(wide["localisations"]) == 2 * K
    latex = CliRunner().invoke(main, ["compare", str(store_path), "--format", "latex"])
    assert "Kept eigenvectors" in latex.output
    only = CliRunner().invoke(main, ["compare", str(store_path), "--metric", "lambda_max"])
    assert only.exit_code == 0 and "Kept eigenvectors" not in only.output
    some = CliRunner().invoke(
        main, ["compare", str(store_path), "--epochs", "0", "--series", "wide", "--resamples", "99"]
    )
    assert "epochs 0, 2" not in some.output and "batches, epoch 0" in some.output


def test_series_of_two_stores_are_told_apart(store_path, tmp_path):
    other = tmp_path / "y.h5"
    other.write_bytes(store_path.read_bytes())
    said = CliRunner().invoke(
        main,
        ["compare", str(store_path), str(other), "--series", "wide", "--format", "latex"]
        + ["--resamples", "99"],
    )
    assert said.exit_code == 0, said.output
    table = said.output.split("Kept eigenvectors", 1)[1]
    assert "(x:wide)" in table and "(y:wide)" in table


def test_a_store_without_vectors_says_nothing_of_them(tmp_path):
    with SpectrumWriter(tmp_path / "x.h5", manifest_of(tmp_path)) as writer:
        writer.add_all([record_of(key) for key in writer.plan.keys()])
        writer.merge()
    with SpectrumStore.open(tmp_path / "x.h5") as store:
        assert vectors_of_store(store) == ()
    said = CliRunner().invoke(main, ["compare", str(tmp_path / "x.h5"), "--resamples", "99"])
    assert said.exit_code == 0 and "igenvector" not in said.output


def test_epochs_with_other_parameters_are_refused(tmp_path):
    other = ParameterLayout(names=("w",), sizes=(N,), modules=("w",))
    with SpectrumWriter(tmp_path / "x.h5", manifest_of(tmp_path, series=("wide",))) as writer:
        for key, layout in (("wide/0/0", LAYOUT), ("wide/2/0", other)):
            kept = vector_record_of(key, writer.plan, layout=layout)
            writer.add_all([record_of(key)], vectors=[kept])
        writer.merge()
    with SpectrumStore.open(tmp_path / "x.h5") as store:
        with pytest.raises(StoreError, match="do not lie in one space"):
            vectors_of_store(store)
        with pytest.raises(ValueError, match="between 1 and k"):
            vectors_of_store(store, ranks=(K + 1,))
