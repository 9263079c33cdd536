"""Joining of the processes of torchrun, srun or `--shards` into a mesh of one dimension."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from landscape import ranks
from landscape.errors import LandscapeError, WorkerDied, first_line


@contextmanager
def joined(device_type: str, *, timeout: float) -> Iterator[DeviceMesh]:
    """Join all processes into a mesh; a single process forms its own.

    Weights go over nccl on GPUs, over gloo elsewhere.

    A process group that exists already is used, and stays; see
    `torch.distributed.init_process_group`.

    Args:
        device_type: "cpu" or "cuda". Every process takes the GPU of its number on its machine.
        timeout: Seconds that a process waits for the others.

    Raises:
        LandscapeError: If there is no such GPU, or the processes do not meet.
    """
    is_own = not dist.is_initialized()
    if device_type == "cuda":
        torch.cuda.set_device(_number_of_gpu())
    if is_own:
        _initialise("nccl" if device_type == "cuda" else "gloo", timedelta(seconds=timeout))
    try:
        yield init_device_mesh(device_type, (dist.get_world_size(),))
    # The other processes may be gone, and leaving the group would wait for them.
    except (WorkerDied, KeyboardInterrupt):
        raise
    except BaseException:
        _leave(is_own)
        raise
    _leave(is_own)


def _leave(is_own: bool) -> None:
    if is_own:
        dist.destroy_process_group()


def _number_of_gpu() -> int:
    """Return the number of this process's GPU.

    Raises:
        LandscapeError: If there are fewer than processes.
    """
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    # srun may show each of its processes one GPU alone, which has the number 0 there.
    if count == 1 and "SLURM_LOCALID" in os.environ:
        return 0
    if local >= count:
        raise LandscapeError(
            f"--shards: process {local} of this machine finds {count} "
            f"GPU{'' if count == 1 else 's'}, but each process needs one of its own. Start as many "
            "processes as there are GPUs, or use --device cpu."
        )
    return local


def _initialise(backend: str, timeout: timedelta) -> None:
    if not ranks.is_started_as_rank():
        dist.init_process_group(
            backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout
        )
        return
    try:
        dist.init_process_group(backend, timeout=timeout)
    # What a store or a back end raises: ValueError, RuntimeError and their kinds.
    except (RuntimeError, ValueError) as error:
        where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        lost = WorkerDied(
            f"The {ranks.world_size()} processes did not meet at {where} ({first_line(error)}). "
            "Look whether all have started; MASTER_ADDR and MASTER_PORT name a free port of the "
            "first process's machine."
        )
        raise lost from error
