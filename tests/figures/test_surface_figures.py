"""Figures of slices, surfaces and modules: what is drawn, measured on the artists, and whether all
of it can be read.
"""

import itertools
import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from landscape.figures import (
    ModuleSample,
    contour_levels,
    loss_contour,
    loss_slice,
    loss_surface_3d,
    module_heat_map,
    save_figure,
)
from landscape.figures.loss_surfaces import level_labels
from landscape.figures.page import MEASURED, PREDICTED
from landscape.surface import (
    Axis,
    CurvatureFit,
    LocalModel,
    LossSlice,
    LossSurface,
    centred,
)
from tests.figures.test_figures import render

NOTE = "Loss of one batch of 15 pairs, in nats. " * 6


def axis_of(coordinates, number=1, eigenvalue=math.nan):
    fit = CurvatureFit(value=eigenvalue, error=0.1, step=0.1)
    return Axis(
        name=f"eigenvector {number}",
        unit="Euclidean length",
        coordinates=coordinates,
        norm=1.0,
        eigenvalue=eigenvalue,
        fit=fit,
    )


def slice_of(losses, *, eigenvalue=6.0, slope=0.5, computed=None):
    losses = np.asarray(losses, dtype=np.float64)
    x = centred(len(losses), 1.0)
    centre = losses[len(x) // 2]
    local = LocalModel(loss=centre, slopes=np.array([slope]), hessian=np.array([[eigenvalue]]))
    computed = np.ones(len(x), dtype=bool) if computed is None else computed
    return LossSlice(
        axis=axis_of(x, eigenvalue=eigenvalue), losses=losses, computed=computed, local=local
    )


def bent(points=21):
    x = centred(points, 1.0)
    return slice_of(2 + 0.5 * x + 3 * x**2 - 1.5 * x**4)


def line_of(losses):
    t = np.linspace(0, 1, len(losses))
    axis = Axis(name="epoch 0 to epoch 9", unit="share of the way", coordinates=t, norm=2.0)
    return LossSlice(
        axis=axis, losses=np.asarray(losses, dtype=np.float64), computed=np.ones(len(t), dtype=bool)
    )


def surface_of(function, *, points=15, eigenvalues=(6.0, -2.0), span=1.0):
    x = centred(points, span)
    losses = np.array([[function(a, b) for b in x] for a in x], dtype=np.float64)
    local = LocalModel(
        loss=float(losses[points // 2, points // 2]),
        slopes=np.zeros(2),
        hessian=np.diag(eigenvalues),
    )
    axes = (axis_of(x, 1, eigenvalues[0]), axis_of(x, 2, eigenvalues[1]))
    computed = np.ones(losses.shape, dtype=bool)
    return LossSurface(axes=axes, losses=losses, computed=computed, local=local, cosine=0.0)


def saddle(**options):
    return surface_of(lambda a, b: 2 + 3 * a**2 - b**2 + 0.3 * a**3, **options)


def lines_of(ax, style):
    return [
        line for line in ax.lines if line.get_color() == style["color"] and len(line.get_xdata())
    ]


def legend_texts(fig):
    return [text.get_text() for text in fig.legends[0].get_texts()]


# --- slices ---------------------------------------------------------------------------------------


def test_a_slice_shows_every_measured_point_and_the_predicted_parabola_within_the_axis():
    one = bent()
    fig = loss_slice(one, title="ViT, epoch 2", note=NOTE)
    (ax,) = fig.axes
    (measured,), (predicted,) = lines_of(ax, MEASURED), lines_of(ax, PREDICTED)
    np.testing.assert_array_equal(measured.get_xdata(), one.axis.coordinates)
    np.testing.assert_array_equal(measured.get_ydata(), one.losses)
    x, y = (np.asarray(values) for values in predicted.get_data())
    inside = np.isfinite(y)
    np.testing.assert_allclose(y[inside], 2 + 0.5 * x[inside] + 3 * x[inside] ** 2, rtol=1e-12)
    low, high = ax.get_ylim()
    assert low < one.losses.min() and one.losses.max() < high and np.nanmax(y) <= high
    assert inside[len(x) // 2] and inside.sum() > 50
    assert legend_texts(fig) == ["measured", "predicted from slope and eigenvalue"]
    assert (
        ax.get_xlabel() == "eigenvector 1 (Euclidean length)" and ax.get_ylabel() == "Loss (nats)"
    )


def test_several_slices_share_the_loss_axis_and_one_legend():
    fig = loss_slice([bent(), slice_of(np.linspace(0.1, 5, 9)), bent(11)])
    assert len(fig.axes) == 3 and len({ax.get_ylim() for ax in fig.axes}) == 1
    assert len(fig.legends) == 1 and [ax.get_ylabel() for ax in fig.axes] == ["Loss (nats)", "", ""]


def test_points_that_are_not_finite_are_marked_and_what_is_not_computed_is_a_gap():
    losses = bent().losses.copy()
    losses[3], losses[7], losses[12] = np.inf, np.nan, np.nan
    computed = np.ones(21, dtype=bool)
    computed[12] = False
    one = slice_of(losses, computed=computed)
    fig = loss_slice(one)
    (ax,) = fig.axes
    (crosses,) = [line for line in ax.lines if line.get_marker() == "x"]
    assert list(crosses.get_xdata()) == [one.axis.coordinates[3], one.axis.coordinates[7]]
    assert np.flatnonzero(np.isnan(lines_of(ax, MEASURED)[0].get_ydata())).tolist() == [3, 7, 12]
    assert "not finite" in legend_texts(fig)


def test_losses_over_many_decades_get_a_logarithmic_axis_and_negative_ones_never():
    assert loss_slice(slice_of(np.geomspace(0.1, 100, 9))).axes[0].get_yscale() == "log"
    assert loss_slice(slice_of(np.linspace(-100, 0.1, 9))).axes[0].get_yscale() == "linear"


def test_a_line_shows_its_barrier_with_its_height_over_the_line_between_the_ends():
    losses = [1.0, 2.0, 4.0, 3.0, 2.0]
    fig = loss_slice(line_of(losses))
    (ax,) = fig.axes
    (between,) = lines_of(ax, PREDICTED)
    np.testing.assert_allclose(between.get_ydata(), [1, 1.25, 1.5, 1.75, 2])
    arrow, text = ax.texts
    assert (arrow.xy, arrow.xyann) == ((0.5, 4.0), (0.5, 1.5)) and text.get_text() == "barrier 2.5"
    assert legend_texts(fig) == ["measured", "between the ends"]


def test_a_line_without_a_barrier_or_without_an_end_draws_no_arrow():
    assert not loss_slice(line_of([3.0, 1.0, 0.5, 1.0, 2.0])).axes[0].texts
    assert not loss_slice(line_of([np.nan, 1.0, 0.5, 1.0, 2.0])).axes[0].texts


# --- surfaces -------------------------------------------------------------------------------------


def test_levels_grow_by_a_constant_factor_above_the_lowest_loss_and_hold_every_finite_one():
    losses = np.array([[1.0, 2.0, np.nan], [np.inf, 65.0, 3.0]])
    levels = contour_levels(losses)
    assert levels[0] == 1.0 and levels[-1] == pytest.approx(65.0)
    ratios = (levels[2:] - 1) / (levels[1:-1] - 1)
    assert np.ptp(ratios) < 1e-9 and ratios[0] > 1 and levels[1] - 1 == pytest.approx(1.0)
    flat = contour_levels(np.full((3, 3), 2.0))
    assert (np.diff(flat) > 0).all() and flat[0] == 2.0


def test_levels_that_differ_in_late_digits_are_named_by_their_height_above_the_lowest():
    assert level_labels(np.array([1.0, 1.5, 2.25])) == ("Loss (nats)", ["1", "1.5", "2.25"])
    assert level_labels(np.array([-2.0, -1.9996])) == (
        "Loss (nats)",
        ["\N{MINUS SIGN}2", "\N{MINUS SIGN}1.9996"],
    )
    label, texts = level_labels(3 + np.array([0, 1e-7, 4e-7]))
    assert label == "Loss above 3 (nats)" and texts == [
        "0",
        "1e\N{MINUS SIGN}07",
        "4e\N{MINUS SIGN}07",
    ]


def contours(ax):
    from matplotlib.contour import ContourSet

    sets = [child for child in ax.get_children() if isinstance(child, ContourSet)]
    dashed = [
        one
        for one in sets
        if not one.filled and to_rgb(one.get_edgecolor()[0][:3]) == to_rgb(PREDICTED["color"])
    ]
    return (
        [one for one in sets if one.filled],
        [one for one in sets if not one.filled and one not in dashed],
        dashed,
    )


def test_a_contour_plot_has_the_measured_levels_and_the_predicted_ellipses_at_some_of_them():
    surface = surface_of(lambda a, b: 2 + 3 * a**2 + b**2, eigenvalues=(6.0, 2.0))
    fig = loss_contour(surface, title="ViT", note=NOTE)
    ax, bar = fig.axes
    (filled,), (measured,), (predicted,) = contours(ax)
    levels = contour_levels(surface.losses)
    np.testing.assert_array_equal(filled.levels, levels)
    np.testing.assert_array_equal(measured.levels, levels[1:-1])
    assert set(predicted.levels) <= set(measured.levels) and len(predicted.levels) >= 4
    for level, path in zip(predicted.levels, predicted.get_paths()):
        x, y = path.vertices.T
        # The axes are the first direction, horizontal, and the second; linear interpolation on 201
        # points.
        np.testing.assert_allclose(2 + 3 * x**2 + y**2, level, atol=2e-4)
    assert ax.get_xlabel().startswith("eigenvector 1") and ax.get_ylabel().startswith(
        "eigenvector 2"
    )
    assert bar.get_ylabel() == "Loss (nats)" and len(bar.get_yticklabels()) == len(levels)
    assert legend_texts(fig) == ["measured", "predicted from slopes and eigenvalues", "the model"]


def test_where_the_surface_is_the_quadratic_the_predicted_contours_lie_on_the_measured_ones():
    surface = surface_of(lambda a, b: 2 + 3 * a**2 - b**2, points=41)
    (_, (measured,), (predicted,)) = contours(loss_contour(surface).axes[0])
    drawn = dict(zip(measured.levels.tolist(), measured.get_paths()))
    for level, path in zip(predicted.levels.tolist(), predicted.get_paths()):
        distances = np.linalg.norm(
            path.vertices[:, None] - drawn[level].vertices[None], axis=-1
        ).min(axis=1)
        # Vertices stand where a grid line is crossed: half a spacing of 1/20 apart at most, along
        # the contour.
        assert distances.max() < 0.06


def test_a_surface_marks_what_is_not_finite_and_leaves_grey_what_is_not_computed():
    surface = saddle()
    losses, computed = surface.losses.copy(), surface.computed.copy()
    losses[0, 0], losses[3, 9] = np.inf, np.nan
    losses[10, 2], computed[10, 2] = np.nan, False
    fig = loss_contour(
        LossSurface(axes=surface.axes, losses=losses, computed=computed, local=surface.local)
    )
    (crosses,) = [
        line for line in fig.axes[0].lines if line.get_marker() == "x" and len(line.get_xdata())
    ]
    x = surface.axes[0].coordinates
    assert list(zip(*crosses.get_data())) == [(x[0], x[0]), (x[3], x[9])]
    assert to_rgb(fig.axes[0].get_facecolor()[:3]) == pytest.approx(
        (0.82,) * 3
    ) and "not finite" in legend_texts(fig)
    render(loss_surface_3d(LossSurface(axes=surface.axes, losses=losses, computed=computed)))


def test_a_relief_has_three_labels_and_heights_on_a_logarithm_only_where_they_need_it():
    plain, steep = (
        loss_surface_3d(saddle()),
        loss_surface_3d(surface_of(lambda a, b: math.exp(6 * a))),
    )
    for fig in (plain, steep):
        (ax,) = fig.axes
        labels = (ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel())
        assert labels == (
            "eigenvector 1 (Euclidean length)",
            "eigenvector 2 (Euclidean length)",
            "Loss (nats)",
        )
    assert plain.axes[0].get_zlim()[1] == pytest.approx(saddle().losses.max())
    assert steep.axes[0].get_zlim()[1] == pytest.approx(6 / math.log(10))


# --- modules --------------------------------------------------------------------------------------


def modules_of(series="a", num_modules=5, epochs=(0, 5, 10), names="block"):
    values = np.random.default_rng(len(series)).lognormal(2, 1, (len(epochs), num_modules))
    modules = tuple(f"{names}.{i}" for i in range(num_modules))
    converged = np.ones(values.shape, dtype=bool)
    return ModuleSample(
        series=series,
        label=f"Model {series}",
        modules=modules,
        epochs=epochs,
        values=values,
        converged=converged,
    )


def test_modules_stand_in_order_of_depth_and_epochs_from_left_to_right_on_one_colour_scale():
    samples = [modules_of("a"), modules_of("bb", 9)]
    fig = module_heat_map(samples, title="Sharpness by module")
    panels = fig.axes[:2]
    for ax, one in zip(panels, samples):
        (image,) = ax.images
        np.testing.assert_array_equal(image.get_array().filled(np.nan), one.values.T)
        assert [text.get_text() for text in ax.get_yticklabels()] == list(one.modules)
        assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "5", "10"]
        # The first module is on top.
        assert ax.get_ylim()[0] > ax.get_ylim()[1] and ax.get_title(loc="left") == one.label
        assert image.norm.vmin == min(s.values.min() for s in samples)
        assert image.norm.vmax == max(s.values.max() for s in samples)
    assert "nat per squared parameter" in fig.axes[2].get_ylabel()


def test_values_without_a_certificate_not_positive_or_missing_are_told_apart_and_counted():
    one = modules_of(num_modules=4)
    one.converged[0, 1] = False
    one.values[1, 2], one.values[2, 0] = -3.0, np.nan
    fig = module_heat_map([one])
    ax = fig.axes[0]
    assert [(patch.get_xy(), patch.get_hatch()) for patch in ax.patches] == [
        ((-0.5, 0.5), "/////"),
        ((0.5, 1.5), None),
    ]
    assert ax.images[0].get_array().mask.T.sum() == 3
    texts = {(text.get_position()): text.get_text() for text in ax.texts}
    assert texts[(1, 2)] == "\N{MINUS SIGN}3" and (2, 0) not in texts
    note = " ".join(text.get_text() for text in fig.texts).replace("\n", " ")
    for words in (
        "1 of 12 values did not converge",
        "1 of 12 values are not positive",
        "1 of 12 values were not measured",
    ):
        assert words in note


def test_numbers_are_left_out_of_cells_that_are_too_small_for_them():
    assert not module_heat_map([modules_of(epochs=tuple(range(12)))]).axes[0].texts


# --- all of them ----------------------------------------------------------------------------------

FIGURES = {
    "slice": lambda: loss_slice(bent(), title="ViT, epoch 2", note=NOTE),
    "three slices": lambda: loss_slice(
        [bent(), bent(9), slice_of(np.linspace(1, 90, 7))], title="T " * 60, note=NOTE
    ),
    "line": lambda: loss_slice(
        line_of([1.0, 2.0, 4.0, 3.0, 2.0]), title="ViT, from epoch 0 to epoch 9", note=NOTE
    ),
    "early barrier": lambda: loss_slice(line_of([1.0, 9.0, 4.0, 3.0, 2.0]), note=NOTE),
    "contour": lambda: loss_contour(saddle(), title="ViT, epoch 2", note=NOTE),
    "small losses": lambda: loss_contour(
        surface_of(lambda a, b: 1e-5 * (a * a + b * b) - 3e-6, span=1e-4), note=NOTE
    ),
    "relief": lambda: loss_surface_3d(saddle(), title="ViT, epoch 2", note=NOTE),
    "steep relief": lambda: loss_surface_3d(
        surface_of(lambda a, b: math.exp(6 * a + b), span=0.01), note=NOTE
    ),
    "modules": lambda: module_heat_map(
        [modules_of("a"), modules_of("bb", 20, names="layers.block")], title="S", note=NOTE
    ),
    "many epochs": lambda: module_heat_map(
        [modules_of(epochs=tuple(range(0, 90, 3)))], note="Median."
    ),
}


def tick_labels(axes):
    """Those that are drawn: ticks beyond the limits are made and not shown."""
    return [
        label
        for axis in axes
        for tick in axis._update_ticks()
        for label in (tick.label1, tick.label2)
    ]


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES.keys())
def test_no_text_is_cut_off_or_covers_another(make):
    fig = make()
    renderer = render(fig)
    texts = list(fig.texts) + [text for legend in fig.legends for text in legend.get_texts()]
    for ax in fig.axes:
        axes = [ax.xaxis, ax.yaxis] + ([ax.zaxis] if hasattr(ax, "zaxis") else [])
        labels = [axis.label for axis in axes]
        # Those of a relief have no place before its projection.
        texts += [
            *labels,
            *([] if hasattr(ax, "zaxis") else tick_labels(axes)),
            ax._left_title,
            *ax.texts,
        ]
    texts = [text for text in texts if text.get_text() and text.get_visible()]
    boxes = {text: text.get_window_extent(renderer) for text in texts}
    page = fig.bbox.padded(1)
    for text, box in boxes.items():
        assert (
            page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        ), text
    # The box around a slanted label is larger than the label.
    upright = [
        (text, box.padded(-1)) for text, box in boxes.items() if text.get_rotation() % 90 == 0
    ]
    assert not [
        (a, b) for (a, one), (b, other) in itertools.combinations(upright, 2) if one.overlaps(other)
    ]


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES.keys())
def test_the_same_figure_has_the_same_bytes_and_leaves_the_settings_alone(make, tmp_path):
    for name in "ab":
        save_figure(make(), tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: loss_slice([]), "1 to 3 fit"),
        (lambda: loss_slice([bent()] * 4), "got 4"),
        (lambda: loss_slice(slice_of(np.full(5, np.nan))), "none of the losses is finite"),
        (lambda: loss_contour(surface_of(lambda a, b: math.nan)), "got 0 finite"),
        (
            lambda: loss_surface_3d(surface_of(lambda a, b: 1.0 if a == b == 0 else math.inf)),
            "got 1 finite",
        ),
        (lambda: module_heat_map([]), "1 to 4 fit"),
        (lambda: module_heat_map([modules_of(), modules_of()]), "same series"),
        (lambda: ModuleSample(**(vars(modules_of()) | {"modules": ("a",) * 5})), "there twice"),
        (lambda: ModuleSample(**(vars(modules_of()) | {"epochs": (5, 0, 10)})), "must ascend"),
        (lambda: ModuleSample(**(vars(modules_of()) | {"epochs": (5, 10)})), r"\(2, 5\).*\(3, 5\)"),
        (
            lambda: module_heat_map(
                [ModuleSample(**(vars(modules_of()) | {"values": -np.ones((3, 5))}))]
            ),
            "nothing to draw",
        ),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_given(make, words):
    with pytest.raises(ValueError, match=words):
        make()
