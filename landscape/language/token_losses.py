r"""Cross-entropies of tokens from hidden states, in chunks of tokens.

Memory therefore does not grow with tokens x vocabulary.

The logits of a chunk are computed by the model's head where they are needed, and freed: in the
forward pass, in the backward pass and in the backward pass of that. With l the losses of the tokens
and c their cotangents, a backward pass is

    g(c, h, w) = sum over chunks of (dl/d(h, w))^T c,

a function of its own whose backward pass differentiates <g, direction> chunk by chunk. That is
exact to second order; a third derivative is refused. Chunks add up like rows of a batch, as each
loss depends on its own hidden state alone. Gradient checkpointing would recompute chunks too, but
drops terms of the second derivative or keeps the logits of all chunks while it is differentiated
twice.

Shapes: t = tokens, d = width of the hidden states, v = size of the vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

# Logits that are kept at a time: 16 MiB in float32, of which a second derivative takes some eight
# copies.
MAX_LOGITS = 2**22

# Logits (t, v) of hidden states (t, d), by tensors by name: the weights of the head.
Head = Callable[[Mapping[str, Tensor], Float[Tensor, "t d"]], Float[Tensor, "t v"]]


def token_losses(
    head: Head,
    weights: Mapping[str, Tensor],
    hidden: Float[Tensor, "t d"],
    targets: Int64[Tensor, " t"],
    *,
    vocabulary: int,
    max_logits: int = MAX_LOGITS,
) -> Float[Tensor, " t"]:
    """Compute every token's cross-entropy in nats, in chunks.

    At most `max_logits` logits are in memory at a time.

    Args:
        head: Logits of hidden states. Row i of them may depend on row i of the hidden states and on
            `weights` alone.
        weights: All tensors that the logits are differentiated by, beside the hidden states.
        vocabulary: v, by which the size of a chunk is chosen; no chunk is smaller than one token.

    Returns:
        One loss per token, differentiable twice by `hidden` and `weights`. Where all logits fit, or
        a transform of torch.func is at work, they are computed at once.

    Raises:
        ValueError: If `max_logits` is not positive.
    """
    if max_logits < 1:
        raise ValueError(f"max_logits must be at least 1, got {max_logits}.")
    size = max(1, max_logits // vocabulary)
    # Transforms of torch.func cannot look into a Function that takes derivatives of its own.
    if size >= len(targets) or torch._C._functorch.maybe_current_level() is not None:
        return F.cross_entropy(head(weights, hidden), targets, reduction="none")
    chunks = _Chunks(head, tuple(weights), size)
    losses: Tensor = _TokenLosses.apply(chunks, targets, hidden, *weights.values())
    return losses


@dataclass(frozen=True)
class _Chunks:
    """The head and the chunk size by which losses are computed.

    What is differentiated comes in as `inputs`: hidden states, then weights.
    """

    head: Head
    names: tuple[str, ...]
    size: int

    def parts(self, num_tokens: int) -> Iterator[slice]:
        return (slice(start, start + self.size) for start in range(0, num_tokens, self.size))

    def losses(self, targets: Tensor, inputs: Sequence[Tensor]) -> Float[Tensor, " t"]:
        hidden, *weights = inputs
        return F.cross_entropy(
            self.head(dict(zip(self.names, weights)), hidden), targets, reduction="none"
        )

    @staticmethod
    def leaves(part: slice, inputs: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
        """Detach a chunk's hidden states and the weights as new leaves."""
        pieces = [inputs[0][part], *inputs[1:]]
        return [piece.detach().requires_grad_(needed) for piece, needed in zip(pieces, wanted)]


class _TokenLosses(torch.autograd.Function):
    """l(h, w)."""

    @staticmethod
    def forward(ctx: Any, chunks: _Chunks, targets: Tensor, *inputs: Tensor) -> Tensor:
        ctx.chunks = chunks
        ctx.save_for_backward(targets, *inputs)
        hidden, weights = inputs[0], inputs[1:]
        parts = chunks.parts(len(targets))
        return torch.cat([chunks.losses(targets[part], (hidden[part], *weights)) for part in parts])

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor) -> Any:
        targets, *inputs = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        return (
            None,
            None,
            *_spread(_Pullback.apply(ctx.chunks, wanted, targets, cotangents, *inputs), wanted),
        )


class _Pullback(torch.autograd.Function):
    """g(c, h, w): the derivatives of <c, l> by those inputs that are `wanted`."""

    @staticmethod
    def forward(
        ctx: Any,
        chunks: _Chunks,
        wanted: Sequence[bool],
        targets: Tensor,
        cotangents: Tensor,
        *inputs: Tensor,
    ) -> Any:
        ctx.chunks, ctx.wanted = chunks, wanted
        ctx.save_for_backward(targets, cotangents, *inputs)
        total = _Total(inputs, wanted, 1)
        for part in chunks.parts(len(targets)):
            leaves = chunks.leaves(part, inputs, wanted)
            with torch.enable_grad():
                losses = chunks.losses(targets[part], leaves)
            total.add(
                part,
                torch.autograd.grad(
                    losses, _chosen(leaves, wanted), cotangents[part], allow_unused=True
                ),
            )
        return tuple(total.tensors)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor) -> Any:
        # Marked once_differentiable, terms of a third derivative could go missing without an error.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "chunks of tokens have two derivatives; for a third one give max_logits the size "
                "of all logits."
            )
        targets, cotangents, *inputs = ctx.saved_tensors
        of_cotangents, studied = ctx.needs_input_grad[3], ctx.needs_input_grad[4:]
        points, needed = [cotangents, *inputs], [of_cotangents, *studied]
        total = _Total(points, needed, 2)
        for part in ctx.chunks.parts(len(targets)):
            # The pullback is of all that was wanted of it, its derivative by what is needed of
            # that.
            leaves = ctx.chunks.leaves(part, inputs, [a or b for a, b in zip(ctx.wanted, studied)])
            with torch.enable_grad():
                seeds = cotangents[part].detach().requires_grad_()
                losses = ctx.chunks.losses(targets[part], leaves)
                first = torch.autograd.grad(
                    losses, _chosen(leaves, ctx.wanted), seeds, create_graph=True, allow_unused=True
                )
            pairs = [
                (gradient, direction[part] if index == 0 and ctx.wanted[0] else direction)
                for index, (gradient, direction) in enumerate(zip(first, directions))
                if gradient is not None and gradient.requires_grad
            ]
            sources = _chosen([seeds, *leaves], needed)
            total.add(part, _derivatives(pairs, sources))
        return None, None, None, *_spread(total.tensors, needed)


class _Total:
    """Sums of derivatives over chunks.

    Those that have a row for each token are placed in its row, the others are added.

    Args:
        points: Where the derivatives are taken.
        num_rowwise: So many of the first points have a row for each token.
    """

    def __init__(self, points: Sequence[Tensor], wanted: Sequence[bool], num_rowwise: int) -> None:
        self._rowwise = [index < num_rowwise for index, needed in enumerate(wanted) if needed]
        self._like = _chosen(points, wanted)
        self._pieces: list[list[Tensor]] = [[] for _ in self._like]
        # Indices of sums that belong to this object alone, and so may be changed in place.
        self._own: set[int] = set()

    def add(self, part: slice, derivatives: Sequence[Tensor | None]) -> None:
        """Add the derivatives of a chunk, in the order of `wanted`."""
        for index, derivative in enumerate(derivatives):
            if self._rowwise[index]:
                self._pieces[index].append(
                    torch.zeros_like(self._like[index][part]) if derivative is None else derivative
                )
            elif derivative is not None:
                self._add(index, derivative)

    def _add(self, index: int, derivative: Tensor) -> None:
        pieces = self._pieces[index]
        if not pieces:
            pieces.append(derivative)
        elif index in self._own:
            pieces[0].add_(derivative)
        else:
            pieces[0] = pieces[0] + derivative
            self._own.add(index)

    @property
    def tensors(self) -> list[Tensor]:
        """Return the sums; zeros where nothing was added."""
        return [
            torch.zeros_like(like) if not pieces else torch.cat(pieces) if rowwise else pieces[0]
            for like, pieces, rowwise in zip(self._like, self._pieces, self._rowwise)
        ]


def _derivatives(
    pairs: Sequence[tuple[Tensor, Tensor]], sources: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Differentiate the sum of <gradient, direction> over `pairs`."""
    if not pairs:
        return [None] * len(sources)
    return torch.autograd.grad(
        [g for g, _ in pairs], sources, [v for _, v in pairs], allow_unused=True
    )


def _chosen(values: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
    return [value for value, needed in zip(values, wanted) if needed]


def _spread(values: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
    """Put values in the places that are wanted, None in the others."""
    waiting = iter(values)
    return [next(waiting) if needed else None for needed in wanted]
