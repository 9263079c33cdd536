"""`landscape spectra` of the preconditioned Hessian: state from checkpoints, threshold in the store
and in `info`.
"""

import copy
import shutil

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from landscape.cli import main
from landscape.clip.checkpoint import save_checkpoint
from landscape.clip.image_text import curvature_batches, open_pairs
from landscape.clip.model import build_model, preprocess_for, tokenizer_for
from landscape.clip.objectives import contrastive_objective
from landscape.clip.train_loop import parameter_groups
from landscape.manifest import HessianSettings, Manifest
from landscape.store import SpectrumStore
from tests.helpers.oracles import dense_hessian
from tests.helpers.spectra_study import BATCH_SIZE, MODEL, NUM_BATCHES, make_study

PATTERNS = ["visual.proj", "visual.ln_post.*", "logit_scale"]
EPOCHS = (1, 2)


def invoke(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def batches_of(manifest, model):
    return curvature_batches(
        open_pairs(manifest.data),
        num_samples=NUM_BATCHES * BATCH_SIZE,
        batch_size=BATCH_SIZE,
        seed=0,
        transform=preprocess_for(model),
        tokenizer=tokenizer_for(model),
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A manifest of two checkpoints of an AdamW run, measured; for each epoch weights, second
    moments and steps.
    """
    folder = tmp_path_factory.mktemp("preconditioned")
    options = {"parameters": PATTERNS, "dtype": "float64", "tol": 1e-8, "preconditioner": "adam"}
    path = make_study(folder, epochs=EPOCHS, names=("one",), **options)
    manifest = Manifest.load(path)
    model = build_model(MODEL, seed=5)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, 0.2), lr=1e-3, betas=(0.9, 0.98), eps=1e-6
    )
    objective, _ = contrastive_objective(model)
    batches = batches_of(manifest, model)
    states = {}
    for epoch in EPOCHS:
        for index in range(NUM_BATCHES):
            optimizer.zero_grad()
            objective(dict(model.named_parameters()), batches[index]).backward()
            optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= 0.5
        save_checkpoint(
            folder / f"one_{epoch}.pt", model=model, epoch=epoch, name=MODEL, optimizer=optimizer
        )
        named = {
            name: parameter.detach().double().clone()
            for name, parameter in model.named_parameters()
        }
        moments = {
            name: optimizer.state[p]["exp_avg_sq"].double().clone()
            for name, p in model.named_parameters()
        }
        states[epoch] = named, moments, NUM_BATCHES * epoch
    result = invoke("spectra", path, "-o", folder / "spectra.h5")
    assert result.exit_code == 0, result.output
    return folder, states


@pytest.fixture
def study(template, tmp_path):
    shutil.copytree(template[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_stored_eigenvalues_are_those_of_the_dense_preconditioned_hessian(template):
    folder, states = template
    manifest = Manifest.load(folder / "checkpoints.yaml")
    model = build_model(MODEL, dtype=torch.float64)
    batches = batches_of(manifest, model)
    with SpectrumStore.open(folder / "spectra.h5") as store:
        for epoch in EPOCHS:
            named, moments, steps = states[epoch]
            model.load_state_dict(named, strict=False)
            objective, params = contrastive_objective(model, parameters=PATTERNS)
            v = torch.cat([moments[name].reshape(-1) for name in params])
            P = (1 - 0.9**steps) * ((v / (1 - 0.98**steps)).sqrt() + 1e-6)
            table = store.records("one", epoch)
            for index in range(NUM_BATCHES):
                batch = {
                    key: t.double() if t.is_floating_point() else t
                    for key, t in batches[index].items()
                }
                exact = torch.linalg.eigvalsh(
                    P[:, None] ** -0.5 * dense_hessian(objective, params, batch) * P**-0.5
                )
                wanted = exact[exact.abs().argsort(descending=True)][:3].numpy()
                np.testing.assert_allclose(table.eigenvalues[index], wanted, rtol=1e-9)
            facts = table.settings["preconditioner"]
            rate = 1e-3 * 0.5**epoch
            assert facts["learning_rate"] == pytest.approx(rate) and facts[
                "threshold"
            ] == pytest.approx(38 / rate)
            assert (
                facts["formula"] == "(2 + 2 beta1) / ((1 - beta1) lr)"
                and "2207.14484" in facts["source"]
            )


def test_info_says_what_was_measured_and_what_it_compares_with(study):
    told = invoke("info", study / "spectra.h5")
    assert told.exit_code == 0, told.output
    assert "in 1 / learning rate" in told.stdout and "eigenvalues of P^-1/2 H P^-1/2" in told.stdout
    with SpectrumStore.open(study / "spectra.h5") as store:
        share = 100 * float(store.records("one", 1).eigenvalues.max()) / 76000
    line = next(line for line in told.stdout.splitlines() if line.startswith("one epoch 1"))
    assert "stability threshold 7.6e+04 = (2 + 2 beta1) / ((1 - beta1) lr) at lr 0.0005" in line
    assert f"the largest eigenvalue is {share:.3g} % of it" in line
    assert "preconditioned by adam" in invoke("info", study / "checkpoints.yaml").stdout


def test_the_same_command_finds_everything_measured_and_the_power_method_agrees(study):
    again = invoke("spectra", study / "checkpoints.yaml", "-o", study / "spectra.h5")
    assert again.exit_code == 0 and "0 now, 6 before" in again.stdout
    power = invoke(
        "spectra", study / "checkpoints.yaml", "-o", study / "power.h5", "--method", "power"
    )
    assert power.exit_code in (0, 1), power.output
    with (
        SpectrumStore.open(study / "spectra.h5") as one,
        SpectrumStore.open(study / "power.h5") as other,
    ):
        first, second = (
            one.records("one", 2).eigenvalues[:, 0],
            other.records("one", 2).eigenvalues[:, 0],
        )
    # Power iteration stops where a value changes by less than the tolerance.
    np.testing.assert_allclose(first, second, rtol=1e-3)


def test_the_units_of_a_dataset_are_those_of_the_store(study):
    pytest.importorskip("xarray")
    with SpectrumStore.open(study / "spectra.h5") as store:
        dataset = store.to_xarray()
    assert (
        dataset["eigenvalues"].attrs["units"] == "1 / learning rate"
        and dataset["loss"].attrs["units"] == "nat"
    )


@pytest.mark.parametrize(
    "command",
    [
        ("compare", "spectra.h5"),
        ("figure", "spectra.h5", "-o", "x.png"),
        ("figure", "spectra.h5", "-o", "x.png", "--kind", "sharpness"),
        ("density", "spectra.h5", "-o", "x.png"),
        ("report", "spectra.h5", "-o", "x.html"),
    ],
)
def test_what_would_show_them_as_eigenvalues_of_the_hessian_refuses(command, study, monkeypatch):
    monkeypatch.chdir(study)
    result = invoke(*command)
    assert result.exit_code == 2, result.output
    assert (
        "holds eigenvalues of the Hessian preconditioned by adam" in result.stderr
        and not (study / "x.png").exists()
    )


@pytest.mark.parametrize(
    "command, said",
    [
        (
            ("spectra", "checkpoints.yaml", "-o", "y.h5", "--per-module"),
            "--per-module measures the Hessian itself",
        ),
        (
            ("spectra", "checkpoints.yaml", "-o", "y.h5", "--shards", "2"),
            "read whole in one process",
        ),
        (
            ("density", "checkpoints.yaml", "-o", "y.png"),
            "the density of a manifest measures the Hessian itself",
        ),
        (
            ("surface", "checkpoints.yaml", "--series", "one", "-o", "y.png"),
            "a loss surface measures the Hessian itself",
        ),
    ],
)
def test_what_measures_the_hessian_itself_refuses_such_a_manifest(
    command, said, study, monkeypatch
):
    monkeypatch.chdir(study)
    result = invoke(*command)
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert not list(study.glob("y.*"))


def edited(study, **hessian):
    document = yaml.safe_load((study / "checkpoints.yaml").read_text())
    document["hessian"] |= hessian
    (study / "checkpoints.yaml").write_text(yaml.safe_dump(document))
    return document


def refused(study, *words):
    result = invoke("spectra", study / "checkpoints.yaml", "-o", study / "z.h5")
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.exit_code == 2 and len(lines) == 1, result.output
    for word in words:
        assert word in lines[0], lines[0]
    assert not list(study.glob("*z.h5"))


def test_checkpoints_without_the_optimizer_and_epoch_zero_are_refused(study):
    document = edited(study)
    save_checkpoint(study / "one_2.pt", model=build_model(MODEL), epoch=2, name=MODEL)
    refused(
        study,
        "one_2.pt: holds weights without the state of the optimizer",
        "`preconditioner: none`",
    )
    document["series"][0]["checkpoints"][0]["epoch"] = 0
    (study / "checkpoints.yaml").write_text(yaml.safe_dump(document))
    refused(study, "series 'one' lists epoch 0", "no preconditioner yet")
    # The advice works.
    document["hessian"]["preconditioner"] = "none"
    document["series"][0]["checkpoints"][0] = {"epoch": 2, "path": "one_2.pt"}
    document["series"][0]["checkpoints"] = document["series"][0]["checkpoints"][:1]
    document["epoch_zero"] = "optional"
    (study / "checkpoints.yaml").write_text(yaml.safe_dump(document))
    assert invoke("spectra", study / "checkpoints.yaml", "-o", study / "z.h5").exit_code == 0


# What is wrong with the state in a checkpoint, as a function of the state_dict and the number of
# `visual.proj`, which is measured; and what the message says.
WRONG_STATES = {
    "one parameter's state is missing": (
        lambda state, number: state["state"].pop(number),
        "has made no step for 1 of 4 parameters that the loss depends on, such as 'visual.proj'",
    ),
    "all states are missing": (
        lambda state, number: state["state"].clear(),
        "has made no step yet",
    ),
    "a parameter is missing": (
        lambda state, number: state["param_groups"][1]["params"].pop(),
        "has groups of [24, 13] parameters",
    ),
    "another model's": (
        lambda state, number: state["state"][number].update(exp_avg_sq=torch.ones(16, 16)),
        "has the shape (16, 16), but should be 'visual.proj'",
    ),
    "moments are not finite": (
        lambda state, number: state["state"][number]["exp_avg_sq"].fill_(np.nan),
        "its state of 'visual.proj' is not finite",
    ),
    "moments are negative": (
        lambda state, number: state["state"][number]["exp_avg_sq"].neg_(),
        "its state of 'visual.proj' is not finite",
    ),
    "moments are no tensor": (
        lambda state, number: state["state"][number].update(exp_avg_sq=[1.0]),
        "'exp_avg_sq' of its parameter 27 is [1.0]",
    ),
    "moments are whole numbers": (
        lambda state, number: state["state"][number].update(exp_avg_sq=torch.ones(8, 8).int()),
        "'exp_avg_sq' of its parameter 27 is a tensor of int32",
    ),
    "the step is text": (
        lambda state, number: state["state"][number].update(step="x"),
        "the step of its parameter 27 is 'x'",
    ),
    "no entries": (
        lambda state, number: state["state"].update({number: None}),
        "its state of parameter 27 has no 'step'",
    ),
    "amsgrad without its moments": (
        lambda state, number: [group.update(amsgrad=True) for group in state["param_groups"]],
        "has no 'max_exp_avg_sq'",
    ),
    "no eps": (
        lambda state, number: state["param_groups"][0].pop("eps"),
        "group 0: eps is None",
    ),
    "a rate of text": (
        lambda state, number: state["param_groups"][1].update(lr="fast"),
        "group 1: lr is 'fast'",
    ),
    "one beta": (
        lambda state, number: state["param_groups"][0].update(betas=0.9),
        "group 0: has no betas (got 0.9)",
    ),
    "beta2 is 1": (
        lambda state, number: state["param_groups"][0].update(betas=(0.9, 1.0)),
        "group 0: beta2 is 1.0",
    ),
    "numbers are lists": (
        lambda state, number: state["param_groups"][1]["params"].append([1]),
        "group 1: its parameters are not all numbers",
    ),
}


def test_a_wrong_state_of_the_optimizer_is_one_line_before_anything_is_measured(study):
    document = edited(study)
    for checkpoint in document["series"][0]["checkpoints"]:
        checkpoint.pop("sha256", None)
    (study / "checkpoints.yaml").write_text(yaml.safe_dump(document))
    model, path = build_model(MODEL), study / "one_2.pt"
    held = [tensor for group in parameter_groups(model, 0.2) for tensor in group["params"]]
    (number,) = (at for at, tensor in enumerate(held) if tensor is model.visual.proj)
    whole = torch.load(path, weights_only=True)
    for name, (spoil, words) in WRONG_STATES.items():
        contents = copy.deepcopy(whole)
        spoil(contents["optimizer"], number)
        torch.save(contents, path)
        refused(study, f"{path}: optimizer: ", words)
        if name in ("no eps", "one parameter's state is missing"):
            seen = invoke("spectra", study / "checkpoints.yaml", "-o", study / "z.h5", "--dry-run")
            assert seen.exit_code == 2 and words in " ".join(seen.output.split())


def test_averaged_weights_have_no_state_of_the_optimizer(study):
    document = edited(study)
    document["series"][0]["weights"] = "ema"
    (study / "checkpoints.yaml").write_text(yaml.safe_dump(document))
    refused(study, "one_1.pt: its averaged weights are measured", "`weights: online`")
    document["series"][0]["weights"] = "online"
    (study / "checkpoints.yaml").write_text(yaml.safe_dump(document))
    assert invoke("spectra", study / "checkpoints.yaml", "-o", study / "z.h5").exit_code == 0


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"preconditioner": "muon"}, "it must be one of none, adam"),
        (
            {"preconditioner": "adam", "method": "pyhessian"},
            "method pyhessian measures the Hessian itself",
        ),
        (
            {"preconditioner": "adam", "objective": "causal_lm"},
            "open_clip_train and `landscape train` alone",
        ),
    ],
)
def test_settings_that_cannot_be_meant_together_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        HessianSettings(**{"objective": "contrastive"} | settings)


def test_the_protocol_of_the_hessian_itself_is_what_it_was(study):
    """Stores of before, which do not have the key, go on with the same digest."""
    document = edited(study, preconditioner="none")
    document["epoch_zero"] = "optional"
    (study / "said.yaml").write_text(yaml.safe_dump(document))
    del document["hessian"]["preconditioner"]
    (study / "left_out.yaml").write_text(yaml.safe_dump(document))
    said, left_out = (Manifest.load(study / name) for name in ("said.yaml", "left_out.yaml"))
    assert said.protocol_digest() == left_out.protocol_digest() and said.sha256 == left_out.sha256
    assert "preconditioner" not in said.protocol()["hessian"]
