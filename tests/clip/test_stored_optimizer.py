"""The state of Adam in checkpoints of open_clip_train and of this project, by name, against the
live optimizer that wrote it.
"""

import copy
import inspect
import re
from functools import partial

import open_clip
import open_clip_train.main
import pytest
import torch

import landscape
from landscape.clip.checkpoint import load_checkpoint, save_checkpoint
from landscape.clip.model import build_model
from landscape.clip.objectives import contrastive_objective
from landscape.clip.stored_optimizer import read_adam_state
from landscape.clip.train_loop import parameter_groups
from landscape.curvature import HessianOperator
from landscape.errors import CheckpointError
from landscape.linalg import seeded
from landscape.stability import PreconditionedHessian, state_of, threshold_of
from tests.helpers.tiny_run import PLAIN


def open_clip_groups(model):
    """The groups that open_clip_train makes, by the lines of its own source."""
    source = inspect.getsource(open_clip_train.main)
    exclude, include = (
        re.search(rf"^ *{name} = (lambda .*)$", source, re.MULTILINE)[1]
        for name in ("exclude", "include")
    )
    scope = {}
    exec(f"exclude = {exclude}\ninclude = {include}", scope)
    spared = [p for n, p in model.named_parameters() if scope["exclude"](n, p) and p.requires_grad]
    rest = [p for n, p in model.named_parameters() if scope["include"](n, p) and p.requires_grad]
    return [{"params": spared, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.2}]


def batch():
    generator = seeded(0)
    image = torch.randn(4, 3, 16, 16, generator=generator)
    text = torch.randint(1, 400, (4, 8), generator=generator)
    return {"image": image, "text": text}


def trained(
    groups_of=open_clip_groups,
    optimizer=partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.98), eps=1e-6),
    steps=3,
):
    """A tiny CLIP after some steps."""
    torch.manual_seed(0)
    model = build_model(PLAIN, device="cpu", dtype=torch.float32)
    made = optimizer(groups_of(model))
    objective, _ = contrastive_objective(model)
    for _ in range(steps):
        made.zero_grad()
        objective(dict(model.named_parameters()), batch()).backward()
        made.step()
    return model, made


def write(path, model, optimizer, prefix=""):
    """As open_clip_train writes it."""
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save(
        {"epoch": 3, "name": "run", "state_dict": state, "optimizer": optimizer.state_dict()}, path
    )
    return path


def one_group(model):
    return [{"params": list(model.parameters())}]


WRITERS = {
    "open_clip": (open_clip_groups, write),
    "open_clip on several GPUs": (open_clip_groups, partial(write, prefix="module.")),
    "compiled": (open_clip_groups, partial(write, prefix="_orig_mod.")),
    "one group": (one_group, write),
    "by name": (lambda model: [{"params": list(reversed(list(model.named_parameters())))}], write),
    "ours": (
        partial(parameter_groups, weight_decay=0.2),
        lambda path, model, optimizer: (
            save_checkpoint(path, model=model, epoch=3, name=PLAIN, optimizer=optimizer),
            path,
        )[1],
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_number_is_the_parameter_that_the_optimizer_had(writer, tmp_path):
    groups_of, save = WRITERS[writer]
    model, optimizer = trained(groups_of)
    path = save(tmp_path / "epoch_3.pt", model, optimizer)
    read = read_adam_state(path, model)
    live = state_of(optimizer, dict(model.named_parameters()))
    assert read.parameters.keys() == live.parameters.keys()
    for name, kept in live.parameters.items():
        assert read.parameters[name].group == kept.group
        for key, value in kept.entries.items():
            assert torch.equal(read.parameters[name].entries[key], value), name
    assert threshold_of(read).value == landscape.stability_threshold(optimizer).value


def test_the_operator_from_a_file_is_that_of_the_live_optimizer(tmp_path):
    model, optimizer = trained()
    path = write(tmp_path / "epoch_3.pt", model, optimizer)
    live = landscape.preconditioned(operator_of(model), optimizer)
    other = build_model(PLAIN, device="cpu", dtype=torch.float32)
    load_checkpoint(other, path)
    read = PreconditionedHessian(operator_of(other), read_adam_state(path, other))
    assert torch.equal(live.scales, read.scales)
    v = torch.randn(live.n, generator=seeded(1))
    assert torch.equal(live @ v, read @ v)
    # Only rows that were looked up have moved, and only these are reached by this batch.
    assert live.num_unused > 0 and live.diagonal is None


def operator_of(model):
    objective, params = contrastive_objective(model)
    return HessianOperator(objective, params, batch())


def refused(path, model, *words):
    with pytest.raises(CheckpointError) as caught:
        read_adam_state(path, model)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    for word in (*words, "preconditioner: none"):
        assert re.search(word, message), message


def test_files_in_which_no_state_of_adam_is_are_refused(tmp_path):
    model, optimizer = trained()
    path = tmp_path / "x.pt"
    save_checkpoint(path, model=model, epoch=3, name=PLAIN)
    refused(path, model, "weights without the state of the optimizer")
    write(path, model, torch.optim.SGD(open_clip_groups(model), lr=0.1))
    refused(path, model, "no betas")
    torch.save(
        {"epoch": 3, "name": "run", "state_dict": model.state_dict(), "optimizer": {"state": 3}},
        path,
    )
    refused(path, model, "holds no state_dict of an optimizer")
    state = optimizer.state_dict()
    del state["state"][0]["exp_avg_sq"]
    torch.save(
        {"epoch": 3, "name": "run", "state_dict": model.state_dict(), "optimizer": state}, path
    )
    refused(path, model, "parameter 0 has no 'exp_avg_sq'")


def test_numbers_that_could_be_other_parameters_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    model, optimizer = trained(
        lambda model: [{"params": [parameter]} for parameter in model.parameters()]
    )
    refused(
        write(path, model, optimizer),
        model,
        "groups of numbered parameters, and no trainer is known",
    )
    model, optimizer = trained(lambda model: [{"params": list(reversed(list(model.parameters())))}])
    refused(
        write(path, model, optimizer),
        model,
        "parameter [0-9]+ has the shape",
        "in another order than thought",
    )
    model, optimizer = trained(lambda model: list(reversed(open_clip_groups(model))))
    refused(
        write(path, model, optimizer),
        model,
        r"groups of \[\d+, \d+\] parameters, but by the two groups of open_clip_train",
    )
    model, optimizer = trained()
    locked = copy.deepcopy(model)
    locked.visual.requires_grad_(False)
    refused(write(path, model, optimizer), locked, "all of its parameters free")
    renamed = {
        f"visual.trunk.{name}" if name.startswith("visual.") else name: t
        for name, t in model.state_dict().items()
    }
    torch.save(
        {"epoch": 3, "name": "run", "state_dict": renamed, "optimizer": optimizer.state_dict()},
        path,
    )
    refused(path, model, "its weights have other names")
    state = dict(reversed(list(model.state_dict().items())))
    torch.save(
        {"epoch": 3, "name": "run", "state_dict": state, "optimizer": optimizer.state_dict()}, path
    )
    refused(path, model, "stand in another order")


def test_files_that_do_not_say_how_weights_decay_are_of_adamw(tmp_path):
    model, optimizer = trained()
    contents = {
        "epoch": 3,
        "name": "run",
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    for group in contents["optimizer"]["param_groups"]:
        del group["decoupled_weight_decay"]
    torch.save(contents, tmp_path / "old.pt")
    assert read_adam_state(tmp_path / "old.pt", model).l2_coefficient(1) == 0
    model, optimizer = trained(optimizer=partial(torch.optim.Adam, lr=1e-3))
    write(tmp_path / "adam.pt", model, optimizer)
    assert read_adam_state(tmp_path / "adam.pt", model).l2_coefficient(1) == 0.2


def test_the_rule_is_that_of_the_installed_open_clip():
    """What stands in open_clip_train/main.py; where it changes, so must the rule here."""
    model = open_clip.create_model(PLAIN)
    ours = [group["params"] for group in parameter_groups(model, 0.2)]
    theirs = [group["params"] for group in open_clip_groups(model)]
    assert [[id(p) for p in group] for group in ours] == [
        [id(p) for p in group] for group in theirs
    ]
