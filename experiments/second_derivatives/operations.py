"""The operations that are measured: each imports its package when it is called, and gives a Case.

The registry, and what is plain PyTorch; fused_operations.py holds the rest.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable

import references
import torch
from measure import Case
from torch import Tensor

OPERATIONS: dict[str, Callable[[], Case]] = {}
INTERPRETER = "Triton interpreter"
SEQUENCE = {"a": (2, 7, 3), "x": (2, 7, 3)}


def operation(key: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    def register(make: Callable[[], Case]) -> Callable[[], Case]:
        OPERATIONS[key] = make
        return make

    return register


def load_operations() -> dict[str, Callable[[], Case]]:
    """All operations by PACKAGE/NAME, those of one package together."""
    importlib.import_module("fused_operations")
    packages = list(dict.fromkeys(key.partition("/")[0] for key in OPERATIONS))
    return dict(
        sorted(OPERATIONS.items(), key=lambda item: packages.index(item[0].partition("/")[0]))
    )


def without_init(package: str) -> None:
    """Let the modules of a package be imported without its __init__, which imports models that need
    more packages.
    """
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    module = types.ModuleType(package)
    module.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = module


def interpreted(package: str) -> None:
    from interpreter import use_interpreter

    use_interpreter()
    if package != "fla":
        without_init(package)


def gated(scan: Callable[[Tensor, Tensor], Tensor]) -> Case:
    """A scan h_t = sigmoid(a_t) h_{t-1} + x_t along dimension 1 of (b, l, d)."""
    return Case(
        lambda a, x: scan(a.sigmoid(), x),
        lambda a, x: references.linear_recurrence(a.sigmoid(), x),
        shapes=SEQUENCE,
    )


def _combine(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return p[0] * q[0], p[1] * q[0] + q[1]


@operation("torch/associative_scan, pointwise (the default)")
def torch_pointwise() -> Case:
    from torch._higher_order_ops.associative_scan import associative_scan

    return gated(lambda a, x: associative_scan(_combine, (a, x), 1)[1])


@operation("torch/associative_scan, generic")
def torch_generic() -> Case:
    from torch._higher_order_ops.associative_scan import associative_scan

    return gated(lambda a, x: associative_scan(_combine, (a, x), 1, combine_mode="generic")[1])


@operation("torch/scan")
def torch_scan() -> Case:
    from torch._higher_order_ops.scan import scan

    def step(h: Tensor, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h = inputs[0] * h + inputs[1]
        return h, h.clone()

    def along_length(a: Tensor, x: Tensor) -> Tensor:
        return scan(step, torch.zeros_like(x[:, 0]), (a.transpose(0, 1), x.transpose(0, 1)))[
            1
        ].transpose(0, 1)

    return gated(along_length)


def _pscan(package: str) -> Case:
    without_init(package)
    pscan = importlib.import_module(f"{package}.pscan").pscan
    return gated(lambda a, x: pscan(a[..., None], x[..., None])[..., 0])


@operation("mambapy/pscan")
def mambapy_pscan() -> Case:
    return _pscan("mambapy")


@operation("mamba-stock/pscan")
def mamba_stock_pscan() -> Case:
    return _pscan("mamba_stock")


@operation("assoc-scan/AssocScan")
def assoc_scan() -> Case:
    from assoc_scan import AssocScan

    return gated(AssocScan())


@operation("s5-pytorch/associative_scan")
def s5_scan() -> Case:
    without_init("s5")
    from s5.jax_compat import associative_scan
    from s5.s5_model import binary_operator

    def along_length(a: Tensor, x: Tensor) -> Tensor:
        return torch.stack([associative_scan(binary_operator, pair)[1] for pair in zip(a, x)])

    return gated(along_length)


@operation("accelerated-scan/ref.scan")
def accelerated_reference() -> Case:
    from accelerated_scan.ref import scan

    return gated(lambda a, x: scan(a.transpose(1, 2), x.transpose(1, 2)).transpose(1, 2))


@operation("mingru-pytorch/heinsen_associative_scan_log")
def mingru() -> Case:
    from minGRU_pytorch.minGRU import heinsen_associative_scan_log

    return Case(
        lambda a, x: heinsen_associative_scan_log(torch.nn.functional.logsigmoid(a), x),
        lambda a, x: references.linear_recurrence(a.sigmoid(), x.exp()),
        shapes=SEQUENCE,
    )


_SELECTIVE = {"u": (1, 3, 6), "delta": (1, 3, 6), "A": (3, 2), "B": (1, 2, 6), "C": (1, 2, 6)}


def _selective(scan: Callable[..., Tensor], *, dtype: torch.dtype) -> Case:
    return Case(
        lambda u, delta, A, B, C: scan(u, delta, -A.exp(), B, C, delta_softplus=True),
        lambda u, delta, A, B, C: references.selective_scan(
            u, torch.nn.functional.softplus(delta), -A.exp(), B, C
        ),
        shapes=_SELECTIVE,
        dtype=dtype,
    )


@operation("landscape/kernels.selective_scan")
def our_scan() -> Case:
    from landscape.kernels import selective_scan

    return _selective(selective_scan, dtype=torch.float64)


@operation("mamba-ssm/selective_scan_ref")
def mamba_reference() -> Case:
    interpreted("mamba_ssm")
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref

    return _selective(selective_scan_ref, dtype=torch.float32)


@operation("mamba-ssm-macos/selective_scan_fn")
def mamba_macos() -> Case:
    without_init("mamba_ssm")
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return _selective(selective_scan_fn, dtype=torch.float32)


_DUAL = {"x": (1, 8, 2, 4), "dt": (1, 8, 2), "A": (2,), "B": (1, 8, 1, 4), "C": (1, 8, 1, 4)}


def dual(scan: Callable[..., Tensor], *, dtype: torch.dtype, how: str) -> Case:
    def positive(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, dt, A, B, C: function(x, torch.nn.functional.softplus(dt), -A.exp(), B, C)

    return Case(
        positive(scan), positive(references.state_space_dual), shapes=_DUAL, dtype=dtype, how=how
    )


@operation("mamba-ssm/ssd_minimal_discrete")
def ssd_minimal() -> Case:
    without_init("mamba_ssm")
    # The module imports the Triton kernel for a test of its own.
    sys.modules["mamba_ssm.ops.triton.ssd_combined"] = types.ModuleType("ssd_combined")
    sys.modules["mamba_ssm.ops.triton.ssd_combined"].mamba_chunk_scan_combined = None
    from mamba_ssm.modules.ssd_minimal import ssd_minimal_discrete

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        B, C = (M.expand(*x.shape[:3], M.shape[-1]) for M in (B, C))
        return ssd_minimal_discrete(x * dt[..., None], dt * A, B, C, block_len=4)[0]

    return dual(scan, dtype=torch.float64, how="CPU")


_MLSTM = {"q": (1, 2, 8, 4), "k": (1, 2, 8, 4), "v": (1, 2, 8, 4), "i": (1, 2, 8), "f": (1, 2, 8)}


def _mlstm(kind: str, name: str, *, normed: bool = False, **options: object) -> Case:
    interpreted("mlstm_kernels")
    kernel = getattr(
        importlib.import_module(f"mlstm_kernels.torch.{kind}.native.fwbw"), f"mlstm_{kind}__{name}"
    )
    if name == "native_custbw":
        options["autocast_kernel_dtype"] = torch.float32

    def norm(y: Tensor) -> Tensor:
        return references.layer_norm(y, torch.ones(()), torch.zeros(())) if normed else y

    return Case(
        lambda q, k, v, i, f: norm(kernel(q, k, v, i, f, eps=0.0, **options)),
        lambda q, k, v, i, f: norm(references.mlstm(q, k, v, i, f)),
        shapes=_MLSTM,
        dtype=torch.float32,
    )


@operation("mlstm-kernels/parallel native_autograd")
def mlstm_parallel_autograd() -> Case:
    return _mlstm("parallel", "native_autograd")


@operation("mlstm-kernels/parallel native_custbw")
def mlstm_parallel_custom() -> Case:
    return _mlstm("parallel", "native_custbw")


@operation("mlstm-kernels/parallel native_custbw, then layer norm")
def mlstm_parallel_custom_normed() -> Case:
    return _mlstm("parallel", "native_custbw", normed=True)


@operation("mlstm-kernels/chunkwise native_autograd")
def mlstm_chunkwise_autograd() -> Case:
    return _mlstm("chunkwise", "native_autograd", chunk_size=4)


@operation("mlstm-kernels/chunkwise native_custbw")
def mlstm_chunkwise_custom() -> Case:
    return _mlstm("chunkwise", "native_custbw", chunk_size=4)
