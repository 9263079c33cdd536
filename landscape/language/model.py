"""Causal language models of transformers whose losses can be differentiated twice.

No code of a folder is run.
"""

import inspect
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape.clip.checkpoint import load_checkpoint
from landscape.clip.meta_model import convert_around_meta, parameters_on_meta
from landscape.errors import MissingDependencyError, ModelError, first_line
from landscape.language.plain import names_of_kernels

CONFIG = "config.json"
# Seed of random weights whose values do not matter.
_ANY_SEED = 0
_REMOTE = "AutoModelForCausalLM"
_CHECK = f"Check the name, or its {CONFIG}."


def import_transformers() -> Any:
    """Import transformers, and explain how to install it if it is missing.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            "Language models are those of the package transformers, which is not installed. "
            "Install it with `pip install transformers`."
        ) from error
    return transformers


def load_causal_lm(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> nn.Module:
    """Load a causal language model of transformers for second derivatives.

    It is in eval mode, with attention in its plain form.

    Args:
        source: A folder with config.json and weights, as `save_pretrained` and the Trainer write
            it, or a name on the hub.
        dtype: float32 or float64; stored weights are converted.
        seed: Draw random weights instead of reading any.

    Raises:
        MissingDependencyError: If transformers is not installed.
        ModelError: If there is no such model, or it needs code of its own.
        CheckpointError: If the weights cannot be read, or are not exactly those of the model.
    """
    config = read_config(source)
    if seed is not None or Path(source).is_dir():
        model = build_causal_lm(
            config, dtype=dtype, device=device, seed=_ANY_SEED if seed is None else seed
        )
        if seed is None:
            load_checkpoint(model, Path(source))
        return model
    transformers = import_transformers()
    with _quiet(), _as_model_error(source):
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            str(source),
            config=config,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
            **_PLAIN,
        )
    if lacking := sorted(info["missing_keys"]):
        raise ModelError(
            f"{source}: lacks the weights of {len(lacking)} tensors ({lacking[0]!r}, ...), which "
            "transformers would draw at random. Name another model."
        )
    return _prepared(model.to(device))


_PLAIN: dict[str, Any] = {"attn_implementation": "eager", "experts_implementation": "eager"}


def read_config(source: str | Path) -> Any:
    """Read the configuration of a causal language model.

    Raises:
        ModelError: If there is none, it needs code of its own, or its weights are quantised.
    """
    transformers = import_transformers()
    folder = Path(source)
    if folder.exists() or str(source).startswith((".", "/", "~")):
        if not (folder / CONFIG).is_file():
            raise ModelError(
                f"{source}: has no {CONFIG}, which says what the model is. Name the folder that "
                "save_pretrained or the Trainer wrote."
            )
        _refuse_remote_code(folder, _contents(folder / CONFIG), transformers)
    with _quiet(), _as_model_error(source):
        config = transformers.AutoConfig.from_pretrained(str(source), trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{source}: its weights are quantised, and a whole number has no derivative. Take the "
            "model as it was before that."
        )
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{source}: {config.model_type!r} is no causal language model of transformers "
            f"{transformers.__version__}. In Python, landscape.hessian(model, loss, batch) takes "
            "any model."
        )
    return config


def _contents(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: is no readable JSON ({first_line(error)}), so it describes no model."
        ) from error
    if not isinstance(contents, dict):
        raise ModelError(f"{path}: describes no model: values by name are expected.")
    return contents


def _refuse_remote_code(folder: Path, contents: Mapping[str, Any], transformers: Any) -> None:
    """Refuse a model whose code lies in its folder.

    A model that transformers knows is built by the code of transformers.
    """
    code = contents.get("auto_map")
    if not isinstance(code, dict) or contents.get("model_type") in transformers.CONFIG_MAPPING:
        return
    raise ModelError(
        f"{folder}: is a model of its own code "
        f"({code.get(_REMOTE, next(iter(code.values()), '?'))}, for trust_remote_code), and no "
        "code of a folder is run here. Build it in Python and call landscape.hessian(model, loss, "
        "batch)."
    )


def build_causal_lm(
    config: Any,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = _ANY_SEED,
    on_meta: bool = False,
) -> nn.Module:
    """Build a model with random weights of a seed.

    Args:
        on_meta: Build it with parameters on the meta device, which have no numbers, and real
            buffers.

    Raises:
        ModelError: If transformers cannot build it, or not without numbers.
    """
    transformers = import_transformers()
    section = parameters_on_meta() if on_meta else nullcontext()
    advice = (
        f"Check its {CONFIG}, or measure it in one process, without --shards."
        if on_meta
        else _CHECK
    )
    with (
        torch.random.fork_rng(devices=[]),
        _quiet(),
        _as_model_error(config.model_type, advice),
        section,
    ):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=False, **_PLAIN
        )
    if on_meta:
        return _prepared(convert_around_meta(model, dtype=dtype, device=device))
    return _prepared(model.to(device=device, dtype=dtype))


def _prepared(model: nn.Module) -> nn.Module:
    """Set what decides which derivatives exist, but changes no loss."""
    model.eval()
    config: Any = model.config
    config.use_cache = False
    if hasattr(config, "output_router_logits"):
        # Otherwise the model's own loss holds what balances experts.
        config.output_router_logits = False
    for part in model.modules():
        if isinstance(part, nn.Embedding) and not _reads_padding(type(part)):
            # It changes no output, and makes the gradient of one row no derivative.
            part.padding_idx = None
    return model


def _reads_padding(kind: type[nn.Embedding]) -> bool:
    """Tell whether a table computes with `padding_idx`.

    Some tables of positions count from it.
    """
    own = kind.__mro__[: kind.__mro__.index(nn.Embedding)]
    members = [
        value
        for part in own
        for name, value in vars(part).items()
        if name != "__init__" and callable(value)
    ]
    functions = map(inspect.unwrap, members)
    return any(
        "padding_idx" in function.__code__.co_names
        for function in functions
        if inspect.isfunction(function)
    )


def vocabulary_of(model: nn.Module) -> int:
    """Return the number of tokens that a model can read."""
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    config: Any = model.config
    return int(getattr(table, "num_embeddings", None) or config.get_text_config().vocab_size)


def context_of(config: Any) -> int | None:
    """Return the most tokens that a configuration allows.

    This is the length of its table of positions, or what its rotations were made for.

    A model may read fewer, as where positions are counted from that of padding.
    """
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        # -1 where there is no limit.
        if isinstance(limit := getattr(text, name, None), int) and limit > 0:
            return limit
    return None


def described(model: nn.Module) -> dict[str, list[Any]]:
    """Describe what differs from training, as JSON values.

    By name, the value and who says so.
    """
    config: Any = model.config
    used: dict[str, list[Any]] = {"attention": ["eager", "landscape"]}
    if getattr(model, "_can_set_experts_implementation", lambda: False)():
        used["experts"] = ["eager", "landscape"]
    if names_of_kernels(model):
        used["kernels"] = ["PyTorch's", "landscape"]
    coefficient = getattr(config, "router_aux_loss_coef", None)
    if coefficient:
        used["router_aux_loss"] = ["left out", "landscape"]
    if next(model.parameters()).dtype == torch.float64:
        used["casts_to_float32"] = ["left out", "landscape"]
    return used


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages of transformers about building a model."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _as_model_error(source: Any, advice: str = _CHECK) -> Iterator[None]:
    """Convert what transformers raises for an unbuildable model to one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{source}: transformers cannot build it ({reason}). {advice}") from error
