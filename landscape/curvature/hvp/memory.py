"""Free memory, the memory that a computation takes, and running out of it.

On a CPU an allocation hardly ever fails: the kernel gives out more than it has and kills the
process that uses it. So what a computation takes is counted as it goes, and it is stopped before it
has taken too much. Imports only torch and landscape.memory.
"""

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from landscape import memory

# Fragments of what allocators say: torch's on a CPU, on a GPU, C++'s.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")


def free_memory(device: torch.device) -> int:
    """Return the bytes that can be taken on `device` without harm.

    On a GPU what its driver and PyTorch's cache have left; on a CPU see
    `landscape.memory.free_memory`.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return memory.free_memory()


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out.

    It may be that of this process, of a GPU, or of what a MemoryWatch allows.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        fragment in str(error) for fragment in _OUT_OF_MEMORY
    )


def forget_failed_backward(device: torch.device) -> None:
    """Free what a backward pass held when an error stopped it.

    Its operations that were ready to run stay in the queue of this thread, and with them the graph,
    until another pass. Nothing in Python holds them. Seen in torch 2.14.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = torch.zeros(1, device=device, requires_grad=True)
        torch.autograd.grad(leaf.sin(), leaf)


class MemoryWatch(TorchDispatchMode):
    """Count of the bytes of living tensors, which stops at a limit.

    Tensors count that are made while it is active, for as long as they live.

    May be entered again; what was made before still counts while it lives. Costs some 10
    microseconds per operation. What a kernel takes for itself and gives back is not seen, nor what
    the heap wastes: the process took 1.06 to 1.1 times the count where every tensor was mapped for
    itself, and up to 2.4 times with the C library's usual heap. Of a higher-order operator (torch's
    `scan`, `associative_scan`, `cond`) the results are counted, and not what its body takes
    meanwhile. Tensors on the meta device take nothing.

    Args:
        limit: Bytes.

    Attributes:
        live: Bytes of the tensors that are alive.
        peak: The most there were at any time.

    Raises:
        MemoryError: In the middle of the operation that goes beyond the limit.
    """

    # Else PyTorch refuses to run a higher-order operator under this mode, with a message about
    # classes of its own.
    supports_higher_order_operators = True

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        # Views and in-place results live in memory that is counted, or that was there before.
        schema = getattr(function, "_schema", None)
        if schema is None or not any(
            returned.alias_info is not None for returned in schema.returns
        ):
            flat = result if isinstance(result, (tuple, list)) else (result,)
            for tensor in tree_leaves(result) if schema is None else flat:
                if (
                    isinstance(tensor, Tensor)
                    and tensor.layout == torch.strided
                    and not tensor.is_meta
                ):
                    self._count(tensor)
        if self.live > self.limit:
            raise MemoryError(f"{self.live:,} bytes were taken, {self.limit:,} are allowed")
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        # By storage, so that tensors that share memory are counted once.
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def gone(_: Any) -> None:
            self.live -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)
