"""The contenders, each helped to run: the loss as a module of the parameters under study, plain
attention, one batch.

Without that help none of the peers takes a contrastive loss of a CLIP model as it is. Where a peer
has a switch that makes it faster here, it is on: landscaper keeps its graph (try_cache), curvlinops
skips its check when it is driven, and gets operations that forward mode can pass.
Shapes: n = number of parameters, k = number of eigenvalues.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator
from scipy.sparse.linalg import eigsh as arpack
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.curvature import Batch, HessianOperator, Objective, Params
from landscape.curvature.objective import squared_norm
from landscape.curvature.pyhessian import run_pyhessian
from landscape.linalg import eigsh

K, TOL = 5, 1e-3
# Per run of a contender that is driven: 20 to 40 times what it takes us.
MAX_PRODUCTS = 1000
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What a contender returns.

    Attributes:
        values: (k,) as it reports them.
        vectors: (n, k), of any length.
        products: With the Hessian, its own checks included.
        says_converged: For all k; None if it does not say.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "n k"]
    products: int
    says_converged: bool | None


@dataclass(frozen=True)
class Contender:
    """A solver with its settings.

    Attributes:
        package: What must be importable, or None for ourselves.
        defaults: Settings of the row "defaults": its own, but for the number of eigenvalues.
        ladder: Settings of the row "driven", from loose to tight; the first that reaches TOL
            counts.
        prepare: What is done once for a model and not for a batch; its time is stated apart.
    """

    name: str
    package: str | None
    solve: Callable[[Objective, Params, Batch, Settings], Found]
    defaults: Settings
    ladder: tuple[Settings, ...] = ()
    prepare: Callable[[Objective, Params, Batch], None] | None = None


class LossModule(nn.Module):
    """The objective as a module: its parameters hold the ones under study, its output is the loss
    of a batch.
    """

    reduction = "mean"

    def __init__(self, objective: Objective, params: Params) -> None:
        super().__init__()
        self._objective = objective
        self._names = list(params)
        self.values = nn.ParameterList(nn.Parameter(tensor.clone()) for tensor in params.values())

    def forward(self, batch: Batch) -> Tensor:
        params: Params = dict(zip(self._names, self.values))
        # Zero times the norm: the peers fail on a parameter that the loss does not use.
        return self._objective.data_term(params, batch) + 0.0 * squared_norm(params)


class _Through(nn.Module):
    """A criterion for a module that gives the loss itself."""

    reduction = "mean"

    def forward(self, loss: Tensor, target: Tensor) -> Tensor:
        return loss


def _ours(objective: Objective, params: Params, batch: Batch, settings: Settings) -> Found:
    pairs = eigsh(HessianOperator(objective, params, batch), K, tol=TOL, **settings)
    assert pairs.vectors is not None
    return Found(pairs.values, pairs.vectors, pairs.num_matvecs, bool(pairs.converged.all()))


def _first_of_ours(objective: Objective, params: Params, batch: Batch) -> None:
    """What the first batch of a model costs more than the others: compiling, the checks of its
    products, loading kernels.
    """
    _ours_compiled(objective, params, batch, {})


def _first_of_retained(objective: Objective, params: Params, batch: Batch) -> None:
    _ours(objective, params, batch, {})


def _ours_compiled(objective: Objective, params: Params, batch: Batch, settings: Settings) -> Found:
    operator = HessianOperator(objective, params, batch, hvp="compiled")
    pairs = eigsh(operator, K, tol=TOL, **settings)
    assert pairs.vectors is not None
    assert operator.choice is not None and operator.choice.product == "compiled", str(
        operator.choice
    )
    return Found(pairs.values, pairs.vectors, pairs.num_matvecs, bool(pairs.converged.all()))


def _arpack_on_ours(
    objective: Objective, params: Params, batch: Batch, settings: Settings
) -> Found:
    operator = HessianOperator(objective, params, batch)
    return _by_arpack(lambda vector: operator @ torch.from_numpy(vector), operator.n, settings)


def _by_arpack(multiply: Callable[[np.ndarray], Tensor], n: int, settings: Settings) -> Found:
    products: list[None] = []

    def counted(vector: np.ndarray) -> np.ndarray:
        products.append(None)
        return multiply(np.ascontiguousarray(vector, dtype=np.float32).reshape(-1)).numpy()

    start = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    # It raises ArpackNoConvergence where it does not converge.
    values, vectors = arpack(
        LinearOperator((n, n), matvec=counted, dtype=np.float32),
        K,
        which="LM",
        v0=start,
        **settings,
    )
    return Found(torch.from_numpy(values), torch.from_numpy(vectors), len(products), True)


def _pyhessian(objective: Objective, params: Params, batch: Batch, settings: Settings) -> Found:
    values, vectors, products = run_pyhessian(objective, params, batch, k=K, **settings)
    return Found(values, vectors, products, None)


def _eigenthings(objective: Objective, params: Params, batch: Batch) -> tuple[Any, list[None]]:
    """Its operator, and the list that grows with every product."""
    products: list[None] = []

    class Counted(importlib.import_module("hessian_eigenthings").HessianOperator):  # type: ignore[misc]
        def matvec(self, v: Tensor) -> Tensor:
            products.append(None)
            return super().matvec(v)

    return Counted(
        LossModule(objective, params), [batch], lambda module, batch: module(batch)
    ), products


def _eigenthings_power(
    objective: Objective, params: Params, batch: Batch, settings: Settings
) -> Found:
    operator, products = _eigenthings(objective, params, batch)
    package = importlib.import_module("hessian_eigenthings")
    result = package.deflated_power_iteration(operator, k=K, seed=0, **settings)
    return Found(
        result.eigenvalues, result.eigenvectors.T, len(products), bool(result.converged.all())
    )


def _eigenthings_lanczos(
    objective: Objective, params: Params, batch: Batch, settings: Settings
) -> Found:
    operator, products = _eigenthings(objective, params, batch)
    result = importlib.import_module("hessian_eigenthings").lanczos(
        operator, k=K, seed=0, **settings
    )
    return Found(
        result.eigenvalues, result.eigenvectors.T, len(products), bool(result.converged.all())
    )


def _curvlinops(objective: Objective, params: Params, batch: Batch, settings: Settings) -> Found:
    products: list[None] = []

    class Counted(importlib.import_module("curvlinops").HessianLinearOperator):  # type: ignore[misc]
        def _matmat(self, M: list[Tensor]) -> list[Tensor]:
            products.extend([None] * M[0].shape[-1])
            return super()._matmat(M)

    options = dict(settings)
    check = options.pop("check_deterministic", True)
    module = LossModule(objective, params)
    with _for_jvp_of_jacrev():
        operator = Counted(
            module,
            _Through(),
            list(module.parameters()),
            [(batch, torch.zeros(1))],
            batch_size_fn=lambda _: 1,
            check_deterministic=check,
        )
        found = _by_arpack(
            lambda vector: operator @ torch.from_numpy(vector), operator.shape[0], options
        )
    return Found(found.values, found.vectors, len(products), True)


def _plain_silu(x: Tensor, inplace: bool = False) -> Tensor:
    return x * torch.sigmoid(x)


def _plain_convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, **geometry: Any
) -> Tensor:
    return (nn.functional.conv1d if x.ndim == 3 else nn.functional.conv2d)(
        x, weight, bias, **geometry
    )


@contextmanager
def _for_jvp_of_jacrev() -> Iterator[None]:
    """For as long as the context lasts, the Mamba towers run operations that this composition of
    derivatives can pass.

    torch's SiLU has no forward derivative of its backward, and jacrev's vmap cannot pass the
    arguments of the towers' own convolution; as two operations, and as torch's grouped convolution,
    they can.
    """
    towers = importlib.import_module("landscape.towers.convolution")
    with (
        mock.patch.object(nn.functional, "silu", _plain_silu),
        mock.patch.object(towers, "convolve", _plain_convolve),
    ):
        yield


def _landscaper(objective: Objective, params: Params, batch: Batch, settings: Settings) -> Found:
    products: list[None] = []

    class Counted(importlib.import_module("landscaper.hessian").PyHessian):  # type: ignore[misc]
        def hv_product(self, v: list[Tensor]) -> tuple[float, list[Tensor]]:
            products.append(None)
            return super().hv_product(v)

    def gradients(module: nn.Module, criterion: Any, data: Any, device: Any) -> Any:
        yield (
            1,
            torch.autograd.grad(
                module(data), list(module.parameters()), create_graph=True, materialize_grads=True
            ),
        )

    module = LossModule(objective, params).eval()
    solver = Counted(module, None, batch, "cpu", hessian_generator=gradients, try_cache=True)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        values, vectors = solver.eigenvalues(top_n=K, **settings)
    flat = [torch.cat([piece.detach().reshape(-1) for piece in vector]) for vector in vectors]
    return Found(
        torch.tensor(values, dtype=torch.float64), torch.stack(flat, dim=1), len(products), None
    )


def solve(
    contender: Contender, objective: Objective, params: Params, batch: Batch, settings: Settings
) -> Found:
    """Run a contender with attention that can be differentiated twice, and its warnings kept to
    itself.
    """
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")
        return contender.solve(objective, params, batch, settings)


# At its default of 1e-3 a power iteration leaves 3e-2, and what is left falls with the root of the
# tolerance.
_POWER_TOLERANCES = (3e-6, 1e-6, 3e-7, 1e-7, 1e-8)
_ITERATIONS = MAX_PRODUCTS // K
OURS = "landscape eigsh, compiled"
RETAINED = "landscape eigsh, retained"
ARPACK_ON_OURS = "SciPy eigsh, landscape operator"

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender(OURS, None, _ours_compiled, {}, prepare=_first_of_ours),
        Contender(RETAINED, None, _ours, {}, prepare=_first_of_retained),
        Contender(ARPACK_ON_OURS, None, _arpack_on_ours, {"tol": TOL}),
        Contender(
            "pyhessian",
            "pyhessian",
            _pyhessian,
            {},
            tuple({"tol": tol, "max_iterations": _ITERATIONS} for tol in _POWER_TOLERANCES),
        ),
        Contender(
            "eigenthings power",
            "hessian_eigenthings",
            _eigenthings_power,
            {},
            tuple({"tol": tol, "max_iter": _ITERATIONS} for tol in (1e-3, 5e-4, 2e-4)),
        ),
        Contender(
            "eigenthings Lanczos",
            "hessian_eigenthings",
            _eigenthings_lanczos,
            {},
            # Without reorthogonalisation, its default above 50 steps, it returns ghosts.
            tuple(
                {"max_iter": steps, "reorthogonalize": True}
                for steps in (*range(16, 52, 2), 60, 80)
            ),
        ),
        Contender(
            "curvlinops + SciPy eigsh",
            "curvlinops",
            _curvlinops,
            {},
            tuple({"tol": tol, "check_deterministic": False} for tol in (1e-2, 1e-3, 1e-5)),
        ),
        Contender(
            "landscaper",
            "landscaper",
            _landscaper,
            {},
            tuple({"tol": tol, "maxIter": _ITERATIONS} for tol in _POWER_TOLERANCES),
        ),
    )
}
