"""The figure of whole densities: what its panels say of each series, and texts of any kind."""

import re

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from landscape.figures import DensitySample, density_figure
from landscape.linalg import DenseOperator, SpectralDensity, density


def batches_of(shares, *, n=400, seed=0):
    """The density of one operator per share, with so many negative eigenvalues, all far from
    zero.
    """
    found = []
    for number, share in enumerate(shares):
        magnitudes = np.random.default_rng([seed, number]).uniform(1, 2, n)
        values = np.where(np.arange(n) < share * n, -magnitudes, magnitudes)
        found.append(
            density(
                DenseOperator(torch.diag(torch.from_numpy(values))),
                num_probes=2,
                num_matvecs=30,
                seed=number,
            )
        )
    return SpectralDensity.pooled(found)


def sample(series, epoch=0, *, label=None, shares=(0.3, 0.3)):
    return DensitySample(series, label or f"Model {series}", epoch, batches_of(shares))


def remarks(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_share_has_the_whole_error_that_the_terminal_prints_spread_over_batches_included():
    steady, spread = (
        sample("a", shares=(0.3, 0.3, 0.3, 0.3)),
        sample("b", shares=(0.1, 0.2, 0.4, 0.5)),
    )
    found = remarks(density_figure([steady, spread]).axes[0])
    for one, remark in zip((steady, spread), found, strict=True):
        share = one.density.negative_share()
        value, error = (
            float(part) for part in re.fullmatch(r"([\d.]+) ± ([\d.]+) %", remark).groups()
        )
        assert error == pytest.approx(100 * share.standard_error, rel=0.05)
        assert value == pytest.approx(100 * share.value, abs=error / 10)
        assert repr(share).startswith(f"{remark} (")
        # The truth, which the batches were given.
        assert abs(value - 30) <= 3 * error
    # Shares with the sample standard deviation 0.183: the mean of four batches cannot be known
    # better than half of that.
    assert float(found[1].split()[2]) > 9 > 3 * float(found[0].split()[2])


def test_a_share_that_the_quadratures_leave_open_is_unknown_in_its_panel():
    values = np.r_[np.linspace(1, 5, 8), 1e-6 * np.random.default_rng(0).standard_normal(200)]
    open_ = density(
        DenseOperator(torch.diag(torch.from_numpy(values))), num_probes=2, num_matvecs=8
    )
    fig = density_figure([DensitySample("a", "A", 0, open_)])
    assert re.fullmatch(r"unknown \([\d.e-]+ to [\d.]+ %\)", remarks(fig.axes[0])[0])
    assert "unknown where that tells no digit" in "".join(
        text.get_text() for text in fig.texts
    ).replace("\n", " ")


def test_a_missing_epoch_is_said_in_its_panel_and_equal_labels_get_the_name_of_their_series():
    fig = density_figure(
        [sample("a", label="X"), sample("b", label="X"), sample("a", 5, label="X")]
    )
    first, second = fig.axes
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["X (a)", "X (b)"]
    assert "not measured" not in remarks(first) and remarks(second)[1] == "not measured"
    many = [
        sample(name, epoch) for name in "abcdef" for epoch in (0, 5) if (name, epoch) != ("f", 5)
    ]
    first, second = density_figure(many).axes
    assert first.get_legend() is None and remarks(second) == ["not measured"]


@pytest.mark.parametrize(
    "label", ["_hidden", "$x_1$", "$\\nosuch{$", "a very long name " * 10, "W" * 150]
)
def test_any_text_can_be_a_label_and_none_runs_off_the_page_or_squeezes_a_panel(label):
    fig = density_figure([sample("a", label=label), sample("b")], title="A title", unaudited=True)
    assert ["".join(text.get_text().split()) for text in fig.legends[0].get_texts()] == [
        "".join(label.split()),
        "Modelb",
    ]
    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.draw(renderer)
    legend, panel = fig.legends[0].get_window_extent(renderer), fig.axes[0]
    assert fig.bbox.x0 <= legend.x0 and legend.x1 <= fig.bbox.x1
    assert panel._left_title.get_window_extent(renderer).y1 < legend.y0
    assert legend.y1 < min(
        text.get_window_extent(renderer).y0 for text in (fig._suptitle, fig.texts[0])
    )
    plain = density_figure([sample("a"), sample("b")])
    sizes = [
        panel.get_position().size * fig.get_size_inches(),
        plain.axes[0].get_position().size * plain.get_size_inches(),
    ]
    np.testing.assert_allclose(*sizes, rtol=1e-6)


def test_no_curve_lies_under_a_remark():
    fig = density_figure(
        [sample(name, shares=(share,)) for name, share in zip("abcd", (0.9, 0.95, 0.99, 1.0))]
    )
    (ax,) = fig.axes
    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.draw(renderer)
    box = ax.get_legend().get_window_extent(renderer)
    for line in ax.lines[1:]:
        points = line.get_transform().transform(
            np.column_stack([line.get_xdata(), line.get_ydata()])
        )
        assert not any(box.contains(x, y) for x, y in points if np.isfinite(y))
