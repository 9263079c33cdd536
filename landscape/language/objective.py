"""The next-token loss of a causal language model, as a function of chosen parameters.

Shapes: b = blocks of a batch, l = tokens of a block, d = width of the hidden states, v = size of
the vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from landscape.curvature.objective import (
    Batch,
    Objective,
    Params,
    call_with_parameters,
    select_parameters,
)
from landscape.errors import DataError, ModelError, ObjectiveError, first_line
from landscape.language.model import CONFIG, context_of, vocabulary_of
from landscape.language.plain import checked_lookups, plain_paths
from landscape.language.token_losses import MAX_LOGITS, token_losses

# Most tokens of the block by which two ways to a loss are compared, and the size of its hidden
# states beside a unit of rounding: large, so that a function of the logits such as a soft cap
# shows.
_NUM_COMPARED = 8
_LARGE = 10.0
_ROUNDINGS = 1000
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class LossPath:
    """The way in which the loss of a model is computed.

    Attributes:
        vocabulary: v, the number of logits of a token.
        max_logits: Logits that are kept at a time; None where the model computes all of them.
        reason: Why the model computes all; "" where it does not.
    """

    vocabulary: int
    max_logits: int | None = MAX_LOGITS
    reason: str = ""

    def __str__(self) -> str:
        return (
            "some tokens at a time"
            if self.max_logits is not None
            else f"all at once, by the model ({self.reason})"
        )


def causal_lm_objective(
    model: nn.Module,
    *,
    parameters: str | Sequence[str] = "all",
    weight_decay: float = 0.0,
    max_logits: int | None = None,
    path: LossPath | None = None,
) -> tuple[Objective, Params]:
    """Build the mean next-token cross-entropy of one batch, in nats.

    The batch is {"tokens": (b, l)}, which makes l - 1 predictions a block.

    Every token counts: a batch with other entries, such as labels or an attention mask, is refused.

    The value is that of the model's own loss with labels equal to its inputs, without the auxiliary
    loss of a router. Logits are computed for some tokens at a time, so that memory does not grow
    with tokens x vocabulary; see `token_losses`. The features of a block are the mean loss of its
    tokens (b,), so row chunks see some blocks at a time.

    Args:
        model: A causal language model of transformers, in eval mode, with attention in its plain
            form; see `load_causal_lm`.
        parameters: "all", or shell patterns of names.
        weight_decay: Coefficient of the L2 term over the chosen parameters.
        max_logits: Logits in memory at a time, by default 2^22.
        path: The result of `loss_path` for the model, with its own `max_logits`; by default it is
            called.

    Raises:
        ModelError: If the model's own loss is another one, it reads tokens ahead, or its forward
            pass fails.
        ObjectiveError: If the model is in training mode, or a pattern matches no parameter.
        ValueError: If both `max_logits` and `path` are given.
    """
    if path is not None and max_logits is not None:
        raise ValueError(
            f"max_logits is {max_logits}, but path says {path.max_logits} already, and only one "
            "can hold. Give max_logits to loss_path, or leave path out."
        )
    _refuse_training(model)
    path = (
        loss_path(model, max_logits=MAX_LOGITS if max_logits is None else max_logits)
        if path is None
        else path
    )

    def forward(params: Params, batch: Batch) -> Float[Tensor, " b"]:
        tokens = checked_tokens(batch)
        return call_with_parameters(model, params, _plain_block_losses, tokens, path)

    def loss(features: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, ""]:
        return features.mean()

    def rebound(other: nn.Module) -> Objective:
        return causal_lm_objective(
            other, parameters=parameters, weight_decay=weight_decay, path=path
        )[0]

    chosen = select_parameters(
        model, parameters if isinstance(parameters, str) else list(parameters)
    )
    return Objective(forward, loss, weight_decay, model, rowwise=True, rebound=rebound), chosen


def checked_tokens(batch: Batch) -> Int64[Tensor, "b l"]:
    """Return the tokens of a batch, of any integer type, after checks.

    Raises:
        ObjectiveError: If there are none, too few to predict one, or other entries beside them.
    """
    tokens = batch.get("tokens") if isinstance(batch, Mapping) else None
    if (
        not isinstance(tokens, Tensor)
        or tokens.ndim != 2
        or tokens.dtype not in _WHOLE
        or tokens.shape[1] < 2
    ):
        got = (
            f"{tokens.dtype} of shape {tuple(tokens.shape)}"
            if isinstance(tokens, Tensor)
            else type(batch).__name__
        )
        raise ObjectiveError(
            f'a batch of text is {{"tokens": (blocks, tokens >= 2)}} of whole numbers, got {got}.'
        )
    if others := sorted(set(batch) - {"tokens"}):
        raise ObjectiveError(
            f'a batch of text is {{"tokens": ...}} alone, got {", ".join(others)} too, but every '
            "token counts here, so another loss would be measured. Cut the text into full blocks "
            "without padding and leave these out; in Python, landscape.hessian(model, loss, batch) "
            "takes any loss."
        )
    return tokens.long()


def _refuse_training(model: nn.Module) -> None:
    if any(part.training for part in model.modules()):
        raise ObjectiveError(
            f"{type(model).__name__}: is in training mode, in which dropout and the like change "
            "the loss at random or by the batch, so it is no function of the weights alone. Call "
            "model.eval() first."
        )


def loss_path(model: nn.Module, *, max_logits: int = MAX_LOGITS) -> LossPath:
    """Find out whether logits can be computed in chunks of tokens.

    The model's own loss decides.

    Compared are both losses of a short block of tokens, of hidden states that are large, since a
    function of the logits that is not known here, such as a soft cap, may do nothing to small ones.

    Raises:
        ModelError: If the model's own loss is not the mean cross-entropy of the next tokens of its
            logits, a prediction depends on tokens ahead, or its forward pass fails.
        ObjectiveError: If the model is in training mode.
    """
    _refuse_training(model)
    tokens = _probe(model)
    _check_causal(model, tokens)
    with torch.no_grad(), plain_paths(model), _large_hidden_states(model):
        own = _own(model, tokens)
        path = LossPath(own.logits.shape[-1], max_logits)
        expected = own.loss.item()
        # One token at a time, whatever the size of the vocabulary.
        tried = LossPath(path.vocabulary, 1)
        try:
            value = _block_losses(model, tokens, tried).item()
            reason = (
                "" if _agree(model, value, expected) else "its head does more than is known here"
            )
        except (AttributeError, TypeError, KeyError, IndexError, RuntimeError) as error:
            reason = f"its hidden states are not found: {type(error).__name__}"
        if not reason:
            return path
        path = LossPath(path.vocabulary, None, reason)
        check_own_loss(model, tokens, path)
        return path


def _probe(model: Any) -> Int64[Tensor, "1 l"]:
    """Build a short block of valid tokens, no longer than the model reads."""
    length = min(_NUM_COMPARED, context_of(model.config) or _NUM_COMPARED)
    return torch.arange(length, device=next(model.parameters()).device)[None] % vocabulary_of(model)


def _check_causal(model: nn.Module, tokens: Int64[Tensor, "1 l"]) -> None:
    """Check that logits stay when tokens behind them change.

    Raises:
        ModelError: If they do not, or are not finite.
    """
    kept = tokens.shape[1] // 2
    changed = tokens.clone()
    changed[:, kept:] = (changed[:, kept:] + 1) % vocabulary_of(model)
    before, after = (_tried(model, block)[:, :kept] for block in (tokens, changed))
    if not torch.isfinite(before).all():
        raise ModelError(
            f"{type(model).__name__}: its predictions are not finite with the weights that it has, "
            "so nothing shows how its loss is computed. In Python, landscape.hessian(model, loss, "
            "batch) takes any loss."
        )
    # Of a causal model all of these are equal, but where experts sum other groups of tokens.
    bound = _ROUNDINGS * torch.finfo(before.dtype).eps * before.abs().max().item()
    if not (before - after).abs().max().item() <= bound:
        raise ModelError(
            f"{type(model).__name__}: its prediction of a token reads that token and later ones, "
            "as in a masked language model, so it has no next-token loss. In Python, "
            "landscape.hessian(model, loss, batch) takes any loss; if it was trained as a decoder, "
            "set is_decoder to true in its config.json."
        )


def _tried(model: nn.Module, tokens: Int64[Tensor, "b l"]) -> Float[Tensor, "b l v"]:
    """Compute logits by the model's own forward pass.

    Raises:
        ModelError: If that fails.
    """
    try:
        with torch.no_grad(), plain_paths(model), checked_lookups():
            logits: Tensor = _own(model, tokens).logits
            return logits
    except torch.OutOfMemoryError:
        raise
    # Whatever the code of a model raises.
    except Exception as error:
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        raise ModelError(
            f"{type(model).__name__}: its own forward pass fails in {dtype} on a block of "
            f"{tokens.shape[1]} tokens ({type(error).__name__}: {first_line(error)[:200]}), so it "
            f"has no loss to differentiate. Check its {CONFIG}, or take "
            f"{'float32 or ' if dtype == 'float64' else ''}another version of transformers."
        ) from error


def check_block(
    model: nn.Module, tokens: Int64[Tensor, "b l"], path: LossPath, *, name: str
) -> None:
    """Check that a model reads blocks of the measured length.

    Raises:
        DataError: If not.
    """
    try:
        with torch.no_grad(), plain_paths(model), checked_lookups():
            _block_losses(model, tokens, path)
    except torch.OutOfMemoryError:
        raise
    # Whatever the code of a model raises, after it has read a short block.
    except Exception as error:
        raise DataError(
            f"data.block_size is {tokens.shape[1]}, but {name} cannot read a block of that length "
            f"({type(error).__name__}: {first_line(error)[:200]}). Lower block_size: where "
            "positions are counted from that of padding, fewer tokens fit than the table of "
            "positions has rows."
        ) from error


def check_own_loss(model: nn.Module, tokens: Int64[Tensor, "b l"], path: LossPath) -> None:
    """Check that a loss computed on a path is the model's own.

    Raises:
        ModelError: If not.
    """
    with torch.no_grad(), plain_paths(model):
        expected = _own(model, tokens).loss.item()
        value = _block_losses(model, tokens, path).mean().item()
    if not _agree(model, value, expected):
        raise ModelError(
            f"{type(model).__name__}: its own loss is {expected:.9g}, but the mean cross-entropy "
            f"of the next tokens is {value:.9g}, so another function would be measured than was "
            "trained. In Python, landscape.hessian(model, loss, batch) takes any loss."
        )


def _agree(model: nn.Module, value: float, expected: float) -> bool:
    # The model may compute its loss in float32 alone.
    return abs(value - expected) <= _ROUNDINGS * torch.finfo(
        next(model.parameters()).dtype
    ).eps * max(1.0, abs(expected))


def _own(model: nn.Module, tokens: Int64[Tensor, "b l"]) -> Any:
    return model(input_ids=tokens, labels=tokens, use_cache=False, return_dict=True)


@contextmanager
def _large_hidden_states(model: nn.Module) -> Iterator[None]:
    """Enlarge the hidden states that a model's base gives to its head.

    This holds in the section.
    """

    def enlarge(part: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0]
        large = hidden * (_LARGE / hidden.square().mean().sqrt().clamp(min=1e-6))
        if isinstance(output, tuple):
            return (large, *output[1:])
        output["last_hidden_state"] = large
        return output

    base: Any = model.base_model
    handle = base.register_forward_hook(enlarge)
    try:
        yield
    finally:
        handle.remove()


def _plain_block_losses(
    model: Any, tokens: Int64[Tensor, "b l"], path: LossPath
) -> Float[Tensor, " b"]:
    # Inside of the evaluation, where the model has the type of the parameters that it is evaluated
    # with.
    with plain_paths(model):
        return _block_losses(model, tokens, path)


def _block_losses(model: Any, tokens: Int64[Tensor, "b l"], path: LossPath) -> Float[Tensor, " b"]:
    """Compute the mean loss of the tokens of each block."""
    targets = tokens[:, 1:]
    if path.max_logits is None:
        logits = model(input_ids=tokens, use_cache=False, return_dict=True).logits[:, :-1]
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view(targets.shape).mean(dim=1)
    hidden = model.base_model(input_ids=tokens, use_cache=False, return_dict=True)[0][:, :-1]
    part = model.get_output_embeddings()
    # As they are now: in a derivative, the parameters under study stand in the places of the
    # model's own.
    weights = {**dict(part.named_parameters()), **dict(part.named_buffers())}
    losses = token_losses(
        partial(_logits, part, _functions_of_logits(model.config)),
        weights,
        hidden.flatten(0, 1),
        targets.flatten(),
        vocabulary=path.vocabulary,
        max_logits=path.max_logits,
    )
    return losses.view(targets.shape).mean(dim=1)


def _logits(
    part: nn.Module,
    functions: Mapping[str, float],
    weights: Mapping[str, Tensor],
    hidden: Float[Tensor, "t d"],
) -> Float[Tensor, "t v"]:
    """Compute logits by the output layer's own forward pass.

    Then apply what the model does with its logits.
    """
    logits: Tensor = functional_call(part, dict(weights), (hidden,))
    if "multiplied" in functions:
        logits = logits * functions["multiplied"]
    if "capped" in functions:
        logits = torch.tanh(logits / functions["capped"]) * functions["capped"]
    return logits


def _functions_of_logits(config: Any) -> dict[str, float]:
    """List known functions that models apply to logits.

    They are read from names in the configurations; `loss_path` tests whether they are all.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    functions = {}
    # Cohere multiplies, Granite divides.
    scale = getattr(text, "logit_scale", None)
    divisor = getattr(text, "logits_scaling", None)
    if isinstance(scale, (int, float)) or isinstance(divisor, (int, float)):
        functions["multiplied"] = float(scale if isinstance(scale, (int, float)) else 1.0) / float(
            divisor or 1.0
        )
    cap = getattr(text, "final_logit_softcapping", None)
    if isinstance(cap, (int, float)):
        functions["capped"] = float(cap)
    return functions
