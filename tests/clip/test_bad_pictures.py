"""Pictures that cannot be read: they cost their own batch, or others stand in for them."""

import io

import numpy as np
import pytest
import timm
import torch
import yaml
from click.testing import CliRunner
from PIL import Image, ImageFile
from torchvision.transforms.functional import to_tensor

from landscape.cli import main
from landscape.clip.image_text import curvature_batches, open_pairs
from landscape.clip.labels import with_labels
from landscape.clip.seeding import draw_without_replacement
from landscape.errors import DataError, PictureError
from landscape.manifest import DataSettings, Manifest
from landscape.store import SpectrumStore

MODEL = "test_convnext"


def png(i):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
        stream, "png"
    )
    return stream.getvalue()


@pytest.fixture
def table(tmp_path):
    """Twelve pictures whose captions are the classes 0 to 2."""
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    rows = "".join(f"{i}.png\t{i % 3}\n" for i in range(12))
    (tmp_path / "pairs.tsv").write_text(f"filepath\ttitle\n{rows}")
    return tmp_path / "pairs.tsv"


def opened(table):
    return with_labels(
        open_pairs(DataSettings(source=str(table), split="all", num_samples=6, batch_size=3))
    )


def drawn(pairs, **options):
    return curvature_batches(
        pairs,
        **{
            "num_samples": 6,
            "batch_size": 3,
            "seed": 0,
            "transform": to_tensor,
            "tokenizer": None,
            **options,
        },
    )


ORDER = draw_without_replacement(12, 12, seed=0)


def spoil(table, *rows):
    for row in rows:
        (table.parent / f"{row}.png").write_bytes(png(row)[:300])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"<html>not found</html>", "none of JPEG, PNG, WEBP"),
        (png(0)[:300], "truncated"),
        (None, "no file"),
    ],
)
@pytest.mark.parametrize("lenient", [False, True])
def test_every_kind_of_bad_picture_is_one_error_in_one_line(
    content, reason, lenient, table, monkeypatch
):
    # What some libraries set for the whole process; half a picture would be read as a whole one.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    path = table.parent / "0.png"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(PictureError, match=rf"pairs\.tsv, row 1: .*{reason}") as caught:
        opened(table)[0]
    assert "\n" not in str(caught.value) and "0x" not in str(caught.value)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_a_picture_of_more_pixels_than_pillow_allows_is_an_error(table, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(PictureError, match="row 1: .*DecompressionBombError"):
        opened(table)[0]


def test_a_bad_picture_that_is_not_drawn_is_never_read(table):
    spoil(table, *ORDER[6:])
    batches = drawn(opened(table))
    assert [batch["image"].shape for batch in batches] == [(3, 3, 16, 16)] * 2


@pytest.fixture
def study(table):
    model = timm.create_model(MODEL, pretrained=False)
    torch.save(
        {"epoch": 3, "arch": MODEL, "state_dict": model.state_dict()}, table.parent / "timm.pth.tar"
    )

    def manifest(**data):
        document = {
            "version": 1,
            "epoch_zero": "optional",
            "data": {
                "source": "pairs.tsv",
                "split": "all",
                "num_samples": 9,
                "batch_size": 3,
                **data,
            },
            "hessian": {
                "objective": "cross_entropy",
                "k": 1,
                "parameters": ["head.fc.*"],
                "dtype": "float64",
            },
            "series": [
                {
                    "name": "a",
                    "model": f"timm:{MODEL}",
                    "checkpoints": [{"epoch": 4, "path": "timm.pth.tar"}],
                }
            ],
        }
        (table.parent / "m.yaml").write_text(yaml.safe_dump(document))
        return table.parent / "m.yaml"

    return manifest


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("modules", [(), ("--per-module", "--unaudited", "--modules", "head.*")])
def test_a_bad_picture_costs_its_own_batch_and_the_next_run_tries_it_again(
    modules, study, table, tmp_path
):
    # The first batch, which is audited and on which the way of products is chosen.
    spoil(table, ORDER[1])
    output = tmp_path / "a.h5"
    for _ in range(2):
        result = invoke("spectra", study(), "-o", output, *modules)
        assert result.exit_code == 1, result.output
        assert (
            f"failed: a epoch 4 batch 0: {table}, row {ORDER[1] + 1}: the picture cannot be read"
            in result.output
        )
        assert "2 of 3 batches are measured" in result.output
        assert ("failed: modules of a epoch 4 batch 0" in result.output) == bool(modules)
    (table.parent / f"{ORDER[1]}.png").write_bytes(png(ORDER[1]))
    result = invoke("spectra", study(), "-o", output, *modules)
    assert (
        result.exit_code == 0 and "3 of 3 batches are measured (1 now, 2 before)" in result.output
    )


def test_a_density_loses_the_batch_of_a_bad_picture_alone(study, table, tmp_path):
    spoil(table, ORDER[1])
    result = invoke(
        "density", study(), "-o", tmp_path / "d.png", "--batches", 2, "--probes", 1, "--matvecs", 5
    )
    assert (
        result.exit_code == 1
        and "failed: a epoch 4 batch 0: " in result.output
        and (tmp_path / "d.png").exists()
    )


def test_where_no_batch_can_be_read_the_run_is_refused_before_anything_is_written(
    study, table, tmp_path
):
    spoil(table, ORDER[0], ORDER[3], ORDER[6])
    result = invoke("spectra", study(), "-o", tmp_path / "a.h5")
    assert (
        result.exit_code == 2 and f"row {ORDER[0] + 1}: the picture cannot be read" in result.output
    )
    assert not (tmp_path / "a.h5").exists()


def test_a_skipped_picture_is_replaced_by_the_next_pair_that_was_not_drawn(table):
    whole = drawn(opened(table), on_bad_picture="skip")
    assert whole.indices == tuple(ORDER[:6]) and whole.notes == ()
    before = whole.digest(0)
    # Of the two that stand in, the first that is drawn is bad itself; one is not there at all.
    spoil(table, ORDER[1], ORDER[6])
    (table.parent / f"{ORDER[4]}.png").unlink()
    for transform in (to_tensor, lambda picture: to_tensor(picture.resize((8, 8)))):
        batches = drawn(opened(table), on_bad_picture="skip", transform=transform)
        assert batches.indices == (ORDER[0], ORDER[7], ORDER[2], ORDER[3], ORDER[8], ORDER[5])
        assert sorted(batches[0]["label"].tolist()) == sorted(i % 3 for i in batches.indices[:3])
    (note,) = batches.notes
    assert (
        "of 6 drawn pictures 2 cannot be read" in note
        and f"row {ORDER[1] + 1}:" in note
        and f"row {ORDER[4] + 1}:" in note
    )
    assert batches.digest(0) != before


def test_too_few_pairs_to_stand_in_are_refused(table):
    spoil(table, *ORDER[:3])
    with pytest.raises(
        DataError, match=f"3 of the 10 drawn pictures cannot be read.*row {ORDER[0] + 1}"
    ):
        drawn(opened(table), num_samples=10, batch_size=2, on_bad_picture="skip")


def test_a_run_that_skips_bad_pictures_is_complete_and_says_which(study, table, tmp_path):
    spoil(table, ORDER[1])
    result = invoke("spectra", study(on_bad_picture="skip"), "-o", tmp_path / "a.h5", "--unaudited")
    assert result.exit_code == 0, result.output
    assert f"note: split 'all' of {table}: of 9 drawn pictures 1 cannot be read" in result.output
    with SpectrumStore.open(tmp_path / "a.h5") as store:
        skipped = store.records("a", 4)
    (table.parent / f"{ORDER[1]}.png").write_bytes(png(ORDER[1]))
    assert invoke("spectra", study(), "-o", tmp_path / "b.h5", "--unaudited").exit_code == 0
    with SpectrumStore.open(tmp_path / "b.h5") as store:
        whole = store.records("a", 4)
    same = [one == other for one, other in zip(skipped.batch_sha256, whole.batch_sha256)]
    assert same == [False, True, True]


def test_keys_that_came_later_leave_the_protocol_of_older_stores_alone(study):
    digests = {
        Manifest.load(study(**data)).protocol_digest()
        for data in ({}, {"encoding": "UTF8"}, {"on_bad_picture": "fail"})
    }
    assert len(digests) == 1
    protocol = Manifest.load(study()).protocol()["data"]
    assert (
        not {"encoding", "quoting", "on_bad_picture"} & set(protocol)
        and protocol["caption_key"] == "title"
    )
    others = [{"encoding": "latin-1"}, {"quoting": "none"}, {"on_bad_picture": "skip"}]
    assert len(digests | {Manifest.load(study(**data)).protocol_digest() for data in others}) == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_training_names_the_bad_picture_in_one_line(workers, tmp_path):
    from tests.helpers.tiny_run import run, write_pairs

    table = write_pairs(tmp_path)
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:200])
    with pytest.raises(
        PictureError, match=rf"^epoch 1: {table}, row 4: the picture cannot be read .*$"
    ) as caught:
        run(tmp_path / "run", table, workers=workers)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
