"""`landscape spectra` of a run of transformers' Trainer on a text file, and every wrong input in
one line.
"""

import hashlib
import json
import re

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from landscape.cli import main
from landscape.compare import compare_stores
from landscape.compare.remarks import caveats
from landscape.store import SpectrumStore

transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

from tests.helpers import tiny_language_models as tiny

WORDS = [f"w{number}" for number in range(18)]
TEXT = " ".join(WORDS[(7 * index * index + index // 5) % 18] for index in range(200))
LENGTH, BLOCKS, ROWS = 6, 4, 2


def save_tokenizer(folder):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(
        WordLevel(
            {word: index for index, word in enumerate(["<unk>", "<end>", *WORDS])},
            unk_token="<unk>",
        )
    )
    tokenizer.pre_tokenizer = Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>"
    )
    fast.save_pretrained(folder)


def model_of(step, family="llama", **changes):
    config = tiny.configs()[family]
    config.tie_word_embeddings = True
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(step)
    return transformers.AutoModelForCausalLM.from_config(config)


def save_run(folder, *, tokenizer=True, **changes):
    """Two checkpoints as the Trainer writes them, the second one in shards; `changes` as for
    `model_of`.
    """
    for step, size in ((100, "5GB"), (200, "2KB")):
        path = folder / f"checkpoint-{step}"
        model_of(step, **changes).save_pretrained(path, max_shard_size=size)
        (path / "trainer_state.json").write_text(
            json.dumps({"global_step": step, "epoch": step / 150})
        )
        if tokenizer:
            save_tokenizer(path)


def write_manifest(folder, *, data=None, hessian=None, **series):
    document = {
        "version": 1,
        "data": {
            "source": "text.txt",
            "block_size": LENGTH,
            "num_samples": BLOCKS,
            "batch_size": ROWS,
        }
        | (data or {}),
        "hessian": {"objective": "causal_lm", "k": 2, "tol": 1e-6, "dtype": "float64"}
        | (hessian or {}),
        "series": [{"name": "llama", "checkpoints": "run"} | series],
    }
    path = folder / "lm.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    save_run(folder / "run")
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture
def broken(tmp_path):
    """A study to be spoilt."""
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def spectra(manifest, *options):
    output = manifest.parent / "spectra.h5"
    result = CliRunner().invoke(
        main, ["spectra", str(manifest), "-o", str(output), "--workers", "1", *options]
    )
    return result, output


def check_with_dense_hessian(folder, table, is_studied, rtol=1e-6):
    """Hold records against the Hessian of transformers' own loss, of blocks that are drawn here by
    hand.
    """
    ids = transformers.AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"] + [1]
    blocks = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float64
    ).eval()
    studied = [one for name, one in model.named_parameters() if is_studied(name)]
    for row in range(len(table.batch)):
        candidates = [
            (first, second)
            for first in range(len(blocks))
            for second in range(len(blocks))
            if digest_of(blocks[[first, second]]) == table.batch_sha256[row]
        ]
        assert candidates, "the digest is of two blocks of the text"
        rows = blocks[list(candidates[0])]
        assert table.loss[row] == pytest.approx(tiny.own_loss(model, rows).item(), rel=rtol)
        exact = torch.linalg.eigvalsh(tiny.dense_hessian(model, rows, studied))
        largest = exact[exact.abs().argsort(descending=True)][: table.eigenvalues.shape[1]]
        # Rotations are stored in float32, and read back so by transformers.
        np.testing.assert_allclose(table.eigenvalues[row], largest.numpy(), rtol=rtol)
    assert table.converged.all()


def test_two_checkpoints_are_measured_and_resumed(study):
    manifest = write_manifest(study, hessian={"parameters": ["*norm*", "*.v_proj.*"]})
    first, output = spectra(manifest, "--epochs", "100")
    assert first.exit_code == 0, first.output
    second, _ = spectra(manifest)
    assert second.exit_code == 0, second.output
    assert "(2 now, 2 before)" in second.output and "attention eager" in second.output
    with SpectrumStore.open(output) as store:
        tables = {step: store.records("llama", step) for step in (100, 200)}
    for step, table in tables.items():
        check_with_dense_hessian(
            study / "run" / f"checkpoint-{step}",
            table,
            lambda name: "norm" in name or "v_proj" in name,
        )
    assert not np.allclose(tables[100].eigenvalues, tables[200].eigenvalues)
    assert tables[100].versions["transformers"] == transformers.__version__
    told = CliRunner().invoke(main, ["info", str(output)]).output
    assert "text.txt, 4 blocks of 6 tokens in batches of 2, seed 0" in told
    assert "augmentation" not in told and "(all)" not in told and "several versions" not in told
    assert "text.txt, of 2 blocks each" in " ".join(caveats(compare_stores([output])))


def test_records_by_several_versions_are_told(monkeypatch, study):
    from landscape.store import writer
    from landscape.store.describe import describe

    manifest = write_manifest(study, hessian={"parameters": ["*norm*"], "k": 1, "tol": 0.1})
    output = study / "versions.h5"
    for step, version in ((100, "5.20.0"), (200, "5.24.0")):
        monkeypatch.setattr(
            writer,
            "package_versions",
            lambda version=version: {"torch": "2.13", "transformers": version},
        )
        result = CliRunner().invoke(
            main,
            ["spectra", str(manifest), "-o", str(output), "--epochs", str(step), "--workers", "1"],
        )
        assert result.exit_code == 0, result.output
    assert "llama records by several versions of transformers: 5.20.0, 5.24.0" in describe(output)
    with SpectrumStore.open(output) as store:
        table = store.records("llama", 100)
        assert table.versions["transformers"] == "5.20.0"
    said = " ".join(compare_stores([output]).notes)
    assert "transformers" in said and "5.20.0" in said


def test_a_figure_counts_blocks():
    from landscape.figures.surface_summary import note
    from landscape.manifest.samples import samples_of, unit_of_samples

    class Result:
        local, axes, num_undefined, num_missing = None, (), 0, 0

    assert (unit_of_samples(None), unit_of_samples(6)) == (("pair", "pairs"), ("block", "blocks"))
    words = {"directions": "line", "num_batches": 1, "num_samples": 2}
    said = note(Result(), **words, samples=samples_of({"block_size": 6}))
    assert said.startswith("Loss of one batch of 2 blocks, in nats.")
    assert "2 pairs" in note(Result(), **words, samples=samples_of({}))


def digest_of(rows):
    return hashlib.sha256(
        f"tokens {rows.shape[0]} {rows.shape[1]}\n".encode() + rows.numpy().astype("<i8").tobytes()
    ).hexdigest()


def test_info_density_and_surface_know_text(study, tmp_path):
    manifest = write_manifest(study, hessian={"parameters": ["*.v_proj.*"]})
    info = CliRunner().invoke(main, ["info", str(manifest)])
    assert "4 blocks of 6 tokens (the model's tokens) in 2 batches of 2" in info.output
    density = [
        "density",
        str(manifest),
        "-o",
        str(tmp_path / "d.png"),
        "--epochs",
        "200",
        "--workers",
        "1",
    ]
    result = CliRunner().invoke(main, density)
    assert result.exit_code == 0 and (tmp_path / "d.png").exists(), result.output
    surface = [
        "surface",
        str(manifest),
        "-o",
        str(tmp_path / "s.png"),
        "--epoch",
        "200",
        "--points",
        "5",
        "--workers",
        "1",
    ]
    result = CliRunner().invoke(main, [*surface, "--directions", "random", "--dimensions", "1"])
    assert result.exit_code == 0 and (tmp_path / "s.png").exists(), result.output


def test_tokens_come_from_lines_of_json_from_bytes_and_from_arrays(broken):
    from pathlib import Path

    from landscape.language.text import read_tokens
    from landscape.manifest import DataSettings

    save_tokenizer(broken)
    lines = [json.dumps({"text": "w1 w2\u2028w3"}), "", json.dumps({"text": "w4", "more": 1})]
    (broken / "a.jsonl").write_text("\n".join(lines))
    np.save(broken / "a.npy", np.arange(12, dtype=np.uint16))
    (broken / "a.txt").write_text("é")

    def tokens(name, tokenizer="model"):
        source = str(broken / name)
        settings = DataSettings(
            source=source,
            num_samples=1,
            batch_size=1,
            block_size=2,
            tokenizer=tokenizer,
            split="all",
        )
        return read_tokens(settings, [Path(broken)])[0].tolist()

    # w1 is token 3: after <unk> and <end> comes w0.
    assert tokens("a.jsonl") == [3, 4, 5, 1, 6, 1]
    assert tokens("a.txt", "bytes") == [0xC3, 0xA9]
    assert tokens("a.npy") == list(range(12))
    assert tokens("a.jsonl", str(broken)) == tokens("a.jsonl")


def no_weights(folder):
    save_run(folder / "run")
    for path in (folder / "run").glob("*/*.safetensors*"):
        path.unlink()


def own_code(folder):
    save_run(folder / "run")
    for path in (folder / "run").glob("*/config.json"):
        config = json.loads(path.read_text()) | {
            "model_type": "ours",
            "auto_map": {"AutoModelForCausalLM": "modeling_ours.Ours"},
        }
        path.write_text(json.dumps(config))


def another_step(folder):
    save_run(folder / "run")
    (folder / "run" / "checkpoint-200" / "trainer_state.json").write_text('{"global_step": 150}')


def another_model(folder):
    save_run(folder / "run")
    path = folder / "run" / "checkpoint-100" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.1}))


def not_finite(folder):
    save_run(folder / "run")
    path = folder / "run" / "checkpoint-100" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})


def plain(folder):
    save_run(folder / "run")


def no_tokenizer(folder):
    save_run(folder / "run", tokenizer=False)


def bidirectional(folder):
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=32,
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder / "run" / "checkpoint-100")
    save_tokenizer(folder / "run" / "checkpoint-100")


def positions_from_padding(folder):
    config = transformers.RobertaConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=18,
        is_decoder=True,
    )
    transformers.RobertaForCausalLM(config).save_pretrained(folder / "run" / "checkpoint-100")
    save_tokenizer(folder / "run" / "checkpoint-100")


def another_config(folder):
    save_run(folder / "run")
    config = json.loads((folder / "run" / "checkpoint-100" / "config.json").read_text())
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text(
        json.dumps(config | {"rms_norm_eps": 0.1, "dtype": "float64"})
    )


def no_documents(folder):
    save_run(folder / "run")
    (folder / "empty.jsonl").write_text("\n")


def empty_text(folder):
    save_run(folder / "run", tokenizer=False, vocab_size=256)
    (folder / "empty.txt").write_text("")


BYTES = {"tokenizer": "bytes"}
LISTED = {"checkpoints": [{"epoch": 100, "path": "run/checkpoint-100"}]}
WRONG = {
    "no tokenizer": (no_tokenizer, {}, "there is no tokenizer .*`tokenizer: bytes`"),
    "bytes of a small vocabulary": (
        no_tokenizer,
        {"data": {"tokenizer": "bytes"}},
        "vocabulary of 20, and there are 256 bytes",
    ),
    "tokens of another tokenizer": (
        lambda f: save_run(f / "run", vocab_size=19),
        {},
        "the token 19, but llama has .* 0 to 18",
    ),
    "a block longer than the context": (
        plain,
        {"data": {"block_size": 64, "num_samples": 2}},
        "at most 32 tokens",
    ),
    "a text that is too short": (
        plain,
        {"data": {"num_samples": 40}},
        "201 tokens make 33 blocks of 6, but 40",
    ),
    "no weights": (no_weights, {}, "holds no checkpoint-N with weights"),
    "no weights, listed": (
        no_weights,
        LISTED,
        "there are no weights in the folder .*checkpoint-100, and 2 of its 2",
    ),
    "code of its own": (
        own_code,
        {},
        "modeling_ours.Ours, for trust_remote_code.* no code of a folder is run",
    ),
    "another step": (another_step, {}, "after step 150.* lists it as 200"),
    "another model": (another_model, {}, "describes another model than"),
    "weights that are not finite": (not_finite, {}, "NaN or infinite"),
    "no block size": (plain, {"data": {"block_size": 1}}, "block_size is 1"),
    "a tower": (plain, {"hessian": {"parameters": "image"}}, "has no such tower"),
    "a masked language model": (
        bidirectional,
        {},
        "BertLMHeadModel: its prediction of a token reads .* later ones",
    ),
    "positions counted from padding": (
        positions_from_padding,
        {"data": {"block_size": 18}},
        "block_size is 18, but roberta cannot read .* of a table of 18.* Lower block_size",
    ),
    "another model than that beside the weights": (
        another_config,
        {"model": "other"},
        r"model: .*other.config.json describes another model than "
        r".*checkpoint-\d+.config.json.* \(rms_norm_eps\)",
    ),
    "a file in a folder of another step": (
        another_step,
        {
            "checkpoints": [
                {"epoch": 200, "path": "run/checkpoint-200/model.safetensors.index.json"}
            ]
        },
        "after step 150.* lists it as 200",
    ),
    "no documents": (
        no_documents,
        {"data": {"source": "empty.jsonl"}},
        "empty.jsonl: holds no text",
    ),
    "no documents, of bytes": (
        no_documents,
        {"data": {"source": "empty.jsonl"} | BYTES},
        "empty.jsonl: holds no text",
    ),
    "an empty text": (
        empty_text,
        {"data": {"source": "empty.txt"} | BYTES},
        "empty.txt: holds no text",
    ),
    "a batch larger than all": (plain, {"data": {"batch_size": 9}}, "takes batch_size = 9 blocks"),
    "a setting of pictures": (plain, {"data": {"image_size": 64}}, "image_size is not a known key"),
    "no such folder": (plain, {"checkpoints": "elsewhere"}, "not a readable folder"),
    "no such tokenizer": (
        plain,
        {"data": {"tokenizer": "elsewhere"}},
        "tokenizer is 'elsewhere', but it must be model",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_input_is_refused_in_one_line(case, broken):
    spoil, settings, message = WRONG[case]
    spoil(broken)
    result, output = spectra(write_manifest(broken, **settings))
    lines = [line for line in result.stderr.splitlines() if not line.startswith("note:")]
    assert result.exit_code == 2 and len(lines) == 1, result.output
    assert re.search(message, lines[0]), lines[0]
    assert not output.exists()


def test_the_advice_of_refusals_works(broken):
    save_run(broken / "run", tokenizer=False)
    manifest = write_manifest(broken)
    result, _ = spectra(manifest)
    assert "`tokenizer: FOLDER`" in result.output and "`tokenizer: bytes`" in result.output
    save_tokenizer(broken / "words")
    result, _ = spectra(write_manifest(broken, data={"tokenizer": "words"}), "--dry-run")
    assert result.exit_code == 0, result.output
    save_run(broken / "bytes", tokenizer=False, vocab_size=256)
    result, _ = spectra(
        write_manifest(broken, data={"tokenizer": "bytes"}, checkpoints="bytes"), "--dry-run"
    )
    assert result.exit_code == 0, result.output
    (broken / "architecture").mkdir()
    for path in (broken / "run").glob("*/config.json"):
        path.rename(broken / "architecture" / "config.json")
    words = {"data": {"tokenizer": "words"}}
    result, _ = spectra(write_manifest(broken, **words), "--dry-run")
    assert result.exit_code == 2 and "with `model: FOLDER`" in result.output
    result, _ = spectra(write_manifest(broken, model="architecture", **words), "--dry-run")
    assert result.exit_code == 0, result.output


SHARDED = (
    "bytes of a small vocabulary",
    "another step",
    "a masked language model",
    "positions counted from padding",
)


@pytest.mark.parametrize("case", SHARDED)
def test_a_dry_run_of_processes_that_share_a_model_refuses_the_same(case, broken):
    spoil, settings, message = WRONG[case]
    spoil(broken)
    result, output = spectra(write_manifest(broken, **settings), "--shards", "2", "--dry-run")
    assert result.exit_code == 2 and re.search(message, result.stdout), result.output
    assert not output.exists()


def test_a_dry_run_of_processes_that_share_a_model_says_what_each_needs(broken, monkeypatch):
    from landscape.workers import launch

    monkeypatch.setattr(launch, "launch", None)
    plain(broken)
    result, _ = spectra(write_manifest(broken), "--shards", "2", "--dry-run")
    said = " ".join(result.stdout.split())
    assert result.exit_code == 0, result.output
    assert "2 of 2 fit by names and shapes" in said and "logits some tokens at a time" in said
    assert "in each of 2 processes, and activations on top: weights" in said


def test_an_evaluation_on_pictures_is_refused(study):
    result = CliRunner().invoke(
        main, ["evaluate", str(write_manifest(study)), "-o", str(study / "e.h5")]
    )
    assert result.exit_code == 2 and "is of language models" in result.output
