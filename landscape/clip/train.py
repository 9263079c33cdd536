"""Training of a CLIP model that keeps the weights of every epoch.

The initialisation, epoch 0, is kept too. This is a thin layer over open_clip_train, whose own
`main` is one function that saves nothing before the first step, reads its own kinds of data only,
and resumes without its random state. A run that is started again continues after its last whole
epoch. It ends with the weights of a run that was never stopped: bit for bit on a CPU with the same
number of threads. Under torchrun every process takes its share of each batch and the first one
writes.
"""

import dataclasses
import platform
import time
from argparse import Namespace
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader

from landscape import threads
from landscape.clip.architecture import architecture_of
from landscape.clip.image_text import epoch_loader, open_pairs
from landscape.clip.model import build_model, is_classifier, preprocess_for, tokenizer_for
from landscape.clip.pairs import Pairs
from landscape.clip.recipes import Recipe, get_recipe, training_transform
from landscape.clip.train_folder import RunFolder
from landscape.clip.train_loop import (
    OnSteps,
    Process,
    from_first_process,
    loop_arguments,
    lost_processes,
    open_clip_log,
)
from landscape.clip.train_monitor import Watched
from landscape.clip.train_progress import reporter
from landscape.kernels.first_order import first_order_kernels
from landscape.limits import MAX_NUMPY_SEED
from landscape.manifest import Checkpoint, DataSettings
from landscape.version import VERSION


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """The state of a run before and after a call of `train`.

    Attributes:
        manifest: The run's checkpoints.yaml.
        done: Every epoch whose checkpoint is there, in order.
        trained: The epochs among them that this call wrote; 0 is the initialisation.
        left: The epochs that remain, in a dry run.
        losses: Mean training loss per epoch in nats; epoch 0 has none.
    """

    manifest: Path
    done: tuple[int, ...]
    trained: tuple[int, ...]
    left: tuple[int, ...]
    losses: Mapping[int, float]

    @property
    def complete(self) -> bool:
        return not self.left

    def summary(self) -> str:
        if self.left:
            return (
                f"{self.manifest.parent}: {len(self.done)} epochs are there, {len(self.left)} to "
                f"do: {_ranges(self.left)}."
            )
        last = f", loss {self.losses[max(self.losses)]:.4f}" if self.losses else ""
        new = f"wrote {_ranges(self.trained)}" if self.trained else "nothing was left to do"
        return f"{self.manifest}: epochs {_ranges(self.done)}{last}; {new}."


def _ranges(epochs: tuple[int, ...]) -> str:
    return str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"


def train(
    *,
    model: str,
    output: Path,
    data: DataSettings,
    recipe: str | Recipe,
    epochs: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    workers: int = 0,
    device: str | None = None,
    scan: str = "landscape",
    name: str | None = None,
    label: str | None = None,
    pairs: Pairs | None = None,
    monitor_budget: float | None = None,
    monitor_update_sharpness: bool = False,
    dry_run: bool = False,
    progress: bool | None = None,
) -> TrainReport:
    """Train `model`, or continue an earlier call with the same settings.

    A run that is complete is left unchanged.

    Args:
        model: An open_clip model name, one of this project's configurations, the path of a
            configuration of your own (.json), or "local-dir:FOLDER" of a hub folder.
        output: Folder of the run; see landscape.clip.train_folder for its contents.
        data: The pairs to train on: `source`, `split`, `image_size` and the columns of a table. All
            of it is written into the run's manifest, as the protocol by which the checkpoints are
            measured.
        recipe: The name of a preset, or a recipe of your own.
        epochs: Number of epochs, instead of the recipe's. 0 writes only the initial weights: for a
            CLIP model those with which open_clip_train begins under the same seed.
        seed: Seed of the initial weights, the order of the pairs, the augmentation and dropout.
        batch_size: Pairs per step over all processes, instead of the recipe's.
        workers: Number of processes that read and augment pictures; the result does not depend on
            it.
        device: "cpu", "cuda" or "cuda:N"; by default CUDA where there is one. A CPU trains in fp32
            whatever the recipe says.
        scan: "mamba-ssm" trains Mamba towers on that package's CUDA kernel; measurements use this
            project's scan all the same.
        name: Name of the series in the manifest; by default that of the folder.
        label: Label of the series, for tables and figures.
        pairs: Used in place of those that `data` names, for data that no source describes.
        monitor_budget: Share of the training time that a sharpness monitor may take, as 0.05; None
            for no monitor. Its record is sharpness.jsonl in the run's folder, and the weights do
            not depend on it.
        monitor_update_sharpness: Whether the monitor also measures along the optimizer's next step;
            see SharpnessMonitor.
        dry_run: Report what is left to do, and write nothing.
        progress: None shows bars on a terminal and a line per epoch elsewhere; True always shows
            bars, False shows nothing.

    Raises:
        LandscapeError: If the output was begun with other settings, or an option does not fit this
            machine.
        StoreError: If the output cannot be written, or the disk has too little room.
        DataError: If the pairs are missing, or fewer than a batch.
        CheckpointError: If a checkpoint of the run was changed.
        NumericalError: If a loss or a weight is not finite; the epochs before it stay.
        ValueError: If a number is out of range, or `scan` is unknown.
    """
    _check_numbers(epochs, batch_size, seed, workers)
    with ExitStack() as stack:
        resolved = _resolve(recipe, model, epochs=epochs, batch_size=batch_size)
        architecture = None if is_classifier(model) else architecture_of(model)
        known_as = model if architecture is None else architecture.name
        args = loop_arguments(model=known_as, recipe=resolved, seed=seed, device=device)
        if args.distributed:
            stack.enter_context(lost_processes())
            stack.callback(torch.distributed.destroy_process_group)
        resolved = dataclasses.replace(resolved, precision=args.precision)
        if scan not in ("landscape", "mamba-ssm"):
            raise ValueError(f"scan must be landscape or mamba-ssm, got {scan!r}.")
        if scan == "mamba-ssm":
            stack.enter_context(first_order_kernels(torch.device(args.device)))
        network = build_model(model, seed=seed)
        threads.fit(network)
        pairs = (
            open_pairs(data, progress=progress if args.rank == 0 else False)
            if pairs is None
            else pairs
        )
        loader = _loader(network, pairs, resolved, args, workers)
        folder = RunFolder(
            path=output,
            name=output.absolute().name if name is None else name,
            model=args.model,
            label=label,
            data=_measurable(data, len(pairs)),
            architecture=None if architecture is None else architecture.as_file(),
            settings=_settings(network, pairs, data, resolved, args)
            | ({} if scan == "landscape" else {"scan": scan}),
        )
        done = from_first_process(args, folder.checkpoints_done)
        left = tuple(range(len(done), resolved.epochs + 1))
        if left and not dry_run:
            from_first_process(args, lambda: stack.enter_context(folder.locked()))
            # Another run may have been at work until now.
            done = from_first_process(args, folder.checkpoints_done)
            left = tuple(range(len(done), resolved.epochs + 1))
            process = Process.start(args, resolved, network, loader)
            watched = (
                None
                if monitor_budget is None or args.rank
                else Watched(pairs, monitor_budget, monitor_update_sharpness)
            )
            _train_rest(
                folder, process, done, epochs=resolved.epochs, progress=progress, watched=watched
            )
        return TrainReport(
            manifest=folder.manifest,
            done=tuple(range(len(done))) if dry_run else tuple(range(resolved.epochs + 1)),
            trained=() if dry_run else left,
            left=left if dry_run else (),
            losses=folder.losses(),
        )


def _check_numbers(epochs: int | None, batch_size: int | None, seed: int, workers: int) -> None:
    for what, value, least in (
        ("epochs", epochs, 0),
        ("batch_size", batch_size, 2),
        ("workers", workers, 0),
        ("seed", seed, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{what} must be {least} or more, got {value}.")
    if seed > MAX_NUMPY_SEED:
        raise ValueError(f"seed must be {MAX_NUMPY_SEED} or less, got {seed}.")


def _resolve(
    recipe: str | Recipe, model: str, *, epochs: int | None, batch_size: int | None
) -> Recipe:
    chosen = get_recipe(recipe, model=model) if isinstance(recipe, str) else recipe
    return dataclasses.replace(
        chosen,
        epochs=chosen.epochs if epochs is None else epochs,
        batch_size=chosen.batch_size if batch_size is None else batch_size,
    )


def _loader(
    network: nn.Module, pairs: Pairs, recipe: Recipe, args: Namespace, workers: int
) -> DataLoader[Any]:
    pictures = preprocess_for(network)
    if args.rank == 0:
        pairs.check(range(len(pairs)))
    return epoch_loader(
        pairs,
        transform=training_transform(recipe, pictures.size, pictures.mean, pictures.std),
        tokenizer=tokenizer_for(network),
        # The initialisation needs no step, so any number of pairs will do for it.
        batch_size=min(args.batch_size, max(len(pairs), 1))
        if recipe.epochs == 0
        else args.batch_size,
        seed=args.seed,
        num_workers=workers,
        rank=args.rank,
        num_replicas=args.world_size,
    )


def _settings(
    network: nn.Module, pairs: Pairs, data: DataSettings, recipe: Recipe, args: Namespace
) -> dict[str, Any]:
    """List everything on which the weights depend.

    Versions of libraries and the number of threads are left out.
    """
    unused = ("source", "image_mean", "image_std", "epochs", "batch_size")
    pictures = preprocess_for(network)
    return {
        "model": args.model,
        "model_config": network.landscape_config,
        "recipe": {
            key: value for key, value in dataclasses.asdict(recipe).items() if key not in unused
        },
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "seed": args.seed,
        "processes": args.world_size,
        "pairs": {
            "source": Path(data.source).name,
            "split": data.split,
            "image_size": data.image_size,
            "number": len(pairs),
            "sha256": pairs.digest,
        },
        "normalisation": {"mean": pictures.mean, "std": pictures.std},
    }


def _measurable(data: DataSettings, num_pairs: int) -> DataSettings:
    """Limit the manifest's protocol to the available pairs, in whole batches."""
    batch_size = max(1, min(data.batch_size, num_pairs))
    num_samples = min(data.num_samples, num_pairs - num_pairs % batch_size)
    return dataclasses.replace(
        data, batch_size=batch_size, num_samples=max(num_samples, batch_size)
    )


def _train_rest(
    folder: RunFolder,
    process: Process,
    done: tuple[Checkpoint, ...],
    *,
    epochs: int,
    progress: bool | None,
    watched: Watched | None,
) -> None:
    args, first = process.args, max(len(done), 1)
    weights = sum(tensor.nbytes for tensor in process.model.state_dict().values())
    # AdamW adds two numbers per weight, but for epoch 0.
    num_bytes = weights * (3 * (epochs + 1 - first) + (not done))
    from_first_process(args, lambda: folder.prepare(num_bytes=num_bytes))
    shown = progress if args.rank == 0 else False
    with (
        open_clip_log(folder.path / "train.log" if args.rank == 0 else None),
        reporter(
            folder.name, first=first, last=epochs, num_steps=len(process.loader), progress=shown
        ) as report,
        ExitStack() as stack,
    ):
        if done:
            process.restore(done[-1])
        else:
            _keep(folder, process, epoch=0, loss=None, seconds=0.0)
        after_steps: OnSteps = lambda taken: None
        if watched is not None and first <= epochs:
            taken = (first - 1) * len(process.loader)
            monitor = watched.start(folder, process, start_step=taken, show=report.measured)
            after_steps = stack.enter_context(monitor).step
        for epoch in range(first, epochs + 1):
            begun = time.monotonic()
            report.begin(epoch)
            loss = process.train_epoch(
                epoch - 1, epochs=epochs, on_step=report.step, after_steps=after_steps
            )
            after_steps(epoch * len(process.loader))
            report.end(epoch, loss)
            _keep(folder, process, epoch=epoch, loss=loss, seconds=time.monotonic() - begun)


def _keep(
    folder: RunFolder, process: Process, *, epoch: int, loss: float | None, seconds: float
) -> None:
    entry = {
        "loss": loss,
        "lr": process.optimizer.param_groups[0]["lr"] if epoch else None,
        "seconds": round(seconds, 3),
        "device": process.args.device,
        "threads": torch.get_num_threads(),
        "versions": {
            "landscape": VERSION,
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
    }
    from_first_process(
        process.args, lambda: folder.add(epoch, lambda path: process.save(path, epoch), entry)
    )
