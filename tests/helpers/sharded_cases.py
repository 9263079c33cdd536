"""Losses that are measured in one process and over several, and the program that starts those:
`python -m tests.helpers.sharded_cases FOLDER`.

The program imports everything once and forks one process for each rank of each size, since imports
take longer than most measurements. Each process writes what it saw to FOLDER/SIZE.RANK.pt.
"""

import gc
import os
import sys
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import landscape
from landscape.clip.objectives import contrastive_objective
from landscape.curvature import Objective, select_parameters
from landscape.linalg.operator import seeded

WORDS, WIDTH, LENGTH = 11, 5, 4


class Attention(nn.Module):
    """One head of causal attention, by torch's own function."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.up, self.down, self.gain = (
            nn.Linear(WIDTH, 7),
            nn.Linear(7, WIDTH),
            nn.Parameter(torch.tensor(0.5)),
        )

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        # Through a transposed layout and back, on square blocks, where a framework that mixes axes
        # up would not notice.
        mixed = F.gelu(self.up(x.transpose(0, 1))).transpose(0, 1)
        return x + self.gain * self.down(mixed)


class Words(nn.Module):
    """A causal language model whose output layer is its table; a scalar, rows fewer than processes,
    and an idle weight.
    """

    def __init__(self, *, tied: bool = True, num_blocks: int = 2):
        super().__init__()
        self.table, self.places = (
            nn.Embedding(WORDS, WIDTH),
            nn.Parameter(torch.zeros(LENGTH, WIDTH)),
        )
        self.blocks, self.norm = (
            nn.ModuleList(Block() for _ in range(num_blocks)),
            nn.LayerNorm(WIDTH),
        )
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.idle = nn.Parameter(torch.ones(2, 3))
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens):
        x = self.table(tokens) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def words(*, tied: bool = True, num_blocks: int = 2, seed: int = 0) -> Words:
    torch.manual_seed(seed)
    model = Words(tied=tied, num_blocks=num_blocks).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64))
    return model


def tokens(rows: int = 6) -> Tensor:
    # No row has the last three words, so that rows of an untied table are looked up by nobody.
    return torch.randint(WORDS - 3, (rows, LENGTH + 1), generator=seeded(1))


def next_word_loss(model: nn.Module, batch: Tensor) -> Tensor:
    """The mean over rows of each row's mean cross-entropy."""
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def rows_of(batch: Any, rank: int, size: int, shares: tuple[int, ...] | None = None) -> Any:
    """This process's rows: as many in each, but for the remainder, or by shares."""
    total = len(batch) if isinstance(batch, Tensor) else len(next(iter(batch.values())))
    counts = shares or tuple(total // size + (index < total % size) for index in range(size))
    part = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    return (
        batch[part]
        if isinstance(batch, Tensor)
        else {name: tensor[part] for name, tensor in batch.items()}
    )


@dataclass(frozen=True)
class Case:
    """An objective, where to take its Hessian, and all rows of its batch."""

    objective: Objective
    params: dict[str, Tensor]
    batch: Any


def _words(
    *,
    tied: bool = True,
    num_blocks: int = 2,
    parameters: Any = "all",
    weight_decay: float = 0.0,
    rows: int = 6,
) -> Case:
    model = words(tied=tied, num_blocks=num_blocks)
    objective = Objective.from_closure(model, next_word_loss, weight_decay=weight_decay)
    return Case(objective, select_parameters(model, parameters), tokens(rows))


def _clip(tower: Any, parameters: Any = "all") -> Case:
    from tests.helpers.toy_clip import make_toy_clip, toy_pictures

    model = make_toy_clip(tower)
    text = torch.tensor([[1, 9, 0], [2, 3, 9], [9, 4, 4], [5, 6, 9], [9, 1, 1]])
    objective, params = contrastive_objective(model, parameters=parameters)
    return Case(objective, params, {"image": toy_pictures(5), "text": text})


def _vit(parameters: Any = "all") -> Case:
    from open_clip.transformer import VisionTransformer

    from tests.conftest import scramble

    torch.manual_seed(0)
    tower = VisionTransformer(16, 8, 8, 1, 2, 2.0, output_dim=6).double().eval()
    scramble(tower, seed=1, scale=0.2)
    return _clip(tower, parameters)


def _vmamba() -> Case:
    from landscape.towers import VMamba
    from tests.conftest import scramble

    torch.manual_seed(0)
    tower = VMamba(dims=(6, 8), depths=(1, 1), gated=False, num_classes=6).double().eval()
    scramble(tower, seed=1, scale=0.3)
    return _clip(tower)


def _simba() -> Case:
    from landscape.towers import Simba
    from tests.conftest import scramble

    torch.manual_seed(0)
    sizes = {"stem": 3, "dims": (6, 8), "depths": (1, 1), "mlp_ratios": (2, 1), "num_states": 3}
    tower = Simba(**sizes, num_classes=6).double().eval()
    scramble(tower, seed=1, scale=0.3)
    return _clip(tower)


def _gpt2(max_logits: int) -> Case:
    """Blocks of five tokens, whose losses share a table with the embedding."""
    from landscape.language import causal_lm_objective
    from landscape.language.model import build_causal_lm
    from tests.conftest import scramble
    from tests.helpers import tiny_language_models

    model = build_causal_lm(tiny_language_models.configs()["gpt2"], dtype=torch.float64)
    scramble(model, seed=1, scale=0.2)
    objective, params = causal_lm_objective(model, max_logits=max_logits)
    return Case(
        objective, params, {"tokens": torch.randint(18, (6, LENGTH + 1), generator=seeded(1))}
    )


class Rotated(nn.Module):
    """Features times a weight of complex numbers, and the imaginary part of its conjugate.

    That part has the storage of the weight, and the other sign.
    """

    def __init__(self) -> None:
        super().__init__()
        self.into, self.phases = nn.Linear(WIDTH, 4), nn.Parameter(torch.ones(4, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        x, phases = self.into(x).tanh(), torch.view_as_complex(self.phases)
        return (x @ phases.conj().imag).sin() + (x.to(phases.dtype) @ phases).abs()


def _rotated() -> Case:
    torch.manual_seed(0)
    model = Rotated().double()
    with torch.no_grad():
        model.phases.copy_(torch.randn(model.phases.shape, generator=seeded(4)))
    rows = torch.randn(6, WIDTH, generator=seeded(3), dtype=torch.float64)
    objective = Objective.from_closure(model, lambda model, x: model(x).square().mean())
    return Case(objective, select_parameters(model), rows)


CASES: dict[str, Callable[[], Case]] = {
    "words": _words,
    "untied words with weight decay": lambda: _words(tied=False, weight_decay=0.1),
    "untied words": lambda: _words(tied=False),
    "square blocks of tokens": lambda: _words(rows=LENGTH),
    "one block of words": lambda: _words(parameters=["blocks.0.*", "places"]),
    "untied words without blocks": lambda: _words(tied=False, num_blocks=0),
    "complex weights": _rotated,
    # Five tokens at a time, of 12 in each of two processes and of 24 in one.
    "gpt2, tokens in chunks": lambda: _gpt2(100),
    "gpt2": lambda: _gpt2(10**6),
    "vit": _vit,
    "image tower of vit": lambda: _vit("image"),
    "vmamba": _vmamba,
    "simba": _simba,
}


def directions(n: int) -> Tensor:
    return torch.randn(n, 2, generator=seeded(7), dtype=torch.float64)


def solved(A: Any) -> dict[str, Any]:
    """What solvers say of an operator, as plain numbers and words."""
    pairs = landscape.eigsh(A, k=2, tol=1e-5, seed=0)
    density = landscape.density(A, num_probes=2, num_matvecs=6, num_deflation=4, seed=0)
    trace = landscape.trace(A, num_matvecs=12, seed=0)
    power = landscape.power_iteration(A, 1, max_iterations=4, seed=0)
    return {
        "values": pairs.values.tolist(),
        "vectors": pairs.vectors,
        "num_matvecs": pairs.num_matvecs,
        "residuals": pairs.residuals.tolist(),
        "orthogonality_defect": pairs.ritz.orthogonality_defect,
        "certificate": repr(pairs),
        "density": repr(density),
        "nodes": density.nodes,
        "trace": [trace.value, trace.probe_error],
        "power": [power.values.tolist(), power.num_matvecs],
        "num_unused": A.num_unused,
        "checked": A.checked,
        "contract": landscape.check_operator(A, seed=0).asymmetry,
        "restarted": landscape.eigsh(A, k=1, tol=1e-3, max_basis=8, seed=0).values.tolist(),
    }


class OnceSine(torch.autograd.Function):
    """The sine, with a first derivative alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * x.cos()


def words_through(sine: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Case:
    """The loss of the sines of the logits of words, by one block and the places."""
    model = words().to(dtype)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return F.cross_entropy(sine(model(batch[:, :-1])).flatten(0, 1), batch[:, 1:].flatten())

    objective = Objective.from_closure(model, loss, weight_decay=0.1)
    return Case(objective, select_parameters(model, ["blocks.0.*", "places"]), tokens())


# --- the program of one process -------------------------------------------------------------------


def _operator(case: Case, mesh: Any, shares: tuple[int, ...] | None = None, **options: Any) -> Any:
    batch = rows_of(case.batch, mesh.get_local_rank(), mesh.size(), shares)
    return landscape.ShardedHessianOperator(
        case.objective, case.params, batch, mesh=mesh, **options
    )


def _products(name: str, mesh: Any) -> dict[str, Any]:
    A = _operator(CASES[name](), mesh)
    V = A.space.cut(directions(A.n))
    first = A @ V
    return {
        "products": A.space.gathered(first),
        "again": torch.equal(first, A @ V),
        "gradient": A.space.gathered(A.gradient()),
        "norms": [*A.space.norms(V).tolist(), A.space.norm(V)],
        "loss": A.loss,
        "num_local": A.num_local,
        "num_unused": A.num_unused,
        "checked": A.checked,
        "entries": A.space.positions(),
        "support": A.support,
    }


def _rebuilt_on_uneven_rows(mesh: Any) -> Tensor:
    shares = {2: (5, 1), 3: (1, 3, 2)}[mesh.size()]
    A = _operator(_words(), mesh, shares, hvp="rebuilt", check=False)
    return A.space.gathered(A @ A.space.cut(directions(A.n)))


def _gpt2_on_uneven_rows(mesh: Any) -> Tensor:
    """Logits of the last process fit, and those of the first are computed in chunks."""
    A = _operator(CASES["gpt2, tokens in chunks"](), mesh, (5, 1), check=False)
    return A.space.gathered(A @ A.space.cut(directions(A.n)))


def _of_dtensors(mesh: Any) -> Tensor:
    from torch.distributed.tensor import Shard, distribute_tensor

    model = words()
    for part in model.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None and parameter.ndim and parameter is not model.table.weight:
                setattr(
                    part,
                    name,
                    nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)])),
                )
    table = nn.Parameter(distribute_tensor(model.table.weight.detach(), mesh, [Shard(0)]))
    model.table.weight = model.head.weight = table
    A = landscape.hessian(
        model,
        next_word_loss,
        rows_of(tokens(), mesh.get_local_rank(), mesh.size()),
        mesh=mesh,
        check=False,
    )
    # The operator has copies of all that it needs.
    model.to("meta")
    return A.space.gathered(A @ A.space.cut(directions(A.n)))


def _after_a_call_with_other_tensors(mesh: Any) -> Tensor:
    """Of a loss that first calls a part of the model with other tensors, where gradients are
    off.
    """

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        with torch.no_grad():
            x = torch.ones(2, WIDTH, dtype=torch.float64)
            torch.func.functional_call(model.head, {"weight": 2 * model.head.weight}, (x,))
            torch.func.functional_call(model.norm, {"bias": x[0]}, (x,))
        return next_word_loss(model, batch)

    A = landscape.hessian(
        words(), loss, rows_of(tokens(), mesh.get_local_rank(), mesh.size()), mesh=mesh, check=False
    )
    return A.space.gathered(A @ A.space.cut(directions(A.n)))


class Mixed(nn.Module):
    """Heads that mix a row's tokens, each by a matrix that is repeated for every row.

    Of a batch of one row the repetition is a view of the weight, otherwise it is a copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.mix, self.out = (
            nn.Parameter(torch.empty(WIDTH, 1)),
            nn.Parameter(torch.empty(3, WIDTH, WIDTH)),
            nn.Parameter(torch.empty(2, 3 * WIDTH)),
        )

    def forward(self, x: Tensor) -> Tensor:
        heads = self.mix.expand(len(x), *self.mix.shape).reshape(-1, WIDTH, WIDTH)
        mixed = torch.bmm(heads, (self.gain * x).repeat_interleave(3, 0)).tanh()
        return mixed.unflatten(0, (len(x), 3)).mean(-1).flatten(1) @ self.out.T


def mixed() -> Case:
    """A mean over six rows, by the mixing weight and the last layer."""
    model = Mixed().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(2)))
    rows = torch.randn(6, WIDTH, 4, generator=seeded(3), dtype=torch.float64)
    objective = Objective.from_closure(model, lambda model, x: model(x).square().mean())
    return Case(objective, select_parameters(model), rows)


class Mixes(nn.Module):
    """Layers as in Mixed, of more weights than are held at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.mixes = nn.ParameterList(torch.empty(3, WIDTH, WIDTH) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for mix in self.mixes:
            heads = mix.expand(len(x), *mix.shape).reshape(-1, WIDTH, WIDTH)
            x = torch.bmm(heads, x.repeat_interleave(3, 0)).tanh().unflatten(0, (-1, 3)).mean(1)
        return x


def penalised() -> Case:
    """A mean over six rows of a loss that takes derivatives, and then reads the weights again."""
    model = Mixes().double()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(number)))

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        value = model(x)
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return value.square().mean() + slope.square().mean() + model(2 * x).sin().mean()

    rows = torch.randn(6, WIDTH, 4, generator=seeded(9), dtype=torch.float64)
    return Case(Objective.from_closure(model, loss), select_parameters(model), rows)


# Cases in which a process with a single row reads weights that others need not.
OF_ONE_ROW: dict[str, tuple[Callable[[], Case], str]] = {
    "a single row": (mixed, "retained"),
    "a single row, rebuilt": (mixed, "rebuilt"),
    "a single row, derivatives in the loss": (penalised, "rebuilt"),
}


def _with_a_single_row(mesh: Any, way: str) -> Tensor:
    """Products where the last process has one row, and so reads weights that others need not."""
    (case, hvp), shares = OF_ONE_ROW[way], {2: (5, 1), 3: (3, 2, 1)}[mesh.size()]
    A = _operator(case(), mesh, shares, hvp=hvp, check=False)
    return A.space.gathered(A @ A.space.cut(directions(A.n)))


def _with_a_weight_kept_by_one(mesh: Any) -> Tensor:
    """Of a loss that keeps a gathered weight in the last process alone, where it stays in
    memory.
    """
    kept = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        if mesh.get_local_rank() == mesh.size() - 1:
            kept.append(model.blocks[0].up.weight)
        else:
            _ = model.blocks[0].up.weight
        return next_word_loss(model, batch)

    A = landscape.hessian(
        words(), loss, rows_of(tokens(), mesh.get_local_rank(), mesh.size()), mesh=mesh, check=False
    )
    return A.space.gathered(A @ A.space.cut(directions(A.n)))


def _at_other_values(mesh: Any) -> Tensor:
    """At other values of the parameters, after products at the first ones."""
    A = _operator(_words(), mesh, check=False)
    V = A.space.cut(directions(A.n))
    A @ V
    B = A.at({name: 1.5 * piece for name, piece in A.params.items()}, check=False)
    moved = B @ V
    assert torch.equal(B @ V, moved)
    # A note of one operator is no weight of the other.
    assert A.processes.any_of(torch.tensor(torch.equal(A @ V, moved))).item() is False
    return B.space.gathered(moved)


def _differences(name: str, mesh: Any) -> dict[str, Any]:
    """Products by differences of gradients, where there is no second derivative."""
    case = words_through(OnceSine.apply, getattr(torch, name))
    batch = rows_of(case.batch, mesh.get_local_rank(), mesh.size())
    A = landscape.ShardedFiniteDifferenceOperator(case.objective, case.params, batch, mesh=mesh)
    V = directions(A.n) / directions(A.n).norm(dim=0)
    # In float64 the differences have as many digits as anybody asks for.
    pairs = landscape.eigsh(A, k=1, tol=1e-6, seed=0) if name == "float32" else None
    return {
        "products": A.space.gathered(A @ A.space.cut(V).to(A.dtype)).double(),
        "error": A.error_estimate,
        "step": A.step,
        "loss": A.loss,
        "again": A.on(batch).error_estimate == A.error_estimate,
        "refused": _said(lambda: _operator(case, mesh)),
        "wrong": _said(
            lambda: landscape.ShardedFiniteDifferenceOperator(
                case.objective, case.params, batch, mesh=mesh, step=-1.0
            )
        ),
        "pairs": None
        if pairs is None
        else (pairs.values, pairs.residuals * pairs.values.abs(), pairs.converged.tolist()),
    }


def trained_words(*, tied: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model after three steps of Adam with an L2 term for some weights, on all rows in every
    process.
    """
    model = words(tied=tied)
    named = dict(model.named_parameters())
    decayed = [parameter for name, parameter in named.items() if "up" in name]
    others = [parameter for name, parameter in named.items() if "up" not in name]
    groups = [{"params": decayed, "weight_decay": 0.3, "lr": 3e-3}, {"params": others}]
    optimizer = torch.optim.Adam(groups, lr=1e-2, eps=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        next_word_loss(model, tokens()).backward()
        optimizer.step()
    return model, optimizer


def _preconditioned(mesh: Any, *, tied: bool) -> dict[str, Any]:
    model, optimizer = trained_words(tied=tied)
    rank = mesh.get_local_rank()
    H = landscape.hessian(model, next_word_loss, rows_of(tokens(), rank, mesh.size()), mesh=mesh)
    A = landscape.preconditioned(H, optimizer)
    pairs = landscape.eigsh(A, 1, "LA", tol=1e-6, seed=0)
    seen = {
        "products": A.space.gathered(A @ A.space.cut(directions(A.n))),
        "value": float(pairs.values[0]),
        "checked": pairs.checked,
        "num_unused": A.num_unused,
        "contract": landscape.check_operator(A, seed=0).asymmetry,
    }
    if rank == mesh.size() - 1:
        optimizer.state[model.norm.bias]["exp_avg_sq"][:] = float("nan")
    return seen | {"refused": _said(lambda: landscape.preconditioned(H, optimizer))}


def _held(mesh: Any) -> dict[str, float]:
    """Bytes of storages that the graph of the gradient holds, with notes and without, beside those
    of all weights.
    """
    from landscape.sharded import weights

    torch.manual_seed(0)
    model = (
        nn.Sequential(*(layer for _ in range(12) for layer in (nn.Linear(48, 48), nn.Tanh())))
        .double()
        .eval()
    )
    objective = Objective.from_closure(model, lambda model, x: model(x).square().mean())
    batch, seen = torch.ones(2, 48, dtype=torch.float64), {}
    seen["weights"] = sum(p.numel() * p.element_size() for p in model.parameters())
    seen["layer"] = seen["weights"] / 12
    pack = weights._pack
    for name in ("tensors", "notes"):
        saved: dict[int, Any] = {}

        def counting(tensor: Tensor) -> Any:
            kept = pack(tensor) if name == "notes" else weights._Versioned.now(tensor.detach())
            if isinstance(kept, weights._Versioned):
                storage = kept.tensor.untyped_storage()
                saved[storage._cdata] = weakref.ref(storage), storage.nbytes()
            return kept

        weights._pack = counting
        A = landscape.ShardedHessianOperator(
            objective, select_parameters(model), batch, mesh=mesh, check=False
        )
        weights._pack = pack
        # Checks of the gradient save it too, for a moment; it is held anyway, this process's piece
        # of it.
        gradients = {gradient.untyped_storage()._cdata for gradient in A.gradients.values()}
        alive = {
            key: size
            for key, (storage, size) in saved.items()
            if storage() is not None and key not in gradients
        }
        seen[name] = sum(alive.values())
        seen[f"{name}: gathered and held"] = sum(
            len(table._functions) + len(table._values) for table in A.weights._tables
        )
    return seen | _gathered_in_a_product(A)


def _gathered_in_a_product(A: Any) -> dict[str, float]:
    """Bytes of gathered weights that are alive at once, and how often the same one is gathered."""
    from landscape.sharded import weights

    hold, most, counts = weights.GatheredWeights._hold, 0, dict.fromkeys(A.params, 0)

    def counting(table: Any, name: str, whole: Tensor, held: Any) -> None:
        nonlocal most
        hold(table, name, whole, held)
        counts[name] += 1
        storages = [
            known.storage() for known in weights._known.values() if known.table in A.weights._tables
        ]
        most = max(most, sum(storage.nbytes() for storage in storages if storage is not None))

    weights.GatheredWeights._hold = counting
    A @ torch.ones(A.num_local, dtype=A.dtype)
    weights.GatheredWeights._hold = hold
    return {"alive at once": most, "times gathered": max(counts.values())}


def _freed(mesh: Any) -> dict[str, int]:
    """How many gatherings are in graphs that are alive: with an operator, and without it.

    The loss has softmax functions, which save their results.
    """

    def count() -> int:
        gc.collect()
        return sum(type(each).__name__ == "GatherBackward" for each in gc.get_objects())

    seen = {"before": count()}
    A = _operator(_words(), mesh)
    A @ A.space.cut(directions(A.n))
    seen["one operator"] = count()
    B = _operator(_words(), mesh)
    B @ B.space.cut(directions(B.n))
    seen["two operators"] = count()
    del A, B
    return seen | {"after": count()}


def lendable() -> dict[str, Tensor]:
    """Two weights; over three processes, the last has no row of them."""
    weight = torch.arange(12.0, dtype=torch.float64).reshape(4, 3)
    return {"up": weight, "down": -weight}


def _pieces_of(wholes: dict[str, Tensor], mesh: Any) -> Any:
    from landscape.sharded.gathering import Pieces
    from landscape.sharded.layout import Cut
    from landscape.sharded.processes import Processes

    processes = Processes(mesh)
    cuts = {name: Cut.even(whole.shape, processes.size) for name, whole in wholes.items()}
    pieces = {name: whole[cuts[name].rows_of(processes.rank)] for name, whole in wholes.items()}
    return Pieces(pieces, cuts, processes)


def _read_alone(mesh: Any) -> dict[str, Any]:
    """What each process gets that reads weights which the others do not read, or read later."""
    from landscape.sharded.processes import Processes

    processes, seen = Processes(mesh), {}
    last = processes.size - 1
    with processes.together():
        pieces = _pieces_of(lendable(), mesh)
        if processes.rank == last:
            seen["beside a short sum"] = pieces.whole("up")
        seen["short sum"] = processes.total(np.full(3, float(processes.rank))).tolist()
        if processes.rank == last:
            seen["beside a long sum"] = pieces.whole("down")
        seen["long sum"] = processes.total(np.full(50, float(processes.rank))).tolist()
        for name in ("up", "down") if processes.rank else ("down", "up"):
            seen[f"{name}, in another order"] = pieces.whole(name)
        if processes.rank == last:
            seen["beside the end"] = pieces.whole("up")
    seen["failed"] = _said(partial(_fail_before_registering, processes, mesh))
    # Between sections; a process has registered fewer than the others.
    later = _pieces_of({name: 2 * whole for name, whole in lendable().items()}, mesh)
    with processes.together():
        if processes.rank == last:
            seen["after a failure"] = later.whole("up")
    return seen


def _fail_before_registering(processes: Any, mesh: Any) -> None:
    """Fail in the last process, where the others have pieces to lend already."""
    with processes.together():
        if processes.rank == processes.size - 1:
            raise OSError("the weights cannot be read")
        kept = _pieces_of(lendable(), mesh)
        processes.meet("the end of the reading")
        assert kept


def _read_of_two(mesh: Any) -> dict[str, Tensor]:
    """What each process gets that reads a weight of one evaluation, then the same of another.

    The last process reads them in the other order.
    """
    from landscape.sharded.processes import Processes

    processes, seen = Processes(mesh), {}
    with processes.together():
        sources = {
            "first": _pieces_of(lendable(), mesh),
            "second": _pieces_of({name: 3 * whole for name, whole in lendable().items()}, mesh),
        }
        is_last = processes.rank == processes.size - 1
        for name in reversed(sources) if is_last else sources:
            seen[name] = sources[name].whole("up")
    return seen


def _read_of_one(mesh: Any) -> None:
    """Read a weight from a source that one process has and the others have not."""
    from landscape.sharded.processes import Processes

    processes = Processes(mesh)
    with processes.together():
        if processes.rank == mesh.size() - 1:
            _pieces_of(lendable(), mesh).whole("up")


def _read_what_cannot_be_lent(mesh: Any) -> None:
    """Read a weight alone, which the first process has no memory to lend."""
    from landscape.sharded.processes import Processes

    class Full(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            raise MemoryError("no room for the piece")

    processes = Processes(mesh)
    with processes.together():
        pieces = _pieces_of(lendable(), mesh)
        if processes.rank == 0:
            object.__setattr__(pieces, "pieces", Full())
        if processes.rank == mesh.size() - 1:
            pieces.whole("up")


# What all processes raise, be it wrong in all or in the last alone.
ALONE = {
    ("another model"): (
        "ObjectiveError: Processes 0 and {last} have different values of weights or buffers"
    ),
    ("another shape"): (
        "ObjectiveError: Processes 0 and {last} have different models, settings or versions"
    ),
    ("a path of its own"): (
        "ObjectiveError: The processes take different paths through the loss: process 0 at"
    ),
    "a wrong product": "ValueError: hvp must be one of auto, retained, rebuilt",
    "fully_shard": (
        "ObjectiveError: blocks.0.up (FSDPLinear): is under fully_shard, whose gradients carry no "
        "graph"
    ),
    "dropout": "ObjectiveError: drop (Dropout): has active dropout",
    ("writing in place"): (
        "ObjectiveError: norm.weight: is written to in place while the loss is evaluated"
    ),
    "writing without gradients": (
        "ObjectiveError: head.weight: is written to in place while the loss is evaluated"
    ),
    "writing afterwards": (
        "ObjectiveError: head.weight: is written to in place while the loss is evaluated"
    ),
    "rescaling a table": (
        "ObjectiveError: table.weight: is written to in place while the loss is evaluated"
    ),
    "vmap": "ObjectiveError: The loss uses a transform of torch.func",
    "jacrev": "ObjectiveError: The loss uses a transform of torch.func",
    "a batch changed afterwards": (
        "ObjectiveError: A tensor (2, 4, 5) that the loss was computed from was changed in place "
        "afterwards"
    ),
    "a loss that changes what it saved": (
        "ObjectiveError: A tensor (2, 4, 11) that the loss was computed from was changed in place "
        "afterwards"
    ),
    "checkpointing": (
        "ObjectiveError: The loss uses gradient checkpointing or another hook on saved tensors"
    ),
    ("a gradient that is wrong"): (
        "ObjectiveError: derivatives failed when the first product was held against differences"
    ),
    "a random loss": "ObjectiveError: The loss is random: evaluated twice",
    ("a vector that is not finite"): (
        "ObjectiveError: A product with the Hessian is not finite although the gradient is"
    ),
    "max_memory": "ValueError: max_memory: is not watched where a model is cut over processes",
    "to_scipy": (
        "ValueError: to_scipy: the vectors of this ShardedHessianOperator are cut over several "
        "processes"
    ),
    "two dimensions": "ValueError: mesh must be a DeviceMesh of one dimension",
    "a weight of one": (
        "ObjectiveError: The processes take different paths through the loss: process 0 at the end"
    ),
}
# What one process raises, and what the others then say.
REPEATED = {
    "a loss that raises": (
        "OSError: this row cannot be read",
        "LandscapeError: {failed}this row cannot be read",
    ),
    "a failure in a product": (
        "RuntimeError: lost in a product",
        "LandscapeError: {failed}lost in a product",
    ),
    "an empty batch": ("ObjectiveError: A batch", "ObjectiveError: {failed}A batch"),
    "no tensors": ("ObjectiveError: A batch", "ObjectiveError: {failed}A batch"),
}


def _said(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def _failures(mesh: Any) -> dict[str, Callable[[], Any]]:
    """What goes wrong, in the last process alone or in all."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    is_last = mesh.get_local_rank() == mesh.size() - 1
    case, untied = _words(), words(tied=False)

    def measured(
        model: nn.Module = case.objective.module,
        loss: Any = next_word_loss,
        batch: Any = None,
        **options: Any,
    ) -> Any:
        batch = rows_of(tokens(), mesh.get_local_rank(), mesh.size()) if batch is None else batch
        A = landscape.hessian(model, loss, batch, mesh=mesh, **options)
        return A @ torch.ones(A.num_local, dtype=A.dtype)

    def broken(model: nn.Module, batch: Tensor) -> Tensor:
        if is_last:
            raise OSError("this row cannot be read")
        return next_word_loss(model, batch)

    def branching(model: nn.Module, batch: Tensor) -> Tensor:
        return next_word_loss(model, batch) + model.blocks[0 if is_last else 1].up.weight.sum()

    calls = 0

    def later(model: nn.Module, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if is_last and calls > 2:
            raise RuntimeError("lost in a product")
        return next_word_loss(model, batch)

    def in_place(model: nn.Module, batch: Tensor) -> Tensor:
        with torch.no_grad():
            model.norm.weight.mul_(2.0)
        return next_word_loss(model, batch)

    def written_first(model: nn.Module, batch: Tensor) -> Tensor:
        with torch.no_grad():
            model.head.weight.mul_(2.0)
        return next_word_loss(model, batch)

    def written_last(model: nn.Module, batch: Tensor) -> Tensor:
        value = next_word_loss(model, batch)
        with torch.no_grad():
            model.head.weight.mul_(2.0)
        return value

    def rescaled(model: nn.Module, batch: Tensor) -> Tensor:
        rows = F.embedding(batch, model.table.weight, max_norm=0.1)
        return next_word_loss(model, batch) + rows.square().mean()

    def vectorised(model: nn.Module, batch: Tensor) -> Tensor:
        return torch.vmap(lambda row: next_word_loss(model, row[None]))(batch).mean()

    def jacobian(model: nn.Module, batch: Tensor) -> Tensor:
        x = torch.ones(WIDTH, dtype=torch.float64)
        return torch.func.jacrev(model.head)(x).sum() + next_word_loss(model, batch)

    def checkpointed(model: nn.Module, batch: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        return checkpoint(lambda t: next_word_loss(model, t), batch, use_reentrant=False)

    def changed_afterwards() -> None:
        inputs = torch.ones(2, LENGTH, WIDTH, dtype=torch.float64)

        def loss(model: nn.Module, batch: Tensor) -> Tensor:
            return (model.places * batch).square().mean()

        A = landscape.hessian(case.objective.module, loss, inputs, mesh=mesh, check=False)
        inputs.mul_(2.0)
        A @ torch.ones(A.num_local, dtype=A.dtype)

    def changing(model: nn.Module, batch: Tensor) -> Tensor:
        logits = model(batch[:2, :-1])
        squares = logits.square().mean()
        logits.detach().mul_(2.0)
        return squares

    class Wrong(torch.autograd.Function):
        """x, with the derivative of 2 x."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:
            return 2 * gradient

    def under_fully_shard() -> nn.Module:
        model = words()
        fully_shard(model.blocks[0].up, mesh=mesh)
        return model

    def with_dropout() -> nn.Module:
        model = words()
        model.add_module("drop", nn.Dropout(0.5))
        model.drop.train()
        return model

    return {
        "another model": lambda: measured(words(seed=3 if is_last else 0)),
        "another shape": lambda: measured(words(tied=not is_last)),
        "a loss that raises": lambda: measured(loss=broken),
        "a path of its own": lambda: measured(loss=branching),
        "a failure in a product": lambda: measured(loss=later, hvp="rebuilt", check=False),
        "an empty batch": lambda: measured(
            batch=torch.zeros(0, 5, dtype=torch.int64) if is_last else tokens(2)
        ),
        "no tensors": lambda: measured(batch="words" if is_last else tokens(2)),
        "a wrong product": lambda: measured(hvp="jvp"),
        "fully_shard": lambda: measured(under_fully_shard()),
        "dropout": lambda: measured(with_dropout()),
        "writing in place": lambda: measured(loss=in_place),
        "a batch changed afterwards": changed_afterwards,
        "a loss that changes what it saved": lambda: measured(loss=changing, check=False),
        "writing without gradients": lambda: measured(untied, written_first),
        "writing afterwards": lambda: measured(untied, written_last),
        "rescaling a table": lambda: measured(untied, rescaled),
        "vmap": lambda: measured(loss=vectorised),
        "jacrev": lambda: measured(loss=jacobian),
        "checkpointing": lambda: measured(loss=checkpointed),
        "a gradient that is wrong": lambda: measured(
            loss=lambda model, batch: Wrong.apply(next_word_loss(model, batch))
        ),
        "a random loss": lambda: measured(
            loss=lambda model, batch: next_word_loss(model, batch) * torch.rand(())
        ),
        "a vector that is not finite": lambda: _not_finite(measured, case, mesh),
        "max_memory": lambda: measured(max_memory=1),
        "a weight of one": lambda: _read_of_one(mesh),
        "a weight that cannot be lent": lambda: _read_what_cannot_be_lent(mesh),
        "to_scipy": lambda: _operator(case, mesh, check=False).to_scipy(),
        "two dimensions": lambda: landscape.hessian(
            case.objective.module,
            next_word_loss,
            tokens(),
            mesh=init_device_mesh("cpu", (1, mesh.size())),
        ),
        # After all that, the processes are still together.
        "afterwards": measured,
    }


def _failure(name: str, mesh: Any) -> str:
    """What a process says."""
    return _said(_failures(mesh)[name])


def _not_finite(measured: Any, case: Case, mesh: Any) -> None:
    A = _operator(case, mesh, check=False)
    v = torch.zeros(A.num_local, dtype=A.dtype)
    if mesh.get_local_rank() == 0:
        v[0] = float("nan")
    A @ v


def _solved(name: str, mesh: Any) -> dict[str, Any]:
    from landscape.linalg import krylov

    # Two processes take the fused kernel, one and three its twin.
    krylov._FUSED_LENGTH = {torch.float64: 1 if mesh.size() == 2 else 1_000_000}
    return solved(_operator(CASES[name](), mesh))


FAILURES = (*ALONE, *REPEATED, "a weight that cannot be lent", "afterwards")
SOLVED = ("untied words without blocks", "words", "untied words")
VARIANTS: dict[str, Callable[[Any], Tensor]] = {
    "uneven rows, rebuilt": _rebuilt_on_uneven_rows,
    "gpt2 on uneven rows": _gpt2_on_uneven_rows,
    "DTensors, after the model has gone": _of_dtensors,
    "after a call with other tensors": _after_a_call_with_other_tensors,
    "a weight kept by one process": _with_a_weight_kept_by_one,
    "at other values": _at_other_values,
    **{way: partial(_with_a_single_row, way=way) for way in OF_ONE_ROW},
}
# What a process does, by stage and name.
STAGES: dict[str, dict[str, Callable[[Any], Any]]] = {
    "solved": {name: partial(_solved, name) for name in SOLVED},
    "products": {name: partial(_products, name) for name in CASES},
    "variants": VARIANTS,
    "differences": {name: partial(_differences, name) for name in ("float64", "float32")},
    "preconditioned": {
        "words": partial(_preconditioned, tied=True),
        "untied words": partial(_preconditioned, tied=False),
    },
    "held": {"by the graph": _held, "by operators": _freed},
    "lent": {"read alone": _read_alone, "of two evaluations": _read_of_two},
    "failures": {name: partial(_failure, name) for name in FAILURES},
}
# Whose rows are shared out by hand.
ONLY_TWO = ("gpt2 on uneven rows",)
# What is done in each run of the tests: of three processes, one of which has no rows of some
# parameters, what two cannot show.
EVERY_TIME: dict[int, dict[str, Sequence[str]]] = {
    1: {"solved": SOLVED[:1]},
    2: {
        "solved": SOLVED[:1],
        "products": (
            "words",
            "untied words with weight decay",
            "square blocks of tokens",
            "one block of words",
            "complex weights",
            "vit",
            "gpt2, tokens in chunks",
        ),
        "variants": tuple(VARIANTS),
        "differences": ("float64", "float32"),
        "preconditioned": ("words", "untied words"),
        "held": ("by the graph", "by operators"),
        "lent": ("read alone", "of two evaluations"),
        "failures": FAILURES,
    },
    3: {
        "solved": SOLVED[:1],
        "products": ("words",),
        "variants": ("uneven rows, rebuilt", "a single row"),
        "preconditioned": ("words",),
        "lent": ("read alone",),
        "failures": (
            "another model",
            "a path of its own",
            "a loss that raises",
            "a weight of one",
            "a weight that cannot be lent",
            "afterwards",
        ),
    },
}


def is_done(size: int, stage: str, name: str, *, every_time: bool) -> bool:
    """Whether this is part of every run, or of the slow one."""
    return every_time == (name in EVERY_TIME[size].get(stage, ()))


def main(folder: str, which: str, sizes: Sequence[int] = (1, 2, 3)) -> None:
    """Fork all processes, and wait for them."""
    import open_clip  # noqa: F401
    import torch.distributed.fsdp
    import torch.distributed.tensor

    import landscape.sharded.operator  # noqa: F401
    from tests import conftest  # noqa: F401
    from tests.helpers import (
        tiny_language_models,
        toy_clip,  # noqa: F401
    )

    tiny_language_models.configs()
    torch.set_num_threads(1)
    children = []
    for size in sizes:
        for rank in range(size):
            if not (child := os.fork()):
                _run_as(Path(folder), which, rank, size)
            children.append(child)
    for child in children:
        os.waitpid(child, 0)


def _run_as(folder: Path, which: str, rank: int, size: int) -> None:
    """Be the process of a rank, and end."""
    log = os.open(folder / f"{size}.{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        _measure(folder, which, rank, size)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _measure(folder: Path, which: str, rank: int, size: int) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from landscape.sharded import weights

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
    # Of these small models all weights would count as small; so a part is gathered together, and a
    # part one by one.
    weights._SMALL = 100
    store = f"file://{folder}/{size}.store"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=size, timeout=timedelta(seconds=120)
    )
    mesh = init_device_mesh("cpu", (size,))
    seen: dict[str, dict[str, Any]] = {}
    for stage, functions in STAGES.items():
        if size == 1 and stage != "solved":
            continue
        for name, function in functions.items():
            if name in ONLY_TWO and size != 2:
                continue
            if is_done(size, stage, name, every_time=which == "every time"):
                before = sum(os.times()[:2])
                seen.setdefault(stage, {})[name] = function(mesh)
                print(f"{sum(os.times()[:2]) - before:.2f} s of CPU: {stage}, {name}", flush=True)
    torch.save(seen, folder / f"{size}.{rank}.pt")
    dist.destroy_process_group()


def main_on_gpu(folder: str) -> None:
    """The same over all GPUs of this machine, a mesh of one where there is only one."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from landscape.sharded import weights

    weights._SMALL = 100
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    mesh = init_device_mesh("cuda", (size,))
    model = words().cuda()
    A = landscape.hessian(model, next_word_loss, rows_of(tokens(), rank, size).cuda(), mesh=mesh)
    products = A.space.gathered(A @ A.space.cut(directions(A.n)).cuda())
    values = landscape.eigsh(A, k=3, tol=1e-6).values.tolist()
    torch.save({"products": products, "values": values}, Path(folder) / f"{size}.{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[2:] == ["cuda"]:
        main_on_gpu(sys.argv[1])
    else:
        main(sys.argv[1], sys.argv[2])
