"""checkpoints.yaml: what is read, what is refused and in which words, and the manifest that a run
keeps of itself.
"""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

import landscape.files as files
from landscape.errors import CheckpointError, ManifestError
from landscape.manifest import (
    Checkpoint,
    CheckpointSeries,
    DataSettings,
    HessianSettings,
    Manifest,
    extend_run_manifest,
    write_run_manifest,
)
from tests.helpers.folders import ROOT

DATA = DataSettings(source="openmoji", image_size=64, num_samples=30, batch_size=15)
GOOD = """\
version: 1
data:
  source: openmoji
  image_size: 64
  num_samples: 30
  batch_size: 15
hessian:
  objective: contrastive
series:
  - name: vit
    model: vit_tiny_64
    checkpoints:
      - {epoch: 0, path: epoch_0.pt}
      - {epoch: 3, path: epoch_3.pt}
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with the files of epochs 0 and 3, and a run of epochs 0, 1, 2 under runs/wide."""
    for name in (
        "epoch_0.pt",
        "epoch_3.pt",
        "pairs.tsv",
        "runs/wide/epoch_0.pt",
        "runs/wide/epoch_1.pt",
        "runs/wide/epoch_2.pt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "pairs.tsv").write_text("picture,caption\n" * 31)
    return tmp_path


@pytest.fixture
def write(folder):
    def write(text=GOOD, *changes, name="checkpoints.yaml"):
        for old, new in changes:
            assert text.count(old) == 1, (
                f"the test changes {old!r}, which the text holds {text.count(old)} times"
            )
            text = text.replace(old, new)
        path = folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        return path

    return write


def refusal(path):
    with pytest.raises(ManifestError) as caught:
        Manifest.load(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(path)), message
    assert len(message) < 600, message
    assert caught.value.exit_code == 2
    return message.removeprefix(str(path))


def run_of(folder, epochs=(0, 1, 2), **changes):
    checkpoints = [
        Checkpoint(epoch=epoch, path=folder / f"runs/wide/epoch_{epoch}.pt") for epoch in epochs
    ]
    settings = {
        "name": "wide",
        "model": "vit_small_64",
        "data": DATA,
        "checkpoints": checkpoints,
    } | changes
    return write_run_manifest(folder / "runs/wide/checkpoints.yaml", **settings)


def including(entry):
    return GOOD[: GOOD.index("series:")] + f"series:\n  - {entry}\n"


# what is read


def test_a_manifest_means_what_it_says_and_the_published_protocol_where_it_is_silent(write, folder):
    manifest = Manifest.load(write())
    assert manifest.data == DATA
    assert (manifest.data.split, manifest.data.seed, manifest.data.augmentation) == (
        "train",
        0,
        "none",
    )
    assert manifest.data.num_batches == 2
    hessian = manifest.hessian
    assert (hessian.k, hessian.which, hessian.tol, hessian.method, hessian.parameters) == (
        5,
        "LM",
        1e-3,
        "lanczos",
        "all",
    )
    (series,) = manifest.series
    assert (series.name, series.model, series.label, series.epochs) == (
        "vit",
        "vit_tiny_64",
        "vit",
        (0, 3),
    )
    assert [checkpoint.path for checkpoint in series.checkpoints] == [
        folder / "epoch_0.pt",
        folder / "epoch_3.pt",
    ]


def test_paths_are_relative_to_the_file_and_not_to_the_working_directory(
    write, folder, monkeypatch
):
    path = write()
    monkeypatch.chdir("/")
    assert Manifest.load(path).series[0].checkpoints[0].path == folder / "epoch_0.pt"
    monkeypatch.chdir(folder.parent)
    assert (
        Manifest.load(Path(folder.name) / "checkpoints.yaml").series[0].checkpoints[0].path
        == folder / "epoch_0.pt"
    )


@pytest.mark.parametrize(
    "written, value", [("1e-3", 1e-3), ("1.0e-3", 1e-3), (".5", 0.5), ("5E-1", 0.5), ("0.25", 0.25)]
)
def test_numbers_with_an_exponent_are_numbers(write, written, value):
    path = write(GOOD, ("objective: contrastive", f"objective: contrastive\n  tol: {written}"))
    assert Manifest.load(path).hessian.tol == value


def test_a_whole_number_will_do_where_a_fraction_is_meant(write):
    weight_decay = Manifest.load(
        write(GOOD, ("contrastive", "contrastive\n  weight_decay: 0"))
    ).hessian.weight_decay
    assert weight_decay == 0.0 and type(weight_decay) is float


def test_checkpoints_are_sorted_by_epoch(write):
    path = write(
        GOOD,
        ("{epoch: 0, path: epoch_0.pt}", "{epoch: 7, path: epoch_0.pt}"),
        ("epoch: 3", "epoch: 0"),
    )
    assert Manifest.load(path).series[0].epochs == (0, 7)


def test_patterns_of_parameters_are_a_list(write):
    path = write(GOOD, ("contrastive", 'contrastive\n  parameters: ["visual.*", "*.bias"]'))
    assert Manifest.load(path).hessian.parameters == ("visual.*", "*.bias")


def test_a_table_of_pairs_is_found_beside_the_manifest(write, folder):
    path = write(
        GOOD,
        (
            "source: openmoji\n  image_size: 64",
            'source: pairs.tsv\n  separator: ","\n  caption_key: name',
        ),
    )
    data = Manifest.load(path).data
    assert (data.source, data.separator, data.image_key, data.caption_key) == (
        str(folder / "pairs.tsv"),
        ",",
        "filepath",
        "name",
    )
    assert data.image_size is None


def test_a_pattern_of_shards_is_left_to_be_expanded(write, folder):
    data = Manifest.load(
        write(GOOD, ("source: openmoji", 'source: "shards/{0000..0009}.tar"'))
    ).data
    assert data.source == str(folder / "shards/{0000..0009}.tar")


def test_the_folder_of_an_open_clip_run_is_a_list_of_checkpoints(write, folder):
    for name in ("epoch_10.pt", "epoch_latest.pt", "notes.txt"):
        (folder / "runs/wide" / name).touch()
    series = Manifest.load(
        write(including("{name: theirs, model: ViT-B-32, checkpoints: runs/wide}"))
    ).series[0]
    assert series.epochs == (0, 1, 2, 10)
    assert series.checkpoints[3].path == folder / "runs/wide/epoch_10.pt"
    chosen = Manifest.load(
        write(including("{name: theirs, model: ViT-B-32, checkpoints: runs/wide, epochs: [10, 0]}"))
    )
    assert chosen.series[0].epochs == (0, 10)


def test_a_series_may_come_from_the_manifest_of_a_run(write, folder):
    run_of(folder, label="ViT, wide")
    series = Manifest.load(write(including("{name: w, from: runs/wide/checkpoints.yaml}"))).series[
        0
    ]
    assert (series.name, series.model, series.label, series.epochs) == (
        "w",
        "vit_small_64",
        "ViT, wide",
        (0, 1, 2),
    )
    assert series.checkpoints[1].path == folder / "runs/wide/epoch_1.pt"
    entry = (
        "{name: w, model: vit_small_64, label: mine, from: runs/wide/checkpoints.yaml, epochs: [0, "
        "2]}"
    )
    series = Manifest.load(write(including(entry))).series[0]
    assert (series.label, series.epochs) == ("mine", (0, 2))


def test_a_series_may_start_late_where_the_manifest_says_so(write):
    text = GOOD.replace("      - {epoch: 0, path: epoch_0.pt}\n", "")
    assert Manifest.load(write(text, ("version: 1", "version: 1\nepoch_zero: optional"))).series[
        0
    ].epochs == (3,)


def test_the_example_manifest_of_the_project_is_read_once_its_runs_are_there(tmp_path):
    text = (ROOT / "checkpoints.yaml").read_text()
    (tmp_path / "checkpoints.yaml").write_text(text)
    for name, model in (
        ("vit", "vit_tiny_64"),
        ("vmamba", "vmamba_tiny_64"),
        ("simba", "simba_tiny_64"),
    ):
        weights = tmp_path / f"runs/{name}/epoch_0.pt"
        weights.parent.mkdir(parents=True)
        weights.touch()
        checkpoint = Checkpoint(epoch=0, path=weights)
        write_run_manifest(
            weights.parent / "checkpoints.yaml",
            name=name,
            model=model,
            data=DATA,
            checkpoints=[checkpoint],
        )
    manifest = Manifest.load(tmp_path / "checkpoints.yaml")
    assert [(series.name, series.model, series.label) for series in manifest.series] == [
        ("vit", "vit_tiny_64", "ViT"),
        ("vmamba", "vmamba_tiny_64", "VMamba"),
        ("simba", "simba_tiny_64", "Simba"),
    ]
    assert manifest.hessian == HessianSettings(objective="contrastive")
    keys = set(re.findall(r"^[ #]*(\w+): .+ # ", text, re.MULTILINE))
    for section in (DataSettings, HessianSettings):
        assert {field.name for field in fields(section)} <= keys, "every setting has its comment"


# what is refused


@pytest.mark.parametrize(
    "old, new, line, words",
    [
        # keys
        (
            "num_samples: 30",
            "num_sample: 30",
            5,
            ["data.num_sample is not a known key", "did you mean 'num_samples'?"],
        ),
        (
            "version: 1",
            "version: 1\nhesian: {}",
            2,
            ["hesian is not a known key", "did you mean 'hessian'?"],
        ),
        (
            "version: 1",
            "version: 1\nxyz: {}",
            2,
            ["expected one of version, epoch_zero, data, hessian, evaluation, series"],
        ),
        ("    model: vit_tiny_64\n", "    modell: vit_tiny_64\n", 11, ["modell", "'model'"]),
        ("{epoch: 3, path", "{epoch: 3, paht", 14, ["checkpoints[2].paht", "'path'"]),
        ("  num_samples: 30\n", "", 3, ["data.num_samples is missing"]),
        ("  objective: contrastive", "  k: 5", 8, ["hessian.objective is missing"]),
        ("    model: vit_tiny_64\n", "", 10, ["series 'vit': model is missing"]),
        ("name: vit", "label: vit", 10, ["series[1].name is missing"]),
        ("version: 1\n", "", 1, ["version is missing"]),
        (
            "  batch_size: 15",
            "  batch_size: 15\n  batch_size: 15",
            7,
            ["'batch_size' is there twice (first on line 6)"],
        ),
        # types
        (
            "batch_size: 15",
            "batch_size: true",
            6,
            ["data.batch_size: expected a whole number, got true"],
        ),
        ("batch_size: 15", 'batch_size: "15"', 6, ["expected a whole number, got '15'"]),
        ("batch_size: 15", "batch_size: 015", 6, ["expected a whole number, got '015'"]),
        ("batch_size: 15", "batch_size: 15.0", 6, ["got 15.0; write 15"]),
        ("batch_size: 15", "batch_size: [15]", 6, ["expected a whole number, got a list"]),
        ("batch_size: 15", "batch_size:", 6, ["expected a whole number, got nothing"]),
        (
            "source: openmoji",
            "source: 7",
            3,
            ["data.source: expected text, got 7; put it in quotes"],
        ),
        (
            "objective: contrastive",
            "objective: contrastive\n  tol: small",
            9,
            ["hessian.tol: expected a number, got 'small'"],
        ),
        ("objective: contrastive", "objective: contrastive\n  tol: 1e999", 9, ["must be finite"]),
        (
            "objective: contrastive",
            "objective: contrastive\n  tol: true",
            9,
            ["expected a number, got true"],
        ),
        (
            "objective: contrastive",
            "objective: contrastive\n  parameters: 3",
            9,
            ["expected all, image, text, or a list"],
        ),
        (
            "objective: contrastive",
            "objective: contrastive\n  parameters: [3]",
            9,
            ["each a text in quotes"],
        ),
        (
            "hessian:\n  objective: contrastive",
            "hessian: contrastive",
            7,
            ["hessian: expected a mapping, got 'contrastive'"],
        ),
        (
            "    checkpoints:\n",
            "    checkpoints: 3\n    labels:\n",
            13,
            ["labels is not a known key", "'label'"],
        ),
        (
            "hessian:\n  objective: contrastive",
            "hessian: [contrastive]",
            7,
            ["hessian: expected a mapping, got a list"],
        ),
        (
            "{epoch: 0, path: epoch_0.pt}",
            "epoch_0.pt",
            12,
            ["expected a list of mappings, got 'epoch_0.pt' at position 1"],
        ),
        ("name: vit", "name: 2024", 10, ["name: expected text, got 2024; put it in quotes"]),
        # values
        (
            "version: 1",
            "version: 2",
            1,
            ["version is 2", "reads version 1", "the landscape that it was written for"],
        ),
        ("version: 1", "version: 0", 1, ["version is 0", "write `version: 1`"]),
        ("version: 1", "version: true", 1, ["version is true"]),
        ("version: 1", "version: '1'", 1, ["version is '1'", "write `version: 1`"]),
        ("version: 1", "version: 1\nepoch_zero: maybe", 2, ["required or optional"]),
        ("source: openmoji", "source: openmojy", 3, ["no such file", "did you mean 'openmoji'?"]),
        ("source: openmoji", "source: other.tsv", 3, ["there is no such file", "check the path"]),
        ("source: openmoji", 'source: ""', 3, ["data.source is ''"]),
        ("source: openmoji", "source: https://example.org/a.tar", 3, ["local files only"]),
        ("source: openmoji", "source: 'pipe:touch x'", 3, ["local files only"]),
        (
            "source: openmoji",
            "source: openmoji\n  separator: ','",
            4,
            ["separator is for a CSV/TSV file"],
        ),
        ("source: openmoji", "source: pairs.tsv\n  separator: ab", 4, ["a single character"]),
        (
            "source: openmoji",
            "source: openmoji\n  caption_key: text",
            4,
            ["CSV/TSV file or for shards"],
        ),
        (
            "source: openmoji",
            "source: a-{0..1}.tar\n  encoding: latin-1",
            4,
            ["encoding is for a CSV/TSV file"],
        ),
        (
            "source: openmoji",
            "source: pairs.tsv\n  encoding: latin1x",
            4,
            ["one that Python knows", "cp1252"],
        ),
        ("source: openmoji", "source: pairs.tsv\n  encoding: hex", 4, ["one that Python knows"]),
        ("source: openmoji", "source: pairs.tsv\n  quoting: all", 4, ["minimal, none"]),
        ("source: openmoji", "source: pairs.tsv\n  on_bad_picture: drop", 4, ["fail, skip"]),
        ("source: openmoji", "source: pairs.tsv\n  image_key: ''", 4, ["must name a column"]),
        ("  image_size: 64\n", "", 3, ["data.image_size is missing"]),
        ("image_size: 64", "image_size: 0", 4, ["at least one pixel"]),
        (
            "source: openmoji",
            "source: openmoji\n  split: test",
            4,
            ["must be one of train, held_out, all"],
        ),
        (
            "source: openmoji",
            "source: openmoji\n  augmentation: a b",
            4,
            ["none or the name of a training recipe"],
        ),
        ("source: openmoji", "source: openmoji\n  seed: -1", 4, ["a seed is an integer from 0"]),
        (
            "source: openmoji",
            "source: openmoji\n  seed: 99999999999999999999",
            4,
            ["at most 9223372036854775807"],
        ),
        ("batch_size: 15", "batch_size: 0", 6, ["a batch holds at least one pair"]),
        ("batch_size: 15", "batch_size: 31", 5, ["num_samples is 30", "batch_size = 31"]),
        ("num_samples: 30", "num_samples: 31", 5, ["multiple of batch_size = 15", "try 30"]),
        ("contrastive", "contrastiv", 8, ["must be one of contrastive, cross_entropy"]),
        ("contrastive", "contrastive\n  k: 0", 9, ["hessian.k is 0", "at least one eigenvalue"]),
        ("contrastive", "contrastive\n  tol: 0", 9, ["hessian.tol is 0.0", "between 0 and 1"]),
        ("contrastive", "contrastive\n  tol: -1e-3", 9, ["between 0 and 1"]),
        ("contrastive", "contrastive\n  max_matvecs: 4", 9, ["max_matvecs is 4", "k = 5"]),
        ("contrastive", "contrastive\n  which: SM", 9, ["must be one of LM, LA, SA"]),
        (
            "contrastive",
            "contrastive\n  method: arnoldi",
            9,
            ["must be one of lanczos, power, pyhessian"],
        ),
        (
            "contrastive",
            "contrastive\n  method: power\n  which: SA",
            10,
            ["which is 'SA'", "LM", "lanczos"],
        ),
        (
            "contrastive",
            "contrastive\n  method: pyhessian\n  which: LA",
            10,
            ["which is 'LA'", "LM", "lanczos"],
        ),
        ("contrastive", "contrastive\n  dtype: float16", 9, ["must be one of float32, float64"]),
        ("contrastive", "contrastive\n  weight_decay: -0.1", 9, ["from 0 to 1e+06"]),
        (
            "contrastive",
            "contrastive\n  parameters: visual.*",
            9,
            ["list of patterns", '["visual.*"]'],
        ),
        ("contrastive", "contrastive\n  parameters: []", 9, ["1 to 100 patterns"]),
        ("name: vit", "name: ../vit", 10, ["names groups and files"]),
        ("name: vit", "name: .vit", 10, ["not starting with a dot"]),
        ("name: vit", "name: vi t", 10, ["A-Z a-z 0-9"]),
        ("model: vit_tiny_64", 'model: " "', 11, ["printable characters"]),
        ("epoch: 3", "epoch: 0", 12, ["lists epoch 0 twice"]),
        ("epoch: 3", "epoch: -3", 14, ["epochs count from 0"]),
        ("epoch_3.pt", "epoch_4.pt", 14, ["there is no file 'epoch_4.pt'"]),
        ("epoch_3.pt", "runs", 14, ["there is no file 'runs'"]),
        ("epoch_3.pt", "epoch_3.pt, sha256: abc", 14, ["64 hexadecimal digits"]),
        ("name: vit", "name: vit\n    epochs: [0]", 11, ["checkpoints is a list; remove epochs"]),
        ("name: vit", "name: vit\n    from: x.yaml", 10, ["either checkpoints or from"]),
    ],
)
def test_a_wrong_manifest_is_refused_in_one_line_that_says_where_and_what(
    write, old, new, line, words
):
    message = refusal(write(GOOD, (old, new)))
    assert message.startswith(f", line {line}: "), message
    for word in words:
        assert word in message, message


def test_a_batch_of_one_pair_has_no_contrastive_loss(write):
    path = write(GOOD, ("batch_size: 15", "batch_size: 1"))
    message = refusal(path)
    assert (
        "data.batch_size is 1" in message and "contrastive loss of a single pair is zero" in message
    )
    assert (
        Manifest.load(write(path.read_text(), ("contrastive", "cross_entropy"))).data.batch_size
        == 1
    )


def test_a_series_without_epoch_zero_says_why_it_matters_and_how_to_get_it(write):
    message = refusal(write(GOOD.replace("      - {epoch: 0, path: epoch_0.pt}\n", "")))
    assert (
        "series 'vit' starts at epoch 3" in message
        and "epoch 0" in message
        and "landscape train" in message
    )


def test_two_series_of_one_name_are_refused(write):
    message = refusal(write(GOOD + GOOD[GOOD.index("  - name") :]))
    assert "series 'vit' is there twice" in message


@pytest.mark.parametrize(
    "series", ["series: []\n", "series:\n  - {name: vit, model: m, checkpoints: []}\n"]
)
def test_a_manifest_without_checkpoints_is_refused(write, series):
    assert "empty" in refusal(write(GOOD[: GOOD.index("series:")] + series))


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "got nothing"),
        ("# only a comment\n", "got nothing"),
        ("- 1\n- 2\n", "got a list"),
        ("just text", "got 'just text'"),
        ("version: 1\ndata: [1,\nseries: }", ", line 3: not a readable manifest"),
        ("a: 1\n\tb: 1\n", ", line 2: not a readable manifest"),
        ("a: 1\n---\nb: 2\n", "another document"),
        (b"a: \x80\x81", "not a readable manifest"),
        (b"a: \x00", "not a readable manifest"),
        (b"\x89HDF\r\n\x1a\n\x00\x00", "but an HDF5 file, such as a store; name the YAML file"),
        (
            'a: "\\ud800"',
            ", line 1: not a readable manifest: the text '\\ud800' holds the control character",
        ),
        ('a: "two\\nlines"', "control character '\\n'"),
        ("a: " + "9" * 5000, "not a readable manifest"),
        ("[" * 100_000, "more than 16 levels deep"),
        (
            "a:\n  b: &x [1]\n",
            ", line 2: not a readable manifest: anchors (&) and aliases (*) are not read",
        ),
        ("a: [*.bias]\n", "quote a text that begins with"),
        ("a: !!python/object/apply:os.system ['touch owned']", "tags (!) are not read"),
        ("1: 2\n", "the key 1 is not text"),
        ("? [a, b]\n: 2\n", "is not text"),
        ("<<: {a: 1}\n", "<< is not a known key"),
    ],
)
def test_what_is_not_a_plain_yaml_mapping_is_refused(write, folder, monkeypatch, content, words):
    monkeypatch.chdir(folder)
    path = write(content if content != "<<: {a: 1}\n" else GOOD + content)
    assert words in refusal(path)
    assert not (folder / "owned").exists()


def test_an_alias_bomb_and_a_huge_file_are_refused_before_they_grow(write):
    bomb = 'a: &a ["x","x","x","x"]\n' + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
    )
    assert "anchors" in refusal(write(bomb))
    assert "524289 bytes" in refusal(write("x" * (2**19 + 1)))


def test_what_is_not_a_file_is_refused(folder):
    assert "no such file" in refusal(folder / "nothing.yaml")
    assert "not a regular file" in refusal(folder)
    assert "not a regular file" in refusal(Path("/dev/zero"))
    assert "cannot be read" in refusal(folder / "epoch_0.pt" / "x.yaml")


@pytest.mark.parametrize(
    "entry, words",
    [
        (
            "{name: w, from: runs/none/checkpoints.yaml}",
            ["there is no runs/none/checkpoints.yaml", "`landscape train`"],
        ),
        ("{name: w, model: m, from: no.yaml}", ["`landscape train --model m`"]),
        ("{name: w, from: checkpoints.yaml}", ["may not use `from` itself"]),
        ("{name: w, from: two.yaml}", ["lists one series, got 2"]),
        (
            "{name: w, from: runs/wide/checkpoints.yaml, model: m}",
            ["model is 'm', but the run trained 'vit_small_64'"],
        ),
        (
            "{name: w, from: runs/wide/checkpoints.yaml, epochs: [0, 9]}",
            ["epoch 9 is not there", "[0, 1, 2]"],
        ),
        (
            "{name: w, from: runs/wide/checkpoints.yaml, epochs: [1, 2]}",
            ["starts at epoch 1", "epoch 0"],
        ),
        ("{name: w, from: runs/wide/checkpoints.yaml, epochs: [0, 0]}", ["epoch 0 is there twice"]),
        ("{name: w, from: runs/wide/checkpoints.yaml, epochs: []}", ["empty"]),
        (
            "{name: w, from: runs/wide/checkpoints.yaml, epochs: [true]}",
            ["list of epochs, got true"],
        ),
        ("{name: w, model: m, checkpoints: runs}", ["holds no epoch_K.pt"]),
        ("{name: w, model: m, checkpoints: none}", ["not a readable folder"]),
        ("{name: w}", ["either checkpoints or from"]),
    ],
)
def test_a_series_from_elsewhere_must_be_there_and_be_one(write, folder, entry, words):
    run_of(folder)
    write(GOOD + GOOD[GOOD.index("  - name") :].replace("vit", "other"), name="two.yaml")
    with pytest.raises(ManifestError) as caught:
        Manifest.load(write(including(entry)))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_settings_from_python_keep_the_rules_of_the_file():
    with pytest.raises(ValueError, match="multiple of batch_size"):
        replace(DATA, num_samples=31)
    with pytest.raises(ValueError, match="which: LM"):
        HessianSettings(objective="contrastive", method="power", which="SA")
    series = CheckpointSeries(
        name="a", model="m", label="a", checkpoints=(Checkpoint(epoch=1, path=Path("/x")),)
    )
    with pytest.raises(ValueError, match="needs epoch 0"):
        Manifest(
            path=Path("/m.yaml"),
            data=DATA,
            hessian=HessianSettings(objective="contrastive"),
            series=(series,),
        )


# digests


def test_a_checkpoint_with_another_digest_is_refused_with_both(write, folder):
    right = hashlib.sha256((folder / "epoch_3.pt").read_bytes()).hexdigest()
    manifest = Manifest.load(write(GOOD, ("epoch_3.pt", f"epoch_3.pt, sha256: {right.upper()}")))
    assert manifest.check_files()[("vit", 3)] == right
    (folder / "epoch_3.pt").write_bytes(b"other weights")
    with pytest.raises(
        CheckpointError, match=f"epoch_3.pt: wrong sha256 .expected {right}, got"
    ) as caught:
        manifest.check_files()
    assert "\n" not in str(caught.value)
    (folder / "epoch_3.pt").unlink()
    with pytest.raises(CheckpointError, match="there is no such file"):
        manifest.check_files()


def test_the_protocol_digest_is_that_of_the_published_canonical_json(write):
    manifest = Manifest.load(write())
    text = json.dumps(manifest.protocol(), sort_keys=True, separators=(",", ":"))
    assert manifest.protocol_digest() == hashlib.sha256(text.encode()).hexdigest()
    assert set(manifest.protocol()) == {"data", "hessian"}


def test_the_protocol_changes_with_every_setting_and_with_nothing_else(write, folder):
    plain = Manifest.load(write())
    explicit = Manifest.load(
        write(GOOD, ("objective: contrastive", "k: 5\n  tol: 0.001\n  objective: contrastive"))
    )
    assert explicit.protocol_digest() == plain.protocol_digest() and explicit.sha256 == plain.sha256
    fewer = Manifest.load(write(GOOD.replace("      - {epoch: 3, path: epoch_3.pt}\n", "")))
    assert fewer.protocol_digest() == plain.protocol_digest() and fewer.sha256 != plain.sha256
    data = {
        "split": "all",
        "image_size": 32,
        "num_samples": 45,
        "batch_size": 30,
        "seed": 1,
        "augmentation": "x",
    }
    hessian = {
        "objective": "cross_entropy",
        "parameters": "image",
        "weight_decay": 0.1,
        "method": "power",
        "k": 4,
    }
    hessian |= {"tol": 0.1, "max_matvecs": 9, "seed": 1, "dtype": "float64", "which": "LA"}
    changed = [replace(plain, data=replace(DATA, **{key: value})) for key, value in data.items()]
    changed += [
        replace(plain, hessian=replace(plain.hessian, **{key: value}))
        for key, value in hessian.items()
    ]
    digests = {manifest.protocol_digest() for manifest in [plain, *changed]}
    assert len(digests) == 1 + len(data) + len(hessian)


def test_a_folder_moved_as_a_whole_keeps_its_protocol(write, folder):
    path = write(GOOD, ("openmoji", "pairs.tsv"))
    before = Manifest.load(path)
    moved = folder.rename(folder.parent / "moved")
    after = Manifest.load(moved / path.name)
    assert after.data.source != before.data.source
    assert after.protocol_digest() == before.protocol_digest() and after.sha256 == before.sha256


# the manifest of a run


def test_the_manifest_of_a_run_is_complete_by_itself_and_plain_yaml(folder):
    written = run_of(folder, label="ViT: wide")
    path = folder / "runs/wide/checkpoints.yaml"
    assert Manifest.load(path) == written
    plain = yaml.safe_load(path.read_text())
    assert (
        plain["version"] == 1
        and plain["data"]["source"] == "openmoji"
        and plain["hessian"]["k"] == 5
    )
    assert plain["series"][0]["label"] == "ViT: wide"
    assert plain["series"][0]["checkpoints"][1] == {"epoch": 1, "path": "epoch_1.pt"}
    assert len(path.read_text().splitlines()) < 40, "one line per checkpoint"


def test_extending_a_run_keeps_its_entries_replaces_rewritten_ones_and_respects_edits(folder):
    path = folder / "runs/wide/checkpoints.yaml"
    settings = {"name": "wide", "model": "vit_small_64", "data": DATA}

    def epoch(number, sha256=None):
        return Checkpoint(epoch=number, path=folder / f"runs/wide/epoch_{number}.pt", sha256=sha256)

    extend_run_manifest(path, checkpoints=[epoch(0, "0" * 64)], **settings)
    extend_run_manifest(path, checkpoints=[epoch(1, "1" * 64)], **settings)
    path.write_text(path.read_text().replace("num_samples: 30", "num_samples: 60"))
    (folder / "runs/wide/epoch_0.pt").rename(folder / "kept_elsewhere.pt")
    manifest = extend_run_manifest(path, checkpoints=[epoch(2), epoch(1, "a" * 64)], **settings)
    (folder / "kept_elsewhere.pt").rename(folder / "runs/wide/epoch_0.pt")
    assert Manifest.load(path) == manifest
    assert [checkpoint.sha256 for checkpoint in manifest.series[0].checkpoints] == [
        "0" * 64,
        "a" * 64,
        None,
    ]
    assert manifest.data.num_samples == 60
    with pytest.raises(
        ManifestError, match="the model is 'vit_small_64', but this run trains 'other'"
    ):
        extend_run_manifest(path, checkpoints=[epoch(2)], **(settings | {"model": "other"}))


@pytest.mark.parametrize(
    "text", ["1e-3", "2024-01-01", "null", "yes", "a: b # c", "*x", "0123", "ViT, größer", "a'b\"c"]
)
def test_text_survives_the_manifest_of_a_run(folder, text):
    run_of(folder, label=text)
    assert Manifest.load(folder / "runs/wide/checkpoints.yaml").series[0].label == text


def test_settings_survive_the_manifest_of_a_run(folder):
    data = DataSettings(
        source=str(folder / "pairs.tsv"),
        num_samples=8,
        batch_size=4,
        separator=",",
        image_key="file",
        caption_key="text",
    )
    hessian = HessianSettings(
        objective="contrastive", parameters=("visual.*", "*.bias"), tol=1e-05, weight_decay=1e-22
    )
    run_of(folder, data=data, hessian=hessian)
    manifest = Manifest.load(folder / "runs/wide/checkpoints.yaml")
    assert (manifest.data, manifest.hessian) == (data, hessian)
    assert "../../pairs.tsv" in manifest.path.read_text()


def test_a_run_that_could_not_be_read_back_is_not_written(folder):
    path = folder / "runs/wide/checkpoints.yaml"
    for changes, words in [
        ({"epochs": (1, 2)}, "epoch 0"),
        ({"epochs": (0, 5)}, "there is no file"),
        ({"name": "a/b"}, "names groups and files"),
        ({"model": ""}, "printable"),
    ]:
        with pytest.raises(ManifestError, match=words):
            run_of(folder, **changes)
        assert not path.exists()


def test_a_write_that_dies_on_the_way_leaves_the_old_manifest(folder, monkeypatch):
    run_of(folder, epochs=(0,))
    path = folder / "runs/wide/checkpoints.yaml"
    before = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        run_of(folder)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["checkpoints.yaml"] + [
        f"epoch_{i}.pt" for i in range(3)
    ]


# around it


def test_reading_a_manifest_imports_no_torch_and_no_numpy(write):
    code = (
        "import sys; from landscape.manifest import Manifest; Manifest.load(sys.argv[1]); "
        "print(*sys.modules)"
    )
    command = [sys.executable, "-c", code, str(write())]
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "landscape.manifest.manifest" in modules
    assert not {"torch", "numpy", "h5py", "jaxtyping"} & set(modules)


def test_a_description_names_the_series_and_the_protocol(write):
    manifest = Manifest.load(write())
    text = "\n".join(manifest.describe())
    for words in (
        "1 series, 2 checkpoints",
        "30 pairs in 2 batches of 15",
        "5 LM by lanczos",
        "epochs 0, 3",
        "2 without sha256",
    ):
        assert words in text
    assert manifest.protocol_digest() in text
