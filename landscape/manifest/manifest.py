"""The manifest: measured checkpoints, data, and settings."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from landscape.errors import ManifestError
from landscape.manifest.evaluation import EvaluationSettings
from landscape.manifest.reading import VERSION, check_manifest, read_manifest
from landscape.manifest.settings import OPENMOJI, CheckpointSeries, DataSettings, HessianSettings


def canonical_json(value: Any) -> str:
    """Format a value as canonical JSON: sorted keys, no spaces.

    Equal values have equal texts, and so equal digests.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def json_sha256(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _protocol_of(settings: DataSettings) -> dict[str, Any]:
    """Return the settings of data for the protocol.

    A key that was added after the first stores is included only where it is not the default.
    """
    data = asdict(settings)
    for key in ("encoding", "quoting", "on_bad_picture", "block_size", "tokenizer"):
        if data[key] == getattr(DataSettings, key):
            del data[key]
    if settings.in_shards:
        # The first stores also hold the default of tables for shards.
        data["caption_key"] = (
            "title" if settings.caption_key == "caption" else f"json: {settings.caption_key}"
        )
    return data


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A checked checkpoints.yaml, version 1.

    Args:
        path: Absolute path of the file it was read from.
        epoch_zero: "required", or "optional": a series may then start at a later epoch.
        evaluation: Labelled pictures on which models are evaluated; not part of the protocol of
            spectra.

    Raises:
        ValueError: If the settings contradict each other, such as a contrastive loss on batches of
            one pair.

    Examples:
        >>> from pathlib import Path
        >>> import landscape
        >>> _ = Path("tiny.yaml").write_text('''
        ... version: 1
        ... data: {source: openmoji, image_size: 64, num_samples: 30, batch_size: 15}
        ... hessian: {objective: contrastive}
        ... series:
        ...   - {name: tiny, model: vit_tiny_64, checkpoints: [{epoch: 0, path: epoch_0.pt}]}
        ... ''')
        >>> manifest = landscape.Manifest.load("tiny.yaml", checkpoints_exist=False)
        >>> manifest.hessian.k, [checkpoint.epoch for checkpoint in manifest.series[0].checkpoints]
        (5, [0])
    """

    path: Path
    data: DataSettings
    hessian: HessianSettings
    series: tuple[CheckpointSeries, ...]
    epoch_zero: str = "required"
    version: int = VERSION
    evaluation: EvaluationSettings = EvaluationSettings()

    def __post_init__(self) -> None:
        check_manifest(self.data, self.hessian, self.series, epoch_zero=self.epoch_zero)

    @classmethod
    def load(cls, path: str | Path, *, checkpoints_exist: bool = True) -> "Manifest":
        """Read a manifest and everything it includes.

        Every file it names must exist; only manifests are opened.

        Args:
            checkpoints_exist: False for callers that may not need all of them: measurements on a
                deleted checkpoint stay valid.

        Raises:
            ManifestError: Where (file, line, key), what (expected, got), why, and what to do.
        """
        absolute = Path(os.path.abspath(path))
        try:
            contents = read_manifest(absolute, checkpoints_exist=checkpoints_exist)
        except ManifestError as error:
            # Show the path as the user gave it.
            raise ManifestError(str(error).replace(str(absolute), str(path), 1)) from None
        return cls(
            path=absolute,
            data=contents.data,
            hessian=contents.hessian,
            series=contents.series,
            epoch_zero=contents.epoch_zero,
            evaluation=contents.evaluation,
        )

    def check_files(self) -> dict[tuple[str, int], str]:
        """Digest every checkpoint and compare with the manifest's digests.

        Returns:
            The SHA-256 digest of the file of each (series name, epoch).

        Raises:
            CheckpointError: If a file cannot be read or is another one.
        """
        return {
            (series.name, checkpoint.epoch): checkpoint.verify()
            for series in self.series
            for checkpoint in series.checkpoints
        }

    def protocol(self) -> dict[str, dict[str, Any]]:
        """Return the settings of data and Hessian as plain values.

        Numbers must share them to be comparable. A data file is named relative to the manifest, so
        that a folder moved as a whole keeps its protocol.
        """
        data = _protocol_of(self.data)
        if self.data.source != OPENMOJI:
            data["source"] = Path(os.path.relpath(self.data.source, self.path.parent)).as_posix()
        if os.path.isabs(data.get("tokenizer", "")):
            data["tokenizer"] = Path(
                os.path.relpath(self.data.tokenizer, self.path.parent)
            ).as_posix()
        hessian = asdict(self.hessian)
        # Came after the first stores.
        if hessian["preconditioner"] == "none":
            del hessian["preconditioner"]
        if not isinstance(self.hessian.parameters, str):
            hessian["parameters"] = list(self.hessian.parameters)
        return {"data": data, "hessian": hessian}

    def trained(self) -> dict[str, dict[str, Any]]:
        """Return how each model differs from what its name says.

        Series without a difference are left out.
        """
        return {
            series.name: changes for series in self.series if (changes := series.trained.changes())
        }

    def protocol_digest(self) -> str:
        """Compute the SHA-256 digest of the canonical JSON of the protocol.

        It includes how models were trained where that is not their default.
        """
        trained = self.trained()
        return json_sha256(self.protocol() | ({"trained": trained} if trained else {}))

    @property
    def sha256(self) -> str:
        """Compute the SHA-256 digest of the manifest's meaning.

        It is taken of the canonical JSON of the protocol, and of every series as written.
        """
        series = [
            {
                "name": entry.name,
                "model": entry.model,
                "label": entry.label,
                "checkpoints": [
                    {
                        "epoch": checkpoint.epoch,
                        "path": Path(os.path.relpath(checkpoint.path, self.path.parent)).as_posix(),
                        "sha256": checkpoint.sha256,
                    }
                    for checkpoint in entry.checkpoints
                ],
            }
            for entry in self.series
        ]
        trained = self.trained()
        everything = {"version": self.version, "protocol": self.protocol(), "series": series}
        return json_sha256(everything | ({"trained": trained} if trained else {}))

    def describe(self) -> list[str]:
        """Describe the content in lines for a terminal."""
        data, hessian = self.protocol()["data"], self.protocol()["hessian"]
        lines = [
            f"manifest, version {self.version}: {len(self.series)} series, "
            f"{sum(len(series.checkpoints) for series in self.series)} checkpoints",
            self._describe_data(data),
            f"hessian: {hessian['objective']} loss, parameters {hessian['parameters']}, weight "
            f"decay {hessian['weight_decay']}"
            + (
                f", preconditioned by {hessian['preconditioner']}"
                if "preconditioner" in hessian
                else ""
            ),
            f"eigenvalues: {hessian['k']} {hessian['which']} by {hessian['method']}, tol "
            f"{hessian['tol']}, at most {hessian['max_matvecs']} products, {hessian['dtype']}, "
            f"seed {hessian['seed']}",
        ]
        for series in self.series:
            unsigned = sum(checkpoint.sha256 is None for checkpoint in series.checkpoints)
            note = f" ({unsigned} without sha256)" if unsigned else ""
            epochs = ", ".join(str(epoch) for epoch in series.epochs)
            lines.append(
                f"series {series.name}: {series.label}, model {series.model}, epochs {epochs}{note}"
            )
            lines += [f"  {line}" for line in series.trained.describe()]
            lines += [f"  not known: {why}" for why in series.trained.doubts.values()]
        lines.append(f"protocol sha256 {self.protocol_digest()}")
        return lines

    def _describe_data(self, data: dict[str, Any]) -> str:
        batches = f"in {self.data.num_batches} batches of {data['batch_size']}"
        if self.data.block_size is not None:
            known = {"model": "the model's tokens", "bytes": "bytes"}
            tokens = known.get(self.data.tokenizer, f"tokens of {data.get('tokenizer')}")
            return (
                f"data: {data['source']}, {data['num_samples']} blocks of {self.data.block_size} "
                f"tokens ({tokens}) {batches}, seed {data['seed']}"
            )
        image_size = (
            "the model's own size" if data["image_size"] is None else f"{data['image_size']} px"
        )
        return (
            f"data: {data['source']} ({data['split']}), {data['num_samples']} pairs {batches}, "
            f"{image_size}, augmentation {data['augmentation']}, seed {data['seed']}"
        )
