"""The published power iteration, run by the pyhessian package itself.

It gets the same objective, parameters and attention.

A reference to compare with, not a method to prefer: it stops on the change of a value, not on a
residual, and mixes eigenvalues of opposite sign and nearly equal size. What is reported here as a
residual is measured by this project.

Source: Yao et al., PyHessian: Neural Networks Through the Lens of the Hessian (2020), arXiv
1912.07145.
"""

import importlib
import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.curvature.objective import Batch, Objective, Params, squared_norm
from landscape.curvature.operators.hessian import HessianOperator
from landscape.errors import MissingDependencyError
from landscape.linalg.results import EigenPairs


def pyhessian_eigenpairs(
    objective: Objective,
    params: Params,
    batch: Batch,
    *,
    k: int,
    seed: int = 0,
    max_iterations: int = 100,
    tol: float = 1e-3,
) -> EigenPairs:
    """Compute the k eigenvalues largest in magnitude with the pyhessian package.

    Args:
        objective: As in HessianOperator, which is built too and refuses what must be refused.
        k: Number of eigenvalues; pyhessian deflates by those already found.
        seed: Seed of its start vectors. They come from torch's global generator, which is restored
            afterwards.
        max_iterations: pyhessian's maxIter, per eigenvalue; 100 is its default.
        tol: pyhessian's tol, on the relative change of a value between two iterations; 1e-3 is its
            default.

    Returns:
        Values as pyhessian reports them, sorted by magnitude, largest first. Its vectors, scaled to
        length 1 and only as
        orthogonal as it left them. Residuals from one product each with HessianOperator, spent on
        top; `converged` says
        residual <= tol, which pyhessian itself does not check. `num_matvecs` counts pyhessian's own
        products.

    Raises:
        MissingDependencyError: If pyhessian is not installed.
        ObjectiveError: As in HessianOperator.
        ValueError: If k is not between 1 and n, or another number is not positive.
    """
    operator = HessianOperator(objective, params, batch)
    if not 1 <= k <= operator.n:
        raise ValueError(f"k must be between 1 and the number of parameters {operator.n}, got {k}.")
    if max_iterations < 1 or not tol > 0:
        raise ValueError(
            f"max_iterations and tol must be positive, got {max_iterations} and {tol}."
        )
    values, vectors, num_matvecs = run_pyhessian(
        objective, operator.params, batch, k=k, seed=seed, max_iterations=max_iterations, tol=tol
    )
    order = values.abs().argsort(descending=True, stable=True)
    values, vectors = values[order].to(operator.device, operator.dtype), vectors[:, order]
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=0, dtype=torch.float64).to(
        operator.dtype
    )
    residuals = _residuals(operator, values, vectors)
    return EigenPairs(values, vectors, residuals, residuals <= tol, num_matvecs)


class _ParametersAsModule(nn.Module):
    """An objective as the module that pyhessian needs.

    Its parameters hold those under study.
    """

    def __init__(self, objective: Objective, params: Params) -> None:
        super().__init__()
        self._objective = objective
        self._names = list(params)
        self._values = nn.ParameterList(nn.Parameter(tensor) for tensor in params.values())

    def forward(self, batch: Batch) -> Tensor:
        params: Params = dict(zip(self._names, self._values))
        # Present at weight_decay 0 too: pyhessian fails on a parameter that the loss does not use,
        # or uses linearly.
        return self._objective.data_term(
            params, batch
        ) + 0.5 * self._objective.weight_decay * squared_norm(params)


def run_pyhessian(
    objective: Objective,
    params: Params,
    batch: Batch,
    *,
    k: int,
    seed: int = 0,
    max_iterations: int = 100,
    tol: float = 1e-3,
) -> tuple[Float[Tensor, " k"], Float[Tensor, "n k"], int]:
    """Run the package alone, with no check and no residual.

    This is what a benchmark may charge it for.

    Returns:
        pyhessian's values (float64), its vectors as columns, and the number of its products.

    Raises:
        MissingDependencyError: If pyhessian is not installed.
    """
    package = import_pyhessian()
    module = _ParametersAsModule(objective, params)
    leaves = list(module.parameters())
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        sdpa_kernel(SDPBackend.MATH),
        torch.enable_grad(),
    ):
        # The cycle it warns of is broken by pyhessian, which clears the gradients before every
        # product.
        warnings.filterwarnings(
            "ignore", message="Using backward\\(\\) with create_graph=True", category=UserWarning
        )
        # On the CPU only: manual_seed would reseed every GPU, and pyhessian draws its vectors on
        # the CPU.
        torch.default_generator.manual_seed(seed)
        # cuda=False keeps it from moving a batch that need not be a tensor; its device is set by
        # hand instead.
        solver = package.hessian(module, lambda value, _: value, data=(batch, None), cuda=False)
        solver.device = leaves[0].device
        products: list[None] = []
        leaves[0].register_hook(lambda gradient: products.append(None))
        values, vectors = solver.eigenvalues(maxIter=max_iterations, tol=tol, top_n=k)
    flat = [torch.cat([piece.detach().reshape(-1) for piece in vector]) for vector in vectors]
    return (
        torch.tensor(values, dtype=torch.float64),
        torch.stack(flat, dim=1).to(leaves[0].dtype),
        len(products),
    )


def import_pyhessian() -> Any:
    """Import the package.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        return importlib.import_module("pyhessian")
    except ImportError as error:
        raise MissingDependencyError(
            "The method 'pyhessian' runs the pyhessian package, which is not installed. Install it "
            "with `pip install pyhessian`, or use the method 'power', the same algorithm with "
            "residuals."
        ) from error


def _residuals(
    operator: HessianOperator, values: Float[Tensor, " k"], vectors: Float[Tensor, "n k"]
) -> Float[Tensor, " k"]:
    """Compute ||H v - value v|| / |value| for each pair.

    For a value of zero it is 0 only if the product is zero, and else infinite.
    """
    defects = torch.linalg.vector_norm(
        operator @ vectors - vectors * values, dim=0, dtype=torch.float64
    )
    ratios = defects / values.abs().double()
    return torch.where(defects == 0, torch.zeros_like(ratios), ratios).to(operator.dtype)
