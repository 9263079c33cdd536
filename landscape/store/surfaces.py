"""The HDF5 file of a loss slice or surface, schema version 1.

The version counts these files alone. Imports no torch before a file is read.

/             schema_version, kind = "loss surface", landscape_version, request (JSON),
              directions_sha256, unit = "nat", cosine; datasets losses and computed, of the shape
              of the axes: NaN where not computed, or where the loss is not a number
/axes/<i>     coordinates; attributes name, unit, norm, eigenvalue, bound, converged (1, 0, or
              -1: no eigenvector), fit_value, fit_error, fit_step (NaN where not fitted)
/local        slopes, hessian; attribute loss: the quadratic predicted by derivatives; absent
              where they were not computed

The file is small. It is rewritten, whole or not at all, after every point.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from landscape import surface
from landscape.errors import StoreError
from landscape.files import write_atomically
from landscape.manifest import canonical_json
from landscape.store.as_trained import described_as_trained
from landscape.store.contents import open_kind
from landscape.store.hdf5 import (
    check_mapping,
    file_image,
    groups_in,
    has_attribute,
    read_array,
)
from landscape.store.table import check_facts
from landscape.version import VERSION

if TYPE_CHECKING:
    from landscape.surface import Axis, LocalModel, LossSlice, LossSurface

_SCHEMA_VERSION = 1
_KIND = "loss surface"
_NUMBERS = ("norm", "eigenvalue", "bound")


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredSurface:
    """A slice or a surface, with its request.

    Attributes:
        request: Everything that determines its numbers, as JSON values; two runs of equal requests
            may share a file.
        directions_sha256: Digest of the directions; "" where the request determines them.
        as_trained: How the model was trained: each value that was used, with its source; empty in
            older files.
    """

    result: "LossSlice | LossSurface"
    request: Mapping[str, Any]
    directions_sha256: str = ""
    as_trained: Mapping[str, Any] = field(default_factory=dict)
    landscape_version: str = field(default=VERSION)

    @property
    def num_computed(self) -> int:
        return int(np.count_nonzero(self.result.computed))

    @property
    def num_points(self) -> int:
        return int(self.result.computed.size)


def write_surface(path: Path, stored: StoredSurface) -> None:
    """Write the whole file, or leave the old one.

    Raises:
        StoreError: If the disk does not take it.
    """

    def write(file: h5py.File) -> None:
        file.attrs["schema_version"] = _SCHEMA_VERSION
        file.attrs["kind"] = _KIND
        file.attrs["landscape_version"] = VERSION
        file.attrs["request"] = canonical_json(stored.request)
        file.attrs["directions_sha256"] = stored.directions_sha256
        file.attrs["as_trained"] = canonical_json(stored.as_trained)
        file.attrs["unit"] = "nat"
        _write_result(file, stored.result)

    content = file_image(write)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror or error}). What it held before is safe: "
            "repair the disk, then run the same command again."
        ) from error


def _write_result(file: h5py.File, result: "LossSlice | LossSurface") -> None:
    file.create_dataset("losses", data=result.losses, dtype="<f8", fletcher32=True)
    file.create_dataset("computed", data=result.computed, dtype="?", fletcher32=True)
    file.attrs["cosine"] = getattr(result, "cosine", math.nan)
    for number, axis in enumerate(axes_of(result)):
        group = file.create_group(f"axes/{number}")
        group.create_dataset("coordinates", data=axis.coordinates, dtype="<f8", fletcher32=True)
        for name in ("name", "unit", *_NUMBERS):
            group.attrs[name] = getattr(axis, name)
        group.attrs["converged"] = -1 if axis.converged is None else int(axis.converged)
        for name in ("value", "error", "step"):
            group.attrs[f"fit_{name}"] = math.nan if axis.fit is None else getattr(axis.fit, name)
    if result.local is not None:
        group = file.create_group("local")
        group.attrs["loss"] = result.local.loss
        group.create_dataset("slopes", data=result.local.slopes, dtype="<f8")
        group.create_dataset("hessian", data=result.local.hessian, dtype="<f8")


def axes_of(result: "LossSlice | LossSurface") -> tuple["Axis", ...]:
    """Return the axes of a slice or a surface."""
    return result.axes if hasattr(result, "axes") else (result.axis,)


def is_surface(path: Path) -> bool:
    """Tell whether a file declares that it holds a loss surface."""
    return has_attribute(path, "kind", value=_KIND)


def read_surface(path: Path) -> StoredSurface | None:
    """Read a loss surface; None if there is no file.

    Raises:
        StoreError: If it is something else, damaged, or of another version of the schema.
    """
    if not path.exists():
        return None
    otherwise = (
        "not a loss surface of landscape, which would overwrite it. Name another file with --data."
    )
    advice = "Restore it from a copy, or remove it to compute it anew."
    with open_kind(path, _KIND, otherwise=otherwise, advice=advice) as file:
        as_trained = check_mapping(json.loads(file.attrs.get("as_trained", "{}")), "as_trained")
        check_facts({"as_trained": as_trained} if as_trained else {}, {})
        return StoredSurface(
            result=_read_result(file),
            request=check_mapping(json.loads(file.attrs["request"]), "request"),
            directions_sha256=str(file.attrs["directions_sha256"]),
            as_trained=as_trained,
            landscape_version=str(file.attrs["landscape_version"]),
        )


def _read_result(file: h5py.File) -> "LossSlice | LossSurface":
    groups = dict(groups_in(file["axes"]))
    if sorted(groups) not in (["0"], ["0", "1"]):
        raise ValueError(f"it has {len(groups)} axes, not one or two")
    axes = [_read_axis(groups[str(number)]) for number in range(len(groups))]
    shape = tuple(len(axis.coordinates) for axis in axes)
    common: dict[str, Any] = {
        "losses": read_array(file, "losses", dtype="<f8", shape=shape),
        "computed": read_array(file, "computed", dtype="?", shape=shape),
        "local": _read_local(file["local"], len(axes)) if "local" in file else None,
    }
    if len(axes) == 1:
        return surface.LossSlice(axis=axes[0], **common)
    return surface.LossSurface(
        axes=(axes[0], axes[1]), cosine=float(file.attrs["cosine"]), **common
    )


def _read_axis(group: h5py.Group) -> "Axis":
    attributes = group.attrs
    fit = surface.CurvatureFit(
        **{name: float(attributes[f"fit_{name}"]) for name in ("value", "error", "step")}
    )
    converged = int(attributes["converged"])
    coordinates = read_array(group, "coordinates", dtype="<f8", shape=(None,))
    if (
        len(coordinates) < 2
        or not (np.diff(coordinates) > 0).all()
        or not np.isfinite(coordinates).all()
    ):
        raise ValueError(f"the coordinates of {group.name} do not ascend")
    return surface.Axis(
        name=str(attributes["name"]),
        unit=str(attributes["unit"]),
        coordinates=coordinates,
        converged=None if converged < 0 else bool(converged),
        # A fit that failed has an infinite error; a missing fit has NaN.
        fit=None if math.isnan(fit.error) else fit,
        **{name: float(attributes[name]) for name in _NUMBERS},
    )


def _read_local(group: h5py.Group, num_axes: int) -> "LocalModel":
    return surface.LocalModel(
        loss=float(group.attrs["loss"]),
        slopes=read_array(group, "slopes", dtype="<f8", shape=(num_axes,)),
        hessian=read_array(group, "hessian", dtype="<f8", shape=(num_axes, num_axes)),
    )


def check_same_request(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to mix the points of two different pictures.

    Raises:
        StoreError: If the requests differ; names the first difference.
    """
    for name in [*wanted, *(name for name in stored if name not in wanted)]:
        if stored.get(name) != wanted.get(name):
            raise StoreError(
                f"{path}: {name} is {stored.get(name)!r} in this file, but {wanted.get(name)!r} "
                "was asked for, and their points do not belong to one picture. Name another file "
                "with --data, or remove this one."
            )


def describe_surface(path: Path) -> list[str]:
    """Describe a loss surface in the lines that `landscape info` prints.

    Raises:
        StoreError: As `read_surface`.
    """
    stored = read_surface(path)
    assert stored is not None, "the caller has seen the file"
    result, request = stored.result, stored.request
    known = result.losses[np.isfinite(result.losses)]
    extent = f", losses {known.min():.4g} to {known.max():.4g} nats" if known.size else ""
    lines = [
        f"loss surface, schema version 1: {stored.num_computed} of {stored.num_points} "
        f"points{extent}, {result.num_undefined} not finite",
        f"written by landscape {stored.landscape_version}: "
        + ", ".join(
            f"{name} {value}" for name, value in request.items() if not isinstance(value, dict)
        ),
    ]
    for axis in axes_of(result):
        certificate = (
            ""
            if math.isnan(axis.eigenvalue)
            else f", eigenvalue {axis.eigenvalue:.6g} ± {axis.bound:.1g}"
        )
        fit = (
            ""
            if axis.fit is None
            else f", curvature by differences {axis.fit.value:.6g} ± {axis.fit.error:.1g}"
        )
        lines.append(
            f"{axis.name}: {axis.coordinates[0]:g} to {axis.coordinates[-1]:g} "
            f"{axis.unit}{certificate}{fit}"
        )
    return [
        *lines,
        *(described_as_trained({"as_trained": stored.as_trained}) if stored.as_trained else []),
    ]
