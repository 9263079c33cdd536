"""Width, columns, letters and axis that a user chooses: what is asked for is drawn, whole."""

import io
import math

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.text import Text
from PIL import Image

from landscape.cli import main
from landscape.compare import summarize_stores
from landscape.figures import (
    PANELS,
    EigenvalueSample,
    figure3,
    loss_contour,
    loss_slice,
    loss_surface_3d,
    save_figure,
    sharpness,
)
from landscape.figures.asinh_axis import LinearAxis
from landscape.figures.page_options import PageOptions
from landscape.figures.style import line_styles
from landscape.figures.value_range import ValueRange
from landscape.report.epoch_charts import metric_charts
from landscape.report.from_store import read_study
from tests.figures.test_surface_figures import bent, saddle
from tests.helpers.comparison_stores import write_study
from tests.monitor.test_monitor_record import measured, written
from tests.store.test_store_specification import write_all


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study") / "spectra.h5", num_batches=20)


def samples(num_epochs: int = 6) -> list[EigenvalueSample]:
    values = np.random.default_rng(0).standard_normal((8, 5)) * 100
    return [
        EigenvalueSample("a", "A", 5 * epoch, values, np.ones((8, 5), dtype=bool), 8)
        for epoch in range(num_epochs)
    ]


def assert_whole(fig) -> None:
    """Every text lies on the page."""
    save_figure_in_memory(fig)
    page = fig.bbox
    beyond = {label for ax in fig.axes for label in labels_beyond(ax)}
    for text in fig.findobj(Text):
        if text.get_visible() and text.get_text().strip() and text not in beyond:
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= page.x1 + 1, text.get_text()
            assert box.y0 >= -1 and box.y1 <= page.y1 + 1, text.get_text()


def labels_beyond(ax) -> set[Text]:
    """Labels of ticks beyond the ends of an axis, which are not drawn."""
    labels = set()
    for axis in ax._axis_map.values():
        low, high = sorted(axis.get_view_interval())
        ticks = (*axis.get_major_ticks(), *axis.get_minor_ticks())
        labels |= {tick.label1 for tick in ticks if not low <= tick.get_loc() <= high}
    return labels


def save_figure_in_memory(fig) -> Image.Image:
    stream = io.BytesIO()
    fig.savefig(stream, format="png", dpi=100)
    return Image.open(stream)


def sizes_of(fig) -> set[float]:
    return {round(text.get_fontsize(), 6) for text in fig.findobj(Text) if text.get_text()}


@pytest.mark.parametrize("width", [3.4, 7, 11])
@pytest.mark.parametrize("font_size", [6, 7, 9.5])
def test_a_figure_has_the_width_that_is_asked_for_and_no_text_is_cut(width, font_size):
    page_options = PageOptions(
        width=width, font_size=font_size, num_columns=2 if width < 5 else None
    )
    fig = figure3(samples(), page_options=page_options)
    assert fig.get_figwidth() == pytest.approx(width)
    assert_whole(fig)


def test_all_letters_grow_by_the_same_factor():
    plain, large = figure3(samples()), figure3(samples(), page_options=PageOptions(font_size=10.5))
    for fig in (plain, large):
        fig.draw_without_rendering()
    assert sizes_of(large) == {round(1.5 * size, 6) for size in sizes_of(plain)}


def test_tick_labels_that_are_made_when_the_file_is_written_have_the_size_too(study, tmp_path):
    comparison = summarize_stores([study], metrics=list(PANELS), num_resamples=199)
    fig = sharpness(comparison, page_options=PageOptions(font_size=14))
    save_figure(fig, tmp_path / "a.png")
    labels = [label for ax in fig.axes for label in (*ax.get_xticklabels(), *ax.get_yticklabels())]
    # Twice the 6.5 points of paper.mplstyle.
    assert len(labels) > 8 and {label.get_fontsize() for label in labels} == {13.0}


@pytest.mark.parametrize(("num_columns", "shape"), [(1, (6, 1)), (2, (3, 2)), (9, (1, 6))])
def test_panels_stand_in_as_many_columns_as_asked(num_columns, shape):
    fig = figure3(samples(), page_options=PageOptions(num_columns=num_columns, width=12))
    grid = fig.axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == shape


@pytest.mark.parametrize("extent", [3.0, 250.0, 1.7e6])
def test_a_linear_axis_has_equal_steps_of_round_numbers_around_zero(extent):
    axis = LinearAxis.fit(np.array([-0.3 * extent, extent]))
    values = np.linspace(-extent, extent, 9)
    np.testing.assert_allclose(axis.inverse(axis.forward(values)), values, rtol=1e-14)
    np.testing.assert_allclose(np.diff(axis.forward(values), 2), 0, atol=1e-12)
    ticks = axis.ticks(-0.3 * extent, extent, gap=2.0)
    steps = np.diff(ticks.major)
    np.testing.assert_allclose(steps, steps[0])
    mantissa = steps[0] / 10.0 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert round(mantissa, 9) in (1, 2, 5) and 0.0 in ticks.major
    assert steps[0] / axis.linear_width >= 2.0
    assert [float(label.replace("−", "-")) for label in ticks.labels] == pytest.approx(ticks.major)


def test_linear_panels_are_linear_and_say_so():
    fig = figure3(samples(), page_options=PageOptions(linear=True))
    assert {ax.get_xscale() for ax in fig.axes} == {"linear"}
    assert "asinh" not in fig.get_supxlabel() + fig.get_supylabel()
    x, y = fig.axes[0].lines[-1].get_data()
    # Areas are shares: in the drawn coordinate every curve encloses 1.
    width = LinearAxis.fit(samples(1)[0].values).linear_width
    assert np.trapezoid(np.nan_to_num(y), x / width) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 0.5}, "width must be from 1 to 50"),
        ({"font_size": math.nan}, "font_size must be"),
        ({"num_columns": 0}, "num_columns must be"),
    ],
)
def test_sizes_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        PageOptions(**options)


def test_panels_without_room_say_how_much_is_missing():
    with pytest.raises(ValueError, match="3 panels side by side need .* inches more") as refused:
        figure3(samples(), page_options=PageOptions(width=2))
    missing = float(str(refused.value).split("need ")[1].split()[0])
    figure3(samples(), page_options=PageOptions(width=2 + missing + 0.06))


def test_the_axes_of_the_figure_and_of_the_report_are_the_same(study):
    fig = sharpness(summarize_stores([study], metrics=list(PANELS), num_resamples=199))
    page = read_study(study, num_resamples=199)
    charts = metric_charts(page, dict.fromkeys(page.series, line_styles()[0]))
    for ax, name in zip(fig.axes, PANELS, strict=True):
        axis = charts[name].layout["yaxis"]
        is_log = axis.get("type") == "log"
        assert (ax.get_yscale() == "log") is is_log
        ends = [10.0**end for end in axis["range"]] if is_log else axis["range"]
        assert list(ax.get_ylim()) == pytest.approx(ends, rel=0.05)
        if is_log:
            assert list(ax.get_yticks()) == pytest.approx(axis["tickvals"])


@pytest.mark.parametrize(
    ("numbers", "is_log"), [((1, 7.9), False), ((1, 8.1), True), ((0, 100), False)]
)
def test_an_axis_is_logarithmic_from_a_factor_of_eight(numbers, is_log):
    axis = ValueRange.of([*numbers, math.nan])
    assert axis.is_log is is_log and axis.low <= numbers[0] and axis.high > numbers[1]
    assert not ValueRange.of(numbers, linear=True).is_log


@pytest.mark.parametrize(
    ("draw", "drawn"),
    [(loss_slice, bent), (loss_contour, saddle), (loss_surface_3d, saddle)],
)
def test_slices_and_surfaces_take_width_and_letters_and_keep_their_shape(draw, drawn):
    plain, large = draw(drawn()), draw(drawn(), page_options=PageOptions(width=9, font_size=10.5))
    assert large.get_figwidth() == pytest.approx(9)
    for fig in (plain, large):
        fig.draw_without_rendering()
    assert sizes_of(large) == {round(1.5 * size, 6) for size in sizes_of(plain)}
    if draw is not loss_slice:
        boxes = [fig.axes[0].get_position().size * fig.get_size_inches() for fig in (plain, large)]
        assert boxes[1][0] / boxes[1][1] == pytest.approx(boxes[0][0] / boxes[0][1])
    assert_whole(large)


def run(*arguments: object, exit_code: int = 0) -> str:
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result.output


def test_the_commands_take_sizes_for_every_kind_that_has_them(study, tmp_path):
    folder = write_all(tmp_path / "all")
    written(tmp_path / "m.jsonl", [measured(0), measured(5)])
    for name, file, options in (
        ("figure3", study, ("--columns", "2")),
        ("sharpness", study, ("--columns", "1", "--linear")),
        ("modules", folder / "spectra.h5", ()),
        ("training", tmp_path / "m.jsonl", ("--linear",)),
    ):
        output = tmp_path / f"{name}.png"
        more = ("--keep-unconverged", "--width", "6", "--font-size", "8", *options)
        run("figure", file, "-o", output, "--kind", name, *more)
        # Figures are saved with 300 points per inch.
        assert Image.open(output).size[0] == 1800


@pytest.mark.parametrize(
    ("kind", "option"),
    [("modules", ("--linear",)), ("training", ("--columns", "2")), ("ood", ("--width", "5"))],
)
def test_options_without_effect_are_refused(study, tmp_path, kind, option):
    said = run("figure", study, "-o", tmp_path / "a.png", "--kind", kind, *option, exit_code=2)
    assert f"{option[0]} has no effect" in said and not (tmp_path / "a.png").exists()
