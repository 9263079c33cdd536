"""From stores to a comparison: metrics by hand, refusals, gaps, tables, and the command."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from landscape.cli import main
from landscape.compare import (
    METRICS,
    compare_stores,
    sentence,
    summarize_stores,
    to_csv,
    to_json,
    to_latex,
    to_terminal,
)
from landscape.compare.estimated import least_different, widened, widened_quotient
from landscape.compare.statistics import Interval, Resampling, Sample
from landscape.compare.tables import Grid, _latex_rows, grids
from landscape.errors import StoreError
from landscape.linalg import Estimate
from landscape.store import SpectrumStore, SpectrumWriter
from tests.helpers.comparison_stores import K, drawn_values, write_store, write_study

FEW = {"num_resamples": 199}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study") / "spectra.h5")


@pytest.fixture(scope="module")
def comparison(study):
    return compare_stores(
        [study], metrics=["lambda_max", "nep", "num_negative_at_least"], num_resamples=1999
    )


def run(*args):
    return CliRunner().invoke(main, ["compare", *map(str, args)])


# --- what is computed -----------------------------------------------------------------------------

TOP = np.array(
    [[9.0, -8.0, 7.0, -6.0, 5.0], [10.0, 4.0, 3.0, -2.0, 1.0], [-7.0, 6.0, -5.0, -4.0, -3.0]]
)


def test_metrics_are_those_of_the_papers_by_hand(tmp_path):
    # Five nodes that are the whole spectrum, since all weights are those of one eigenvalue of five.
    changes = {
        "ritz_values": np.array([4.0, 1.0, 0.5, 0.5 + 1e-9, -2.0]),
        "ritz_weights": np.full(5, 0.2),
        "num_params": 5,
        "loss": [2.0, 1.0, 4.0],
        "parameter_norm": 3.0,
        "num_negative": [2, 7, 5],
        "smallest": np.array([-8.5, -6.0, -1.0, -1.0, -1.0]),
        "smallest_residuals": np.full(K, 1e-6),
    }
    path = write_store(tmp_path / "a.h5", {("vit", 0): TOP}, changes={("vit", 0): changes})
    found = summarize_stores([path], **FEW)
    value = {metric: found.summary("vit", 0, metric).value for metric in METRICS}
    assert value["lambda_max"] == 9.0 and value["magnitude"] == 9.0
    # Negative: 2 of 5, 1 of 5, 4 of 5. Positive: 9 + 7 + 5, 10 + 4 + 3 + 1, 6.
    assert value["nep"] == pytest.approx(7 / 15) and value["ape"] == pytest.approx(45 / 8)
    assert value["num_negative_at_least"] == 5 and value["lambda_min"] == -8.5
    assert value["negative_share"] == pytest.approx(0.2) and value[
        "num_negative_estimate"
    ] == pytest.approx(1)
    assert value["negative_mass"] == pytest.approx(2 / 8) and value["trace"] == pytest.approx(4)
    assert value["trace_per_parameter"] == pytest.approx(0.8)
    assert value["lambda_max_per_loss"] == 4.5 and value["lambda_max_equal_rms"] == 9.0 * 5
    assert value["spherical_sharpness"] == 81.0 and value["loss"] == pytest.approx(7 / 3)
    row = found.summary("vit", 0, "lambda_max")
    assert (row.mean, row.q25, row.q75) == (25 / 3, 7.5, 9.5)
    assert row.standard_error == pytest.approx(np.std([9, 10, 6], ddof=1) / math.sqrt(3))


def test_estimates_from_random_starts_find_the_spectrum_that_was_prescribed(tmp_path):
    # A full Krylov space has the eigenvalues as nodes and the squared components of its start as
    # weights.
    spectrum = np.concatenate([np.linspace(-3, -0.1, 30), np.linspace(0.05, 40, 70)])
    starts = np.random.default_rng(0).normal(size=(200, 100)) ** 2
    weights = [row / row.sum() for row in starts]
    changes = {"ritz_values": spectrum, "ritz_weights": weights, "num_params": 100}
    path = write_store(
        tmp_path / "a.h5", {("vit", 0): np.ones((200, K))}, changes={("vit", 0): changes}
    )
    found = summarize_stores([path], **FEW)
    for metric, truth in (
        ("num_negative_estimate", 30),
        ("negative_share", 0.3),
        ("trace_per_parameter", spectrum.mean()),
    ):
        row = found.summary("vit", 0, metric)
        assert abs(row.value - truth) < 3 * row.standard_error and row.standard_error < 0.1 * abs(
            truth
        )
    mass = -spectrum[:30].sum() / np.abs(spectrum).sum()
    assert found.summary("vit", 0, "negative_mass").value == pytest.approx(mass, rel=0.05)


def test_nodes_that_are_zero_up_to_rounding_are_not_negative_and_yet_part_of_the_trace(tmp_path):
    nodes, weights = np.array([-1e-7, 0.4, 0.5, 0.6]), np.array([0.7, 0.1, 0.1, 0.1])
    changes = {"ritz_values": nodes, "ritz_weights": weights, "num_params": 4}
    path = write_store(
        tmp_path / "a.h5", {("vit", 0): np.ones((2, K))}, changes={("vit", 0): changes}
    )
    found = summarize_stores([path], **FEW)
    assert found.summary("vit", 0, "negative_share").value == pytest.approx(0.0, abs=1e-9)
    assert found.summary("vit", 0, "trace").value == pytest.approx(
        4 * float(weights @ nodes), rel=1e-12
    )


def test_a_difference_of_estimates_is_no_larger_than_their_brackets_leave_it():
    def sample(values):
        return Sample("mean", np.array(values), np.ones(len(values)))

    first, second = (
        sample([5.0, 5.2, 5.1, 4.9, 5.05, 4.95]),
        sample([4.0, 4.1, 3.9, 4.05, 3.95, 4.0]),
    )

    def brackets(half):
        means = (one.numerator.mean() for one in (first, second))
        return tuple(Estimate(mean, 0.1, None, mean - half, mean + half) for mean in means)

    paired = Resampling(num_resamples=199).p_value
    # The means are 1.03 apart: brackets of half a width of 0.4 leave 0.23, those of 0.6 leave
    # nothing.
    apart, touching = (least_different(first, second, brackets(half)) for half in (0.4, 0.6))
    assert (apart.numerator - second.numerator).mean() == pytest.approx(0.2333, abs=1e-3)
    assert (
        paired(apart, second, paired=True) == pytest.approx(2 / 64)
        and paired(touching, second, paired=True) > 0.9
    )
    # The other way round it is the same.
    turned = least_different(second, first, brackets(0.4)[::-1])
    assert (turned.numerator - first.numerator).mean() == pytest.approx(-0.2333, abs=1e-3)
    wide = widened(Interval(1.0333, 0.9, 1.2), brackets(0.4))
    assert (wide.low, wide.high) == pytest.approx((0.1, 2.0))
    times = widened_quotient(Interval(1.26, 1.2, 1.3), brackets(0.4))
    assert times.low == pytest.approx(1.2 * 4.6333 / 5.0333 * 4 / 4.4, rel=1e-3)
    assert math.isnan(widened_quotient(Interval(1.26, 1.2, 1.3), brackets(4.5)).low)


def test_the_largest_value_is_unknown_where_all_magnitudes_are_negative_and_no_end_is_certified(
    tmp_path,
):
    values = np.array([[5.0, -4, 3, 2, 1], [-5.0, -4, -3, -2, -1], [-6.0, -5, -4, -3, -2]])
    ends = [np.array([0.9, 0.1, 0.1, 0.1, 0.1])] * 3
    residuals = [np.full(K, size) for size in (1e-6, 1e-6, 0.5)]
    path = write_store(
        tmp_path / "a.h5",
        {("vit", 0): values},
        changes={("vit", 0): {"largest": ends, "largest_residuals": residuals}},
    )
    found = summarize_stores([path], **FEW)
    row = found.summary("vit", 0, "lambda_max")
    assert (row.num_batches, row.num_left_out, row.value) == (2, 1, pytest.approx((5 + 0.9) / 2))
    assert any(
        "do not say the largest eigenvalue" in note and "1 at epoch 0" in note
        for note in found.notes
    )
    assert found.summary("vit", 0, "nep").num_batches == 3


def sharpness_of_quotient(point):
    """Largest Hessian eigenvalue, by central differences, of (x / |(x, y)|)^2, which rescaling of
    (x, y) leaves alone.
    """

    def f(p):
        return p[0] ** 2 / (p @ p)

    h, unit = 1e-4 * np.linalg.norm(point), np.eye(2)
    mixed = [
        [
            f(point + h * (a + b))
            - f(point + h * (a - b))
            - f(point - h * (a - b))
            + f(point - h * (a + b))
            for b in unit
        ]
        for a in unit
    ]
    return np.linalg.eigvalsh(np.array(mixed) / (4 * h**2))[-1]


def test_spherical_sharpness_stays_when_all_parameters_are_rescaled_under_a_loss_that_does_not_care(
    tmp_path,
):
    values, changes = {}, {}
    for name, scale in (("small", 1.0), ("large", 5.0)):
        point = scale * np.array([0.6, 0.3])
        values[name, 0] = np.tile(
            sharpness_of_quotient(point) * np.array([1, 0.5, 0.4, 0.3, 0.2]), (2, 1)
        )
        changes[name, 0] = {"parameter_norm": float(np.linalg.norm(point))}
    found = summarize_stores([write_store(tmp_path / "a.h5", values, changes=changes)], **FEW)
    small, large = (
        found.summary(name, 0, "spherical_sharpness").value for name in ("small", "large")
    )
    # Central differences leave about 1e-6.
    assert small == pytest.approx(large, rel=1e-4) and small > 0
    assert (
        found.summary("small", 0, "lambda_max").value
        > 20 * found.summary("large", 0, "lambda_max").value
    )


def test_uncertified_records_are_left_out_and_counted(tmp_path):
    converged = [np.full(K, True), np.array([True, True, True, True, False]), np.full(K, True)]
    path = write_store(
        tmp_path / "a.h5", {("vit", 0): TOP}, changes={("vit", 0): {"converged": converged}}
    )
    found = summarize_stores([path], **FEW)
    row = found.summary("vit", 0, "lambda_max")
    assert (row.num_batches, row.num_left_out, row.num_planned, row.value) == (2, 1, 3, 7.5)
    assert found.summary("vit", 0, "loss").num_batches == 3
    assert any("left out" in note and "1 of 3 at epoch 0" in note for note in found.notes)
    kept = summarize_stores([path], keep_unconverged=True, **FEW)
    assert kept.summary("vit", 0, "lambda_max").num_batches == 3
    assert any("kept, although" in note and "1 of 3 at epoch 0" in note for note in kept.notes)


def test_a_pair_counts_only_batches_that_are_certified_in_both(tmp_path):
    one, other = ({"converged": [np.full(K, batch != bad) for batch in range(6)]} for bad in (1, 4))
    values = drawn_values(np.random.default_rng(0), 6, scale=10, negative=0.0)
    path = write_store(
        tmp_path / "a.h5",
        {("vit", 0): values, ("vmamba", 0): values + 1},
        changes={("vit", 0): one, ("vmamba", 0): other},
    )
    row = compare_stores([path], metrics=["lambda_max"], **FEW).difference(
        "vit", "vmamba", 0, "lambda_max"
    )
    assert (row.num_batches, row.num_left_out) == (4, 2)
    assert row.difference == pytest.approx(-1, abs=1e-12) and row.effect == -1.0


def test_the_sharper_and_the_less_convex_series_are_found_and_equal_ones_are_not_told_apart(
    comparison,
):
    sharper = comparison.difference("vit", "vmamba", 10, "lambda_max")
    # Drawn e times as large at epoch 10.
    assert (
        sharper.p_holm < 0.01
        and sharper.low > 0
        and sharper.ratio_low < math.e < sharper.ratio_high
    )
    flatter = comparison.difference("vit", "vmamba", 10, "nep")
    assert flatter.high < 0 and flatter.p_holm < 0.05
    same = comparison.difference("vmamba", "simba", 10, "lambda_max")
    assert same.p_holm > 0.05 and same.low < 0 < same.high


def test_holm_takes_the_epochs_and_pairs_of_one_metric_together(comparison):
    rows = [row for row in comparison.differences if row.metric == "lambda_max"]
    assert len(rows) == 3 * 3
    smallest = min(rows, key=lambda row: row.p_value)
    assert smallest.p_holm == pytest.approx(9 * smallest.p_value)


def test_lower_bounds_of_two_series_are_never_subtracted(comparison):
    assert comparison.summary("vit", 0, "num_negative_at_least") is not None
    assert not any(row.metric == "num_negative_at_least" for row in comparison.differences)


def test_the_same_seed_gives_the_same_numbers_whatever_else_is_computed(study, comparison):
    alone = compare_stores([study], metrics=["lambda_max"], epochs=[10], num_resamples=1999)
    everything = comparison.difference("vit", "vmamba", 10, "lambda_max")
    found = alone.difference("vit", "vmamba", 10, "lambda_max")
    assert replace(found, p_holm=0.0) == replace(everything, p_holm=0.0)


# --- what is refused ------------------------------------------------------------------------------


def test_series_on_other_batches_are_refused_unless_unpaired(tmp_path):
    values = drawn_values(np.random.default_rng(0), 8, scale=10, negative=0.0)
    pair = {("vit", 0): values, ("vmamba", 0): values}
    path = write_store(tmp_path / "a.h5", pair, batches={"vit": "a", "vmamba": "b"})
    with pytest.raises(StoreError, match="batch 0 holds other pairs.*--unpaired"):
        compare_stores([path], **FEW)
    found = compare_stores([path], unpaired=True, **FEW)
    row = found.difference("vit", "vmamba", 0, "lambda_max")
    assert not row.paired and row.difference == 0.0 and row.high - row.low > 0
    assert any("Unpaired" in caveat for caveat in found.caveats)
    said = sentence(found, row)
    assert (
        said.startswith("On at least 8 batches each, not compared batch by batch, ")
        and "same" not in said
    )


def test_one_batch_with_other_pairs_is_enough_to_refuse(tmp_path):
    values = drawn_values(np.random.default_rng(0), 8, scale=10, negative=0.0)
    digests = [f"{batch:064x}" for batch in range(8)]
    changed = digests[:5] + ["f" * 64] + digests[6:]
    changes = {("vit", 0): {"batch_sha256": digests}, ("vmamba", 0): {"batch_sha256": changed}}
    path = write_store(
        tmp_path / "a.h5", {("vit", 0): values, ("vmamba", 0): values}, changes=changes
    )
    with pytest.raises(StoreError, match="batch 5 holds other pairs"):
        compare_stores([path], **FEW)


@pytest.mark.parametrize(
    "setting",
    [{"tol": 1e-2}, {"weight_decay": 0.5}, {"augmentation": "clip_mamba"}, {"split": "held_out"}],
)
def test_mixed_protocols_are_refused_with_the_setting_that_differs(tmp_path, setting):
    values = {("vit", 0): TOP}
    paths = [
        write_store(tmp_path / "a" / "a.h5", values),
        write_store(tmp_path / "b" / "b.h5", values, **setting),
    ]
    for unpaired in (False, True):
        with pytest.raises(StoreError, match=next(iter(setting))) as caught:
            compare_stores(paths, unpaired=unpaired, **FEW)
        assert repr(next(iter(setting.values()))) in str(caught.value) and "\n" not in str(
            caught.value
        )


def test_an_empty_store_a_store_twice_and_wrong_names_are_refused_in_one_line(tmp_path, study):
    from tests.helpers.store_records import manifest_of

    empty = tmp_path / "empty.h5"
    # A run that is going on, before its first record.
    with SpectrumWriter(empty, manifest_of(tmp_path)):
        assert "no eigenvalues yet" in run(empty).stderr
    for args, words in (
        ((tmp_path / "nothing.h5",), "no such store"),
        ((study, study), "named twice"),
        ((study, "--metric", "sharpness"), "did you mean 'spherical_sharpness'?"),
        ((study, "--epochs", "3"), "measured are [0, 5, 10]"),
        ((study, "-o", tmp_path / "a.png"), ".csv"),
    ):
        result = run(*args)
        assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1


# --- gaps -----------------------------------------------------------------------------------------


def test_an_epoch_that_one_series_lacks_is_a_gap_and_the_rest_is_compared(tmp_path):
    values = drawn_values(np.random.default_rng(0), 20, scale=10, negative=0.2)
    path = write_store(
        tmp_path / "a.h5", {("vit", 0): values, ("vit", 5): values, ("vmamba", 5): values + 1}
    )
    found = compare_stores([path], metrics=["lambda_max", "nep"], **FEW)
    assert found.epochs == (0, 5) and found.summary("vmamba", 0, "nep") is None
    assert [row.epoch for row in found.differences if row.metric == "nep"] == [5]
    assert any("vmamba: not measured at epoch 0" in note for note in found.notes)
    assert "none" in to_terminal(found)


def test_a_checkpoint_of_which_nothing_is_certified_is_a_gap_in_eigenvalues_alone(tmp_path):
    values = drawn_values(np.random.default_rng(0), 4, scale=10, negative=0.2)
    loose = {("vit", 0): {"converged": np.full(K, False), "residuals": np.full(K, math.inf)}}
    path = write_store(
        tmp_path / "a.h5", {("vit", 0): values, ("vmamba", 0): values}, changes=loose
    )
    found = compare_stores([path], **FEW)
    assert (
        found.summary("vit", 0, "lambda_max") is None
        and found.summary("vit", 0, "loss") is not None
    )
    assert found.difference("vit", "vmamba", 0, "lambda_max") is None
    assert any("4 of 4 at epoch 0" in note for note in found.notes)


def test_nan_in_a_damaged_table_counts_as_uncertified_and_does_not_spread(tmp_path, monkeypatch):
    path = write_study(tmp_path / "a.h5", num_batches=6, epochs=(0,))
    whole = SpectrumStore.records

    def damaged(self, series, epoch):
        table = whole(self, series, epoch)
        eigenvalues = np.array(table.eigenvalues)
        eigenvalues[0, 2] = math.nan
        return replace(
            table, eigenvalues=eigenvalues, loss=np.where(table.batch == 1, math.nan, table.loss)
        )

    monkeypatch.setattr(SpectrumStore, "records", damaged)
    for keep in (False, True):
        found = compare_stores([path], keep_unconverged=keep, **FEW)
        assert (
            found.summary("vit", 0, "lambda_max").num_batches == 5
            and found.summary("vit", 0, "loss").num_batches == 5
        )
        assert all(math.isfinite(row.value) for row in found.summaries)


def test_one_epoch_one_series_few_batches_and_unfinished_runs_are_said(tmp_path):
    path = write_store(tmp_path / "a.h5", {("vit", 0): TOP}, num_batches=9)
    notes = " ".join(compare_stores([path], **FEW).notes)
    for words in (
        "one series only",
        "Only initialisation was measured",
        "3 of 9 at epoch 0",
        "3 batches only",
    ):
        assert words in notes
    # A summary takes no differences of however many series.
    assert not any("one series" in note for note in summarize_stores([path], **FEW).notes)


def test_epochs_left_aside_are_not_called_unmeasured_and_their_choice_is_not_corrected_for(
    study,
):
    one, all_of_them = (
        compare_stores([study], metrics=["lambda_max"], epochs=epochs, **FEW)
        for epochs in ([10], None)
    )
    assert any(
        note.startswith("Only epoch 10 is looked at, though more were measured")
        for note in one.notes
    )
    assert any("not the choice among metrics or of epochs" in caveat for caveat in one.caveats)
    assert not any("of epochs" in caveat for caveat in all_of_them.caveats)


def test_one_batch_is_one_batch(tmp_path):
    path = write_store(tmp_path / "a.h5", {("vit", 0): TOP[:1], ("vmamba", 0): TOP[:1] + 1})
    found = compare_stores([path], **FEW)
    said = " ".join([*found.sentences, *found.notes, *found.caveats])
    assert (
        "On the same 1 batch, " in said
        and "rest on 1 batch only" in said
        and "1 batches" not in said
    )


def test_numbers_that_every_batch_repeats_have_no_interval_and_that_is_said(tmp_path):
    path = write_store(
        tmp_path / "a.h5",
        {("vit", 0): np.abs(drawn_values(np.random.default_rng(0), 20, scale=10, negative=0))},
    )
    found = summarize_stores([path], metrics=["lambda_max", "nep"], **FEW)
    row = found.summary("vit", 0, "nep")
    assert row.value == 0 and math.isnan(row.low) and math.isnan(row.high)
    assert any(
        note.endswith("NEP (ViT, vit, epoch 0).")
        for note in found.notes
        if note.startswith("No interval")
    )


def test_what_was_measured_in_another_way_is_said_and_ways_to_the_same_matrix_are_one(tmp_path):
    values = drawn_values(np.random.default_rng(0), 6, scale=10, negative=0.2)
    settings = [
        {
            "device": "cpu",
            "product": "double backward, retained graph",
            "product_choice": {"allow_tf32": False},
        },
        {
            "device": "cpu",
            "product": "double backward in chunks of rows of 8",
            "product_choice": {"allow_tf32": False},
        },
        {
            "device": "H100",
            "product": "central differences of gradients",
            "product_choice": {"allow_tf32": True},
        },
    ]
    names = ("retained", "rows", "differences")
    path = write_store(
        tmp_path / "a.h5",
        {(name, 0): values for name in names},
        changes={(name, 0): {"settings": fact} for name, fact in zip(names, settings, strict=True)},
    )
    notes = compare_stores([path], metrics=["nep"], **FEW).notes
    assert [note for note in notes if note.startswith("Measured in different ways")] == [
        "Measured in different ways, products: second derivatives (ViT, retained; ViT, rows), "
        "central differences of gradients (ViT, differences).",
        "Measured in different ways, TF32: off (ViT, retained; ViT, rows), allowed (ViT, "
        "differences).",
        "Measured in different ways, device: cpu (ViT, retained; ViT, rows), H100 (ViT, "
        "differences).",
    ]


def test_the_version_of_torch_is_compared_too(tmp_path, monkeypatch):
    import landscape.store.writer as writer

    values, paths = drawn_values(np.random.default_rng(0), 6, scale=10, negative=0.2), []
    for name, version in (("old", "2.0"), ("new", "2.9")):
        monkeypatch.setattr(
            writer, "package_versions", lambda version=version: {"torch": version, "numpy": version}
        )
        paths.append(write_store(tmp_path / name / "a.h5", {(name, 0): values}))
    notes = compare_stores(paths, metrics=["nep"], **FEW).notes
    assert "Measured in different ways, torch: 2.0 (ViT, old), 2.9 (ViT, new)." in notes


def test_a_store_and_its_copy_are_told_to_be_the_same_weights(tmp_path, study):
    copy = tmp_path / "copy.h5"
    shutil.copy(study, copy)
    notes = compare_stores([study, copy], metrics=["nep"], epochs=[5, 10], **FEW).notes
    same = [note for note in notes if "the same file of weights at epochs 5, 10" in note]
    assert len(same) == 3 and same[0].startswith("ViT, vit (spectra:vit) and ViT, vit (copy:vit) ")
    assert not any(
        "same file" in note for note in compare_stores([study], metrics=["nep"], **FEW).notes
    )


def test_tests_that_could_not_come_out_otherwise_are_called_so(tmp_path):
    values = drawn_values(np.random.default_rng(0), 4, scale=10, negative=0.0)
    path = write_store(tmp_path / "a.h5", {("vit", 0): values + 90, ("vmamba", 0): values})
    found = compare_stores([path], metrics=["lambda_max"], **FEW)
    assert found.difference("vit", "vmamba", 0, "lambda_max").p_value == 2 / 16
    assert any("Too few batches" in note and "largest eigenvalue" in note for note in found.notes)
    assert (
        "cannot be told apart in sharpness by so few batches at initialisation"
        in found.sentences[0]
    )
    assert not any(
        "Too few" in note
        for note in compare_stores([path], metrics=["lambda_max"], confidence=0.5, **FEW).notes
    )


@pytest.mark.parametrize("unpaired", [False, True])
def test_a_test_that_could_not_succeed_is_not_called_a_result(tmp_path, unpaired):
    values = drawn_values(np.random.default_rng(0), 3, scale=10, negative=0.0)
    path = write_store(tmp_path / "a.h5", {("vit", 0): values + 90, ("vmamba", 0): values})
    found = compare_stores([path], metrics=["lambda_max"], unpaired=unpaired, **FEW)
    # Of 3 batches: 2 / 2^3, or 2 of the 20 ways to deal out six numbers.
    assert (
        found.differences[0].p_value
        == found.differences[0].smallest_p
        == (0.1 if unpaired else 0.25)
    )
    assert "cannot be told apart in sharpness by so few batches" in found.sentences[0]
    assert any(note.startswith("Too few batches") for note in found.notes)


def test_few_permutations_decide_nothing_either_and_many_do(study):
    # 2 / 100 for one test, times 9 of them after Holm's correction.
    few, many = (
        compare_stores([study], metrics=["lambda_max"], num_resamples=number)
        for number in (99, 1999)
    )
    assert all(
        "cannot be told apart in sharpness by so few permutations" in said for said in few.sentences
    )
    assert [" is sharper than " in said for said in many.sentences] == [True, True, False]
    assert "do not differ demonstrably" in many.sentences[2]


def test_records_without_an_audit_are_called_so(tmp_path):
    path = write_store(tmp_path / "a.h5", {("vit", 0): TOP}, changes={("vit", 0): {"extras": {}}})
    assert any("NOT AUDITED" in note for note in summarize_stores([path], **FEW).notes)


# --- several stores -------------------------------------------------------------------------------


def test_series_of_two_stores_are_compared_and_equal_names_get_the_name_of_their_file(tmp_path):
    values = drawn_values(np.random.default_rng(0), 20, scale=10, negative=0.1)
    paths = [
        write_store(tmp_path / folder / f"{name}.h5", {("vit", 0): values + number})
        for number, (folder, name) in enumerate((("one", "seed_0"), ("two", "seed_1")))
    ]
    found = compare_stores(paths, metrics=["lambda_max"], **FEW)
    assert [one.name for one in found.series] == ["seed_0:vit", "seed_1:vit"]
    assert found.difference(
        "seed_0:vit", "seed_1:vit", 0, "lambda_max"
    ).difference == pytest.approx(-1)
    assert found.label("seed_0:vit") == "ViT, vit (seed_0:vit)"


# --- what is printed ------------------------------------------------------------------------------


def test_the_sentence_holds_all_that_a_reader_needs(comparison):
    row = comparison.difference("vit", "vmamba", 10, "lambda_max")
    said = sentence(comparison, row)
    assert said.startswith(
        "On the same 40 batches, ViT, vit is sharper than ViT, vmamba at epoch 10: median "
        "lambda_max "
    )
    assert (
        f"paired difference {row.difference:.1f} [{row.low:.1f}, {row.high:.1f}], Holm p = " in said
    )
    assert said in comparison.sentences
    # The series that loses comes second, and the numbers turn with the names.
    turned = sentence(comparison, comparison.difference("vit", "vmamba", 10, "nep"))
    assert (
        "ViT, vmamba is less convex than ViT, vit at epoch 10: NEP 0." in turned
        and "difference 0." in turned
    )
    equal = comparison.difference("vmamba", "simba", 10, "lambda_max")
    assert "do not differ demonstrably in sharpness" in sentence(comparison, equal)


def contrary_study(path, *, losses=(1.0, 4.0), norms=(3.0, 3.0)):
    """ "steep" has 1.5 times the largest eigenvalue of "flat", and a loss and a norm that may say
    otherwise.
    """
    values = drawn_values(np.random.default_rng(0), 20, scale=10, negative=0.0)
    changes = {
        (name, 0): {"loss": loss, "parameter_norm": norm, "num_params": 100}
        for name, loss, norm in zip(("flat", "steep"), losses, norms, strict=True)
    }
    return write_store(path, {("flat", 0): values, ("steep", 0): 1.5 * values}, changes=changes)


def test_a_sentence_says_where_a_normalised_metric_says_the_opposite(tmp_path):
    said = compare_stores([contrary_study(tmp_path / "a.h5", norms=(9.0, 3.0))], **FEW).sentences[0]
    assert "ViT, steep is sharper than ViT, flat at initialisation: " in said
    clause = said.split("; ")[1]
    assert (
        clause.startswith("but ViT, flat is sharper per unit of loss (") and said.count("; ") == 1
    )
    assert (
        ", relative to the norm of the parameters (" in clause
        and "equal changes per parameter" not in clause
    )
    assert said.endswith("Holm p = 0.01).")


def test_a_sentence_says_where_normalised_metrics_leave_open_what_it_says(
    tmp_path,
):
    generator = np.random.default_rng(1)
    noise = [list(size) for size in np.exp(generator.normal(0, 1.5, (2, 20)))]
    said = compare_stores([contrary_study(tmp_path / "a" / "a.h5", losses=noise)], **FEW).sentences[
        0
    ]
    assert " is sharper than " in said and re.search(
        r"; left open per unit of loss \(.* vs .*, Holm p = 0\.\d+\)\.$", said
    )
    agreed = compare_stores(
        [contrary_study(tmp_path / "b" / "b.h5", losses=(1.0, 1.0))], **FEW
    ).sentences[0]
    assert " is sharper than " in agreed and ";" not in agreed


def test_normalised_differences_stand_in_a_table_and_what_was_not_asked_for_is_named(tmp_path):
    path = contrary_study(tmp_path / "a.h5")
    found = compare_stores([path], **FEW)
    (grid,) = [grid for grid in grids(found) if "normalised" in grid.title]
    assert grid.header[2:] == ("largest / loss", "largest x parameters", "spherical sharpness")
    # 4 times the loss in the second and 1.5 times the eigenvalue: 4 / 1.5 and 1 / 1.5.
    assert [cell.split(",")[0] for cell in grid.rows[0][2:]] == ["2.67", "0.667", "0.667"]
    alone = compare_stores([path], metrics=["lambda_max", "lambda_max_per_loss"], **FEW)
    assert any(
        "may say otherwise than lambda_max: lambda_max_equal_rms, spherical_sharpness." in note
        for note in alone.notes
    )


def test_a_sentence_carries_what_is_not_certified_and_what_nobody_audited(tmp_path):
    values = drawn_values(np.random.default_rng(0), 20, scale=10, negative=0.0)
    loose = [np.full(K, batch % 4 != 0) for batch in range(20)]
    path = write_store(
        tmp_path / "a.h5",
        {("vit", 0): values, ("vmamba", 0): 2 * values},
        changes={("vit", 0): {"converged": loose}, ("vmamba", 0): {"extras": {}}},
    )
    left_out, kept = (
        compare_stores([path], metrics=["lambda_max"], keep_unconverged=keep, **FEW)
        for keep in (False, True)
    )
    assert (
        left_out.sentences[0].endswith("; NOT AUDITED.")
        and "CERTIFICATE" not in left_out.sentences[0]
    )
    assert kept.sentences[0].endswith("; 5 batches WITHOUT CERTIFICATE; NOT AUDITED.")
    assert (kept.differences[0].num_uncertified, kept.differences[0].audited) == (5, False)
    mixed = compare_stores(
        [path], metrics=["lambda_max"], keep_unconverged=True, unpaired=True, **FEW
    )
    assert "; 5 records WITHOUT CERTIFICATE" in mixed.sentences[0]


def test_what_the_numbers_do_not_show_is_said(comparison):
    said = " ".join(comparison.caveats)
    for words in (
        "one training run",
        "one data set, openmoji (train), of 15 pairs",
        "lower bound",
        "Holm",
        "rescaled",
    ):
        assert words in said


def test_csv_holds_every_row_with_every_digit(comparison):
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert len(rows) == len(comparison.summaries) + len(comparison.differences)
    key = {
        "kind": "difference",
        "metric": "lambda_max",
        "epoch": "10",
        "first": "vit",
        "second": "simba",
    }
    (row,) = [row for row in rows if key.items() <= row.items()]
    expected = comparison.difference("vit", "simba", 10, "lambda_max")
    assert (float(row["value"]), float(row["low"]), float(row["p_holm"])) == (
        expected.difference,
        expected.low,
        expected.p_holm,
    )
    assert row["unit"] == "nat per squared parameter" and row["num_batches"] == "40"


def test_json_is_strict_and_holds_everything(comparison):
    found = json.loads(
        to_json(comparison), parse_constant=lambda name: pytest.fail(f"{name} is not JSON")
    )
    assert len(found["differences"]) == len(comparison.differences) and found["paired"] is True
    assert {metric["name"] for metric in found["metrics"]} == {
        metric.name for metric in comparison.metrics
    }
    assert all(metric["source"] and metric["meaning"] for metric in found["metrics"])
    assert found["protocol"]["data"]["batch_size"] == 15 and found["caveats"]


def test_json_and_csv_leave_out_what_is_not_known(tmp_path):
    path = write_store(tmp_path / "a.h5", {("vit", 0): TOP[:1], ("vmamba", 0): TOP[:1]})
    found = compare_stores([path], metrics=["lambda_max"], **FEW)
    difference = json.loads(to_json(found))["differences"][0]
    assert difference["difference"] == 0.0 and difference["low"] is difference["p_value"] is None
    assert "nan" not in to_csv(found)


def test_latex_has_as_many_cells_in_every_row_and_no_bare_special_character(tmp_path):
    values = drawn_values(np.random.default_rng(0), 20, scale=1e7, negative=0.1)
    path = write_store(tmp_path / "a.h5", {("vit_b", 0): 0.9 * values, ("vmamba_b", 0): values})
    text = to_latex(compare_stores([path], metrics=["lambda_max"], **FEW))
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    columns = None
    for line in lines:
        if line.startswith(r"\begin{tabular}"):
            columns = len(line.split("{")[-1].rstrip("}"))
        if line.endswith(r"\\"):
            assert line.replace(r"\&", "").count("&") == columns - 1
    body = "\n".join(lines)
    assert r"vit\_b" in body and "95 \\%" in body and "$-$" in body
    assert re.search(r"\d\$\\times10\^\{\d+\}\$", body) and not re.search(r"\de[+-]\d", body)
    assert not {"_", "%"} & set(body.replace(r"\_", "").replace(r"\%", ""))


@pytest.mark.parametrize("label", ["[A] ViT", "*x"])
def test_a_latex_row_never_begins_with_what_the_row_before_would_take_for_its_argument(label):
    rows = _latex_rows(Grid("", ("epoch", "series"), (("0", label), (label, "1"), (label, "2"))))
    assert [row for row in rows if row.startswith(("[", "*"))] == [] and sum(
        row.startswith("{}" + label) for row in rows
    ) == 2


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_table_fits_its_width_and_says_what_to_quote(comparison, width):
    text = to_terminal(comparison, width=width)
    assert max(Console(width=999).measure(line).maximum for line in text.splitlines()) <= width
    for words in (
        "To quote:",
        "What these numbers do not show:",
        "Each series over its batches",
        "Holm p",
    ):
        assert words in text
    assert comparison.sentences[0].split(":")[0][:40] in text


def test_a_format_against_the_suffix_is_refused_before_anything_is_read(tmp_path):
    result = run(tmp_path / "none.h5", "-o", tmp_path / "a.csv", "--format", "json")
    assert (
        result.exit_code == 2
        and "says csv, but --format says json" in result.stderr
        and ".json" in result.stderr
    )
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "a.csv").exists()


def test_the_command_writes_by_suffix_and_prints_by_format(study, tmp_path):
    for suffix, beginning in (
        (".csv", "kind,metric"),
        (".json", "{"),
        (".tex", "% Needs"),
        (".txt", "Each series"),
    ):
        output = tmp_path / "new" / f"comparison{suffix}"
        result = run(study, "--metric", "lambda_max", "--resamples", 199, "-o", output)
        assert result.exit_code == 0 and "3 series, epochs 0, 5, 10" in result.stdout
        assert output.read_text().startswith(beginning)
    printed = run(study, "--metric", "nep", "--resamples", 199, "--format", "csv")
    assert printed.stdout.startswith("kind,metric") and "lambda_max" not in printed.stdout
    table = run(study, "--metric", "loss", "--resamples", 199)
    assert table.exit_code == 0 and "loss, nat: paired differences [95 %]" in table.stdout


def test_comparing_imports_neither_torch_nor_matplotlib(study):
    code = (
        "import sys; from landscape.compare import compare_stores, to_terminal; "
        f"to_terminal(compare_stores([{str(study)!r}], metrics=['nep', 'negative_mass'], "
        "num_resamples=99)); sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_command_is_loaded_without_torch_and_matplotlib():
    code = (
        "import sys, landscape.pipeline; landscape.pipeline.compare; sys.exit(bool({'torch', "
        "'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
