"""The distortions against closed forms and against slow twins: loops and direct Fourier sums that
share no code with them.
"""

import math

import numpy as np
import pytest

from landscape.distortions import KINDS, Inputs, Picture, amplitude_spectrum, distort, to_bytes
from landscape.distortions.eidolon import SIGMAS, _displacements, _slices, eidolon
from landscape.distortions.false_colour import check_lut, nearest_bytes, opponent, srgb_lut
from landscape.distortions.filters import high_pass, low_pass
from landscape.distortions.shapes import canny
from landscape.distortions.spectrum import phase_scrambling
from landscape.errors import DistortionError
from tests.helpers.folders import SHARED

FACTS = SHARED / "facts" / "distortions"
SIDES = (7, 10)


def noise_picture(height=SIDES[0], width=SIDES[1], seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (height, width, 3))


def natural_picture(side=224, seed=0, spread=0.15):
    """Grey noise with the amplitudes 1/f of photographs, of mean .5."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij"))
    frequency[0, 0] = np.inf
    plane = np.fft.ifft2(
        np.fft.fft2(np.random.default_rng(seed).standard_normal((side, side))) / frequency
    ).real
    plane = np.clip(0.5 + spread * (plane - plane.mean()) / plane.std(), 0, 1)
    return np.repeat(plane[..., None], 3, axis=2)


def bytes_picture(side=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)) / 255


def grey(picture):
    return [[0.2125 * r + 0.7154 * g + 0.0721 * b for r, g, b in row] for row in picture.tolist()]


def plane_of(result):
    assert (result == result[..., :1]).all()
    return result[..., 0]


def dft(plane, sign=-1):
    """The Fourier sum itself, for every frequency by a product of two matrices."""
    rows, columns = (
        np.exp(sign * 2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n)
        for n in np.shape(plane)
    )
    return rows @ np.asarray(plane) @ columns


# Levels and names.


def test_every_set_of_the_benchmark_has_its_published_levels_in_published_order():
    published = {
        "colour": "cr bw",
        "contrast": "c100 c50 c30 c15 c10 c05 c03 c01",
        "high-pass": "inf 3.0 1.5 1.0 0.7 0.55 0.45 0.4",
        "low-pass": "0 1 3 5 7 10 15 40",
        "phase-scrambling": "0 30 60 90 120 150 180",
        "power-equalisation": "0 pow",
        "false-colour": "True False",
        "rotation": "0 90 180 270",
        "eidolonI": "1-10-10 2-10-10 4-10-10 8-10-10 16-10-10 32-10-10 64-10-10 128-10-10",
        "eidolonII": "1-3-10 2-3-10 4-3-10 8-3-10 16-3-10 32-3-10 64-3-10 128-3-10",
        "eidolonIII": "1-0-10 2-0-10 4-0-10 8-0-10 16-0-10 32-0-10 64-0-10 128-0-10",
        "uniform-noise": "0.0 0.03 0.05 0.1 0.2 0.35 0.6 0.9",
        "sketch": "0",
        "silhouette": "0",
        "edge": "0",
    }
    for name, levels in published.items():
        kind = KINDS[name]
        assert kind.in_all and [level.text for level in kind.levels] == levels.split()
        assert kind.control == (levels.split()[0] if " " in levels else None)
        assert not any("_" in level.text for level in kind.levels)
    assert KINDS.keys() - published.keys() == {"phase-scrambling-mirrored"}


@pytest.mark.parametrize(
    ("kind", "given", "text", "value"),
    [
        ("contrast", "0.1", "c10", 0.1),
        ("contrast", 0.07, "c07", 0.07),
        ("contrast", "c5", "c05", 0.05),
        ("contrast", "0.125", "c12.5", 0.125),
        ("low-pass", 3.0, "3", 3.0),
        ("low-pass", "2.5", "2.5", 2.5),
        ("high-pass", "3", "3.0", 3.0),
        ("high-pass", math.inf, "inf", math.inf),
        ("uniform-noise", "0.10", "0.1", 0.1),
        ("uniform-noise", 0, "0.0", 0.0),
        ("phase-scrambling", 45, "45", 45.0),
        ("false-colour", True, "True", 1),
        ("false-colour", "false", "False", 0),
        ("power-equalisation", "POW", "pow", 1),
        ("eidolonII", "32", "32-3-10", 32.0),
        ("eidolonII", "32-3-10", "32-3-10", 32.0),
        ("eidolonIII", 3.5, "3.5-0-10", 3.5),
        ("edge", 0, "0", 0.0),
    ],
)
def test_a_level_is_read_by_the_benchmarks_name_and_as_a_number(kind, given, text, value):
    level = KINDS[kind].level(given)
    assert (level.text, level.value) == (text, value)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("contrast", "10"),
        ("contrast", "c101"),
        ("contrast", "nan"),
        ("low-pass", "inf"),
        ("low-pass", "-1"),
        ("high-pass", "0"),
        ("high-pass", "nan"),
        ("phase-scrambling", "181"),
        ("rotation", "45"),
        ("eidolonI", "32-3-10"),
        ("eidolonI", "inf"),
        ("colour", "1"),
        ("uniform-noise", "much"),
    ],
)
def test_a_level_that_is_none_is_refused_with_the_published_ones(kind, given):
    with pytest.raises(
        DistortionError, match=f"^{kind}: '{given}' is no level; expected .*published levels are "
    ) as caught:
        KINDS[kind].level(given)
    assert "\n" not in str(caught.value)


def test_an_unknown_distortion_is_refused_with_the_known_ones():
    with pytest.raises(DistortionError, match="'blur': .*low-pass"):
        distort(noise_picture(), "blur", 1)


@pytest.mark.parametrize(
    "bad",
    [np.zeros((4, 4)), np.zeros((0, 4, 3)), np.full((2, 2, 3), 1.1), np.full((2, 2, 3), np.nan)],
)
def test_an_array_that_is_no_picture_is_refused(bad):
    with pytest.raises(ValueError, match="picture must have"):
        distort(bad, "contrast", 1)


# Pixels.


def test_grey_and_colour_are_the_formula_written_out():
    picture = noise_picture()
    np.testing.assert_allclose(
        plane_of(distort(picture, "colour", "bw")), grey(picture), rtol=1e-14
    )
    assert (distort(picture, "colour", "cr") == picture).all()


def test_contrast_scales_the_standard_deviation_and_pulls_to_one_half():
    picture = noise_picture()
    g = np.array(grey(picture))
    for c in (1, 0.5, 0.3, 0.15, 0.1, 0.05, 0.03, 0.01):
        result = plane_of(distort(picture, "contrast", c))
        assert result.std() == pytest.approx(c * g.std(), rel=1e-12)
        assert result.mean() - 0.5 == pytest.approx(c * (g.mean() - 0.5), rel=1e-10)


def test_saving_truncates_and_keeps_the_bytes_that_were_read():
    assert to_bytes(np.array([[[0.999, 0.5, 127.9 / 255]]])).tolist() == [[[254, 127, 127]]]
    values = np.arange(256).repeat(3).reshape(16, 16, 3)
    assert (to_bytes(distort(values / 255, "colour", "cr")) == values).all()


def test_uniform_noise_is_uniform_within_its_bounds_and_independent_between_pixels():
    picture = np.full((300, 300, 3), 0.5)
    for width in (0.03, 0.2, 0.35):
        noise = plane_of(distort(picture, "uniform-noise", width)) - 0.5
        assert noise.min() >= -width - 1e-12 and noise.max() < width + 1e-12
        # Kolmogorov's bound at 1e-6 is 2.7/sqrt(n).
        sorted_noise = np.sort(noise.ravel())
        uniform = (sorted_noise + width) / (2 * width)
        assert abs(uniform - np.arange(1, noise.size + 1) / noise.size).max() < 2.7 / math.sqrt(
            noise.size
        )
        for neighbour in (noise[1:], noise[:, 1:]):
            here = noise[: neighbour.shape[0], : neighbour.shape[1]]
            assert abs(np.corrcoef(here.ravel(), neighbour.ravel())[0, 1]) < 5 / math.sqrt(
                here.size
            )


def test_uniform_noise_lowers_the_contrast_first_and_is_clipped():
    picture = noise_picture()
    np.testing.assert_allclose(
        plane_of(distort(picture, "uniform-noise", 0)),
        0.35 + 0.3 * np.array(grey(picture)),
        rtol=1e-14,
    )
    loud = plane_of(distort(noise_picture(100, 100), "uniform-noise", 0.9))
    assert loud.min() == 0 and loud.max() == 1


def test_rotation_is_a_permutation_and_counter_clockwise():
    picture = noise_picture()
    g = grey(picture)
    height, width = SIDES
    turned = plane_of(distort(picture, "rotation", 90))
    assert turned.shape == (width, height)
    # What stood at the upper right comes to the upper left.
    assert turned[0, 0] == pytest.approx(g[0][width - 1], rel=1e-14)
    for i in range(width):
        for j in range(height):
            assert turned[i, j] == pytest.approx(g[j][width - 1 - i], rel=1e-14)
    for degrees in (0, 180, 270):
        assert sorted(plane_of(distort(picture, "rotation", degrees)).ravel()) == sorted(
            turned.ravel()
        )
    twice = distort(distort(picture, "rotation", 90), "rotation", 90)
    np.testing.assert_allclose(twice, distort(picture, "rotation", 180), rtol=1e-14)


# Filters.


def slow_blur(plane, sigma):
    """Both sums of the convolution written out; the constant .4423 stands outside."""
    radius = int(4 * sigma + 0.5)
    weights = [math.exp(-((k / sigma) ** 2) / 2) for k in range(-radius, radius + 1)]
    total = sum(weights)
    height, width = len(plane), len(plane[0])

    def value(i, j):
        return plane[i][j] if 0 <= i < height and 0 <= j < width else 0.4423

    offsets = range(-radius, radius + 1)
    return [
        [
            sum(
                weights[a + radius] * weights[b + radius] * value(i + a, j + b)
                for a in offsets
                for b in offsets
            )
            / total**2
            for j in range(width)
        ]
        for i in range(height)
    ]


@pytest.mark.parametrize("sigma", [0.4, 1, 3])
def test_low_pass_and_high_pass_are_the_convolution_written_out(sigma):
    picture = noise_picture()
    g = np.array(grey(picture))
    blurred = np.array(slow_blur(g.tolist(), sigma))
    np.testing.assert_allclose(plane_of(distort(picture, "low-pass", sigma)), blurred, atol=1e-13)
    rest = g - blurred
    np.testing.assert_allclose(
        plane_of(distort(picture, "high-pass", sigma)),
        np.clip(rest - rest.mean() + 0.4423, 0, 1),
        atol=1e-13,
    )


@pytest.mark.parametrize("sigma", [0, 1, 7, 40])
def test_low_pass_of_the_surrounding_grey_is_itself(sigma):
    np.testing.assert_allclose(low_pass(np.full((50, 40, 3), 0.4423), sigma), 0.4423, rtol=1e-12)


def test_high_pass_without_limit_is_the_limit_of_large_sigma():
    picture = noise_picture(40, 40)
    g = np.array(grey(picture))
    limit = plane_of(distort(picture, "high-pass", "inf"))
    np.testing.assert_allclose(limit, np.clip(g - g.mean() + 0.4423, 0, 1), atol=1e-14)
    distances = [
        abs(plane_of(high_pass(picture, sigma)) - limit).max() for sigma in (5, 10, 20, 40)
    ]
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.01


@pytest.mark.parametrize("kind", ["low-pass", "high-pass"])
def test_a_filter_wider_than_the_picture_is_refused_before_it_is_applied(kind, monkeypatch):
    monkeypatch.setattr(
        "scipy.ndimage.gaussian_filter", lambda *_, **__: pytest.fail("the filter was called")
    )
    with pytest.raises(DistortionError, match="sigma 11: expected 0 to 10, .*--size"):
        distort(noise_picture(), kind, 11)


# Fourier.


def slow_scramble(plane, angles, mirrored):
    """Phases shifted frequency by frequency in the order of the flattened block whose centre is the
    zero frequency.
    """
    height, width = plane.shape
    spectrum = dft(plane)
    rows, columns = (range(-((n - 1) // 2), (n - 1) // 2 + 1) for n in (height, width))
    block = [(a, b) for a in rows for b in columns]
    half = len(block) // 2
    assert block[half] == (0, 0)
    last = angles[::-1] if mirrored else angles
    for (a, b), s in zip(
        block[:half] + block[half + 1 :], [*angles, *(-angle for angle in last)], strict=True
    ):
        spectrum[a % height, b % width] *= np.exp(1j * s)
    return (dft(spectrum, sign=1) / plane.size).real


@pytest.mark.parametrize("shape", [(7, 10), (8, 6), (5, 5)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_phase_scrambling_is_the_fourier_sum_written_out(shape, mirrored):
    picture = 0.4 + 0.2 * noise_picture(*shape)
    plane = np.array(grey(picture))
    result = phase_scrambling(picture, 120, np.random.default_rng(3), mirrored=mirrored)
    half = (shape[0] - 1 + shape[0] % 2) * (shape[1] - 1 + shape[1] % 2) // 2
    angles = np.deg2rad(np.random.default_rng(3).uniform(-120, 120, half))
    np.testing.assert_allclose(
        plane_of(result), np.clip(slow_scramble(plane, angles, mirrored), 0, 1), atol=1e-13
    )


@pytest.mark.parametrize("degrees", [30, 60, 90, 120, 150, 180])
def test_published_scrambling_lowers_the_standard_deviation_and_mirrored_keeps_it(
    degrees,
):
    # A coefficient gets (exp(i s) + exp(i t))/2 with independent s, t in [-w, w); its expected
    # power is (1 + (sin w / w)^2)/2.
    picture = natural_picture(spread=0.05)
    w = math.radians(degrees)
    factor = math.sqrt((1 + (math.sin(w) / w) ** 2) / 2)
    before = np.array(grey(picture)).std()
    stds = [distort(picture, "phase-scrambling", degrees, seed=seed).std() for seed in range(12)]
    # Few low frequencies carry most of the power, so a single picture scatters by 5 %.
    assert np.sqrt(np.mean(np.square(stds))) / before == pytest.approx(factor, abs=0.03)
    mirrored = distort(picture, "phase-scrambling-mirrored", degrees)
    assert mirrored.std() == pytest.approx(before, rel=1e-3)
    # As measured on a photograph: .2388/.2934 at 90 degrees, .2030/.2934 at 180, where clipping
    # takes some too.
    if degrees in (90, 180):
        assert factor == pytest.approx({90: 0.2388, 180: 0.2030}[degrees] / 0.2934, abs=0.03)


@pytest.mark.parametrize("kind", ["phase-scrambling", "phase-scrambling-mirrored"])
def test_phase_zero_is_the_grey_picture(kind):
    assert (distort(bytes_picture(), kind, 0) == distort(bytes_picture(), "colour", "bw")).all()
    nearly = distort(bytes_picture(), kind, 0.001)
    assert (
        abs(to_bytes(nearly).astype(int) - to_bytes(distort(bytes_picture(), "colour", "bw"))).max()
        <= 1
    )


def test_power_equalisation_gives_exactly_the_wanted_amplitudes_and_keeps_the_phases():
    picture = 0.4 + 0.2 * noise_picture(8, 7)
    wanted = amplitude_spectrum(0.4 + 0.2 * noise_picture(8, 7, seed=1))
    before = dft(grey(picture))
    after = dft(
        plane_of(distort(picture, "power-equalisation", "pow", inputs=Inputs(amplitudes=wanted)))
    )
    np.testing.assert_allclose(abs(np.roll(after, (4, 3), (0, 1))), wanted, atol=1e-12)
    np.testing.assert_allclose(after / abs(after), before / abs(before), atol=1e-9)


def test_the_amplitude_spectrum_is_the_fourier_sum_with_the_zero_frequency_in_the_middle():
    picture = noise_picture()
    expected = abs(np.roll(dft(grey(picture)), (SIDES[0] // 2, SIDES[1] // 2), (0, 1)))
    np.testing.assert_allclose(amplitude_spectrum(picture), expected, atol=1e-12)


def test_a_spectrum_of_another_size_or_none_is_refused():
    with pytest.raises(DistortionError, match=r"shape \(5, 5\), but the pictures have 7 x 10"):
        distort(
            noise_picture(), "power-equalisation", "pow", inputs=Inputs(amplitudes=np.ones((5, 5)))
        )
    with pytest.raises(DistortionError, match="no mean spectrum"):
        distort(noise_picture(), "power-equalisation", "pow")
    with pytest.raises(DistortionError, match="negative or not finite"):
        distort(
            noise_picture(),
            "power-equalisation",
            "pow",
            inputs=Inputs(amplitudes=np.full(SIDES, np.nan)),
        )


# False colour.


def slow_false_colour(picture, lut):
    result = np.empty_like(picture)
    for index in np.ndindex(picture.shape[:2]):
        red, green, blue = (lut[round(255 * value)] for value in picture[index])
        light = 0.258828 * red + 0.607436 * green + 0.133735 * blue
        for channel, value in enumerate((red, green, blue)):
            mirrored = min(1, max(0, 2 * light - value))
            result[index][channel] = (
                min(range(256), key=lambda entry: abs(lut[entry] - mirrored)) / 255
            )
    return result


def srgb_by_hand(byte):
    value = byte / 255
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def test_false_colour_is_the_nearest_entry_written_out():
    lut = [srgb_by_hand(byte) for byte in range(256)]
    np.testing.assert_allclose(srgb_lut(), lut, rtol=1e-15)
    picture = bytes_picture(12)
    np.testing.assert_array_equal(
        distort(picture, "false-colour", False), slow_false_colour(picture, lut)
    )
    table = np.linspace(0, 1, 256) ** 1.8
    result = distort(picture, "false-colour", False, inputs=Inputs(gamma_lut=table))
    np.testing.assert_array_equal(result, slow_false_colour(picture, table.tolist()))


def test_halfway_between_two_entries_the_lower_is_taken():
    table = np.arange(256) / 256
    light = np.array([0.5, 1.5, 1.5 + 1e-9, 254.5, 255]) / 256
    assert nearest_bytes(light, table).tolist() == [0, 1, 2, 254, 255]


def test_false_colour_is_an_involution_where_nothing_clips():
    linear = 0.3 + 0.1 * noise_picture()
    # The published weights sum to .999999.
    np.testing.assert_allclose(opponent(opponent(linear)), linear, atol=3e-6)
    muted = np.random.default_rng(0).integers(110, 150, (30, 30, 3)) / 255
    twice = distort(distort(muted, "false-colour", False), "false-colour", False)
    assert abs(255 * (twice - muted)).max() <= 2.01


def test_false_colour_leaves_grey_and_turns_red_to_its_opponent():
    ramp = np.repeat(np.arange(256)[None, :, None] / 255, 3, axis=2)
    assert (distort(ramp, "false-colour", False) == ramp).all()
    reddish = np.full((1, 1, 3), 0.5) + [0.1, 0, 0]
    red, green, blue = distort(reddish, "false-colour", False)[0, 0]
    assert red < green == blue


@pytest.mark.parametrize(
    "bad", [np.ones(255), np.zeros(256), np.linspace(-1, 1, 256), np.full(256, np.nan)]
)
def test_a_table_that_is_no_gamma_table_is_refused(bad):
    with pytest.raises(DistortionError, match="gamma table: expected 256 values that ascend"):
        check_lut(bad)


# Eidolons.


def gaussian_of(sigma, shape):
    """Transfer function of a periodic Gaussian at every frequency of a full Fourier transform."""
    rows, columns = (
        [math.exp(-2 * (math.pi * sigma * min(k, n - k) / n) ** 2) for k in range(n)] for n in shape
    )
    return np.outer(rows, columns)


def slow_eidolon(plane, reach, generator, coherence, grain=10):
    """The formulas in the order of the text: whole transforms, no cut, pixel by pixel."""
    height, width = plane.shape
    shape = (2 * height, 2 * width)
    top, left = height // 2, width // 2
    # Mirrored surroundings: 0 1 2 | 2 1 0 | 0 1 2 ...
    canvas = np.empty(shape)
    for i, j in np.ndindex(shape):
        a, b = (i - top) % (2 * height), (j - left) % (2 * width)
        canvas[i, j] = plane[min(a, 2 * height - 1 - a), min(b, 2 * width - 1 - b)]

    def blur(values, sigma):
        return (dft(dft(values) * gaussian_of(sigma, shape), sign=1) / values.size).real

    def noise(sigma):
        values = generator.standard_normal(shape)
        values = blur(values * 127.5 / abs(values).max(), sigma)
        return values - values.mean() / values.std()

    sigmas = [2 ** ((k - 1) / 2) for k in range(12)]
    blurred = [blur(canvas, sigma) for sigma in sigmas]
    slices = [blurred[k] - blurred[k + 1] for k in range(11)] + [blurred[11]]
    result = np.zeros(plane.shape)
    coherent = [np.zeros(shape), np.zeros(shape)]
    for k in reversed(range(12)):
        fields = []
        for axis in range(2):
            field = (1 - coherence) * noise(grain) if coherence < 1 else np.zeros(shape)
            if coherence > 0:
                coherent[axis] = coherent[axis] + sigmas[k] / 64 * noise(sigmas[k])
                field = field + coherence * coherent[axis]
            fields.append(field)
        for i, j in np.ndindex(plane.shape):
            row = math.trunc(top + i + reach * fields[0][top + i, left + j])
            column = math.trunc(left + j + reach * fields[1][top + i, left + j])
            result[i, j] += slices[k][
                min(max(row, 0), shape[0] - 1), min(max(column, 0), shape[1] - 1)
            ]
    return np.clip(result, 0, 1)


@pytest.mark.parametrize(
    ("coherence", "shape"), [(1.0, (64, 64)), (0.3, (65, 70)), (0.0, (21, 26)), (0.0, (20, 20))]
)
def test_an_eidolon_is_its_formulas_written_out(coherence, shape):
    picture = 0.3 + 0.4 * noise_picture(*shape)
    fast = eidolon(picture, 4, np.random.default_rng(5), coherence=coherence)
    slow = slow_eidolon(np.array(grey(picture)), 4, np.random.default_rng(5), coherence)
    # A displacement that rounding moves over a whole number would move a pixel; none does here.
    np.testing.assert_allclose(plane_of(fast), slow, atol=1e-10)


@pytest.mark.parametrize("kind", ["eidolonI", "eidolonII", "eidolonIII"])
def test_reach_zero_is_the_grey_picture_and_the_scales_sum_to_a_slight_blur(kind):
    picture = bytes_picture()
    assert (distort(picture, kind, 0) == distort(picture, "colour", "bw")).all()
    plane = np.array(grey(picture))
    mirrored = np.block([[plane, plane[:, ::-1]], [plane[::-1], plane[::-1, ::-1]]])
    blurred = np.fft.ifft2(
        np.fft.fft2(mirrored) * gaussian_of(math.sqrt(0.5), mirrored.shape)
    ).real[:64, :64]
    np.testing.assert_allclose(sum(_slices(plane))[32:96, 32:96], blurred, atol=1e-12)


def test_a_picture_too_small_for_the_noise_of_an_eidolon_is_refused():
    for kind, side in (("eidolonI", 63), ("eidolonII", 63), ("eidolonIII", 19)):
        with pytest.raises(
            DistortionError,
            match=f"{side} x 80 pixels, .* on less than {side + 1} x {side + 1} nothing",
        ):
            distort(noise_picture(side, 80), kind, 4)
        assert np.isfinite(distort(noise_picture(side + 1, 80), kind, 4)).all()


def test_the_displacements_of_an_eidolon_have_the_published_size():
    def fields(coherence, grain=10.0):
        generator = np.random.default_rng(0)
        return [
            np.stack(pair)
            for pair in _displacements((256, 256), generator, coherence=coherence, grain=grain)
        ]

    assert np.mean([field.std() for field in fields(0)]) == pytest.approx(0.75, abs=0.03)
    # The standard deviation falls as 1 over the grain.
    assert np.mean([field.std() for field in fields(0, grain=5.0)]) == pytest.approx(1.5, abs=0.06)
    # The k-th largest scale is moved by k independent terms of .117 each (0.75 px times 10/64).
    coherent = fields(1)
    terms = [now - before for before, now in zip([0, *coherent], coherent)]
    expected = 127.5 / 4.77 / (2 * math.sqrt(math.pi)) / 64
    assert np.mean([term.std() for term in terms]) == pytest.approx(expected, abs=0.01)
    assert len(coherent) == len(SIGMAS) == 12
    mixed = np.mean([field.var() for field in fields(0.3)[:1]])
    assert mixed == pytest.approx(0.7**2 * 0.75**2 + 0.3**2 * expected**2, rel=0.15)


def test_eidolons_lose_the_picture_as_reach_grows_and_faster_with_less_coherence():
    picture = natural_picture(spread=0.1)
    g = np.array(grey(picture)).ravel()

    def correlation(kind, reach):
        return np.corrcoef(g, distort(picture, kind, reach)[..., 0].ravel())[0, 1]

    table = {
        kind: [correlation(kind, reach) for reach in (1, 8, 64)]
        for kind in ("eidolonI", "eidolonII", "eidolonIII")
    }
    for values in table.values():
        assert values[0] > 0.8 and values[0] > values[1] + 0.02 and values[1] > values[2] + 0.1
    assert table["eidolonI"][2] > table["eidolonII"][2] > table["eidolonIII"][2]


# Shapes.


def test_a_silhouette_is_black_where_more_than_half_opaque():
    alpha = np.array([[0, 0.5, 0.51, 1]])
    result = distort(Picture(rgb=np.zeros((1, 4, 3)), alpha=alpha), "silhouette", 0)
    assert plane_of(result).tolist() == [[1, 1, 0, 0]]
    for kind in ("silhouette", "sketch"):
        with pytest.raises(DistortionError, match=f"{kind}: the picture has no "):
            distort(noise_picture(), kind, "0")


def test_an_edge_is_one_pixel_wide_and_stands_at_the_step():
    picture = np.zeros((20, 20, 3))
    picture[:, 9:] = 1
    edges = plane_of(distort(picture, "edge", 0)) == 0
    assert (edges.sum(axis=1) == 1).all() and edges[:, 8:10].any(axis=1).all()
    disc = (np.hypot(*np.indices((64, 64)) - 31.7) < 20).astype(float)
    points = np.argwhere(canny(disc))
    # Where blurred steps are steepest: within a pixel of the circle, and all around it.
    assert abs(np.hypot(*(points - 31.7).T) - 20).max() < 1.5
    angles = np.sort(np.arctan2(*(points - 31.7).T))
    assert np.diff(angles).max() < 0.1 and 100 < len(points) < 150


def test_weak_edges_stay_only_where_they_touch_strong_ones():
    # Sobel's weights sum to 4, and after the blur a step of 1 rises by .62 over two pixels: .15
    # here, between the thresholds.
    weak = np.zeros((30, 30))
    weak[:, 15:] = 0.06
    assert not canny(weak).any()
    growing = weak * np.linspace(1, 3, 30)[:, None]
    assert canny(growing)[:, 14:16].any(axis=1).all()
    # Pixels of a diagonal line touch at their corners; its steepest place is made to lie on pixels.
    i, j = np.indices((40, 40))
    ramp = np.clip((i + j - 38) / 2, 0, 1)
    edges = canny(0.07 * ramp * (1 + i / 20))
    assert all(edges[row, 39 - row] for row in range(1, 39)) and edges.sum() < 45
    assert not canny(0.07 * ramp).any()
    assert not canny(np.full((5, 5), 0.3)).any()


# Randomness.


def test_random_numbers_depend_on_seed_kind_level_and_key_and_on_nothing_else():
    picture = noise_picture(64, 64)
    for name in [name for name, kind in KINDS.items() if kind.is_random]:
        level = KINDS[name].levels[3].text
        first = distort(picture, name, level, seed=1, key="a/b")
        np.random.default_rng().standard_normal(3)
        assert (distort(picture, name, level, seed=1, key="a/b") == first).all()
        for other in ({"seed": 2, "key": "a/b"}, {"seed": 1, "key": "a/c"}):
            assert (distort(picture, name, level, **other) != first).any()
    # Not the same noise at another level.
    grey_square = np.full((50, 50, 3), 0.5)
    one, two = (
        distort(grey_square, "uniform-noise", level)[..., 0].ravel() for level in (0.1, 0.2)
    )
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.1


def test_only_random_kinds_depend_on_the_seed():
    picture = Picture(
        rgb=noise_picture(64, 64), alpha=noise_picture(64, 64)[..., 0], lines=noise_picture(64, 64)
    )
    inputs = Inputs(amplitudes=amplitude_spectrum(noise_picture(64, 64, seed=1)))
    for name, kind in KINDS.items():
        for level in kind.levels:
            first, second = (
                distort(picture, name, level.text, seed=seed, inputs=inputs) for seed in (0, 1)
            )
            assert (
                first.min() >= 0
                and first.max() <= 1
                and first.dtype == np.float64
                and first.shape == (64, 64, 3)
            )
            random = kind.is_random and level.text not in ("0", "0.0")
            assert (first != second).any() == random, (name, level)


# Published files, where they are there.


@pytest.mark.skipif(not FACTS.exists(), reason="needs the published table and spectrum")
def test_the_published_table_and_spectrum_are_taken():
    lut = check_lut(np.load(FACTS / "x_gamma_function.npy"))
    assert lut[0] == 0 and lut[-1] == 1 and (np.diff(lut) > 0).all()
    picture = bytes_picture(16)
    result = distort(picture, "false-colour", False, inputs=Inputs(gamma_lut=lut))
    np.testing.assert_array_equal(result, slow_false_colour(picture, lut.tolist()))
    amplitudes = np.load(FACTS / "mean_power_spectrum_grey.npy")
    assert amplitudes.shape == (224, 224) and amplitudes[112, 112] / 224**2 == pytest.approx(
        0.4545, abs=5e-5
    )
    equalised = distort(
        natural_picture(), "power-equalisation", "pow", inputs=Inputs(amplitudes=amplitudes)
    )
    # The mean of a picture is its zero frequency; clipping takes little.
    assert equalised.mean() == pytest.approx(0.4545, abs=0.02)
