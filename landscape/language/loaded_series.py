"""A loaded series of language models: model, loss and blocks of text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape import sharded, threads
from landscape.clip.checkpoint import CheckpointInfo, check_fit
from landscape.clip.loaded_series import DTYPES, Evaluate, LoadedSeries, called_with
from landscape.curvature import Objective, Params
from landscape.curvature.guards import check_twice_differentiable
from landscape.errors import CheckpointError, ManifestError, ModelError
from landscape.language.model import (
    build_causal_lm,
    context_of,
    described,
    import_transformers,
    read_config,
    vocabulary_of,
)
from landscape.language.objective import (
    LossPath,
    causal_lm_objective,
    check_block,
    check_own_loss,
    loss_path,
)
from landscape.language.text import TokenBatches, check_tokens, read_tokens, token_batches
from landscape.manifest import Checkpoint, CheckpointSeries, HessianSettings, Manifest
from landscape.manifest.language import is_step_folder

_STATE = "trainer_state.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class LanguageSeries(LoadedSeries):
    """A causal language model with the token blocks that are measured.

    Attributes:
        path: How its loss is computed.
    """

    batches: TokenBatches
    path: LossPath = field(default_factory=lambda: LossPath(1))

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        series: CheckpointSeries,
        pairs: Any,
        *,
        device: torch.device,
        on_meta: bool = False,
    ) -> "LanguageSeries":
        """Build the model of a series; check that the wanted Hessian exists.

        The manifest says which Hessian is wanted.

        Args:
            pairs: Not used: tokens are those of the series' own tokenizer.
            on_meta: Build it without numbers, for processes that hold parts of it. How its loss is
                computed is then found out with random weights that are made when a layer reads
                them.

        Raises:
            MissingDependencyError: If transformers is not installed.
            ModelError: If the model is none of transformers' causal language models, has a loss of
                its own, or reads ahead.
            ManifestError: If more eigenvalues are asked for than there are parameters.
            ObjectiveError: If a pattern matches no parameter.
            DataError: If the blocks cannot be drawn, or do not fit the model.
        """
        hessian, where = manifest.hessian, _folder_of(series)
        config = read_config(where)
        batches = _batches(manifest, series, where)
        model = build_causal_lm(config, dtype=DTYPES[hessian.dtype], device=device, on_meta=on_meta)
        threads.fit(model)
        check_twice_differentiable(model)
        evaluate = _with_random_weights(model, device) if on_meta else called_with(model)
        path = evaluate(loss_path)
        vocabulary, context = vocabulary_of(model), context_of(config)
        check_tokens(
            batches,
            vocabulary=vocabulary,
            context=context,
            settings=manifest.data,
            model=series.model,
        )
        evaluate(partial(check_block, name=series.model), batches[0]["tokens"][:1].to(device), path)
        objective, params = _objective(model, hessian, path)
        num_params = sum(parameter.numel() for parameter in params.values())
        if hessian.k > num_params:
            raise ManifestError(
                f"{manifest.path}: k is {hessian.k}, but the Hessian of series {series.name!r} has "
                f"only {num_params} eigenvalues (parameters: {hessian.parameters}). Lower k, or "
                "select more parameters."
            )
        used = described(model) | {
            "loss": ["causal_lm", "manifest"],
            "logits": [str(path), "landscape"],
        }
        used["tokens"] = [
            _tokens_of(manifest),
            "manifest" if manifest.data.tokenizer != "model" else "default",
        ]
        return cls(
            model=model,
            objective=objective,
            params=params,
            batches=replace(batches, notes=(*batches.notes, _note_on(used))),
            device=device,
            trained=series.trained,
            used=used,
            reads_runs=False,
            path=path,
        )

    def objective_on(self, model: nn.Module, hessian: HessianSettings) -> tuple[Objective, Params]:
        return _objective(model, hessian, self.path)

    def check_run(self, checkpoint: Checkpoint, info: CheckpointInfo) -> None:
        super().check_run(checkpoint, info)
        check_step(checkpoint)

    def check_loss(self, evaluate: Evaluate) -> None:
        """Check that the loss is the model's own with its present weights.

        Raises:
            ModelError: If not.
        """
        evaluate(check_own_loss, self.batches[0]["tokens"][:1].to(self.device), self.path)

    def check_fit(self, checkpoint: Checkpoint) -> None:
        check_fit(self.model, checkpoint.path)
        check_step(checkpoint)

    def _check_settings(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
        """Check nothing: transformers writes no settings into weight files."""


def _with_random_weights(model: nn.Module, device: torch.device) -> Evaluate:
    # Needs torch.distributed, which not every build of torch has.
    return partial(sharded.with_random_weights(model, device).evaluate, model)


def check_step(checkpoint: Checkpoint) -> None:
    """Refuse a Trainer folder of another step than the manifest lists.

    Raises:
        CheckpointError: If so.
    """
    step = _stored_step(checkpoint.path)
    if type(step) is int and step != checkpoint.epoch:
        raise CheckpointError(
            f"{checkpoint.path}: was written after step {step}, as its {_STATE} says, but the "
            f"manifest lists it as {checkpoint.epoch}, so its spectrum would stand in the wrong "
            f"place. List it as epoch {step}, or name the right folder."
        )


def _stored_step(path: Path) -> Any:
    """Read the step stored beside weights; None if there is none.

    It is in their folder, or in the checkpoint-N around it.
    """
    folders = [path if path.is_dir() else path.parent]
    if is_step_folder(folders[0].parent):
        folders.append(folders[0].parent)
    for state in (folder / _STATE for folder in folders):
        if state.is_file():
            try:
                return json.loads(state.read_bytes()).get("global_step")
            except (OSError, ValueError, AttributeError, RecursionError):
                return None
    return None


def _objective(
    model: nn.Module, hessian: HessianSettings, path: LossPath
) -> tuple[Objective, Params]:
    return causal_lm_objective(
        model, parameters=hessian.parameters, weight_decay=hessian.weight_decay, path=path
    )


def _folder_of(series: CheckpointSeries) -> Path:
    if series.config is None:
        raise ModelError(
            f"series {series.name!r}: there is no config.json beside its checkpoints, which says "
            "what the model is. Name the folder that holds it with `model: FOLDER`."
        )
    return series.config.parent


def _batches(manifest: Manifest, series: CheckpointSeries, config: Path) -> TokenBatches:
    paths = [
        checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        for checkpoint in reversed(series.checkpoints)
    ]
    # A run of the Trainer saves the tokenizer beside its checkpoints too.
    folders = dict.fromkeys([config, *paths, *(path.parent for path in paths)])
    tokens, notes = read_tokens(manifest.data, list(folders))
    return token_batches(tokens, manifest.data, notes=notes)


def _tokens_of(manifest: Manifest) -> str:
    if manifest.data.source.endswith(".npy"):
        return "as they are"
    return {"model": "of the model's tokenizer", "bytes": "bytes"}.get(
        manifest.data.tokenizer, manifest.data.tokenizer
    )


def _note_on(used: Mapping[str, list[Any]]) -> str:
    """Describe whose code computes the loss, and which options were set."""
    parts = [f"attention {used['attention'][0]}"]
    parts += [f"{name} {used[name][0]}" for name in ("experts", "kernels") if name in used]
    parts += [
        f"{name.replace('_', ' ')} {used[name][0]}"
        for name in ("router_aux_loss", "casts_to_float32")
        if name in used
    ]
    version = import_transformers().__version__
    return (
        f"Computed by the code of transformers {version}: {', '.join(parts)}; logits "
        f"{used['logits'][0]}."
    )
