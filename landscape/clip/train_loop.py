"""A process of a training run, around open_clip_train's own loop.

It has the model, the optimizer, the schedule and the batches.
`open_clip_train.train.train_one_epoch` takes the steps. This module adds what its `main` does not
offer: data from other readers than its own, a schedule with a start and an end, an epoch whose
every random draw is a function of (seed, epoch, process), and a stop at the first loss that is not
finite.
"""

import logging
import math
import os
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from landscape.clip.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from landscape.clip.recipes import Recipe, learning_rate
from landscape.clip.seeding import derive_seed, seeded_globals
from landscape.containers.weight_files import one_line
from landscape.errors import CheckpointError, LandscapeError, NumericalError, PictureError
from landscape.manifest import Checkpoint

# Fragments of what gloo says; NCCL's errors have a type of their own.
_LOST = ("onnection closed by peer", "onnection reset by peer", "roken pipe")
T = TypeVar("T")
OnStep = Callable[[float], None]
OnSteps = Callable[[int], object]


def loop_arguments(*, model: str, recipe: Recipe, seed: int, device: str | None) -> Namespace:
    """Build open_clip_train's command line as a namespace.

    Under torchrun it holds this process's rank and the number of processes.

    Raises:
        LandscapeError: If the device is not there, the batch cannot be divided evenly, or Slurm has
            several tasks but did not start this process as one of them.
    """
    _check_slurm_tasks()
    from open_clip_train.distributed import (
        init_distributed_device,
        is_device_available,
        world_info_from_env,
    )
    from open_clip_train.params import parse_args

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        usable = all(is_device_available(device))
    except RuntimeError:
        usable = False
    if not usable:
        raise LandscapeError(
            f"device {device!r} is not available here; open_clip_train would take the CPU instead. "
            "Ask for cpu."
        )
    # Before the processes meet: one that refuses would leave, and who is still on the way to meet
    # it would lose the connection.
    _, _, world_size = world_info_from_env()
    if recipe.batch_size % world_size:
        raise LandscapeError(
            f"a batch of {recipe.batch_size} pairs cannot be shared out over {world_size} "
            "processes; ask for a multiple, or for other processes."
        )
    args = parse_args(["--model", model, "--device", device, "--seed", str(seed)])
    init_distributed_device(args)
    args.batch_size = recipe.batch_size // args.world_size
    # Half precision is for accelerators: on a CPU it is slower than fp32, and less exact.
    args.precision = "fp32" if torch.device(args.device).type == "cpu" else recipe.precision
    args.grad_clip_norm = recipe.grad_clip_norm
    args.local_loss, args.gather_with_grad = recipe.local_loss, recipe.gather_with_grad
    args.distill, args.wandb = False, False
    return args


def _check_slurm_tasks() -> None:
    """Refuse a single process in a Slurm job of several tasks.

    open_clip_train reads only SLURM_NTASKS, takes it for the number of processes, and waits for all
    of them. Each program that starts several also sets its own number of them: torchrun WORLD_SIZE,
    srun SLURM_STEP_NUM_TASKS, mpiexec PMI_SIZE.

    Raises:
        LandscapeError: If the process is the job's script itself, or runs beside the job.
    """
    tasks = os.environ.get("SLURM_NTASKS", "")
    if "WORLD_SIZE" in os.environ or tasks in ("", "0", "1"):
        return
    number = os.environ.get("SLURM_PROCID")
    alone = all(os.environ.get(name, "1") == "1" for name in ("SLURM_STEP_NUM_TASKS", "PMI_SIZE"))
    if number is None or (number == "0" and alone):
        raise LandscapeError(
            f"SLURM_NTASKS is {tasks}, but srun did not start this process as one of several "
            "tasks: it would wait for the others in vain. Start it with srun or torchrun, or ask "
            "Slurm for one task (--ntasks 1), or unset SLURM_NTASKS to train on one process."
        )


def from_first_process(args: Namespace, compute: Callable[[], T]) -> T:
    """Compute in the first process; give the result or error to all.

    The other processes wait for it.
    """
    if not args.distributed:
        return compute()
    from open_clip_train.distributed import broadcast_object

    result: T | None = None
    error: LandscapeError | None = None
    if args.rank == 0:
        try:
            result = compute()
        except LandscapeError as raised:
            error = raised
    result, error = broadcast_object(args, (result, error))
    if error is not None:
        raise error
    return cast(T, result)


@contextmanager
def lost_processes() -> Iterator[None]:
    """Report that another process has ended when the connection to it breaks.

    Raises:
        LandscapeError: In the place of the connection's own error.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and not any(
            part in str(error) for part in _LOST
        ):
            raise
        raise LandscapeError(
            f"another process of this training has ended ({one_line(error)}), so this one cannot "
            "go on. Every whole epoch is kept; look for that process's own error, then start all "
            "of them again with the same command."
        ) from error


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Build AdamW's parameter groups in the order of open_clip_train.

    The parameters without weight decay come first.
    """
    spared: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spare = parameter.ndim < 2 or any(part in name for part in ("bias", "ln", "bn"))
            (spared if spare else decayed).append(parameter)
    return [
        {"params": spared, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": weight_decay},
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class Process:
    """A process's share of a run.

    Attributes:
        model: The bare model, the same object on which `network` works; its names are those of the
            checkpoints.
        network: The model as it is trained: itself, or wrapped for several processes.
        scaler: Gradient scaler for float16; None otherwise.
    """

    args: Namespace
    recipe: Recipe
    model: nn.Module
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    loader: DataLoader[Any]

    @classmethod
    def start(
        cls, args: Namespace, recipe: Recipe, model: nn.Module, loader: DataLoader[Any]
    ) -> "Process":
        device = torch.device(args.device)
        model = model.to(device)
        # A tuple would do for the towers, but train_one_epoch asks for names.
        model.output_dict = True  # type: ignore[assignment]
        if args.distributed and recipe.sync_batch_norm and device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        network = model
        if args.distributed:
            # open_clip_train passes its device for the CPU too, which DistributedDataParallel
            # refuses.
            network = nn.parallel.DistributedDataParallel(
                model, device_ids=[device] if device.type == "cuda" else None
            )
        optimizer = torch.optim.AdamW(
            parameter_groups(model, recipe.weight_decay),
            lr=recipe.lr,
            betas=recipe.betas,
            eps=recipe.eps,
        )
        scaler = torch.amp.GradScaler(device=device.type) if args.precision == "amp" else None
        loader.num_samples, loader.num_batches = len(loader.dataset), len(loader)  # type: ignore[arg-type]
        return cls(
            args=args,
            recipe=recipe,
            model=model,
            network=network,
            optimizer=optimizer,
            scaler=scaler,
            loader=loader,
        )

    def save(self, path: Path, epoch: int) -> str:
        """Write what open_clip_train saves, and return the file's sha256.

        Names never begin with "module.".
        """
        extra = {} if self.scaler is None else {"scaler": self.scaler.state_dict()}
        return save_checkpoint(
            path,
            model=self.model,
            epoch=epoch,
            name=self.args.model,
            optimizer=self.optimizer,
            extra=extra,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore everything that `save` wrote.

        Raises:
            CheckpointError: If the file is not a checkpoint of this model.
        """
        load_checkpoint(self.model, checkpoint.path, expected_sha256=checkpoint.sha256)
        state = read_checkpoint(checkpoint.path, expected_sha256=checkpoint.sha256)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scaler is not None:
                self.scaler.load_state_dict(state["scaler"])
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{checkpoint.path}: holds no state of the optimizer that training could go on "
                f"with ({one_line(error)}). Restore the file, or train into another folder."
            ) from error

    def train_epoch(
        self, epoch: int, *, epochs: int, on_step: OnStep, after_steps: OnSteps = lambda taken: None
    ) -> float:
        """Train one epoch (0 is the first) out of `epochs`.

        Args:
            on_step: Told the loss of every step.
            after_steps: Told, between two steps, how many were taken in the whole run; with the
                learning rate of the next one.

        Returns:
            The mean loss over steps and processes in nats.

        Raises:
            NumericalError: If a loss, or a weight after the last step, is not finite.
            PictureError: If a picture cannot be read.
        """
        from open_clip import create_loss
        from open_clip_train.data import DataInfo
        from open_clip_train.train import train_one_epoch

        def schedule(step: int) -> None:
            rate = learning_rate(self.recipe, step, steps_per_epoch=len(self.loader), epochs=epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            after_steps(step)

        watched = _WatchedLoss(create_loss(self.args), epoch + 1, on_step)
        data = {"train": DataInfo(self.loader, self.loader.sampler)}
        seed = derive_seed("steps", self.args.seed, epoch, self.args.rank)
        device = torch.device(self.args.device)
        with seeded_globals(seed), torch.random.fork_rng([device] if device.type == "cuda" else []):
            # Nothing happens where there is no such device.
            torch.cuda.manual_seed(seed)
            try:
                with _quiet_gathering():
                    train_one_epoch(
                        self.network,
                        data,
                        watched,
                        epoch,
                        self.optimizer,
                        self.scaler,
                        schedule,
                        None,
                        self.args,
                    )
            except PictureError as error:
                # A worker process sends its whole traceback as the message; the last line is the
                # error's own.
                sentence = (
                    str(error)
                    .rstrip()
                    .splitlines()[-1]
                    .removeprefix(f"{PictureError.__module__}.PictureError: ")
                )
                raise PictureError(f"epoch {epoch + 1}: {sentence}") from error
        self._check_weights(epoch + 1)
        return self._mean_over_processes(watched.mean())

    def _check_weights(self, epoch: int) -> None:
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NumericalError(
                    f"epoch {epoch}: {name} is not finite after the last step. Nothing of this "
                    "epoch was kept; lower the learning rate, or use precision fp32."
                )

    def _mean_over_processes(self, value: float) -> float:
        if not self.args.distributed:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.args.device)
        torch.distributed.all_reduce(total)
        return total.item() / self.args.world_size


@contextmanager
def _quiet_gathering() -> Iterator[None]:
    """Silence a warning of torch 2.14.

    open_clip's loss causes it twice a step in each process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r"torch\.distributed\.nn\.functional\.all_gather is deprecated", FutureWarning
        )
        yield


class _WatchedLoss:
    """open_clip's loss, which reports each value and refuses values that are not finite.

    train_one_epoch calls it once per step.
    """

    def __init__(self, loss: nn.Module, epoch: int, on_step: OnStep) -> None:
        self._loss, self._epoch, self._on_step = loss, epoch, on_step
        self._values: list[float] = []

    def __call__(self, **outputs: Any) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self._loss(**outputs)
        value = sum(losses.values(), start=torch.zeros(())).item()
        if not math.isfinite(value):
            raise NumericalError(
                f"epoch {self._epoch}, step {len(self._values) + 1}: the loss is {value}. Nothing "
                "of this epoch was kept; lower the learning rate, or use precision fp32."
            )
        self._values.append(value)
        self._on_step(value)
        return losses

    def mean(self) -> float:
        return math.fsum(self._values) / len(self._values)


@contextmanager
def open_clip_log(path: Path | None) -> Iterator[None]:
    """Log open_clip and open_clip_train to a file and nowhere else.

    Both log to the root logger.

    Args:
        path: Appended to; None drops the records, as every process but the first should.
    """
    root = logging.getLogger()
    others, level = list(root.handlers), root.level
    own: logging.Handler = logging.NullHandler() if path is None else logging.FileHandler(path)
    own.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    own.addFilter(_from_open_clip)

    def spare_the_others(record: logging.LogRecord) -> bool:
        return record.levelno >= level and not _from_open_clip(record)

    for handler in others:
        handler.addFilter(spare_the_others)
    root.addHandler(own)
    root.setLevel(min(level, logging.INFO))
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(own)
        own.close()
        for handler in others:
            handler.removeFilter(spare_the_others)


def _from_open_clip(record: logging.LogRecord) -> bool:
    return "open_clip" in Path(record.pathname).parent.name
