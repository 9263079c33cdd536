"""Sharpness and NEP over epochs: structure of the figure, gaps, bands, and the command."""

import itertools

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.backends.backend_agg import FigureCanvasAgg

from landscape.cli import main
from landscape.compare import summarize_stores
from landscape.figures import MAX_SERIES, PANELS, sharpness
from tests.helpers import study_stores
from tests.helpers.comparison_stores import K, drawn_values, write_store, write_study

FEW = {"metrics": list(PANELS), "num_resamples": 199}


def figure_of(path, **options):
    found = summarize_stores([path], **FEW)
    return found, sharpness(found, **options)


def lines_of(ax):
    return [line for line in ax.get_lines() if line.get_marker() == "o"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study") / "spectra.h5", num_batches=20)


def test_there_is_a_panel_for_each_question_and_a_line_for_each_series(study):
    found, fig = figure_of(study)
    largest, nep = fig.axes
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["Largest eigenvalue", "NEP"]
    assert "nat per squared parameter" in largest.get_ylabel() and "top 5" in nep.get_ylabel()
    assert [ax.get_xlabel() for ax in fig.axes] == ["epoch", "epoch"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "ViT, vit",
        "ViT, vmamba",
        "ViT, simba",
    ]
    for ax, metric in zip(fig.axes, PANELS):
        for line, series in zip(lines_of(ax), found.series, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), [0, 5, 10])
            np.testing.assert_array_equal(
                line.get_ydata(), [found.summary(series.name, e, metric).value for e in (0, 5, 10)]
            )


def test_bands_are_the_interval_and_the_middle_half_of_the_batches(study):
    found, fig = figure_of(study)
    largest, nep = fig.axes
    row = found.summary("vit", 10, "lambda_max")
    at_10 = [
        {y for x, y in band.get_paths()[0].vertices if x == 10}
        for band in largest.collections
        if band.get_paths()
    ]
    assert {row.q25, row.q75} in at_10 and {row.low, row.high} in at_10
    bands = [band for band in nep.collections if band.get_paths()]
    assert len(bands) == 3


def test_nothing_that_is_drawn_is_clipped(study):
    _, fig = figure_of(study)
    for ax in fig.axes:
        low, high = ax.get_ylim()
        values = np.concatenate([line.get_ydata() for line in lines_of(ax)])
        values = np.concatenate(
            [values, *(p.vertices[:, 1] for band in ax.collections for p in band.get_paths())]
        )
        assert low <= values.min() and values.max() <= high


def test_positive_sharpness_over_a_wide_range_is_drawn_on_a_logarithmic_axis(tmp_path, study):
    assert figure_of(study)[1].axes[0].get_yscale() == "linear"
    # Twelve times as sharp at the end.
    wide = figure_of(write_study(tmp_path / "wide" / "a.h5", num_batches=10, epochs=(0, 25)))[
        1
    ].axes[0]
    wide.figure.draw_without_rendering()
    assert wide.get_yscale() == "log"
    low, high = wide.get_ylim()
    labels = {
        float(tick.get_text())
        for tick in wide.get_yticklabels()
        if low <= tick.get_position()[1] <= high
    }
    assert {10, 20, 50, 100} <= labels
    falling = -drawn_values(np.random.default_rng(0), 10, scale=10, negative=0.0)
    ends = {"largest": np.full(K, -0.5), "largest_residuals": np.full(K, 1e-6)}
    path = write_store(tmp_path / "a.h5", {("vit", 0): falling}, changes={("vit", 0): ends})
    _, fig = figure_of(path)
    assert fig.axes[0].get_yscale() == "linear" and lines_of(fig.axes[0])[0].get_ydata() == [-0.5]


def test_an_epoch_that_was_not_measured_is_a_gap_in_the_line_and_in_the_bands_and_is_named(
    tmp_path,
):
    values = drawn_values(np.random.default_rng(0), 10, scale=10, negative=0.2)
    measured = {("vit", epoch): values for epoch in (0, 5, 10, 15)} | {
        ("simba", epoch): values for epoch in (0, 10, 15)
    }
    _, fig = figure_of(write_store(tmp_path / "a.h5", measured))
    gapped = lines_of(fig.axes[0])[1].get_ydata()
    assert np.isnan(gapped[1]) and np.isfinite(gapped[[0, 2, 3]]).all()
    # A band over two neighbours, and a bar at the epoch that has none.
    bars = [bar for bar in fig.axes[0].collections if hasattr(bar, "get_segments")]
    assert {x for bar in bars for segment in bar.get_segments() for x in segment[:, 0]} == {0.0}
    note = " ".join(text.get_text() for text in fig.texts).replace("\n", " ")
    assert "simba: not measured at epoch 5" in note


def test_the_note_of_one_series_and_one_batch_speaks_of_no_difference_and_counts_in_the_singular(
    tmp_path,
):
    path = write_store(
        tmp_path / "a.h5",
        {("vit", 0): drawn_values(np.random.default_rng(0), 1, scale=10, negative=0.2)},
    )
    note = " ".join(text.get_text() for text in figure_of(path)[1].texts).replace("\n", " ")
    assert (
        "over 1 mini-batch." in note and "rest on 1 batch only" in note and "difference" not in note
    )


def test_one_epoch_is_drawn_as_points(tmp_path):
    values = drawn_values(np.random.default_rng(0), 10, scale=10, negative=0.2)
    _, fig = figure_of(write_store(tmp_path / "a.h5", {("vit", 0): values}))
    FigureCanvasAgg(fig).draw()
    assert all(ax.get_xlim()[0] < 0 < ax.get_xlim()[1] for ax in fig.axes)
    assert "Only initialisation was measured" in " ".join(
        text.get_text() for text in fig.texts
    ).replace("\n", " ")


def test_no_text_is_cut_off_or_covers_another(study):
    _, fig = figure_of(study, title="Sharpness along training", unaudited=True)
    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.draw(renderer)
    texts = [*fig.texts, *fig.legends[0].get_texts()]
    for ax in fig.axes:
        texts += [*ax.get_xticklabels(), ax.xaxis.label, ax.yaxis.label, ax._left_title]
        texts += [
            label
            for label in ax.get_yticklabels()
            if ax.get_ylim()[0] <= label.get_position()[1] <= ax.get_ylim()[1]
        ]
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
    assert all(
        b.x0 >= 0 and b.y0 >= 0 and b.x1 <= fig.bbox.x1 and b.y1 <= fig.bbox.y1 for b in boxes
    )
    shrunk = [box.padded(-0.5) for box in boxes]
    assert not [pair for pair in itertools.combinations(shrunk, 2) if pair[0].overlaps(pair[1])]


def test_an_unaudited_figure_says_so(study):
    assert "NOT AUDITED" in " ".join(
        text.get_text() for text in figure_of(study, unaudited=True)[1].texts
    )
    assert "NOT AUDITED" not in " ".join(text.get_text() for text in figure_of(study)[1].texts)


def test_more_series_than_can_be_told_apart_are_refused(tmp_path):
    values = {(f"series_{number}", 0): np.ones((2, K)) for number in range(MAX_SERIES + 1)}
    with pytest.raises(ValueError, match=f"more than {MAX_SERIES}"):
        figure_of(write_store(tmp_path / "a.h5", values))


def test_the_command_draws_it_and_figure_3_stays_the_default(study, tmp_path):
    sizes = {}
    for kind in ([], ["--kind", "figure3"], ["--kind", "sharpness"]):
        output = tmp_path / f"{len(sizes)}.svg"
        result = CliRunner().invoke(main, ["figure", str(study), "-o", str(output), *kind])
        assert result.exit_code == 0 and "3 series, epochs 0, 5, 10" in result.stdout
        sizes[tuple(kind)] = output.read_bytes()
    default, figure3, other = sizes.values()
    assert default == figure3 != other


def test_a_store_without_a_certified_value_is_refused_in_one_line(tmp_path):
    loose = {("vit", 0): {"converged": np.full(K, False)}}
    path = write_store(tmp_path / "a.h5", {("vit", 0): np.ones((2, K))}, changes=loose)
    args = ["figure", str(path), "--kind", "sharpness", "-o", str(tmp_path / "a.png")]
    result = CliRunner().invoke(main, args)
    assert (
        result.exit_code == 2
        and "nothing to draw" in result.stderr
        and result.stderr.count("\n") == 1
    )
    assert CliRunner().invoke(main, [*args, "--keep-unconverged"]).exit_code == 0


@pytest.mark.parametrize(
    "label", ["_hidden", "$x_1$", "$\\nosuch{$", "a very long name " * 10, "W" * 150]
)
def test_any_text_can_be_a_label_and_none_runs_off_the_page(tmp_path, label):
    _, fig = figure_of(
        study_stores.write_study(
            tmp_path / "a.h5", labels={"vit": label, "simba": "other"}, num_batches=4
        )
    )
    texts = fig.legends[0].get_texts()
    assert ["".join(text.get_text().split()) for text in texts] == ["".join(label.split()), "other"]
    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.draw(renderer)
    box = fig.legends[0].get_window_extent(renderer)
    assert fig.bbox.x0 <= box.x0 and box.x1 <= fig.bbox.x1 and box.y1 <= fig.bbox.y1
    assert box.y0 > max(ax._left_title.get_window_extent(renderer).y1 for ax in fig.axes)
    # Dollars are letters.
    assert not any(text.get_parse_math() for text in texts)
