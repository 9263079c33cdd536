"""Figure 3: what is drawn, measured on the artists of the figure and on the bytes of its files.

Truth: SciPy's kernel density and integration, brute force for the choice of epochs, published
matrices of colour blindness. The samples imitate measured spectra of a small CLIP (top 5 at
initialisation +1223 +570 +504 -428 -374; trained 566 418 257 174 139; late 30 5.0 4.3 3.1 2.9).
"""

import io
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from scipy import integrate, stats

from landscape.errors import StoreError
from landscape.figures import (
    MAX_SERIES,
    PUBLISHED_EPOCHS,
    AsinhAxis,
    EigenvalueSample,
    bandwidth,
    epochs_to_draw,
    figure3,
    kernel_density,
    save_figure,
)
from landscape.figures.style import paper_style

AT_START = np.array([1222.9, 570.3, 504.0, -428.4, -374.0])
TRAINED = np.array([566.0, 418.0, 257.0, 174.0, 139.0])
LATE = np.array([29.67, 4.97, 4.25, 3.14, 2.85])


def sample(
    series, epoch, *, values=None, num_batches=40, scale=1.0, label=None, planned=None, seed=0
):
    if values is None:
        rng = np.random.default_rng([seed, epoch, len(series), ord(series[-1])])
        progress = min(epoch, 25) / 25
        centre = AT_START if epoch == 0 else TRAINED ** (1 - progress) * LATE**progress
        values = scale * centre * np.exp(rng.standard_t(4, (num_batches, 5)) * 0.3)
        values[:, 3:] *= np.where(rng.random((num_batches, 2)) < 0.5 * (1 - progress), -1, 1)
    values = np.asarray(values, dtype=np.float64)
    converged = np.ones(values.shape, dtype=bool)
    return EigenvalueSample(
        series, label or f"Model {series}", epoch, values, converged, planned or len(values)
    )


def study(names="ab", epochs=PUBLISHED_EPOCHS, **options):
    return [
        sample(name, epoch, scale=1.5**i, **options)
        for i, name in enumerate(names)
        for epoch in epochs
    ]


def panels(fig):
    return [ax for ax in fig.axes if ax.axison]


def curves(ax):
    """The density curves: the lines with data, as against the zero lines."""
    return [line for line in ax.lines if len(line.get_xdata()) > 2]


def drawn_coordinate(ax):
    """Eigenvalue -> u, from the label that the reader sees."""
    text = ax.figure.get_supxlabel()
    width = float(text.rsplit("/", 1)[1].rstrip(") ")) if "/" in text else 1.0
    return lambda x: np.arcsinh(np.asarray(x) / width)


def panel_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else []


def footnote(fig):
    return " ".join(" ".join(text.get_text().split()) for text in fig.texts)


def render(fig):
    with paper_style():
        canvas = FigureCanvasAgg(fig)
        canvas.draw()
    return canvas.get_renderer()


# --- which epochs ---------------------------------------------------------------------------------


def test_the_published_epochs_are_drawn_when_all_of_them_were_measured():
    assert epochs_to_draw(range(31)) == (0, 5, 10, 15, 20, 25)
    assert epochs_to_draw([25, 0, 15, 10, 5, 20, 20]) == PUBLISHED_EPOCHS


def test_few_epochs_are_all_drawn_in_order():
    assert epochs_to_draw([3, 0, 1]) == (0, 1, 3)
    assert epochs_to_draw([7]) == (7,)
    assert epochs_to_draw([]) == ()


@pytest.mark.parametrize(
    "available",
    [range(8), range(13), [0, 1, 2, 3, 50, 99, 100], [1, 2, 4, 8, 16, 32, 64], range(3, 20, 2)],
)
def test_other_series_are_drawn_at_first_last_and_the_most_evenly_spread_epochs(available):
    available = sorted(available)
    chosen = epochs_to_draw(available)
    targets = np.linspace(available[0], available[-1], 6)
    cost = {
        c: float(np.sum((np.array(c) - targets) ** 2)) for c in itertools.combinations(available, 6)
    }
    assert chosen in cost and chosen[0] == available[0] and chosen[-1] == available[-1]
    assert cost[chosen] == pytest.approx(min(cost.values()))


# --- coordinate and smoothing ---------------------------------------------------------------------


def test_the_density_equals_scipys_at_the_same_bandwidth():
    u = np.concatenate(
        [stats.norm.rvs(-5, 0.4, 300, random_state=0), stats.t.rvs(3, 6, 0.5, 700, random_state=1)]
    )
    grid = np.linspace(-12, 20, 400)
    width = bandwidth(u, floor=1e-6)
    expected = stats.gaussian_kde(u, bw_method=width / np.std(u, ddof=1))(grid)
    np.testing.assert_allclose(
        kernel_density(u, grid, width=width), expected, rtol=1e-10, atol=1e-14
    )


def test_the_density_is_scipys_also_beyond_one_chunk():
    rng = np.random.default_rng(3)
    u, grid = rng.normal(0, 2, 9000), np.linspace(-9, 9, 40)
    expected = stats.gaussian_kde(u, bw_method=0.3 / np.std(u, ddof=1))(grid)
    np.testing.assert_allclose(kernel_density(u, grid, width=0.3), expected, rtol=1e-10, atol=1e-14)


def test_the_bandwidth_is_silvermans_for_values_of_one_sign():
    u = stats.norm.rvs(50, 0.7, 2000, random_state=2)
    expected = 0.9 * min(np.std(u), stats.iqr(u) / 1.34) * len(u) ** -0.2
    assert bandwidth(u, floor=0.0) == pytest.approx(expected, rel=1e-12)


def test_the_bandwidth_does_not_grow_with_the_gap_between_the_signs():
    u = stats.norm.rvs(0, 0.3, 500, random_state=3)
    near = np.concatenate([u - 3, u + 3])
    far = np.concatenate([u - 30, u + 30])
    assert bandwidth(far, floor=0.0) == pytest.approx(bandwidth(near, floor=0.0), rel=1e-9)


def test_a_few_scattered_values_are_not_smeared_over_the_axis():
    fig = figure3(study("a", (0,)) + [sample("b", 0, values=[[1e9, 3.0, 2.0]])])
    line = curves(panels(fig)[0])[1]
    drawn = np.asarray(line.get_xdata())[np.nan_to_num(line.get_ydata()) > 0]
    # Four widths of at most half a unit of u beside a value, where the axis has some 20 units
    # between the values.
    assert not np.any((drawn > 1e4) & (drawn < 1e7))


def test_the_axis_maps_back_and_keeps_signs_and_zero():
    axis = AsinhAxis.fit(np.array([1222.9, -428.4, 5.0, 0.0]))
    values = np.array([-1e6, -428.4, 0.0, 1e-9, 3.0, 1e9])
    np.testing.assert_allclose(axis.inverse(axis.forward(values)), values, rtol=1e-12, atol=0)
    assert np.all(np.sign(axis.forward(values)) == np.sign(values))


@pytest.mark.parametrize(
    ("values", "width"),
    [
        ([0.0, 0.0], 1.0),
        ([3.0, 3.0, -3.0], 2.0),
        ([0.5] * 9, 0.5),
        ([1e-9] * 2 + [700.0] * 9, 0.5),
        ([1e-30, -1e-30], 1e-30),
    ],
)
def test_the_linear_width_is_a_round_number_below_the_data_that_tiny_values_do_not_drag_down(
    values, width
):
    assert AsinhAxis.fit(np.array(values)).linear_width == pytest.approx(width, rel=1e-9)


@pytest.mark.parametrize(
    "low,high,width",
    [
        (-2e3, 5e3, 2),
        (-1, 1, 1),
        (-7e3, 9e4, 5),
        (-400, 2e9, 50),
        (-2.1, 4.2, 2),
        (-1e-7, 3e-6, 1e-8),
    ],
)
def test_ticks_are_true_to_their_labels_inside_the_axis_and_no_closer_than_the_gap(
    low, high, width
):
    axis = AsinhAxis(float(width))
    gap = 0.27 / 1.99 * (math.asinh(high / width) - math.asinh(low / width))
    ticks = axis.ticks(low, high, gap=gap)
    labelled = {tick: text for tick, text in zip(ticks.major, ticks.labels, strict=True) if text}
    assert 0.0 in labelled and len(labelled) >= 3
    assert all(low <= tick <= high for tick in ticks.major + ticks.minor)
    assert np.diff(np.arcsinh(np.array(sorted(labelled)) / width)).min() >= gap * (1 - 1e-9)
    for tick, text in labelled.items():
        number = (
            text.strip("$")
            .replace("\N{MINUS SIGN}", "-")
            .replace(r"{\times}10", "*10")
            .replace("10^{", "10**(")
        )
        assert eval(number.replace("}", ")")) == pytest.approx(tick, rel=1e-9)


# --- structure ------------------------------------------------------------------------------------


def test_the_published_series_gives_six_titled_panels_with_one_curve_per_architecture():
    fig = figure3(study("abc"))
    assert [ax.get_title(loc="left") for ax in panels(fig)] == ["Initialisation"] + [
        f"Epoch {e}" for e in (5, 10, 15, 20, 25)
    ]
    for ax in panels(fig):
        assert [line.get_label() for line in curves(ax)] == ["Model a", "Model b", "Model c"]


def test_all_panels_have_the_same_limits_and_zero_is_inside_with_room_on_both_sides():
    fig = figure3(study("ab"))
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in panels(fig)}) == 1
    low, high = panels(fig)[0].get_xlim()
    assert low < 0 < high


def test_positive_values_alone_still_show_an_empty_negative_side():
    fig = figure3([sample("a", 0, values=[[100.0, 90, 80, 70, 60]] * 3)])
    ax = panels(fig)[0]
    left, right = drawn_coordinate(ax)(ax.get_xlim())
    assert -left > 0.1 * (right - left)
    assert panel_texts(ax) == ["0 %"]


def test_the_legend_names_every_series_and_labels_carry_the_unit_and_the_coordinate():
    fig = figure3(study("abcd"), title="A title")
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        f"Model {name}" for name in "abcd"
    ]
    assert (
        "Hessian eigenvalue" in fig.get_supxlabel()
        and "(nat per squared parameter)" in fig.get_supxlabel()
    )
    coordinate = fig.get_supxlabel().split("drawn at ")[1]
    assert (
        coordinate.startswith("asinh(")
        and fig.get_supylabel() == f"Density per unit of {coordinate}"
    )
    assert fig.get_suptitle() == "A title"


@pytest.mark.parametrize(
    "label", ["_hidden", "costs $5 or $x_y", "$\\nosuch{$", "ViT " * 40, "W" * 120]
)
def test_any_text_can_be_a_label(label):
    fig = figure3([sample("a", 0, label=label), sample("b", 0)])
    assert "".join(fig.legends[0].get_texts()[0].get_text().split()) == label.replace(" ", "")
    renderer = render(fig)
    assert all(
        fig.bbox.padded(1).containsx(x)
        for x in fig.legends[0].get_window_extent(renderer).intervalx
    )


def test_two_series_with_the_same_label_are_told_apart_by_name():
    fig = figure3([sample("a", 0, label="ViT"), sample("b", 0, label="ViT")])
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["ViT (a)", "ViT (b)"]


@pytest.mark.parametrize(
    "samples", [study("ab"), study("a", num_batches=1), study("abcde", (0, 1, 2)), study("a", (0,))]
)
def test_every_curve_encloses_area_one_in_the_coordinate_it_is_drawn_in(samples):
    fig = figure3(samples)
    for ax in panels(fig):
        for line in curves(ax):
            u = drawn_coordinate(ax)(line.get_xdata())
            # 3 kernel widths around the last value hold 99.87 % of its kernel; lines stop at 0.1 %
            # of the peak.
            assert integrate.simpson(np.nan_to_num(line.get_ydata()), x=u) == pytest.approx(
                1, abs=5e-3
            )


def test_nothing_that_was_measured_lies_outside_the_axes():
    samples = study("ab")
    samples[3].values[0, 0] = 1e8
    fig = figure3(samples)
    low, high = panels(fig)[0].get_xlim()
    assert all(low < s.values.min() and s.values.max() < high for s in samples)
    top = panels(fig)[0].get_ylim()[1]
    assert all(np.nanmax(line.get_ydata()) < top for ax in panels(fig) for line in curves(ax))
    assert "Beyond the axis" not in footnote(fig)


def test_every_value_has_its_tick_within_the_resolution_of_print():
    s = sample("a", 0, num_batches=7)
    fig = figure3([s])
    ax = panels(fig)[0]
    to_u = drawn_coordinate(ax)
    ticks = to_u(next(p for p in ax.patches if not p.get_fill()).get_path().vertices[::2, 0])
    span = np.ptp(to_u(ax.get_xlim()))
    assert np.abs(to_u(s.values.ravel())[:, None] - ticks[None, :]).min(axis=1).max() <= span / 1000


def test_values_that_are_clipped_away_are_counted_in_the_footnote_and_in_the_curves():
    samples = study("ab")
    samples[0].values[0, 0], samples[0].values[1, 0] = 1e8, -1e8
    fig = figure3(samples, clip_quantile=0.01)
    low, high = panels(fig)[0].get_xlim()
    beyond = sum(int(np.count_nonzero((s.values < low) | (s.values > high))) for s in samples)
    assert beyond >= 2 and high < 1e8 and low > -1e8
    assert f"Beyond the axis, but part of the curves: {beyond} values." in footnote(fig)
    assert "Each curve: 200 eigenvalues" in footnote(fig)


def test_each_panel_states_the_share_of_negative_values_of_each_curve():
    samples = [
        sample("a", 0, values=np.full((2, 5), 2.0)),
        sample("b", 0, values=[[-3.0, 2, 2, 2, 0]]),
        sample("c", 0),
    ]
    samples[2].values[:] = 5.0
    samples[2].values[0, 0] = -5.0
    fig = figure3(samples)
    assert panel_texts(panels(fig)[0]) == ["0 %", "20 %", "< 1 %"]


def test_a_missing_epoch_leaves_its_curve_out_and_the_panel_says_so():
    fig = figure3(study("a", (0, 1, 2)) + [sample("b", 0), sample("b", 2)])
    assert [len(curves(ax)) for ax in panels(fig)] == [2, 1, 2]
    assert panel_texts(panels(fig)[1])[1] == "not measured"
    assert len(fig.legends[0].get_texts()) == 2


def test_gaps_are_visible_with_many_series_too():
    samples = study("abcdefgh", (0, 1))
    del samples[-1]
    fig = figure3(samples)
    assert [panel_texts(ax) for ax in panels(fig)] == [[], ["not measured"]]
    assert [len(curves(ax)) for ax in panels(fig)] == [8, 7]


def test_failed_and_unconverged_values_are_left_out_and_counted():
    samples = study("ab", (0, 1))
    samples[0].values[3] = np.nan
    samples[1].values[0, 0] = np.inf
    samples[2].converged[:4] = False
    fig = figure3(samples)
    assert "Each curve: 180\N{EN DASH}200 eigenvalues" in footnote(fig)
    assert "Left out: 6 values that are not finite." in footnote(fig)
    assert "Left out: 20 values that did not converge." in footnote(fig)
    kept = figure3(samples, keep_unconverged=True)
    assert "Each curve: 195\N{EN DASH}200 eigenvalues" in footnote(kept)
    assert "Drawn: 20 values that did not converge." in footnote(kept)


def test_a_checkpoint_without_one_usable_value_says_why():
    samples = study("abc", (0,))
    samples[1].values[:] = np.nan
    samples[2].converged[:] = False
    fig = figure3(samples)
    assert panel_texts(panels(fig)[0])[1:] == ["no finite value", "none converged"]
    assert len(curves(panels(fig)[0])) == 1


def test_an_unfinished_run_is_named():
    fig = figure3(study("a", (0, 1)) + [sample("b", e, num_batches=12, planned=40) for e in (0, 1)])
    assert "Unfinished: Model b, 12 of 40 batches at epochs 0, 1." in footnote(fig)


def test_an_unaudited_figure_is_stamped_and_an_audited_one_is_not():
    assert "NOT AUDITED" in footnote(figure3(study("a", (0,)), unaudited=True))
    assert "NOT AUDITED" not in footnote(figure3(study("a", (0,))))


@pytest.mark.parametrize(
    "samples",
    [
        [sample("a", 0, values=np.full((4, 5), 3.0))],
        [sample("a", 0, values=np.zeros((4, 5))), sample("a", 1, values=np.zeros((4, 5)))],
        [sample("a", 0, values=-np.abs(AT_START)[None])],
        [sample("a", 0, values=[[7.0]])],
        [
            sample("a", 0, values=np.full((2, 5), 1e-300)),
            sample("b", 0, values=np.full((2, 5), -1e300)),
        ],
        [sample("a", 0), sample("b", 0, values=np.full((40, 5), 12.0))],
        [sample("a", 3), sample("a", 1000)],
    ],
    ids=[
        "identical",
        "zero",
        "all negative",
        "one value",
        "extreme",
        "one series constant",
        "no epoch zero",
    ],
)
def test_degenerate_samples_are_drawn_with_finite_curves(samples):
    fig = figure3(samples)
    render(fig)
    for ax in panels(fig):
        assert np.isfinite(ax.get_xlim() + ax.get_ylim()).all()
        assert all(np.nanmax(line.get_ydata()) > 0 for line in curves(ax)) and len(curves(ax)) >= 1


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_there_is_a_panel_per_epoch_and_the_lowest_of_each_column_has_tick_labels(count):
    fig = figure3(study("a", range(count), num_batches=3))
    render(fig)
    assert len(panels(fig)) == count
    bottoms = {}
    for ax in panels(fig):
        column = round(ax.get_position().x0, 3)
        bottoms[column] = min(bottoms.get(column, ax), ax, key=lambda a: a.get_position().y0)
    assert all(
        any(t.get_text() and t.get_visible() for t in ax.get_xticklabels())
        for ax in bottoms.values()
    )


def test_chosen_epochs_replace_the_rule():
    fig = figure3(study("ab", range(10)), epochs=[9, 0])
    assert [ax.get_title(loc="left") for ax in panels(fig)] == ["Initialisation", "Epoch 9"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: figure3([]), "none"),
        (lambda: figure3(study("a", (0,)), epochs=[4]), r"\[4\]; measured are \[0\]"),
        (lambda: figure3(study("a", (0,)), epochs=[]), "measured are"),
        (lambda: figure3(study("a", (0,)) * 2), "'a' has more than one sample for epoch 0"),
        (lambda: figure3(study("abcdefghi", (0,))), f"9 series, but more than {MAX_SERIES}"),
        (lambda: figure3(study("a", (0,)), clip_quantile=0.5), "clip_quantile"),
        (
            lambda: EigenvalueSample("a", "A", -1, np.ones((2, 5)), np.ones((2, 5), bool), 2),
            "epoch must be 0",
        ),
        (lambda: sample("a", 0, planned=3), "planned"),
        (
            lambda: EigenvalueSample("a", "A", 0, np.ones((2, 5)), np.ones((2, 4), bool), 2),
            r"\(2, 5\) and \(2, 4\)",
        ),
        (lambda: epochs_to_draw([0], num_panels=1), "num_panels"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_given(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_study_in_which_nothing_converged_is_refused_with_what_to_do():
    samples = study("a", (0, 1))
    for s in samples:
        s.converged[:] = False
    with pytest.raises(StoreError, match="none of the 400 eigenvalues .* max_matvecs"):
        figure3(samples)


# --- legibility -----------------------------------------------------------------------------------

LAYOUTS = {
    "six panels": dict(samples=study("ab")),
    "demo": dict(samples=study("ab", (0, 1, 2, 3), num_batches=10)),
    "one panel": dict(samples=study("a", (0,), num_batches=1)),
    "eight series, stamp, title": dict(
        samples=study("abcdefgh"), title="Spectra " * 14, unaudited=True
    ),
    "tall negative side": dict(
        samples=[sample(s, 0, values=-np.linspace(20, 40, 200).reshape(40, 5)) for s in "abcd"]
    ),
    "tall on both sides": dict(
        samples=[sample(s, 0, values=np.linspace(20, 40, 200).reshape(40, 5)) for s in "abc"]
    ),
    "wide labels": dict(samples=[sample(s, 0, label="WWWWWWWWWWWWW " + s) for s in "abcde"]),
    "outlier": dict(
        samples=study("ab", (0, 1, 2, 3, 4)) + [sample("c", 0, values=[[1e9, 3.0, 2.0]])]
    ),
}


for _sample in LAYOUTS["tall on both sides"]["samples"]:
    _sample.values[::2] *= -1


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_no_text_is_cut_off_or_covers_another_text_or_a_curve(layout):
    fig = figure3(**layout)
    renderer = render(fig)
    boxes = [fig.legends[0].get_window_extent(renderer)] + [
        text.get_window_extent(renderer) for text in fig.texts
    ]
    for ax in panels(fig):
        texts = [*ax.get_xticklabels(), *ax.get_yticklabels(), ax._left_title]
        boxes += [text.get_window_extent(renderer) for text in texts if text.get_text()]
        remarks = ax.get_legend()
        if remarks is not None:
            box = remarks.get_window_extent(renderer)
            boxes.append(box)
            for line in curves(ax):
                points = line.get_transform().transform(
                    np.column_stack([line.get_xdata(), line.get_ydata()])
                )
                assert not any(box.contains(x, y) for x, y in points)
    page = fig.bbox.padded(0.5)
    assert all(
        page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 and b.y1 <= page.y1 for b in boxes
    )
    boxes = [b.padded(-0.5) for b in boxes]
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


# Machado, Oliveira and Fernandes, IEEE TVCG 15 (2009), table 1, severity 1, in linear RGB.
DEUTERANOPIA = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)
PROTANOPIA = np.array(
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
)
RGB_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear_rgb(colour):
    c = np.array(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIE 1976 L*a*b* of linear RGB, D65."""
    xyz = RGB_TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(
    "vision", [np.eye(3), DEUTERANOPIA, PROTANOPIA], ids=["normal", "deuteranopia", "protanopia"]
)
def test_the_colours_stay_apart_for_the_colour_blind(vision):
    fig = figure3(study("abcdefgh", (0,)))
    seen = [lab(vision @ linear_rgb(line.get_color())) for line in curves(panels(fig)[0])]
    # A just noticeable difference is about 2.3; ten times that is told apart in thin lines, 18 is
    # what eight colours allow.
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) >= 18
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen[:3], 2)) >= 23


def test_curves_are_told_apart_without_colour_and_stand_out_from_white():
    fig = figure3(study("abcdefgh", (0,)))
    lines = curves(panels(fig)[0])
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == MAX_SERIES
    luminance = [RGB_TO_XYZ[1] @ linear_rgb(line.get_color()) for line in lines]
    # Contrast against white as WCAG 2.1 defines it; it asks 3:1 of graphics, which the pale ones of
    # Okabe and Ito miss.
    contrast = [1.05 / (y + 0.05) for y in luminance]
    assert min(contrast[:4]) >= 3 and min(contrast) >= 2.2


# --- files ----------------------------------------------------------------------------------------

SAVE = """
import numpy as np
from landscape.figures import EigenvalueSample, figure3, save_figure
values = np.random.default_rng(0).normal(3, 30, (20, 5))
samples = [EigenvalueSample("a", "A", e, values * (e + 1), values > -1e9, 20) for e in (0, 1)]
fig = figure3(samples, title="T")
for suffix in ("svg", "pdf", "png"):
    save_figure(fig, folder / f"figure.{suffix}")
"""


def test_the_same_numbers_give_the_same_bytes_in_every_process(tmp_path, monkeypatch):
    exec(SAVE, {"folder": tmp_path / "one"})
    monkeypatch.setenv("PYTHONHASHSEED", "1" if hash("a") % 2 else "2")
    # matplotlib takes the date of a file from here if it writes one.
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "200")
    script = f"{SAVE}\nimport sys; assert 'matplotlib.pyplot' not in sys.modules"
    script = f"import pathlib; folder = pathlib.Path({str(tmp_path / 'two')!r})\n{script}"
    subprocess.run([sys.executable, "-c", script], check=True)
    for suffix in ("svg", "pdf", "png"):
        one, two = ((tmp_path / name / f"figure.{suffix}").read_bytes() for name in ("one", "two"))
        assert one == two and len(one) > 5000


def test_drawing_the_same_samples_twice_in_one_process_gives_the_same_bytes(tmp_path):
    for suffix in ("svg", "pdf"):
        for name in "ab":
            save_figure(figure3(study("ab", (0, 1))), tmp_path / f"{name}.{suffix}")
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_files_are_what_their_suffix_says_with_fonts_inside(tmp_path):
    fig = figure3(study("ab", (0, 1)))
    for suffix in ("png", "pdf", "svg", "PNG"):
        save_figure(fig, tmp_path / f"figure.{suffix}")
    assert (
        (tmp_path / "figure.PNG").read_bytes()[:8]
        == (tmp_path / "figure.png").read_bytes()[:8]
        == b"\x89PNG\r\n\x1a\n"
    )
    pdf = (tmp_path / "figure.pdf").read_bytes()
    # Type 42 embeds TrueType; Type 3, matplotlib's default, is refused by some journals.
    assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf and b"/Type3" not in pdf
    svg = (tmp_path / "figure.svg").read_text()
    assert "<svg" in svg and "<text" not in svg and "<dc:date" not in svg


def test_an_svg_viewer_other_than_matplotlib_sees_every_line(tmp_path):
    resvg_py = pytest.importorskip("resvg_py")
    from matplotlib.image import imread

    save_figure(figure3([sample("a", 0)]), tmp_path / "figure.svg")
    picture = resvg_py.svg_to_bytes(
        svg_string=(tmp_path / "figure.svg").read_text(), dpi=192.0, background="white"
    )
    pixels = imread(io.BytesIO(bytes(picture)))[..., :3]
    blue = np.abs(pixels - np.array(to_rgb("#0072B2"))).max(axis=-1) < 0.02
    # The curve alone: above the ticks, which have the same colour and lie in the lowest quarter of
    # the page's panel.
    assert blue[: blue.shape[0] // 2].sum() > 200


def test_another_suffix_is_refused_with_the_list(tmp_path):
    with pytest.raises(ValueError, match=r"'.jpg'.*\.png, \.pdf, \.svg"):
        save_figure(figure3(study("a", (0,))), tmp_path / "figure.jpg")
    with pytest.raises(ValueError, match="suffix must be"):
        save_figure(figure3(study("a", (0,))), tmp_path / "figure")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    fig, path = figure3(study("a", (0,))), tmp_path / "figure.png"
    path.write_bytes(b"old")

    def half_written(stream, **options):
        stream.write(b"half")
        raise RuntimeError("interrupted")

    monkeypatch.setattr(fig, "savefig", half_written)
    with pytest.raises(RuntimeError, match="interrupted"):
        save_figure(fig, path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_made_and_an_impossible_one_is_one_line(tmp_path):
    fig = figure3(study("a", (0,), num_batches=2))
    save_figure(fig, tmp_path / "new" / "folder" / "figure.svg")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot be written") as caught:
        save_figure(fig, tmp_path / "file" / "figure.svg")
    assert "\n" not in str(caught.value)


def test_drawing_and_saving_leave_the_settings_of_the_user_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(rcParams, "axes.grid", True)
    before = dict(rcParams)
    save_figure(figure3(study("a", (0,), num_batches=2)), tmp_path / "mine.svg")
    assert dict(rcParams) == before
    monkeypatch.setitem(rcParams, "axes.grid", False)
    save_figure(figure3(study("a", (0,), num_batches=2)), tmp_path / "default.svg")
    assert (tmp_path / "mine.svg").read_bytes() == (tmp_path / "default.svg").read_bytes()


def test_the_room_is_imported_without_matplotlib_and_torch():
    code = (
        "import sys, landscape.figures; sys.exit(bool({'matplotlib', 'torch', 'scipy'} & "
        "set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
