"""Files of torch itself: wrappers, averages, whole modules, TorchScript, distributed
checkpoints.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from common import Case, kept, make_net
from torch import nn


def wrappers(folder: Path) -> list[Case]:
    """torch.compile, DataParallel, both nestings; AveragedModel."""
    net = make_net()
    state = kept(net)
    files = {
        "compile": torch.compile(net),
        "DataParallel": nn.DataParallel(net),
        "compile in DataParallel": nn.DataParallel(torch.compile(net)),
        "DataParallel in compile": torch.compile(nn.DataParallel(net)),
    }
    for name, module in files.items():
        torch.save(module.state_dict(), folder / name)
    cases = [Case(what=name, path=folder / name, copies={"online": state}) for name in files]
    averaged = torch.optim.swa_utils.AveragedModel(net)
    torch.save(averaged.state_dict(), folder / "averaged")
    torch.save(
        {
            "model": kept(make_net()),
            "model_ema": averaged.state_dict(),
            "epoch": 4,
            "args": None,
            "lr_scheduler": {},
        },
        folder / "torchvision",
    )
    model = torch.load(folder / "torchvision")["model"]
    return [
        *cases,
        Case(what="AveragedModel.state_dict()", path=folder / "averaged", copies={"ema": state}),
        Case(
            what="torchvision's references (by hand)",
            path=folder / "torchvision",
            copies={"online": model, "ema": state},
            epoch=5,
        ),
    ]


def whole(folder: Path) -> list[Case]:
    """torch.save(model), TorchScript."""
    net = make_net().eval()
    torch.save(net, folder / "whole")
    torch.save(net, folder / "legacy", _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.script(net), folder / "script")
    torch.jit.save(torch.jit.trace(net, torch.ones(2, 4)), folder / "trace")
    torch.save(
        {"epoch": 3, "model": net, "ema": make_net(), "updates": 8, "opt": None},
        folder / "detector",
    )
    return [
        *(
            Case(what=f"whole model, {name}", path=folder / name, copies={"online": kept(net)})
            for name in ("whole", "legacy", "script", "trace")
        ),
        Case(
            what="whole models under 'model' and 'ema'",
            path=folder / "detector",
            copies={
                "online": kept(net),
                "ema": kept(torch.load(folder / "detector", weights_only=False)["ema"]),
            },
        ),
    ]


def distributed(folder: Path) -> list[Case]:
    """DCP folders and FSDP, one process."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.fsdp import fully_shard

    net = make_net()
    dcp.save({"model": net.state_dict(), "lr": 0.1}, checkpoint_id=folder / "plain", no_dist=True)
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29613", RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo")
    sharded = make_net()
    state = kept(sharded)
    fully_shard(sharded)
    dcp.save({"model": sharded.state_dict()}, checkpoint_id=folder / "fsdp")
    torch.save(sharded.state_dict(), folder / "dtensor.pt")
    dist.destroy_process_group()
    return [
        Case(what="DCP folder", path=folder / "plain", copies={"online": kept(net)}),
        Case(what="DCP folder, fully_shard", path=folder / "fsdp", copies={"online": state}),
        Case(
            what="torch.save of DTensors, one process",
            path=folder / "dtensor.pt",
            copies={"online": state},
        ),
        Case(what="__0_0.distcp", path=folder / "plain/__0_0.distcp", refused="Name the folder"),
    ]


WRITERS: tuple[tuple[str, Callable[[Path], list[Case]]], ...] = (
    ("torch wrappers", wrappers),
    ("torch whole modules", whole),
    ("torch distributed", distributed),
)
