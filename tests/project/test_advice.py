"""Advice that a message gives is followed literally on the input that caused it: then the command
works, or says something else.

Every piece of code in a message (in backticks) is collected from the source. Each is followed here,
or is listed with the test that follows it, or with the reason why it is no advice.
"""

import ast
import configparser
import json
import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import yaml
from click.testing import CliRunner

import landscape
from landscape.cli import main
from landscape.clip.checkpoint import save_checkpoint
from landscape.clip.model import build_model
from landscape.clip.objectives import contrastive_objective
from landscape.errors import LandscapeError
from tests.helpers.folders import TESTS
from tests.helpers.tiny_run import PLAIN, write_pairs
from tests.manifest.test_run_files import TIMM, write_params

SOURCE = Path(landscape.__file__).parent
ROOT = SOURCE.parent
PATTERNS = ["visual.proj", "logit_scale"]
TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 4, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}

# Words in backticks that name a thing and ask for nothing.
NAMES_ONLY = {
    "fit": "a method of Lightning's trainer",
    "{}": "a key whose value only the user knows",
    ("{}: {}"): (
        "an example of a value; followed in test_dask_pool.py, where cluster files are refused"
    ),
    "scale": "a method of Dask's clusters",
    "batches": "an argument",
    "caption_key": "followed where its value is told",
    "config": "a key of the manifest",
    "data:": "the section that a key belongs to",
    "eigsh": "a function",
    "from": "a key of the manifest",
    "model": "the name of an argument",
    "parameters": "a key of the manifest",
    "preconditioner: adam": "what a note on a run is about",
    "separator": "a key of the manifest",
    "sha256sum": "a command of the system",
    "source": "a key of the manifest",
    "unflatten": "a function",
    "weights: ema": "said by info of a file that has both copies; followed in test_run_settings.py",
    "landscape init {}": "the command that wrote a manifest, in its first line",
    "landscape spectra": "what makes the input of another command",
    "landscape train": "what makes the input of another command",
    "learned": "a value of an option",
    "landscape density": "another command for the same question; its input is a manifest",
}
# Followed by a test elsewhere.
FOLLOWED = {
    "{} --help": "test_refusals.py::test_the_help_is_not_made_one_line",
    ("landscape audit"): (
        "test_audit_command.py::test_a_failed_audit_names_the_module_and_exits_with_1"
    ),
    "dask scheduler": "test_dask_pool.py::test_the_end_of_the_scheduler_is_one_line_and_no_hang",
    ("dask scheduler --scheduler-file {}"): (
        "test_dask_pool.py::test_the_end_of_the_scheduler_is_one_line_and_no_hang"
    ),
    "landscape merge": "test_runner.py::test_shards_merge_into_the_store_of_the_whole",
    ("landscape audit {}"): (
        "test_audit_command.py::test_a_failed_audit_names_the_module_and_exits_with_1"
    ),
    "landscape evaluate": "test_evaluation.py::test_a_manifest_names_its_sets",
    ("landscape figure --kind ood"): (
        "test_ood.py::test_people_stand_beside_models_in_file_and_figures"
    ),
    "landscape ood": "test_ood.py::test_people_alone_need_no_model",
    "landscape ood --stimuli": "test_ood.py::test_decisions_are_those_of_the_benchmarks_formula",
    ("landscape info"): (
        "test_preconditioned_spectra.py::test_info_says_what_was_measured_and_what_it_compares_with"
    ),
    ("preconditioner: none"): (
        "test_preconditioned_spectra.py::test_checkpoints_without_the_optimizer_and_epoch_zero_are_refused"
    ),
    ("weights: online"): (
        "test_preconditioned_spectra.py::test_averaged_weights_have_no_state_of_the_optimizer"
    ),
    ("landscape surface"): (
        "test_surface_command.py::test_a_slice_along_an_eigenvector_is_that_of_the_operators_own_eigenvector"
    ),
    "landscape table": "test_ood.py::test_a_table_is_by_set_or_by_model",
    "landscape table {}": "test_evaluation.py::test_a_manifest_names_its_sets",
    "model: FOLDER": "test_language_manifest.py::test_the_advice_of_refusals_works",
    "tokenizer: FOLDER": "test_language_manifest.py::test_the_advice_of_refusals_works",
    "tokenizer: bytes": "test_language_manifest.py::test_the_advice_of_refusals_works",
    ("landscape spectra --keep-vectors"): (
        "test_pipeline_vectors.py"
        "::test_batches_without_vectors_are_measured_again_and_their_records_stay"
    ),
    ("landscape spectra --per-module"): (
        "test_module_figure.py::test_the_command_draws_them_and_refuses_what_it_cannot"
    ),
}


def text_of(node: ast.AST) -> str:
    """A string of the source, {} for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            text_of(value) if isinstance(value, ast.Constant) else "{}" for value in node.values
        )
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


@cache
def messages() -> dict[str, str]:
    """Every string of the source that is no docstring, with where it stands."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        inside: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
                node, clean=False
            ):
                inside.add(id(node.body[0].value))
            if isinstance(node, ast.JoinedStr):
                inside.update(map(id, node.values))
        for node in ast.walk(tree):
            if id(node) not in inside and (text := text_of(node)):
                found[f"{path.relative_to(SOURCE)}:{node.lineno}:{node.col_offset}"] = text
    return found


def advice() -> set[str]:
    return {code for text in messages().values() for code in re.findall("`([^`]+)`", text)}


class Desk:
    """A folder with a run of one tiny model, its manifest, and the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = write_pairs(folder, 12)
        self.checkpoint(folder / "run" / "checkpoints" / "epoch_1.pt")
        self.document: dict[str, Any] = {
            "version": 1,
            "epoch_zero": "optional",
            "data": {"source": "pairs.tsv", "split": "all", "num_samples": 4, "batch_size": 4},
            "hessian": {
                "objective": "contrastive",
                "parameters": PATTERNS,
                "k": 2,
                "max_matvecs": 30,
            },
            "series": [{"name": "s", "model": PLAIN, "checkpoints": "run/checkpoints"}],
        }

    @property
    def series(self) -> dict[str, Any]:
        return self.document["series"][0]

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def checkpoint(
        self, path: Path, model: torch.nn.Module | None = None, *, epoch: int = 1
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, model=model or build_model(PLAIN, seed=0), epoch=epoch, name="x")
        return path

    def command(self, *arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), (
            result.exception
        )
        return result.exit_code, result.output

    def spectra(self) -> tuple[int, str]:
        """Measure the manifest as it stands now into a new output."""
        path = self.folder / "m.yaml"
        path.write_text(yaml.safe_dump(self.document, sort_keys=False))
        output = self.folder / f"s{len(list(self.folder.glob('s*.h5')))}.h5"
        return self.command("spectra", path, "-o", output, "--unaudited")

    def say(self, advised: str, section: str = "series") -> None:
        """Write a piece of YAML, as a message gives it, into a section of the manifest."""
        target = (
            self.series
            if section == "series"
            else self.document
            if section == ""
            else self.document[section]
        )
        target.update(yaml.safe_load(advised))


CASES: list[tuple[str, Callable[[Desk], tuple[str, tuple[int, str]]]]] = []


def follows(*codes: str):
    """Register a case: it returns the message, and what the command says once the advice was
    followed.
    """

    def register(case):
        CASES.extend((code, case) for code in codes)
        return case

    return register


def quoted(message: str, pattern: str) -> str:
    """The piece of code in a message that fits a pattern of the source."""
    regex = re.escape(pattern).replace(re.escape("{}"), "(?:[^`]+)")
    match = re.search(f"`({regex})`", message)
    assert match, (pattern, message)
    return match[1]


@follows("epoch_zero: optional")
def no_epoch_zero(desk):
    desk.document["epoch_zero"] = "required"
    _, message = desk.spectra()
    desk.say(quoted(message, "epoch_zero: optional"), "")
    return message, desk.spectra()


@follows("landscape train --epochs 0")
def no_epoch_zero_but_a_way_to_write_it(desk):
    desk.document["epoch_zero"] = "required"
    _, message = desk.spectra()
    words = quoted(message, "landscape train --epochs 0").split()[1:]
    code, said = desk.command(
        *words, "--model", PLAIN, "--data", desk.table, "--split", "all", "-o", desk.folder / "init"
    )
    assert code == 0, said
    desk.series["checkpoints"] = [
        {"epoch": 0, "path": "init/checkpoints/epoch_0.pt"},
        {"epoch": 1, "path": "run/checkpoints/epoch_1.pt"},
    ]
    return message, desk.spectra()


@follows("landscape train{}")
def from_a_run_that_is_not_there(desk):
    desk.document["epoch_zero"] = "required"
    del desk.series["checkpoints"]
    desk.series["from"] = "init/checkpoints.yaml"
    _, message = desk.spectra()
    words = quoted(message, "landscape train{}").split()[1:]
    options = ["--epochs", 0, "--data", desk.table, "--split", "all", "-o", desk.folder / "init"]
    code, said = desk.command(*words, *options)
    assert code == 0, said
    return message, desk.spectra()


@follows("image_size: 64")
def openmoji_without_a_size(desk):
    desk.document["data"]["source"] = "openmoji"
    _, message = desk.spectra()
    desk.say(quoted(message, "image_size: 64"), "data")
    return message, desk.spectra()


@follows("model: ...")
def a_series_without_a_model(desk):
    del desk.series["model"]
    _, message = desk.spectra()
    desk.say(quoted(message, "model: ...").replace("...", PLAIN))
    return message, desk.spectra()


@follows("{}: ...")
def a_key_that_is_missing(desk):
    del desk.document["data"]["num_samples"]
    _, message = desk.spectra()
    desk.say(quoted(message, "{}: ...").replace("...", "4"), "data")
    return message, desk.spectra()


@follows("version: {}")
def another_version(desk):
    desk.document["version"] = 0
    _, message = desk.spectra()
    desk.say(quoted(message, "version: {}"), "")
    return message, desk.spectra()


@follows("run_files: ignore")
def a_manifest_that_disagrees_with_its_run(desk):
    write_params(desk.run, model=PLAIN, force_quick_gelu=True)
    desk.series["model_args"] = {"force_quick_gelu": False}
    _, message = desk.spectra()
    desk.say(quoted(message, "run_files: ignore"))
    return message, desk.spectra()


@follows("loss: clip")
def a_distilled_run(desk):
    write_params(desk.run, model=PLAIN, distill_model="ViT-L-14")
    _, message = desk.spectra()
    desk.say(quoted(message, "loss: clip"))
    return message, desk.spectra()


@follows("model_args: {force_quick_gelu: true}")
def a_run_that_began_with_openais_weights(desk):
    write_params(desk.run, model=PLAIN, pretrained="openai")
    _, message = desk.spectra()
    desk.say(quoted(message, "model_args: {force_quick_gelu: true}"))
    return message, desk.spectra()


@follows("loss: cross_entropy")
def a_timm_run_with_another_loss(desk):
    (desk.run / "checkpoints" / "args.yaml").write_text(
        yaml.safe_dump({**TIMM, "num_classes": 4, "bce_loss": True})
    )
    desk.checkpoint(
        desk.run / "checkpoints" / "epoch_1.pt",
        build_model("timm:test_resnet", num_classes=4, seed=0),
    )
    (desk.folder / "labels.tsv").write_text(
        "filepath\ttitle\n" + "".join(f"{i}.png\t{i % 4}\n" for i in range(12))
    )
    desk.document["data"]["source"] = "labels.tsv"
    desk.document["hessian"] |= {"objective": "cross_entropy", "parameters": ["fc.*"]}
    desk.series["model"] = "timm:test_resnet"
    _, message = desk.spectra()
    desk.say(quoted(message, "loss: cross_entropy"))
    return message, desk.spectra()


@follows("config: {}")
def a_registered_name_with_another_architecture_beside_the_weights(desk):
    other = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "mlp_ratio": 2.0}}
    path = desk.run / "checkpoints" / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": other, "preprocess_cfg": {}}))
    desk.checkpoint(desk.run / "checkpoints" / "epoch_1.pt", build_model("own", config=path))
    desk.series["model"] = "vit_tiny_64"
    _, message = desk.spectra()
    desk.say(quoted(message, "config: {}"))
    desk.series["model"] = "a_name_of_its_own"
    return message, desk.spectra()


@follows("{}: {}/{}")
def a_local_folder_with_a_configuration_of_another_name(desk):
    (desk.folder / "cfg").mkdir()
    (desk.folder / "cfg" / "mine.json").write_text(json.dumps(TINY))
    desk.series["model"] = "local-dir:cfg"
    _, message = desk.spectra()
    desk.say(quoted(message, "{}: {}/{}"))
    return message, desk.spectra()


@follows("config: file.json")
def an_architecture_that_is_not_the_runs(desk):
    (desk.folder / "quick.json").write_text(json.dumps({**TINY, "quick_gelu": True}))
    desk.series.update(
        {"model": "mine", "config": "quick.json", "model_args": {"force_quick_gelu": False}}
    )
    _, message = desk.spectra()
    (desk.folder / "file.json").write_text(json.dumps(TINY))
    desk.say(quoted(message, "config: file.json"))
    return message, desk.spectra()


@follows("preprocess: {...}")
def pictures_that_transformers_prepared_in_a_way_of_its_own(desk):
    vision = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 64,
        "hidden_act": "gelu",
    }
    text = {
        "hidden_size": 8,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "hidden_act": "gelu",
    }
    config = {
        "model_type": "clip",
        "projection_dim": 8,
        "vision_config": {**vision, "image_size": 16, "patch_size": 4},
        "text_config": {**text, "max_position_embeddings": 8},
    }
    folder = desk.run / "checkpoints"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"do_rescale": False, "size": 16, "crop_size": 16})
    )
    _, message = desk.spectra()
    desk.say(
        quoted(message, "preprocess: {...}").replace(
            "...", "mean: [0, 0, 0], std: [0.004, 0.004, 0.004]"
        )
    )
    return message, desk.spectra()


@follows("model: local-dir:FOLDER")
def a_name_of_the_hub(desk):
    desk.series["model"] = "hf-hub:somebody/something"
    _, message = desk.spectra()
    (desk.folder / "hub").mkdir()
    (desk.folder / "hub" / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    desk.say(quoted(message, "model: local-dir:FOLDER").replace("FOLDER", "hub"))
    return message, desk.spectra()


@follows("loss: siglip")
def a_bias_of_unknown_origin(desk):
    model = build_model(PLAIN, model_args={"init_logit_bias": -10})
    model.landscape_config = {}
    with pytest.raises(LandscapeError) as caught:
        contrastive_objective(model)
    message = str(caught.value)
    contrastive_objective(model, **yaml.safe_load(quoted(message, "loss: siglip")))
    return message, (0, "")


@follows("model_args: {init_logit_bias: -10}")
def a_sigmoid_loss_without_a_bias(desk):
    with pytest.raises(LandscapeError) as caught:
        contrastive_objective(build_model(PLAIN), loss="siglip")
    message = str(caught.value)
    advised = yaml.safe_load(quoted(message, "model_args: {init_logit_bias: -10}"))
    contrastive_objective(build_model(PLAIN, **advised), loss="siglip")
    return message, (0, "")


@follows("landscape init FOLDER")
def a_folder_of_files_with_other_names(desk):
    (desk.run / "checkpoints" / "epoch_1.pt").rename(desk.run / "checkpoints" / "model-final.pt")
    _, message = desk.spectra()
    words = quoted(message, "landscape init FOLDER").split()[1:]
    words[-1] = str(desk.run)
    return message, desk.command(*words, "-o", desk.folder / "written.yaml")


@follows("quoting: none")
def an_open_quotation_mark(desk):
    rows = desk.table.read_text().splitlines()
    rows[2] = rows[2].replace("\ta ", '\t"a ')
    rows[5] += '"'
    desk.table.write_text("\n".join(rows) + "\n")
    _, message = desk.spectra()
    desk.say(quoted(message, "quoting: none"), "data")
    return message, desk.spectra()


@follows("encoding: {}")
def a_table_in_latin_1(desk):
    desk.table.write_bytes(
        desk.table.read_text()
        .replace("a ", "caf\N{LATIN SMALL LETTER E WITH ACUTE} ")
        .encode("latin-1")
    )
    _, message = desk.spectra()
    desk.say(quoted(message, "encoding: {}"), "data")
    return message, desk.spectra()


@follows("separator: {}")
def a_table_with_another_separator(desk):
    desk.table.write_text(desk.table.read_text().replace("\t", ","))
    _, message = desk.spectra()
    desk.say(quoted(message, "separator: {}"), "data")
    return message, desk.spectra()


@follows("tr -d '\\000' < TABLE > CLEAN")
def a_table_with_a_nul(desk):
    desk.table.write_text(desk.table.read_text().replace("a ", "a\0 ", 1))
    _, message = desk.spectra()
    line = (
        quoted(message, "tr -d '\\000' < TABLE > CLEAN")
        .replace("TABLE", desk.table.name)
        .replace("CLEAN", "clean.tsv")
    )
    subprocess.run(line, shell=True, cwd=desk.folder, check=True)
    desk.document["data"]["source"] = "clean.tsv"
    return message, desk.spectra()


@follows("on_bad_picture: skip")
def a_picture_that_cannot_be_read(desk):
    for file in sorted(desk.folder.glob("*.png"))[:8]:
        file.write_bytes(file.read_bytes()[:60])
    _, message = desk.spectra()
    desk.say(quoted(message, "on_bad_picture: skip"), "data")
    return message, desk.spectra()


@pytest.mark.parametrize("code, case", CASES, ids=[case.__name__ for _, case in CASES])
def test_advice_that_is_followed_leads_on(code, case, tmp_path):
    message, (status, said) = case(Desk(tmp_path))
    assert "`" in message
    assert status == 0 or (said.strip() and said.strip() != message.strip()), said


@pytest.mark.parametrize(
    "model_args, keys, wanted",
    [
        ({"force_image_size": 24}, {}, "model_args: {force_image_size: 24}"),
        ({"force_custom_text": True}, {}, "model_args: {force_custom_text: true}"),
        ({"force_context_length": 6}, {}, "model_args: {force_context_length: 6}"),
        ({"init_logit_bias": -10}, {}, "loss: siglip"),
    ],
)
def test_weights_that_do_not_fit_name_the_key_that_makes_them_fit(
    model_args, keys, wanted, tmp_path
):
    desk = Desk(tmp_path)
    desk.checkpoint(
        desk.run / "checkpoints" / "epoch_1.pt", build_model(PLAIN, model_args=model_args)
    )
    status, message = desk.spectra()
    assert status == 2 and f"say {wanted}." in message, message
    desk.say(wanted)
    status, said = desk.spectra()
    assert status == 0, said


def test_every_piece_of_code_in_a_message_is_followed_or_is_no_advice():
    known = {code for code, _ in CASES} | set(NAMES_ONLY) | set(FOLLOWED)
    left = {code for code in advice() - known if not code.startswith("pip install")}
    assert not left, f"new advice in messages; follow it in this file: {sorted(left)}"
    assert not known - advice(), f"no message says this any more: {sorted(known - advice())}"


@pytest.mark.parametrize("code, test", FOLLOWED.items())
def test_what_is_followed_elsewhere_is(code, test):
    file, name = test.split("::")
    (path,) = TESTS.rglob(file)
    assert f"def {name}(" in path.read_text(), code


def test_packages_that_a_message_asks_for_are_those_that_the_project_declares():
    """Nobody is sent to the index for a package of this project's name, which is somebody else's
    program there.
    """
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    declared = " ".join(
        [config["options"]["install_requires"], *config["options.extras_require"].values()]
    )
    names = set(re.findall(r"^\s*([A-Za-z0-9_.-]+)", declared, re.MULTILINE)) | {"triton", "numba"}
    for code in advice():
        if code.startswith("pip install"):
            asked = [word for word in code.split()[2:] if not word.startswith("-") and word != "{}"]
            assert set(asked) <= names, code


def commands() -> dict[str, click.Command]:
    return dict(main.commands)


def test_options_and_commands_in_messages_exist():
    options = {
        name
        for command in commands().values()
        for parameter in command.params
        for name in parameter.opts
    }
    foreign = {"--siglip", "--force-reinstall", "--no-build-isolation", "--model-ema", "--help"}
    foreign |= {"--gres", "--scheduler-file", "--ntasks"}
    for where, text in messages().items():
        for command in re.findall(r"`landscape ([a-z]+)", text):
            assert command in commands(), (where, command)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*(?![\w-])", text):
            assert option in options | foreign, (where, option)


def test_the_desk_itself_is_in_order_so_that_what_fails_above_fails_for_its_reason(tmp_path):
    assert Desk(tmp_path).spectra()[0] == 0
