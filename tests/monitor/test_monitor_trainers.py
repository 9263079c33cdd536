"""The monitor in trainings by others' loops: the Hugging Face Trainer, and `landscape train
--monitor`.
"""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from landscape import eigsh, hessian
from landscape.cli import main
from landscape.clip import train_monitor
from landscape.clip.checkpoint import load_checkpoint
from landscape.clip.image_text import curvature_batches, open_pairs
from landscape.clip.model import build_model, preprocess_for, tokenizer_for
from landscape.errors import NumericalError
from landscape.linalg.operator import seeded
from landscape.manifest import Manifest
from landscape.monitor import SharpnessMonitor, read_record
from tests.conftest import contrastive_loss
from tests.helpers.tiny_language_models import VOCABULARY, configs
from tests.helpers.tiny_run import NUM_PAIRS, RECIPE, run, write_pairs

STEPS_PER_EPOCH = NUM_PAIRS // RECIPE.batch_size


# transformers


@pytest.fixture
def language_model():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_config(configs()["gpt2"])


def tokens(num_rows, seed):
    ids = torch.randint(VOCABULARY, (num_rows, 8), generator=seeded(seed))
    return {"input_ids": ids, "labels": ids}


def test_the_callback_measures_at_the_trainers_steps(language_model, tmp_path):
    """As Trainer's own handler of callbacks calls it, with the state's counter and the optimizer
    that accelerate wraps.
    """
    from transformers import TrainerControl, TrainerState
    from transformers.trainer_callback import CallbackHandler

    from landscape.monitor import HuggingFaceMonitor

    optimizer = torch.optim.SGD(language_model.parameters(), lr=0.1)
    callback = HuggingFaceMonitor(tokens(4, seed=1), every=2, budget=None)
    wrapped = SimpleNamespace(optimizer=optimizer)
    args, state, control = (
        SimpleNamespace(output_dir=str(tmp_path)),
        TrainerState(),
        TrainerControl(),
    )
    handler = CallbackHandler([callback], language_model, None, wrapped, None)
    # A training that goes on after step 3 with the record of its first part, in which step 5 was
    # taken already.
    for first, last in ((0, 5), (3, 8)):
        state.global_step = first
        handler.on_train_begin(args, state, control)
        for step in range(first + 1, last + 1):
            language_model.train()
            optimizer.zero_grad()
            language_model(**tokens(4, seed=step)).loss.backward()
            optimizer.step()
            state.global_step = step
            handler.on_step_end(args, state, control)
            assert language_model.training
        handler.on_train_end(args, state, control)
    record = read_record(tmp_path / "sharpness.jsonl")
    assert record.steps.tolist() == [1, 3, 4, 6, 8] and record.converged.all()
    assert [made.step for made in record.superseded] == [5]
    language_model.eval()
    H = hessian(language_model, lambda model, batch: model(**batch).loss, tokens(4, seed=1))
    exact = float(eigsh(H, 1, "LA", tol=1e-4).values[0])
    assert record.values[-1, 0] == pytest.approx(exact, rel=1e-2)


def test_a_training_of_the_trainer_is_the_same_with_and_without(language_model, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    from landscape.monitor import HuggingFaceMonitor

    rows = [{"input_ids": row, "labels": row} for row in tokens(32, seed=2)["input_ids"]]
    begun = {name: tensor.clone() for name, tensor in language_model.state_dict().items()}
    weights = []
    for callbacks in ([], [HuggingFaceMonitor(tokens(4, seed=1), every=3, budget=None)]):
        language_model.load_state_dict(begun)
        options = {
            "max_steps": 10,
            "per_device_train_batch_size": 4,
            "report_to": [],
            "use_cpu": True,
            "save_strategy": "no",
        }
        arguments = TrainingArguments(
            output_dir=str(tmp_path), disable_tqdm=True, seed=5, **options
        )
        Trainer(
            model=language_model, args=arguments, train_dataset=rows, callbacks=callbacks
        ).train()
        weights.append(
            {name: tensor.clone() for name, tensor in language_model.state_dict().items()}
        )
    assert read_record(tmp_path / "sharpness.jsonl").steps.tolist() == [1, 4, 7, 10]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


# Lightning


def test_a_training_by_lightning_is_the_same_with_and_without(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    from landscape.monitor import LightningMonitor

    class Regression(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            layers = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2)]
            self.net = nn.Sequential(*layers, nn.Linear(8, 1))

        def training_step(self, batch, index):
            return F.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(48, 4, generator=generator), torch.randn(48, 1, generator=generator)

    def loss(module, batch):
        return F.mse_loss(module.net(batch[0]), batch[1])

    states = []
    for monitored in (False, True):
        torch.manual_seed(0)
        module = Regression()
        loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
        monitor = LightningMonitor(loss, (x, y), with_optimizer=True, every=5, budget=None)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            callbacks=[monitor] if monitored else [],
            **quiet,
        ).fit(module, loader)
        states.append(module.state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    record = read_record(tmp_path / "sharpness.jsonl")
    assert record.steps.tolist() == [1, 6, 11]
    assert all(made.threshold is not None for made in record.measurements)
    assert [made.preconditioned is not None for made in record.measurements] == [True] * 3


# landscape train


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory, table):
    output = tmp_path_factory.mktemp("runs") / "plain"
    run(output, table)
    return output


def weights_of(output):
    state = torch.load(output / "checkpoints" / f"epoch_{RECIPE.epochs}.pt", weights_only=True)
    return state["state_dict"]


def test_a_run_with_a_monitor_has_the_same_weights_and_a_record_beside_them(plain, table, tmp_path):
    output = tmp_path / "monitored"
    run(output, table, monitor_budget=10.0)
    expected = weights_of(plain)
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights_of(output).items())
    record = read_record(output / "sharpness.jsonl")
    assert (
        record.steps[0] == 0
        and record.steps[-1] <= STEPS_PER_EPOCH * RECIPE.epochs
        and record.converged.all()
    )
    # The first batch of the manifest's protocol, at the initial weights.
    manifest = Manifest.load(output / "checkpoints.yaml")
    series = manifest.series[0]
    model = build_model(series.model, seed=0)
    load_checkpoint(model, series.checkpoints[0].path)
    model.eval()
    batches = curvature_batches(
        open_pairs(manifest.data),
        num_samples=manifest.data.num_samples,
        batch_size=manifest.data.batch_size,
        seed=manifest.data.seed,
        transform=preprocess_for(model),
        tokenizer=tokenizer_for(model),
    )
    H = hessian(model, contrastive_loss, batches[0])
    assert record.losses[0] == pytest.approx(H.loss, rel=1e-5)
    assert record.values[0, 0] == pytest.approx(
        float(eigsh(H, 1, "LA", tol=1e-4).values[0]), rel=1e-2
    )


def test_a_run_that_stops_goes_on_with_its_record(plain, table, tmp_path, monkeypatch):
    output = tmp_path / "stopped"
    step = SharpnessMonitor.step

    def stop(self, taken=None, **options):
        made = step(self, taken, **options)
        # In the middle of the second epoch, after a measurement that is going to be made again.
        if taken == STEPS_PER_EPOCH + 2:
            self.measure()
            raise NumericalError("stopped on purpose")
        return made

    monkeypatch.setattr(SharpnessMonitor, "step", stop)
    with pytest.raises(NumericalError, match="on purpose"):
        run(output, table, monitor_budget=10.0)
    stopped = read_record(output / "sharpness.jsonl")
    assert stopped.steps[-1] == STEPS_PER_EPOCH + 2
    monkeypatch.undo()
    run(output, table, monitor_budget=10.0)
    record = read_record(output / "sharpness.jsonl")
    assert STEPS_PER_EPOCH + 2 in [made.step for made in record.superseded]
    kept = stopped.steps[stopped.steps <= STEPS_PER_EPOCH]
    assert record.steps.tolist()[: len(kept)] == kept.tolist()
    assert all(
        torch.equal(weights_of(plain)[name], tensor) for name, tensor in weights_of(output).items()
    )


def test_the_command_says_what_it_measured(table, tmp_path):
    config = tmp_path / "model.json"
    config.write_text(json.dumps({**_TINY}))
    command = [
        "train",
        "--model",
        str(config),
        "-o",
        str(tmp_path / "run"),
        "--data",
        str(table),
        "--split",
        "all",
    ]
    command += ["--recipe", "clip_mamba", "--epochs", "1", "--batch-size", "8", "--device", "cpu"]
    refused = CliRunner().invoke(main, [*command, "--monitor-budget", "0.1"])
    assert (
        refused.exit_code == 2 and "--monitor" in refused.stderr and not (tmp_path / "run").exists()
    )
    along = CliRunner().invoke(main, [*command, "--monitor-update-sharpness"])
    assert along.exit_code == 2 and "what --monitor measures" in along.stderr
    result = CliRunner().invoke(main, [*command, "--monitor", "--monitor-update-sharpness"])
    assert result.exit_code == 0, result.output
    assert "sharpness " in result.stderr and (tmp_path / "run" / train_monitor.RECORD).exists()
    record = read_record(tmp_path / "run" / train_monitor.RECORD)
    assert record.settings["update_sharpness"]
    # The loss of this network may fall at any rate along a step, which then has no critical one.
    steps = [measurement.along_update for measurement in record.measurements]
    assert all(step.rate > 0 and step.num_losses > 0 for step in steps)
    assert all(step.critical_low <= step.critical_high for step in steps)
    assert np.isfinite([step.directional for step in steps]).all()
    drawn = CliRunner().invoke(
        main,
        [
            "figure",
            str(tmp_path / "run" / train_monitor.RECORD),
            "--kind",
            "training",
            "-o",
            str(tmp_path / "a.png"),
        ],
    )
    assert drawn.exit_code == 0, drawn.output
    shutil.rmtree(tmp_path / "run")


_TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 4, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
