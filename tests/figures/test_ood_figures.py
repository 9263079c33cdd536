"""Figures 1 and 2: what is drawn, measured on the artists, equals what landscape.answers
computes.
"""

import itertools
import math

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from scipy import stats

from landscape.answers import (
    CATEGORIES,
    DATASETS,
    HUMANS,
    SIXTEEN,
    condition_table,
    read_answers,
    resample,
    score,
    shape_bias,
    shape_bias_by_category,
)
from landscape.errors import AnswersError
from landscape.figures import (
    BAR_METRICS,
    MAX_MODELS,
    ConditionCurve,
    ood_bars,
    ood_conditions,
    own_conditions,
    save_figure,
    shape_bias_matrix,
)
from landscape.figures.observers import PEOPLE_COLOR, PEOPLE_MARKER, model_looks, observer_looks
from landscape.statistics import Bootstrap
from tests.figures.test_figures import DEUTERANOPIA, PROTANOPIA, RGB_TO_XYZ, lab, linear_rgb, render
from tests.helpers.folders import SHARED
from tests.helpers.random_answers import PEOPLE, made_up

FEW = Bootstrap(num_resamples=99)
HUMAN = SHARED / "human"
needs_answers = pytest.mark.skipif(
    not (HUMAN / "models.csv.gz").exists(), reason="the benchmark's answers are not here"
)


@pytest.fixture(scope="module")
def answers():
    return made_up()


@pytest.fixture(scope="module")
def resamples(answers):
    return resample(answers, FEW)


@pytest.fixture(scope="module")
def published():
    return read_answers([HUMAN / "human.csv.gz", HUMAN / "models.csv.gz"])


def note(fig):
    return " ".join(fig.texts[-1].get_text().split())


def colour(artist):
    return to_hex(artist.get_color() if hasattr(artist, "get_color") else artist.get_facecolor())


def titled(fig, title):
    return next(ax for ax in fig.axes if ax.get_title(loc="left") == title)


def legend_texts(fig):
    return [text.get_text() for legend in fig.legends for text in legend.get_texts()]


def lines_of(ax, look):
    """The line, the filled and the hollow markers of one observer."""
    ours = [line for line in ax.lines if colour(line) == look.color.lower()]
    [line] = [line for line in ours if line.get_linestyle() == "-"]
    markers = [line for line in ours if line.get_linestyle() == "None"]
    hollow = [line for line in markers if to_hex(line.get_markerfacecolor()) == "#ffffff"]
    full = [line for line in markers if line not in hollow]
    assert all(line.get_marker() == look.marker for line in markers)
    return line, full, hollow


def band_of(ax):
    [band] = [collection for collection in ax.collections if isinstance(collection, PolyCollection)]
    points = band.get_paths()[0].vertices
    return {
        x: (points[points[:, 0] == x, 1].min(), points[points[:, 0] == x, 1].max())
        for x in sorted(set(points[:, 0]))
    }


# --- Figure 1a ------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", BAR_METRICS)
def test_bars_ascend_and_their_lengths_and_whiskers_are_the_computed_numbers(
    answers, resamples, metric
):
    fig = ood_bars(answers, metric=metric, datasets=("contrast", "edge"), resamples=resamples)
    [ax] = fig.axes
    looks = observer_looks(answers)
    by_colour = {look.color.lower(): name for name, look in looks.items()}
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == sorted(widths) and len(widths) == len(looks)
    assert [bar.get_y() for bar in ax.patches] == sorted(bar.get_y() for bar in ax.patches)
    for bar in ax.patches:
        name = by_colour[to_hex(bar.get_facecolor())]
        expected = resamples.interval(name, metric, ("contrast", "edge"))
        assert bar.get_width() == expected.value
        middle = bar.get_y() + bar.get_height() / 2
        whiskers = [
            line
            for line in ax.lines
            if len(line.get_ydata()) == 2 and np.allclose(line.get_ydata(), middle)
        ]
        assert {tuple(line.get_xdata()) for line in whiskers} == {(expected.low, expected.high)}
        texts = {text.get_text() for text in ax.texts if text.xy[1] == pytest.approx(middle)}
        assert texts == {looks[name].label, f"{expected.value:.3f}".replace("-", "\N{MINUS SIGN}")}


def test_people_are_red_and_chance_is_dotted_at_a_sixteenth(answers, resamples):
    fig = ood_bars(answers, datasets=("edge",), resamples=resamples)
    [ax] = fig.axes
    people = resamples.interval(HUMANS, "accuracy", ("edge",)).value
    [bar] = [bar for bar in ax.patches if to_hex(bar.get_facecolor()) == "#a51e37"]
    assert bar.get_width() == people
    [dotted] = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert list(dotted.get_xdata()) == [1 / 16, 1 / 16]
    assert "chance, 1/16" in note(fig) and "95 %" in note(fig)


def test_bars_name_the_sets_of_their_means_and_star_who_lacks_more():
    answers = made_up(drop=[("net", "edge")])
    fig = ood_bars(answers, resamples=resample(answers, FEW))
    assert "Sets: 2 of 16, only contrast, edge." in note(fig)
    assert "* net: also without edge" in note(fig)
    assert {text.get_text() for text in fig.axes[0].texts if "*" in text.get_text()} == {"net *"}
    fig = ood_bars(answers, datasets=("contrast", "edge"), resamples=resample(answers, FEW))
    assert "Sets: contrast, edge." in note(fig)


def test_an_observer_without_a_value_is_named_and_nothing_to_draw_is_said():
    answers = made_up(drop=[("net", "edge")], datasets=("edge", "contrast"))
    fig = ood_bars(answers, datasets=("edge",), resamples=resample(answers, FEW))
    assert "No value: net." in note(fig) and len(fig.axes[0].patches) == 2
    alone = made_up(people=())
    with pytest.raises(AnswersError, match="no observer has a value of error consistency.*people"):
        ood_bars(alone, metric="error_consistency", resamples=resample(alone, FEW))
    with pytest.raises(ValueError, match="there is no 'kappa'"):
        ood_bars(answers, metric="kappa")


def test_a_negative_number_has_a_bar_to_the_left_of_zero(answers, resamples):
    value = {
        name: resamples.interval(name, "error_consistency", ("edge",)) for name in resamples.scores
    }
    assert min(interval.low for interval in value.values()) < 0
    [ax] = ood_bars(
        answers, metric="error_consistency", datasets=("edge",), resamples=resamples
    ).axes
    assert ax.get_xlim()[0] < min(interval.low for interval in value.values())
    # No number is written over a bar.
    assert min(text.xy[0] for text in ax.texts) >= 0


def test_bars_of_more_models_than_there_are_colours_are_all_there():
    answers = made_up(
        models=[f"net{number}" for number in range(MAX_MODELS + 3)], datasets=("edge",)
    )
    fig = ood_bars(answers, datasets=("edge",), resamples=resample(answers, FEW))
    assert len(fig.axes[0].patches) == MAX_MODELS + 4


# --- Figure 1b ------------------------------------------------------------------------------------


def test_the_matrix_has_a_marker_per_observer_and_category_and_a_line_at_each_pooled_value(answers):
    [ax] = shape_bias_matrix(answers).axes[:1]
    labels = [tick.get_text() for tick in ax.get_yticklabels()]
    share = {name: bias.bias for name, bias in shape_bias_by_category(answers).items()}
    assert labels[-1] == "all" and sorted(labels[:-1]) == sorted(CATEGORIES)
    people = [share[name] for name in labels[:-1]]
    assert people == sorted(people)
    for name, look in observer_looks(answers).items():
        model = None if name == HUMANS else name
        ours = [line for line in ax.lines if colour(line) == look.color.lower()]
        [markers] = [line for line in ours if line.get_marker() == look.marker]
        [vertical] = [line for line in ours if line is not markers]
        pooled = 1 - shape_bias(answers, model).bias
        assert list(vertical.get_xdata()) == [pooled, pooled] and vertical.get_linestyle() == "-"
        drawn = {
            labels[round(y)]: x
            for x, y in zip(markers.get_xdata(), markers.get_ydata(), strict=True)
        }
        expected = {
            category: 1 - bias.bias
            for category, bias in shape_bias_by_category(answers, model).items()
        }
        assert drawn == {category: x for category, x in expected.items() if math.isfinite(x)} | {
            "all": pooled
        }
    assert look.marker != PEOPLE_MARKER


def test_the_axes_of_the_matrix_mirror_each_other_and_rows_are_apart(answers):
    fig = shape_bias_matrix(answers)
    [ax] = fig.axes[:1]
    [upper] = ax.child_axes
    fig.draw_without_rendering()
    assert "texture" in ax.get_xlabel() and "shape" in upper.get_xlabel()
    middles = []
    for axis in (ax, upper):
        ticks = [
            tick.label1 if axis is ax else tick.label2 for tick in axis.xaxis.get_major_ticks()
        ]
        boxes = {tick.get_text(): tick.get_window_extent() for tick in ticks}
        middles.append({text: (box.x0 + box.x1) / 2 for text, box in boxes.items()})
    below, above = middles
    assert [above[f"{1 - float(text):.1f}"] for text in below] == pytest.approx(
        list(below.values()), abs=0.5
    )
    dotted = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"]
    assert dotted == [row + 0.5 for row in range(15)]
    assert [
        text for text in legend_texts(fig) if text.startswith("people (")
    ] and "96 answers of people" in note(fig)


def test_the_matrix_without_people_is_alphabetical_and_says_so():
    fig = shape_bias_matrix(made_up(people=()))
    labels = [tick.get_text() for tick in fig.axes[0].get_yticklabels()]
    assert labels == [*reversed(CATEGORIES), "all"] and "no people" in note(fig)
    with pytest.raises(AnswersError, match="no shape bias to draw"):
        shape_bias_matrix(made_up(datasets=("edge",)))


# --- Figure 2 -------------------------------------------------------------------------------------


def test_lines_go_through_all_levels_and_excluded_ones_are_hollow(answers):
    fig = ood_conditions(answers)
    table = condition_table(answers)
    ax, dataset = titled(fig, "Contrast"), DATASETS["contrast"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [
        "100",
        "50",
        "30",
        "15",
        "10",
        "5",
        "3",
        "1",
    ]
    for name, look in observer_looks(answers).items():
        kind = HUMANS if name == HUMANS else "model"
        rows = table[
            (table.observer == name) & (table.kind == kind) & (table.dataset == "contrast")
        ].set_index("condition")
        expected = [rows.accuracy[condition.name] for condition in dataset.conditions]
        line, [full], [hollow] = lines_of(ax, look)
        assert list(line.get_xdata()) == list(range(8)) and list(line.get_ydata()) == expected
        # c100, c03 and c01 are left out of the benchmark's means.
        assert list(hollow.get_xdata()) == [0, 6, 7] and list(full.get_xdata()) == [1, 2, 3, 4, 5]
        assert [*hollow.get_ydata()] == [expected[at] for at in (0, 6, 7)]
        assert [*full.get_ydata()] == expected[1:6]


def test_the_band_reaches_from_the_least_to_the_most_accurate_person(answers):
    table = condition_table(answers)
    band = band_of(titled(ood_conditions(answers), "Contrast"))
    for at, condition in enumerate(DATASETS["contrast"].conditions):
        each = [
            table[(table.observer == name) & (table.condition == condition.name)].accuracy.item()
            for name in PEOPLE
        ]
        assert band[at] == (min(each), max(each))


def test_chance_is_a_dotted_line_at_a_sixteenth_in_every_panel(answers):
    fig = ood_conditions(answers)
    for title in ("Contrast", "Edge"):
        [dotted] = [line for line in titled(fig, title).lines if line.get_linestyle() == ":"]
        assert set(dotted.get_ydata()) == {1 / 16}


def test_sets_of_one_condition_have_bars_with_whiskers_in_the_order_of_the_legend(answers):
    fig = ood_conditions(answers)
    ax = titled(fig, "Edge")
    scores, table = score(answers), condition_table(answers)
    assert legend_texts(fig) == ["people", "net", "other"]
    for at, (name, look, bar) in enumerate(
        zip(*zip(*observer_looks(answers).items(), strict=True), ax.patches, strict=True)
    ):
        of_set = scores[name].by_dataset["edge"]
        assert (
            bar.get_x() + bar.get_width() / 2 == pytest.approx(at)
            and to_hex(bar.get_facecolor()) == look.color.lower()
        )
        assert bar.get_height() == of_set.accuracy
        whiskers = {
            tuple(line.get_ydata()) for line in ax.lines if list(line.get_xdata()) == [at, at]
        }
        if name == HUMANS:
            each = table[(table.kind == "human") & (table.dataset == "edge")].accuracy
            ends = (each.min(), each.max())
        else:
            ends = tuple(
                stats.binomtest(of_set.num_right, of_set.num_trials).proportion_ci(method="wilson")
            )
        [drawn] = whiskers
        assert drawn == pytest.approx(ends, abs=1e-12)
        [marker] = [line for line in ax.lines if line.get_marker() == look.marker]
        assert marker.get_xdata()[0] == at and marker.get_ydata()[0] > max(
            drawn[1], bar.get_height()
        )


def test_there_are_16_panels_and_those_without_answers_say_so(answers):
    fig = ood_conditions(answers)
    assert [ax.get_title(loc="left") for ax in fig.axes] == [
        DATASETS[name].label for name in SIXTEEN
    ]
    empty = [ax for ax in fig.axes if ax.get_title(loc="left") not in ("Contrast", "Edge")]
    assert len(empty) == 14
    for ax in empty:
        assert (
            [text.get_text() for text in ax.texts] == ["no answers"]
            and not ax.lines
            and not ax.patches
        )
    with pytest.raises(AnswersError, match="no answer to any of sketch"):
        ood_conditions(answers, datasets=("sketch",))


def test_a_level_without_answers_is_a_gap_and_a_set_without_is_named():
    answers = made_up(drop=[("net", "contrast", "c30"), ("other", "edge")])
    fig = ood_conditions(answers)
    line, [full], _ = lines_of(titled(fig, "Contrast"), observer_looks(answers)["net"])
    assert np.flatnonzero(np.isnan(line.get_ydata())).tolist() == [2]
    assert len(titled(fig, "Edge").patches) == 2 and "No answers: other to edge." in note(fig)


def test_people_alone_and_models_alone_are_drawn():
    people = ood_conditions(made_up(models=()))
    assert (
        legend_texts(people) == ["people"]
        and "Wilson" not in note(people)
        and "(3 per set)" in note(people)
    )
    models = ood_conditions(made_up(people=()))
    assert legend_texts(models) == ["net", "other"] and "People" not in note(models)
    assert not [c for c in titled(models, "Contrast").collections if isinstance(c, PolyCollection)]


def test_nine_models_are_drawn_and_ten_refused():
    names = [f"net{number}" for number in range(MAX_MODELS + 1)]
    fig = ood_conditions(made_up(models=names[:-1], datasets=("edge",)))
    assert len(legend_texts(fig)) == MAX_MODELS + 1
    many = made_up(models=names, datasets=("edge", "cue-conflict"))
    for draw in (ood_conditions, shape_bias_matrix):
        with pytest.raises(AnswersError, match="there are 10 models, but more than 9"):
            draw(many)


# --- own pictures ---------------------------------------------------------------------------------


def curve(
    series="ViT",
    dataset="contrast",
    conditions=("c100", "c10", "c01"),
    right=(90, 40, 5),
    n=100,
    chance=0.1,
):
    counts = {"num_right": right, "num_pictures": [n] * len(right)}
    return ConditionCurve.of_counts(series, dataset, conditions=conditions, chance=chance, **counts)


def test_own_pictures_have_lines_with_wilsons_whiskers_and_no_hollow_marker():
    fig = own_conditions(
        [
            curve(),
            curve("Simba", right=(80, 30, 9)),
            curve(dataset="edge", conditions=("0",), right=(33,)),
        ]
    )
    ax = titled(fig, "Contrast")
    looks = model_looks(["ViT", "Simba"])
    for name, right in (("ViT", (90, 40, 5)), ("Simba", (80, 30, 9))):
        line, [full], [hollow] = lines_of(ax, looks[name])
        assert [*line.get_ydata()] == [*full.get_ydata()] == [
            count / 100 for count in right
        ] and not len(hollow.get_xdata())
        [whiskers] = [
            c for c in ax.collections if to_hex(c.get_color()[0]) == looks[name].color.lower()
        ]
        for segment, count in zip(whiskers.get_segments(), right, strict=True):
            ends = stats.binomtest(count, 100).proportion_ci(method="wilson")
            assert segment[:, 1] == pytest.approx([ends.low, ends.high], abs=1e-12)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["100", "10", "1"]
    assert len(titled(fig, "Edge").patches) == 1
    for ax in fig.axes:
        [dotted] = [line for line in ax.lines if line.get_linestyle() == ":"]
        assert set(dotted.get_ydata()) == {0.1}
    assert (
        "People never saw these pictures" in note(fig)
        and "100 pictures" in note(fig)
        and "(0.1)" in note(fig)
    )
    assert legend_texts(fig) == ["ViT", "Simba"]


def test_own_levels_that_are_none_of_the_benchmarks_keep_their_names():
    fig = own_conditions(
        [
            curve(conditions=("c100", "c42", "c01")),
            curve(dataset="mine", conditions=("a", "b", "c")),
        ]
    )
    assert [tick.get_text() for tick in titled(fig, "Contrast").get_xticklabels()] == [
        "c100",
        "c42",
        "c01",
    ]
    assert [ax.get_xlabel() for ax in fig.axes] == ["Level", "Level"] and titled(fig, "mine")
    # Texts of another spelling are the benchmark's levels.
    fig = own_conditions([curve(dataset="uniform-noise", conditions=("0.0", "0.10", "0.90"))])
    assert [tick.get_text() for tick in fig.axes[0].get_xticklabels()] == ["0", "0.1", "0.9"]


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ([], "no curve"),
        ([curve(), curve()], "different series"),
        ([curve(), curve("Simba", chance=0.2)], "one chance"),
    ],
)
def test_curves_that_contradict_each_other_are_refused(curves, message):
    with pytest.raises(ValueError, match=message):
        own_conditions(curves)


def test_a_curve_of_unequal_lengths_is_refused():
    values = dict(
        series="a",
        dataset="edge",
        accuracy=(0.5,),
        low=(0.4,),
        high=(0.6,),
        num_pictures=(9,),
        chance=0.1,
    )
    for conditions in ((), ("0", "1"), ("0", "0")):
        with pytest.raises(ValueError, match="name of its own"):
            ConditionCurve(conditions=conditions, **values)


# --- looks and files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vision", [np.eye(3), DEUTERANOPIA, PROTANOPIA], ids=["normal", "deuteranopia", "protanopia"]
)
def test_colours_of_nine_models_and_people_stay_apart_for_the_colour_blind(vision):
    colours = [look.color for look in model_looks(range(MAX_MODELS)).values()] + [PEOPLE_COLOR]
    seen = [lab(vision @ linear_rgb(color)) for color in colours]
    # As much as the eight colours of lines.
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) >= 18


def test_markers_differ_and_colours_stand_out_from_white():
    looks = model_looks(range(MAX_MODELS)).values()
    assert len({PEOPLE_MARKER, *(look.marker for look in looks)}) == MAX_MODELS + 1
    assert min(1.05 / (RGB_TO_XYZ[1] @ linear_rgb(look.color) + 0.05) for look in looks) >= 2.2
    assert to_hex(PEOPLE_COLOR) == to_hex((165 / 255, 30 / 255, 55 / 255))


def figures(answers, resamples):
    yield "bars", ood_bars(answers, resamples=resamples)
    yield "shape", shape_bias_matrix(answers)
    yield "conditions", ood_conditions(answers)
    yield "own", own_conditions([curve(), curve("Simba")])


def test_equal_answers_give_equal_bytes(answers, resamples, tmp_path):
    for run in ("a", "b"):
        for name, fig in figures(answers, resamples):
            save_figure(fig, tmp_path / run / f"{name}.png")
    for name in ("bars", "shape", "conditions", "own"):
        assert (tmp_path / "a" / f"{name}.png").read_bytes() == (
            tmp_path / "b" / f"{name}.png"
        ).read_bytes()


LONG = [
    "",
    "_x",
    "$a_1$ $",
    "\N{CJK UNIFIED IDEOGRAPH-5B57}",
    "a very long name that nobody can read at a glance " * 3,
]


def test_labels_of_any_text_are_shown_to_the_letter_and_nothing_leaves_the_page():
    names = [f"net{number}" for number in range(len(LONG))]
    answers = made_up(models=names)
    labels = dict(zip(names, LONG, strict=True))
    drawn = [
        ood_bars(answers, labels=labels, resamples=resample(answers, FEW)),
        shape_bias_matrix(answers, labels=labels),
        ood_conditions(answers, labels=labels),
    ]
    for fig in drawn:
        renderer = render(fig)
        page = fig.bbox
        texts = [
            *fig.texts,
            *(t for ax in fig.axes for t in (ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts)),
        ]
        texts += [t for legend in fig.legends for t in legend.get_texts()]
        texts += [t for ax in fig.axes for t in (*ax.get_xticklabels(), *ax.get_yticklabels())]
        for text in texts:
            if text.get_text().strip() and text.get_visible():
                box = text.get_window_extent(renderer)
                inside = (
                    page.x0 <= box.x0
                    and box.x1 <= page.x1 + 1
                    and page.y0 <= box.y0
                    and box.y1 <= page.y1 + 1
                )
                assert inside, text.get_text()
    shown = {text.get_text() for text in drawn[0].axes[0].texts}
    assert {"_x", "$a_1$ $"} <= shown


@pytest.mark.parametrize("datasets", [("contrast", "edgy"), ()])
def test_data_sets_that_are_none_are_refused(answers, resamples, datasets):
    with pytest.raises(ValueError, match="datasets: .*; there are colour, contrast"):
        ood_conditions(answers, datasets=datasets)
    with pytest.raises(ValueError, match="datasets: .*; there are colour, contrast"):
        ood_bars(answers, datasets=datasets, resamples=resamples)


def test_panels_are_equally_large_touch_no_other_and_fit_a_page_of_paper():
    names = [f"a-name-of-a-model-{number}" for number in range(MAX_MODELS)]
    fig = ood_conditions(made_up(models=names, datasets=SIXTEEN, per_category=1))
    renderer = render(fig)
    width, height = fig.get_size_inches()
    assert width == pytest.approx(7) and height < 9
    sizes = np.array([ax.get_position().size * (width, height) for ax in fig.axes])
    np.testing.assert_allclose(sizes, sizes[:1].repeat(16, axis=0))
    boxes = [ax.get_tightbbox(renderer) for ax in fig.axes] + [
        text.get_window_extent(renderer) for text in fig.texts
    ]
    boxes += [legend.get_window_extent(renderer) for legend in fig.legends]
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    # No text of an axis runs into the next.
    for ax in fig.axes:
        ticks = [
            tick.get_window_extent(renderer) for tick in ax.get_xticklabels() if tick.get_text()
        ]
        assert not [(a, b) for a, b in itertools.combinations(ticks, 2) if a.overlaps(b)]
        assert {tick.get_rotation() for tick in ax.get_xticklabels()} <= {0.0}
    assert [tick.get_text() for tick in titled(fig, "Uniform noise").get_xticklabels()][1:4] == [
        ".03",
        ".05",
        ".1",
    ]


def test_long_names_of_levels_are_turned_and_do_not_overlap():
    levels = tuple(f"{reach}-10-10" for reach in (3, 6, 12, 24, 48, 96))
    fig = own_conditions([curve(dataset="eidolonI", conditions=levels, right=(9,) * 6)])
    renderer = render(fig)
    [ax] = fig.axes
    ticks = ax.get_xticklabels()
    assert [tick.get_text() for tick in ticks] == list(levels) and {
        tick.get_rotation() for tick in ticks
    } == {90.0}
    boxes = [tick.get_window_extent(renderer) for tick in (*ticks, ax.xaxis.label)]
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert (
        max(box.y1 for box in boxes) < ax.get_window_extent().y0
        and min(box.y0 for box in boxes) > 0
    )


@needs_answers
def test_the_published_answers_are_drawn_with_their_published_numbers(published):
    fig = shape_bias_matrix(published)
    [line] = [
        line
        for line in fig.axes[0].lines
        if colour(line) == "#a51e37" and line.get_linestyle() == "-"
    ]
    assert 1 - line.get_xdata()[0] == pytest.approx(0.9587, abs=5e-5)
    labels = [tick.get_text() for tick in fig.axes[0].get_yticklabels()]
    assert labels[0] == "boat" and labels[15] == "bicycle"
    fig = ood_conditions(published)
    line, _, [hollow] = lines_of(titled(fig, "Low-pass"), observer_looks(published)[HUMANS])
    assert [round(y, 4) for y in line.get_ydata()] == [
        0.9203,
        0.9141,
        0.7953,
        0.6297,
        0.5875,
        0.3797,
        0.2,
        0.0609,
    ]
    assert list(hollow.get_xdata()) == [0, 6, 7]
    fig = ood_bars(published, datasets=tuple(DATASETS), resamples=resample(published, FEW))
    shown = {text.get_text() for text in fig.axes[0].texts}
    assert {"0.559", "0.596", "0.398", "0.723"} <= shown


@pytest.mark.parametrize("accuracy, top", [(0.9, 1.0), (0.3, 0.4), (0.05, 0.1)])
def test_the_axis_of_small_accuracies_is_small(accuracy, top):
    curve = ConditionCurve(
        series="a",
        dataset="contrast",
        conditions=("c100", "c05"),
        accuracy=(accuracy, accuracy / 2),
        low=(accuracy / 2, 0.0),
        high=(accuracy * 1.1, accuracy),
        num_pictures=(100, 100),
        chance=0.01,
    )
    (ax,) = own_conditions([curve]).axes
    assert ax.get_ylim() == pytest.approx((-0.03 * top, 1.1 * top))
    assert [tick.get_text() for tick in ax.get_yticklabels()][-1] == f"{top:g}".replace("0.", ".")
