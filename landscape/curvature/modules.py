"""The diagonal blocks of a Hessian by module, and their spectra.

The block of a module is the Hessian of the loss by that module's parameters alone. Where the graph
of the whole gradient fits in memory all blocks share it, elsewhere each computes its products as
the whole would.
Shapes: n = size of a block.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscape.curvature.audits.spot_check_result import SpotCheck
from landscape.curvature.guards.rounding import product_errors
from landscape.curvature.hvp.choice import HvpChoice
from landscape.curvature.objective import Batch, Objective, Params, select_parameters
from landscape.curvature.operators.hessian import HessianOperator
from landscape.curvature.partition import modules_of
from landscape.deprecation import renamed_keyword, warn_of_old_name
from landscape.errors import MemoryLimitError, ObjectiveError
from landscape.linalg.lanczos import MIN_EXTRA_VECTORS, Which, eigsh, num_vectors_in
from landscape.linalg.operator import SymmetricOperator
from landscape.linalg.results import EigenPairs
from landscape.linalg.vectors import all_finite

Modules = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class ModuleSpectrum:
    """The extreme eigenvalues of one diagonal block.

    Attributes:
        module: Dotted name of the module, or of a parameter that belongs to none.
        num_params: Size of the block.
        eigenpairs: Its eigenpairs with their certificates; `eigenpairs.ritz` holds both ends.
    """

    module: str
    num_params: int
    eigenpairs: EigenPairs

    @property
    def pairs(self) -> EigenPairs:
        """Return `eigenpairs`, of which this is the old name."""
        warn_of_old_name("pairs", "eigenpairs")
        return self.eigenpairs


class HessianBlock(SymmetricOperator):
    """The Hessian of an objective by some of its parameters.

    It is one of the blocks of `HessianBlocks`.

    A product goes through the part of the shared graph between those parameters and the loss only.
    Without such a graph the block is an operator of its own, with the other parameters held, and
    computes its products as the whole does.

    Attributes:
        support: As in HessianOperator; None where the loss depends on none of the parameters.
    """

    def __init__(self, blocks: "HessianBlocks", name: str) -> None:
        self.name = name
        self._blocks = blocks
        self._alone: HessianOperator | None = None
        whole, names = blocks.whole, blocks.modules[name]
        self.n = sum(blocks.params[parameter].numel() for parameter in names)
        self.dtype, self.device = whole.dtype, whole.device
        support = whole.support_of(names)
        # A solver needs one coordinate at least.
        self.support = None if support is not None and len(support) == 0 else support

    @property
    def checked(self) -> str:
        return self._blocks.checked

    def matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Multiply k vectors, one by one.

        Raises:
            ObjectiveError: If an operation turns out to have no second derivative, or a product is
                not finite.
            MemoryLimitError: If memory ran out, and no other strategy fits.
        """
        self._blocks.check()
        with torch.inference_mode(False):
            rows = (V.clone() if V.is_inference() else V.detach()).T
            products = torch.empty(rows.shape, dtype=self.dtype, device=self.device)
            # The part of the gradient that belongs to a module, differentiated by its parameters
            # alone, gives the diagonal block; the rest of the Hessian is never computed.
            if not self._blocks.whole.multiply_block(
                self._blocks.modules[self.name], rows, products
            ):
                self._alone = self._alone or self._blocks.alone(self.name)
                products.copy_((self._alone @ rows.T).T)
        products.add_(rows, alpha=self._blocks.weight_decay)
        if not all_finite(products):
            raise ObjectiveError(
                f"{self.name}: a product with its block of the Hessian is not finite; look for an "
                "overflow."
            )
        return products.T

    def product_errors(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        def moved(params: Params) -> HessianBlock:
            # No two graphs at a time.
            self._blocks.release_graph()
            self._alone = None
            return self._blocks.at(params).block(self.name)

        return product_errors(self, moved, self._blocks.params, v)


class HessianBlocks:
    """The diagonal blocks of a Hessian that belong to modules.

    The Hessian is that of `objective` at `params` on `batch`.

    They share the graph of the whole gradient where it is kept, and elsewhere make their products
    by the strategy that the whole chose: two evaluations a block to begin with, and another for
    every product.

    Args:
        objective, params, batch: As in HessianOperator, with all that it refuses.
        modules: Names of the chosen parameters of each module, as from `modules_of`; no parameter
            twice.
        hvp, rows, max_memory, allow_tf32, check: As in HessianOperator; `hvp` may be the
            `choice` of earlier blocks.

    Attributes:
        loss: Value of the objective, the L2 term of all parameters included, in nats.

    Raises:
        ObjectiveError, MemoryLimitError: As in HessianOperator.
        ValueError: If a module has no parameters, or one that was not chosen; and as
            HessianOperator.
    """

    @renamed_keyword("product", "hvp")
    def __init__(
        self,
        objective: Objective,
        params: Params,
        batch: Batch,
        modules: Modules,
        *,
        hvp: str | HvpChoice = "auto",
        rows: int | None = None,
        max_memory: int | None = None,
        allow_tf32: bool = False,
        check: bool = True,
    ) -> None:
        for module, names in modules.items():
            if not names or any(name not in params for name in names):
                raise ValueError(
                    f"module {module!r} must hold some of the chosen parameters and no others, got "
                    f"{list(names)}."
                )
        self.modules = modules
        self._objective, self._batch = objective, batch
        self._options: dict[str, Any] = {
            "max_memory": max_memory,
            "allow_tf32": allow_tf32,
            "check": check,
        }
        self._whole: HessianOperator | None = HessianOperator(
            objective, params, batch, hvp=hvp, rows=rows, **self._options
        )
        # Made anew it is the same.
        self._options["check"] = False
        self.params, self.loss, self.weight_decay = (
            self._whole.params,
            self._whole.loss,
            objective.weight_decay,
        )
        self._choice: HvpChoice | None = None
        self._check: SpotCheck | None = None

    def check(self) -> None:
        """Compare a product of the whole with differences, unless that was done.

        Raises:
            ObjectiveError, MemoryLimitError: As in `HessianOperator.check`.
        """
        if self._check is None:
            self._check = self.whole.check()

    @property
    def checked(self) -> str:
        """Return the result of the whole's check; "" before the first product."""
        return "" if self._check is None else str(self._check)

    @property
    def whole(self) -> HessianOperator:
        """Return the Hessian by all parameters, which keeps the graph.

        It is built anew where it was freed.
        """
        if self._whole is None:
            self._whole = HessianOperator(
                self._objective, self.params, self._batch, hvp=self.choice, **self._options
            )
        return self._whole

    @property
    def choice(self) -> HvpChoice:
        """Return how the products of the blocks are computed, and why.

        It is what the whole chooses, with one product of its own.

        Raises:
            ObjectiveError, MemoryLimitError: As in HessianOperator, for its first product.
        """
        if self._whole is not None:
            # Blocks multiply through parts of its graph, so the whole is checked for all of them.
            self.check()
            self._choice = self._whole.choose()
        assert self._choice is not None, "release_graph keeps it"
        return self._choice

    def release_graph(self) -> None:
        """Free the graph until a block needs it again."""
        self._choice, self._whole = self.choice, None

    def at(self, params: Params) -> "HessianBlocks":
        """Build the same blocks at other parameters."""
        return HessianBlocks(
            self._objective, params, self._batch, self.modules, hvp=self.choice, **self._options
        )

    def block(self, module: str) -> HessianBlock:
        """Return the block of a module.

        Its coordinates are the module's parameters in the order of `modules`.
        """
        return HessianBlock(self, module)

    def alone(self, module: str) -> HessianOperator:
        """Build the block of a module as an operator of its own.

        It has no L2 term, and shares nothing with the other blocks.

        Raises:
            ObjectiveError, MemoryLimitError: As in HessianOperator.
        """
        chosen = {name: self.params[name] for name in self.modules[module]}
        others = {name: tensor for name, tensor in self.params.items() if name not in chosen}
        objective = replace(self._objective.holding(others), weight_decay=0.0)
        return HessianOperator(objective, chosen, self._batch, hvp=self.choice, **self._options)


@renamed_keyword("product", "hvp")
def per_module_spectra(
    model: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    batch: Batch,
    *,
    k: int = 5,
    which: Which = "LM",
    parameters: str | Sequence[str] = "all",
    modules: Sequence[str] | None = None,
    weight_decay: float = 0.0,
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    seed: int = 0,
    hvp: str | HvpChoice = "auto",
    max_memory: int | None = None,
    max_basis_memory: int | None = None,
    check: bool = True,
) -> tuple[ModuleSpectrum, ...]:
    """Compute the k extreme eigenpairs of each module's Hessian block.

    The block is a diagonal block of the Hessian of `loss(model, batch)`.

    Args:
        model, loss, batch, parameters, weight_decay: As in `hessian`.
        k: Eigenvalues of each block; all of a smaller block.
        which, tol, max_matvecs, seed: As in `eigsh`; the same seed for every block.
        modules: Shell patterns of module names; by default every block of the network and what is
            left; see `modules_of`.
        hvp, max_memory, check: As in `hessian`; a loss of this kind cannot be taken in chunks
            of rows.
        max_basis_memory: Bytes that the Krylov vectors of one block may take; by default as many as
            its products bring.

    Returns:
        One spectrum per module, in the order of the network.

    Raises:
        ObjectiveError: As in `hessian`, and if a pattern names no module.
        MemoryLimitError: As in `hessian`, and if the vectors that a block needs do not fit.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batch = torch.randn(32, 4), torch.randn(32, 1)
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> for spectrum in landscape.per_module_spectra(model, loss, batch, k=1):
        ...     print(spectrum.module, spectrum.num_params)
        ...
        0 40
        2 9
    """
    objective = Objective.from_closure(model, loss, weight_decay=weight_decay)
    params = select_parameters(model, parameters)
    blocks = HessianBlocks(
        objective,
        params,
        batch,
        modules_of(model, params, modules),
        hvp=hvp,
        max_memory=max_memory,
        check=check,
    )
    options: dict[str, Any] = {
        "tol": tol,
        "max_matvecs": max_matvecs,
        "seed": seed,
        "max_basis_memory": max_basis_memory,
    }
    return spectra_of(blocks, k=k, which=which, **options)


def spectra_of(
    blocks: HessianBlocks,
    *,
    k: int,
    which: Which = "LM",
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    seed: int = 0,
    max_basis_memory: int | None = None,
) -> tuple[ModuleSpectrum, ...]:
    """Compute the k extreme eigenpairs of every block, without vectors.

    The arguments are those of `per_module_spectra`.
    """
    spectra = []
    for module in blocks.modules:
        block = blocks.block(module)
        most = min(k, block.n)
        limit = None if max_matvecs is None else max(max_matvecs, most)
        room = None if max_basis_memory is None else num_vectors_in(max_basis_memory, block)
        if room is not None and room < most + MIN_EXTRA_VECTORS:
            raise MemoryLimitError(
                f"{module}: {max_basis_memory:,} bytes hold {room} vectors of "
                f"{block.n - block.num_unused:,} numbers, but {most} eigenvalues of this block "
                f"need {most + MIN_EXTRA_VECTORS}. Allow more for the Krylov vectors, or leave the "
                "block out."
            )
        eigenpairs = eigsh(
            block,
            most,
            which,
            tol=tol,
            max_matvecs=limit,
            seed=seed,
            max_basis=room,
            return_vectors=False,
        )
        spectra.append(ModuleSpectrum(module, block.n, eigenpairs))
    return tuple(spectra)
