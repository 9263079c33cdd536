"""How much memory is free, how much a computation takes, and how to tell that it ran out.

On a CPU an allocation hardly ever fails: the kernel gives out more than it has and kills the process that uses it. So
what a computation takes is counted as it goes, and it is stopped before it has taken too much.
Imports only torch.
"""

import os
import re
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Fragments of what allocators say: torch's on a CPU, on a GPU, C++'s.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")
_CGROUPS = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken on `device` without harm.

    On a GPU what its driver and PyTorch's cache have left. On a CPU what the kernel calls available, or what the control
    group of this process (a container's limit) or its address-space limit leaves, whichever is least.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [_available(), *_left_by_control_groups(), *_left_by_resource_limit()]
    return max(0, min(left for left in found if left is not None))


def _available() -> int:
    """MemAvailable where there is such a thing, else the free pages."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else _pages("SC_AVPHYS_PAGES")


def _pages(name: str) -> int:
    return os.sysconf(name if name in os.sysconf_names else "SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_by_control_groups() -> list[int]:
    """What version 2 and version 1 limits leave, page cache that can be dropped counted as free; none is no limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (
            (_CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
            if controllers
            else (_CGROUPS, ("memory.max", "memory.current", "inactive_file"))
        )
        # Inside a container the group is often the root of what is mounted, whatever its path is called outside.
        for folder in {root / path.lstrip("/"), root}:
            left += _left_by_control_group(folder, *names)
    return left


def _left_by_control_group(folder: Path, limit: str, usage: str, cache: str) -> list[int]:
    try:
        allowed, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        found = re.search(rf"^{cache} (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return []
    return [int(allowed) - used + (int(found[1]) if found else 0)] if allowed.isdigit() else []


def _left_by_resource_limit() -> list[int]:
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError, ValueError):
        return []
    return [] if soft == resource.RLIM_INFINITY else [soft - size]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of this process, of a GPU, or of what a MemoryWatch allows."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(fragment in str(error) for fragment in _OUT_OF_MEMORY)


def forget_failed_backward(device: torch.device) -> None:
    """Let go of what a backward pass held when it was stopped by an error.

    Its operations that were ready to run stay in the queue of this thread, and with them the graph, until another pass.
    Nothing in Python holds them. Seen in torch 2.14.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = torch.zeros(1, device=device, requires_grad=True)
        torch.autograd.grad(leaf.sin(), leaf)


class MemoryWatch(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is active, for as long as they live; stops at a limit.

    May be entered again; what was made before still counts while it lives. Costs some 10 microseconds per operation.
    What a kernel takes for itself and gives back is not seen, nor what the heap wastes: the process took 1.06 to 1.1 times
    the count where every tensor was mapped for itself, and up to 2.4 times with the C library's usual heap. Of a higher-order
    operator (torch's `scan`, `associative_scan`, `cond`) the results are counted, and not what its body takes meanwhile.

    Args:
        limit: Bytes.

    Attributes:
        live: Bytes of the tensors that are alive.
        peak: The most there were at any time.

    Raises:
        MemoryError: In the middle of the operation that goes beyond the limit.
    """

    # Else PyTorch refuses to run a higher-order operator under this mode, with a message about classes of its own.
    supports_higher_order_operators = True

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        # Views and in-place results live in memory that is counted, or that was there before.
        schema = getattr(function, "_schema", None)
        if schema is None or not any(returned.alias_info is not None for returned in schema.returns):
            flat = result if isinstance(result, (tuple, list)) else (result,)
            for tensor in tree_leaves(result) if schema is None else flat:
                if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                    self._count(tensor)
        if self.live > self.limit:
            raise MemoryError(f"{self.live:,} bytes were taken, {self.limit:,} are allowed")
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def gone(_: Any) -> None:
            self.live -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)
