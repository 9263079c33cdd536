"""Files of trainers: lightning, composer, mmengine, timm, open_clip, fastai, keras,
transformers.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import Case, State, data, kept, loader, make_net
from torch import nn


def _lightning_fit(
    folder: Path, *callbacks: Any, epochs: int = 2, **saving: Any
) -> dict[int, State]:
    """Train and save; the net's weights after each epoch."""
    import lightning

    after: dict[int, State] = {}

    class Module(lightning.LightningModule):
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = make_net()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def on_train_batch_end(self, *_: Any) -> None:
            after[self.trainer.current_epoch + 1] = kept(self.net)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), self.hparams.lr)

    quiet = dict(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    saver = lightning.pytorch.callbacks.ModelCheckpoint(
        folder, filename="{epoch}-{step}", save_top_k=-1, **saving
    )
    lightning.Trainer(max_epochs=epochs, callbacks=[*callbacks, saver], **quiet).fit(
        Module(), loader()
    )
    return after


def lightning(folder: Path) -> list[Case]:
    """ModelCheckpoint after each epoch, and within one."""
    after = _lightning_fit(folder / "each")
    cases = [
        Case(
            what=f"ModelCheckpoint epoch={k}",
            path=folder / f"each/epoch={k}-step={3 * k + 3}.ckpt",
            copies={"online": after[k + 1]},
            epoch=k + 1,
        )
        for k in (0, 1)
    ]
    _lightning_fit(folder / "steps", every_n_train_steps=2)
    for file in sorted((folder / "steps").iterdir()):
        online = {
            name.removeprefix("net."): tensor
            for name, tensor in torch.load(file, weights_only=False)["state_dict"].items()
        }
        steps = int(file.stem.rpartition("=")[2])
        epoch = None if steps % 3 else steps // 3
        cases.append(
            Case(
                what=f"every_n_train_steps=2, step {steps} of 3 each",
                path=file,
                copies={"online": online},
                epoch=epoch,
            )
        )
    return [*cases, *_lightning_by_hand(folder)]


def _lightning_by_hand(folder: Path) -> list[Case]:
    """trainer.save_checkpoint before and after fit, where `epoch` means another thing than in
    ModelCheckpoint's files.
    """
    import lightning
    from lightning.pytorch.demos.boring_classes import BoringModel

    net = make_net()
    module = BoringModel()
    module.layer = net
    module.training_step = lambda batch, batch_idx: nn.functional.cross_entropy(
        net(batch[0]), batch[1]
    )
    module.configure_optimizers = lambda: torch.optim.SGD(net.parameters(), 0.1)
    cases = []
    for epochs in (0, 2):
        trainer = lightning.Trainer(
            max_epochs=epochs,
            limit_val_batches=0,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(module, loader())
        trainer.save_checkpoint(folder / f"by_hand_{epochs}.ckpt")
        cases.append(
            Case(
                what=f"trainer.save_checkpoint after {epochs} epochs",
                path=folder / f"by_hand_{epochs}.ckpt",
                copies={"online": kept(net)},
                epoch=epochs,
            )
        )
    return cases


def lightning_averages(folder: Path) -> list[Case]:
    """EMAWeightAveraging and StochasticWeightAveraging; the averages are computed here once
    more.
    """
    from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging

    averages: dict[int, State] = {}

    class Watched(EMAWeightAveraging):
        def on_train_batch_end(self, *args: Any, **keywords: Any) -> None:
            super().on_train_batch_end(*args, **keywords)
            averages[args[0].current_epoch + 1] = kept(self._average_model.module.net)

    after = _lightning_fit(folder / "ema", Watched(decay=0.5))
    cases = [
        Case(
            what="EMAWeightAveraging epoch=1",
            path=folder / "ema/epoch=1-step=6.ckpt",
            copies={"online": after[2], "ema": averages[2]},
            epoch=2,
        )
    ]
    after = _lightning_fit(
        folder / "swa", StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1), epochs=4
    )
    path = folder / "swa/epoch=2-step=9.ckpt"
    # SWA averages parameters and gives the average the running statistics of the model.
    mean = {
        name: (after[1][name] + after[2][name]) / 2
        for name in after[1]
        if after[1][name].is_floating_point() and "running" not in name
    }
    del mean
    stored = torch.load(path, weights_only=False)["callbacks"]
    [swa] = [state for key, state in stored.items() if key.startswith("StochasticWeightAveraging")]
    copies = {"online": after[3]}
    if swa.get("average_model_state"):
        copies["ema"] = {
            name.removeprefix("net."): tensor for name, tensor in swa["average_model_state"].items()
        }
    cases.append(Case(what="StochasticWeightAveraging epoch=2", path=path, copies=copies, epoch=3))
    return cases


def composer(folder: Path) -> list[Case]:
    """CheckpointSaver, with and without EMA."""
    import sys
    import types

    # The client of a cloud service, which its logger imports.
    sys.modules.setdefault("mcli", types.ModuleType("mcli"))
    import composer as c
    from composer.algorithms import EMA

    class Model(c.ComposerModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def forward(self, batch: Any) -> torch.Tensor:
            return self.net(batch[0])

        def loss(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
            return nn.functional.cross_entropy(outputs, batch[1])

    def fit(where: Path, *algorithms: Any) -> State:
        model, after = Model(), {}

        class Watch(c.Callback):
            def batch_end(self, state: Any, logger: Any) -> None:
                after["online"] = kept(model.net)

        c.Trainer(
            model=model,
            train_dataloader=loader(),
            max_duration="1ep",
            optimizers=torch.optim.SGD(model.parameters(), 0.1),
            device="cpu",
            algorithms=list(algorithms),
            callbacks=[Watch()],
            save_folder=str(where),
            save_interval="1ep",
            progress_bar=False,
            log_to_console=False,
        ).fit()
        return after["online"]

    plain = fit(folder / "plain")
    cases = [
        Case(
            what="ep1-ba3",
            path=next((folder / "plain").glob("ep1*.pt")),
            copies={"online": plain},
            epoch=1,
        )
    ]
    ema = EMA(half_life=None, smoothing=0.5, update_interval="1ba")
    trained = fit(folder / "ema", ema)
    path = next((folder / "ema").glob("ep1*.pt"))
    average = {
        n.removeprefix("net."): t
        for n, t in torch.load(path, weights_only=False)["state"]["model"].items()
    }
    differ = any(not torch.equal(average[name], trained[name]) for name in trained)
    cases.append(
        Case(
            what="ep1-ba3, EMA" + ("" if differ else " (copies equal?)"),
            path=path,
            copies={"online": trained, "ema": average},
            epoch=1,
        )
    )
    return cases


def mmengine(folder: Path) -> list[Case]:
    """CheckpointHook, with and without EMAHook."""
    from mmengine.hooks import EMAHook
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    after: dict[str, State] = {}

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def forward(
            self, inputs: torch.Tensor, labels: torch.Tensor, mode: str
        ) -> dict[str, torch.Tensor]:
            return {"loss": nn.functional.cross_entropy(self.net(inputs), labels)}

        def train_step(self, batch: Any, optim_wrapper: Any) -> Any:
            said = super().train_step(batch, optim_wrapper)
            after["online"] = kept(self.net)
            return said

    def fit(where: Path, **more: Any) -> None:
        Runner(
            model=Model(),
            work_dir=str(where),
            train_dataloader=loader(),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            log_level="ERROR",
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
            default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1)),
            **more,
        ).train()

    fit(folder / "plain")
    cases = [
        Case(
            what="epoch_2.pth",
            path=folder / "plain/epoch_2.pth",
            copies={"online": after["online"]},
            epoch=2,
        )
    ]
    hook = EMAHook(momentum=0.5)
    fit(folder / "ema", custom_hooks=[hook])
    average = kept(hook.ema_model.module.net)
    cases.append(
        Case(
            what="epoch_2.pth, EMAHook",
            path=folder / "ema/epoch_2.pth",
            copies={"online": after["online"], "ema": average},
            epoch=2,
        )
    )
    return cases


def timm(folder: Path) -> list[Case]:
    """CheckpointSaver with ModelEmaV3."""
    from timm.utils import CheckpointSaver, ModelEmaV3

    net = make_net()
    ema = ModelEmaV3(net, decay=0.5)
    saver = CheckpointSaver(
        net,
        torch.optim.SGD(net.parameters(), 0.1),
        args=argparse.Namespace(model="net", img_size=32),
        model_ema=ema,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
    )
    for parameter in net.parameters():
        parameter.data += 1
    ema.update(net)
    saver.save_checkpoint(2, metric=1.0)
    return [
        Case(
            what="checkpoint-2, ModelEmaV3",
            path=folder / "checkpoint-2.pth.tar",
            copies={"online": kept(net), "ema": kept(ema.module)},
            epoch=3,
        )
    ]


def fastai(folder: Path) -> list[Case]:
    """learn.save with and without the optimizer, and export."""
    from fastai.callback.progress import ProgressCallback
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner

    loaders = DataLoaders(DataLoader(data(), bs=4), DataLoader(data(), bs=4))
    learn = Learner(
        loaders, make_net(), loss_func=nn.functional.cross_entropy, path=folder, model_dir="."
    )
    learn.remove_cb(ProgressCallback)
    learn.fit(1, 0.1)
    learn.save("with", with_opt=True)
    learn.save("bare", with_opt=False)
    state = kept(learn.model)
    return [
        Case(what="learn.save, with optimizer", path=folder / "with.pth", copies={"online": state}),
        Case(what="learn.save, without", path=folder / "bare.pth", copies={"online": state}),
    ]


def keras(folder: Path) -> list[Case]:
    """Not files of PyTorch weights: refused."""
    import os

    os.environ["KERAS_BACKEND"] = "torch"
    import keras as k

    model = k.Sequential([k.layers.Input((4,)), k.layers.Dense(3)])
    model.save(folder / "m.keras")
    model.save_weights(folder / "m.weights.h5")
    return [
        Case(what="model.keras", path=folder / "m.keras", refused="no data.pkl"),
        Case(what="model.weights.h5", path=folder / "m.weights.h5", refused="is not a checkpoint"),
    ]


def swin(folder: Path) -> list[Case]:
    """The dictionary that Swin's and VMamba's main.py save, with a real CfgNode."""
    from yacs.config import CfgNode

    online, average = kept(make_net()), kept(make_net())
    torch.save(
        {
            "model": online,
            "model_ema": average,
            "optimizer": {},
            "lr_scheduler": {},
            "max_accuracy": 81.0,
            "epoch": 5,
            "config": CfgNode({"MODEL": {"TYPE": "vssm", "NUM_CLASSES": 3}}),
        },
        folder / "ckpt_epoch_5.pth",
    )
    return [
        Case(
            what="ckpt_epoch_5.pth with CfgNode",
            path=folder / "ckpt_epoch_5.pth",
            copies={"online": online, "ema": average},
            epoch=6,
        )
    ]


WRITERS: tuple[tuple[str, Callable[[Path], list[Case]]], ...] = (
    ("lightning", lightning),
    ("lightning averaging", lightning_averages),
    ("mosaicml composer", composer),
    ("mmengine", mmengine),
    ("timm", timm),
    ("fastai", fastai),
    ("keras", keras),
    ("yacs by hand: Swin", swin),
)
