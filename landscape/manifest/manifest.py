"""The manifest: which checkpoints are measured, on which data, how."""

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
    """The one JSON text of a value: sorted keys, no spaces. Equal values have equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def json_sha256(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _protocol_of(settings: DataSettings) -> dict[str, Any]:
    """The settings of data; a key that came after the first stores is there only where it is not the default."""
    data = asdict(settings)
    for key in ("encoding", "quoting", "on_bad_picture"):
        if data[key] == getattr(DataSettings, key):
            del data[key]
    if settings.in_shards:
        # The first stores hold the default of tables for shards as well.
        data["caption_key"] = (
            "title" if settings.caption_key == "caption" else f"json: {settings.caption_key}"
        )
    return data


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A checked checkpoints.yaml, version 1.

    Args:
        path: The file it was read from, absolute.
        epoch_zero: "required", or "optional": a series may then start at a later epoch.
        evaluation: Labelled pictures on which models are evaluated; not of the protocol of spectra.

    Raises:
        ValueError: If the settings do not hold together, such as a contrastive loss on batches of one pair.
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
        """Read a manifest and everything it includes; every file it names must exist, none is opened but manifests.

        Args:
            checkpoints_exist: False for those who may not need all of them: what was measured on a deleted one stands.

        Raises:
            ManifestError: Where (file, line, key), what (expected, got), why, and what to do.
        """
        absolute = Path(os.path.abspath(path))
        try:
            contents = read_manifest(absolute, checkpoints_exist=checkpoints_exist)
        except ManifestError as error:
            # The user knows the file by the name they gave.
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
        """Digest every checkpoint and compare with the digests that the manifest gives.

        Returns:
            The SHA-256 digest of the file of each (series name, epoch).

        Raises:
            CheckpointError: If a file cannot be read or is another one.
        """
        return {
            (one.name, checkpoint.epoch): checkpoint.verify()
            for one in self.series
            for checkpoint in one.checkpoints
        }

    def protocol(self) -> dict[str, dict[str, Any]]:
        """The settings of data and Hessian as plain values: what numbers must share to be comparable.

        A data file is named relative to the manifest, so that a folder moved as a whole keeps its protocol.
        """
        data = _protocol_of(self.data)
        if self.data.source != OPENMOJI:
            data["source"] = Path(os.path.relpath(self.data.source, self.path.parent)).as_posix()
        hessian = asdict(self.hessian)
        if not isinstance(self.hessian.parameters, str):
            hessian["parameters"] = list(self.hessian.parameters)
        return {"data": data, "hessian": hessian}

    def trained(self) -> dict[str, dict[str, Any]]:
        """Of each series what makes its model another than its name says; series without any are left out."""
        return {one.name: changes for one in self.series if (changes := one.trained.changes())}

    def protocol_digest(self) -> str:
        """SHA-256 of the canonical JSON of the protocol, and of how models were trained where that is not their default."""
        trained = self.trained()
        return json_sha256(self.protocol() | ({"trained": trained} if trained else {}))

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON of all that the manifest means: the protocol, and every series as written."""
        series = [
            {
                "name": one.name,
                "model": one.model,
                "label": one.label,
                "checkpoints": [
                    {
                        "epoch": checkpoint.epoch,
                        "path": Path(os.path.relpath(checkpoint.path, self.path.parent)).as_posix(),
                        "sha256": checkpoint.sha256,
                    }
                    for checkpoint in one.checkpoints
                ],
            }
            for one in self.series
        ]
        trained = self.trained()
        everything = {"version": self.version, "protocol": self.protocol(), "series": series}
        return json_sha256(everything | ({"trained": trained} if trained else {}))

    def describe(self) -> list[str]:
        """What is inside, one line each, for a terminal."""
        data, hessian = self.protocol()["data"], self.protocol()["hessian"]
        image_size = (
            "the model's own size" if data["image_size"] is None else f"{data['image_size']} px"
        )
        lines = [
            f"manifest, version {self.version}: {len(self.series)} series, "
            f"{sum(len(one.checkpoints) for one in self.series)} checkpoints",
            f"data: {data['source']} ({data['split']}), {data['num_samples']} pairs in {self.data.num_batches} batches of "
            f"{data['batch_size']}, {image_size}, augmentation {data['augmentation']}, seed {data['seed']}",
            f"hessian: {hessian['objective']} loss, parameters {hessian['parameters']}, weight decay {hessian['weight_decay']}",
            f"eigenvalues: {hessian['k']} {hessian['which']} by {hessian['method']}, tol {hessian['tol']}, "
            f"at most {hessian['max_matvecs']} products, {hessian['dtype']}, seed {hessian['seed']}",
        ]
        for one in self.series:
            unsigned = sum(checkpoint.sha256 is None for checkpoint in one.checkpoints)
            note = f" ({unsigned} without sha256)" if unsigned else ""
            epochs = ", ".join(str(epoch) for epoch in one.epochs)
            lines.append(
                f"series {one.name}: {one.label}, model {one.model}, epochs {epochs}{note}"
            )
            lines += [f"  {line}" for line in one.trained.describe()]
            lines += [f"  not known: {why}" for why in one.trained.doubts.values()]
        lines.append(f"protocol sha256 {self.protocol_digest()}")
        return lines
