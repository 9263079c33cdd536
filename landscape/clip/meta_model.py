"""Models with real buffers whose parameters have shapes but no numbers.

Processes that share a model begin with them. A constructor makes each parameter on the CPU and
registers it. It is moved to the meta device at that moment, so no more than one parameter, or the
few that a layer makes before it registers them, is in memory at a time. The Python object stays the
same, so tied weights stay tied.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.errors import ModelError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class _StaysOnMeta(TorchDispatchMode):
    """A mode that ignores the device in `tensor.to(device)` of a tensor without numbers.

    Constructors end with such a call.
    """

    supports_higher_order_operators = True

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if function is torch.ops.aten._to_copy.default and args[0].is_meta:
            options["device"] = torch.device("meta")
            options.pop("pin_memory", None)
        return function(*args, **options)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Move every parameter to the meta device when a module registers it.

    This holds within the block and in all threads.
    """
    register = nn.Module.register_parameter

    def registered(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            meta = nn.Parameter(
                torch.empty_like(param, device="meta"), requires_grad=param.requires_grad
            )
            torch.utils.swap_tensors(param, meta)
        register(self, name, param)

    nn.Module.register_parameter = registered  # type: ignore[method-assign]
    try:
        with _StaysOnMeta():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def convert_around_meta(
    model: nn.Module, *, dtype: torch.dtype, device: torch.device | str
) -> nn.Module:
    """Convert as `model.to(device, dtype)`, but leave parameters on the meta device.

    Raises:
        ModelError: If a buffer has no numbers, since it was computed from a parameter.
    """
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            raise ModelError(
                f"{name}: is a buffer that the model computes from its parameters when it is "
                "built, so it cannot be built without numbers. Measure it in one process, without "
                "--shards."
            )
    model.to(dtype=dtype)
    for module in model.modules():
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = value.to(device)
    return model


def place_rows(model: nn.Module, rows: Mapping[str, Tensor], mesh: "DeviceMesh") -> None:
    """Replace a model's parameters by DTensors cut by rows over the mesh.

    The placement is Shard(0); scalars are whole in every process.

    Args:
        rows: This process's rows of each parameter, by its first name; tied weights are there once.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard

    placed: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        placement = Shard(0) if parameter.ndim else Replicate()
        tensor = DTensor.from_local(
            rows[name],
            mesh,
            [placement],
            run_check=False,
            shape=parameter.shape,
            stride=_stride(parameter.shape),
        )
        placed[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
    _replace(model, placed)


def remove_rows(model: nn.Module) -> None:
    """Remove the numbers of a model's parameters; keep shapes, types and ties."""
    with torch.no_grad():
        _replace(
            model,
            {
                id(parameter): nn.Parameter(
                    torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"),
                    requires_grad=parameter.requires_grad,
                )
                for parameter in model.parameters()
            },
        )


def _replace(model: nn.Module, others: Mapping[int, nn.Parameter]) -> None:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = others[id(parameter)]


def _stride(shape: torch.Size) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return tuple(strides[: len(shape)])
