"""Which pictures are opened, what becomes of unusual ones, and what is said of them."""

import io
import json
import os

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from landscape.cli import main
from landscape.clip.image_text import curvature_batches, open_pairs
from landscape.clip.model import preprocess_for
from landscape.errors import PictureError
from landscape.manifest import DataSettings

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
MODEL = "vit_tiny_64"


@pytest.fixture
def table(tmp_path):
    """Write pictures and their table; returns the table."""

    def write(*pictures):
        rows = ["filepath\ttitle"]
        for number, (content, suffix) in enumerate(pictures):
            (tmp_path / f"{number}.{suffix}").write_bytes(content)
            rows.append(f"{number}.{suffix}\tcaption {number}")
        (tmp_path / "pairs.tsv").write_text("\n".join(rows) + "\n")
        return tmp_path / "pairs.tsv"

    return write


def encoded(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def pairs_of(table, num_samples=1, **settings):
    return open_pairs(
        DataSettings(
            source=str(table), split="all", num_samples=num_samples, batch_size=1, **settings
        )
    )


def notes_of(table, num_samples=1, **settings):
    batches = curvature_batches(
        pairs_of(table, num_samples, **settings),
        num_samples=num_samples,
        batch_size=1,
        seed=0,
        transform=preprocess_for(MODEL),
        tokenizer=None,
    )
    return batches.notes


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats_of_training_data_are_opened_whatever_the_name_says(kind, table):
    content = encoded(Image.fromarray(NOISE), kind)
    picture, _ = pairs_of(table((content, "jpg")))[0]
    assert np.array_equal(picture, Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize(
    "kind", ["PDF", "EPS", "ICNS", "PCX", "SGI", "TGA", "JPEG2000", "ICO", "DDS", "IM"]
)
def test_other_formats_that_pillow_knows_are_refused(kind, table):
    try:
        content = encoded(Image.fromarray(NOISE), kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {kind}")
    with pytest.raises(
        PictureError, match="which are none of JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM"
    ):
        pairs_of(table((content, "jpg")))[0]


def test_animations_orientations_and_transparency_are_read_as_by_open_clip(table):
    """open_clip opens with `Image.open(...).convert("RGB")`: the first frame, as stored, without
    its transparency.
    """
    other = Image.fromarray(255 - NOISE)
    first = Image.fromarray(NOISE).quantize(16)
    animation = encoded(first, "GIF", save_all=True, append_images=[other.quantize(16)])
    turned = Image.Exif()
    turned[0x0112] = 6
    contents = [
        (animation, "gif"),
        (encoded(Image.fromarray(NOISE), "JPEG", exif=turned), "jpg"),
        (encoded(Image.fromarray(np.dstack([NOISE, NOISE[..., 0]])), "PNG"), "png"),
        (encoded(Image.fromarray(NOISE).convert("CMYK"), "JPEG"), "jpg"),
        (encoded(first, "PNG", transparency=0), "png"),
    ]
    pairs = pairs_of(table(*contents), 5)
    for index, (content, _) in enumerate(contents):
        assert np.array_equal(pairs[index][0], Image.open(io.BytesIO(content)).convert("RGB"))
    assert pairs[0][0].size == pairs[1][0].size == (64, 64)


def test_pictures_of_sixteen_bits_and_of_floats_are_said_to_be_clipped(table):
    deep = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    sources = [
        Image.fromarray(deep),
        Image.fromarray(deep.astype(np.float32)),
        Image.fromarray(NOISE),
    ]
    path = table(
        *((encoded(source, kind), "x") for source, kind in zip(sources, ("PNG", "TIFF", "PNG")))
    )
    (note,) = notes_of(path, 3)
    assert (
        "2 of 3 drawn pictures hold numbers of more than 8 bits (mode F, I;16)" in note
        and "white, as in open_clip" in note
    )
    # What the note says is what Pillow does: everything from 255 up is 255.
    assert np.array_equal(np.asarray(pairs_of(path, 3)[0][0])[..., 0], np.minimum(deep, 255))


def test_pictures_of_a_table_that_open_clip_resizes_in_their_own_kind_are_said(table):
    content = encoded(Image.fromarray(NOISE).quantize(16), "PNG")
    (note,) = notes_of(table((content, "png")))
    assert "1 of 1 drawn pictures have a palette or transparency (mode P)" in note


def test_pictures_of_another_size_than_the_models_are_said_where_they_are_enlarged(table):
    small, large = (encoded(Image.fromarray(NOISE).resize((side, 90)), "PNG") for side in (48, 80))
    path = table((small, "png"), (large, "png"))
    (note,) = notes_of(path, 2)
    assert "1 of 2 drawn pictures are smaller than 64 pixels, and are enlarged" in note
    (note,) = notes_of(path, 2, image_size=32)
    assert "scaled to image_size 32 first, then to the model's 64 x 64 pixels" in note


def test_a_pipe_in_place_of_a_picture_is_refused_and_not_waited_for(table, tmp_path):
    path = table((encoded(Image.fromarray(NOISE), "PNG"), "png"))
    (tmp_path / "0.png").unlink()
    os.mkfifo(tmp_path / "0.png")
    pairs = pairs_of(path)
    assert "named pipe" in pairs.problem(0) and pairs.notes_on([0], (64, 64)) == ()


def test_a_picture_file_larger_than_any_picture_is_not_read(table, tmp_path):
    path = table((encoded(Image.fromarray(NOISE), "PNG"), "png"))
    with open(tmp_path / "0.png", "r+b") as file:
        file.truncate(10**12)
    with pytest.raises(PictureError, match="1000000000000 bytes, more than any picture"):
        pairs_of(path)[0]


@pytest.mark.parametrize(
    ("line", "changed", "said"),
    [
        (
            "num_samples: 4",
            "num_samples: 1000000000",
            "1000000000, but that makes 500000000 batches",
        ),
        ("batch_size: 2", "batch_size: 2, image_size: 1000000000", "it must be at most 4096"),
        ("k: 2", "k: 99999999999999999999999", "it must be at most 10000"),
        ("k: 2", "k: 2, max_matvecs: 99999999999", "it must be at most 1000000"),
        ("k: 2", "k: 2, seed: 99999999999999999999999", "it must be at most 9223372036854775807"),
        ("k: 2", "k: 2, weight_decay: 1.0e+300", "from 0 to 1e+06"),
        ("epoch: 0", "epoch: 99999999999", "it must be at most 1000000000"),
    ],
)
def test_numbers_beyond_what_there_is_are_refused_in_one_line(line, changed, said, table, tmp_path):
    table((b"x", "png"))
    (tmp_path / "0.pt").write_bytes(b"x")
    text = (
        "version: 1\ndata: {source: pairs.tsv, split: all, num_samples: 4, batch_size: 2}\n"
        "hessian: {objective: contrastive, k: 2}\n"
        f"series:\n  - {{name: a, model: {MODEL}, checkpoints: [{{epoch: 0, path: 0.pt}}]}}\n"
    )
    (tmp_path / "m.yaml").write_text(text.replace(line, changed))
    result = CliRunner().invoke(main, ["info", str(tmp_path / "m.yaml")])
    assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["density", "m.yaml", "-o", "d.png", "--max-memory", "9" * 400],
        ["density", "m.yaml", "-o", "d.png", "--probes", "1000000000"],
        ["spectra", "m.yaml", "-o", "d.h5", "--threads", "1000000"],
        ["train", "--model", MODEL, "-o", "x", "--epochs", "9" * 30],
        ["train", "--model", MODEL, "-o", "x", "--workers", "100000"],
        ["train", "--model", MODEL, "-o", "x", "--image-size", "1000000"],
        ["compare", "a.h5", "--resamples", "1" + "0" * 20],
        ["compare", "a.h5", "--epochs", "0," + "9" * 5000],
        ["surface", "m.yaml", "-o", "s.png", "--points", "1000000001"],
    ],
)
def test_options_beyond_what_can_be_meant_are_refused(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert (
        result.exit_code == 2
        and result.stderr.startswith(f"landscape: {arguments[0]}: --")
        and result.stderr.count("\n") == 1
        and not list(tmp_path.iterdir())
    )


@pytest.mark.parametrize("vocabulary", [20_000_000, 10**12])
def test_a_model_larger_than_its_checkpoint_can_fill_is_not_built(vocabulary, table, tmp_path):
    path = table(*[(encoded(Image.fromarray(NOISE), "PNG"), "png")] * 4)
    config = {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": 64,
            "layers": 2,
            "width": 64,
            "patch_size": 16,
            "head_width": 16,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": vocabulary,
            "width": 64,
            "heads": 2,
            "layers": 1,
        },
    }
    (tmp_path / "huge.json").write_text(json.dumps(config))
    (tmp_path / "0.pt").write_bytes(b"x" * 1000)
    (tmp_path / "m.yaml").write_text(
        f"version: 1\ndata: {{source: {path.name}, split: all, num_samples: 4, batch_size: 2}}\n"
        "hessian: {objective: contrastive, k: 2}\n"
        "series:\n  - {name: a, config: huge.json, checkpoints: [{epoch: 0, path: 0.pt}]}\n"
    )
    result = CliRunner().invoke(
        main, ["spectra", str(tmp_path / "m.yaml"), "-o", str(tmp_path / "a.h5")]
    )
    assert result.exit_code == 2 and "is larger than what its checkpoint can fill" in result.stderr


def test_a_store_far_longer_than_its_own_end_is_refused(tmp_path):
    import h5py

    from landscape.store.hdf5 import open_hdf5

    path = tmp_path / "a.h5"
    for version in ("earliest", "latest"):
        with h5py.File(path, "w", libver=version) as file:
            file["a"] = 1
        open_hdf5(path).close()
        with open(path, "r+b") as file:
            file.truncate(10**12)
        with pytest.raises(OSError, match="1000000000000 bytes, but its own end"):
            open_hdf5(path)


def test_the_name_of_an_output_that_no_file_can_have_is_refused():
    result = CliRunner().invoke(main, ["figure", "a.h5", "-o", "x" * 300 + ".png"])
    assert (
        result.exit_code == 2
        and "the name has 304 characters, more than a file's can" in result.stderr
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text_cfg": None}, "text_cfg is None, but a mapping is expected"),
        ({"vision_cfg": [1]}, r"vision_cfg is \[1\], but a mapping"),
        ({"text_cfg": {"hf_model_name": 3}}, "text_cfg.hf_model_name is 3, but a text is expected"),
    ],
)
def test_a_configuration_whose_sections_are_something_else_is_refused(changes, said, tmp_path):
    from landscape.clip.architecture import architecture_of
    from landscape.errors import ModelError

    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}} | changes))
    with pytest.raises(ModelError, match=f"mine.json: {said}"):
        architecture_of(str(path))


def test_ctrl_c_while_a_temporary_folder_is_removed_leaves_none(tmp_path, monkeypatch):
    import signal
    import tempfile

    from landscape.clip import architecture

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    remove = os.rmdir

    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        remove(*arguments, **options)

    with pytest.raises(KeyboardInterrupt):
        with architecture._temporary_folder() as folder:
            assert folder.is_dir()
            monkeypatch.setattr(os, "rmdir", interrupted)
    assert not list(tmp_path.iterdir())
