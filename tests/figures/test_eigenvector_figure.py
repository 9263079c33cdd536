"""`landscape figure --kind vectors`: what is drawn are the numbers of the analysis."""

from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from landscape.cli import main
from landscape.compare import vectors_of_store
from landscape.figures import eigenvectors, vector_modules
from landscape.statistics import Bootstrap, Interval
from landscape.store import SpectrumStore, SpectrumWriter
from tests.helpers.store_records import K, manifest_of, record_of
from tests.helpers.store_vectors import CERTAIN, write_store


@pytest.fixture(scope="module")
def store_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    manifest = manifest_of(folder, epochs=(0, 2, 5), num_batches=3)
    write_store(folder / "x.h5", manifest, **CERTAIN)
    return folder / "x.h5"


@pytest.fixture(scope="module")
def analysed(store_path):
    with SpectrumStore.open(store_path) as store:
        return vectors_of_store(store, bootstrap=Bootstrap(num_resamples=199))


def lines_in(ax):
    """The curves of a panel by label, those without a label as a list."""
    curves = [line for line in ax.lines if len(line.get_xdata())]
    named = {line.get_label(): line for line in curves if not line.get_label().startswith("_")}
    return named, [line for line in curves if line.get_linestyle() != "None"]


def test_the_panels_show_the_numbers_of_the_analysis(analysed):
    turning, spread, leading = eigenvectors(analysed, title="a title").axes
    for ax, chosen in (
        (turning, lambda row: row.first != row.second),
        (spread, lambda row: row.first == row.second),
    ):
        named, every = lines_in(ax)
        assert len(named) == 2 and len(every) >= 4
        for series in analysed:
            rows, leading_rows = (
                [row for row in series.displacements if chosen(row) and row.rank == rank]
                for rank in (K, 1)
            )
            line = named[series.label]
            assert line.get_xdata().tolist() == [row.second for row in rows]
            np.testing.assert_allclose(
                line.get_ydata(), np.degrees([row.mean.value for row in rows])
            )
            first = np.degrees([row.mean.value for row in leading_rows])
            assert any(np.array_equal(other.get_ydata(), first) for other in every)
    named, _ = lines_in(leading)
    for series in analysed:
        ratios = [row.participation.value for row in series.localisations if row.index == 1]
        np.testing.assert_allclose(named[series.label].get_ydata(), ratios)
    assert leading.get_yscale() == "log" and turning.get_ylim() == (-2, 92)


def test_bars_are_the_bounds_of_the_errors_within_what_is_possible(analysed):
    (wide,) = (series for series in analysed if series.series == "wide")
    turning, _, leading = eigenvectors([wide]).axes
    rows = [row for row in wide.localisations if row.index == 1]
    (bars,) = leading.collections[-1:]
    for row, segment in zip(rows, bars.get_segments(), strict=True):
        ratio, error = row.participation.value, row.participation_error
        expected = [max(ratio - error, 1 / wide.num_params), ratio + error]
        np.testing.assert_allclose(segment[:, 1], expected)
    # The space of all vectors, and that of the leading one.
    assert len(turning.containers) == 2
    wrong = replace(wide.displacements[1], error=np.pi / 2)
    turning = eigenvectors([replace(wide, displacements=(wrong,))]).axes[0]
    (segment,) = turning.collections[-1].get_segments()
    np.testing.assert_allclose(segment[:, 1], [0, 90])


def test_unknown_pairs_are_left_out_and_counted(analysed):
    (wide,) = (series for series in analysed if series.series == "wide")
    nothing = {"num_batches": 0, "num_pairs": 0, "num_unknown": 3, "error": np.nan}
    nothing |= {"mean": Interval(np.nan), "largest": Interval(np.nan)}
    rows = [
        replace(row, **nothing) if row.rank == K and row.first != row.second else row
        for row in wide.displacements
    ]
    figure = eigenvectors([replace(wide, displacements=tuple(rows))])
    whole = sum(row.num_pairs + row.num_unknown for row in rows if row.rank == K)
    text = " ".join(" ".join(text.get_text() for text in figure.texts).split())
    assert f"Left out of the angles: 6 of {whole} pairs of the spaces, of which" in text
    assert not len(lines_in(figure.axes[0])[0])
    unknown = tuple(row for row in rows if row.rank == K or row.first == row.second)
    assert len(eigenvectors([replace(wide, displacements=unknown)]).axes) == 2


def test_unknown_vectors_are_left_out_and_counted(analysed):
    (wide,) = (series for series in analysed if series.series == "wide")
    unknown = [
        replace(
            row,
            num_batches=0,
            num_unknown=3,
            participation=Interval(np.nan),
            participation_error=np.nan,
            shares=dict.fromkeys(row.shares, np.nan),
        )
        for row in wide.localisations
    ]
    some = replace(wide, localisations=(*wide.localisations[:-K], *unknown[-K:]))
    none = replace(wide, localisations=tuple(unknown))
    for figure, words in (
        (eigenvectors([some]), "3 of 9 leading eigenvectors"),
        (vector_modules([some]), "3 of 9 values are not known (grey)"),
        (vector_modules([some]), "3 of 9 leading eigenvectors"),
    ):
        assert words in " ".join(" ".join(text.get_text() for text in figure.texts).split())
    named, _ = lines_in(eigenvectors([some]).axes[-1])
    assert np.isnan(named[wide.label].get_ydata()).tolist() == [False, False, True]
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in eigenvectors([none]).axes]
    assert "Leading eigenvector" not in titles
    for draw in (vector_modules, lambda sets: eigenvectors([replace(none, displacements=())])):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw([none])


def test_the_heat_map_shows_the_shares_of_modules(analysed):
    fig = vector_modules(analysed)
    for ax, series in zip(fig.axes, analysed):
        rows = [row for row in series.localisations if row.index == 1]
        (image,) = ax.images
        shares = 100 * np.array([list(row.shares.values()) for row in rows])
        np.testing.assert_allclose(image.get_array(), shares.T)
        assert [label.get_text() for label in ax.get_yticklabels()] == list(rows[0].shares)
        assert len(ax.texts) == shares.size and not ax.patches
    assert fig.axes[-1].get_ylim() == (0, 100)


def test_a_panel_without_numbers_is_left_out(store_path):
    with SpectrumStore.open(store_path, series=["wide"]) as store:
        analysed = vectors_of_store(store, epochs=(2,), bootstrap=Bootstrap(num_resamples=99))
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in eigenvectors(analysed).axes]
    assert titles == ["Between batches of an epoch", "Leading eigenvector"]


def test_nothing_and_too_much_are_refused(analysed):
    with pytest.raises(ValueError, match="nothing to draw"):
        eigenvectors([])
    with pytest.raises(ValueError, match="cannot be told apart"):
        eigenvectors(analysed * 20)


def test_the_command_draws_every_format_and_refuses_stores_without_vectors(store_path, tmp_path):
    for kind, suffix in (("vectors", "png"), ("vectors", "pdf"), ("vector-modules", "svg")):
        output = tmp_path / f"v.{suffix}"
        said = CliRunner().invoke(
            main, ["figure", str(store_path), "--kind", kind, "-o", str(output)]
        )
        assert said.exit_code == 0 and "eigenvectors of 2 series, epochs 0, 2, 5" in said.output
        assert output.stat().st_size > 1000
    with SpectrumWriter(tmp_path / "y.h5", manifest_of(tmp_path)) as writer:
        writer.add_all([record_of(key) for key in writer.plan.keys()])
        writer.merge()
    for arguments, words in (
        ([str(tmp_path / "y.h5")], "keeps no eigenvectors, so there is nothing to draw"),
        ([str(store_path), "--epochs", "7"], "keeps no eigenvectors of epochs 7"),
        ([str(store_path), "--keep-unconverged"], "each angle with the bound of its error"),
    ):
        said = CliRunner().invoke(
            main, ["figure", *arguments, "--kind", "vectors", "-o", str(tmp_path / "z.png")]
        )
        assert said.exit_code == 2 and words in said.output and not (tmp_path / "z.png").exists()


def test_the_damage_of_vectors_is_one_line(tmp_path):
    import h5py

    write_store(tmp_path / "x.h5", manifest_of(tmp_path, series=("wide",), num_batches=2))
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file["vectors/wide/0/1/vectors"][1, 5] = np.inf
    for command in (
        ["figure", str(tmp_path / "x.h5"), "--kind", "vectors", "-o", str(tmp_path / "v.png")],
        ["compare", str(tmp_path / "x.h5"), "--resamples", "99"],
    ):
        said = CliRunner().invoke(main, command)
        assert said.exit_code == 2 and len(said.output.splitlines()) == 1, said.output
        assert "damaged" in said.output and "wide/0/1" in said.output
