"""Ways to spoil an HDF5 file through its own library: attributes, datasets, groups and links of
other kinds than were written.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.helpers.hostile_files import Spoil

_VALUES: tuple[Any, ...] = (
    -1,
    0,
    2**62,
    float("nan"),
    float("inf"),
    1e300,
    "",
    "x" * 5000,
    "\x1b[31m\n",
    b"\xff\xfe",
    "{",
    "null",
    "[]",
    '{"a": 1}',
    np.zeros((0,)),
    np.array([b"a", b"b"]),
    np.zeros((3, 2), dtype=complex),
    np.bool_(True),
)


def _all(file: h5py.File, kind: type) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, kind) else None)
    return sorted(names)


def _replaced(file: h5py.File, name: str, make: Callable[[Any], None]) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    make(name)
    for key, value in attributes.items():
        file[name].attrs[key] = value


def _attribute(file: h5py.File, rng: random.Random) -> None:
    places = [
        (name, key)
        for name in ["/", *_all(file, h5py.Group), *_all(file, h5py.Dataset)]
        for key in sorted(file[name].attrs)
    ]
    name, key = rng.choice(places)
    if rng.random() < 0.2:
        del file[name].attrs[key]
    else:
        file[name].attrs[key] = rng.choice(_VALUES)


def _dataset(file: h5py.File, rng: random.Random) -> None:
    name = rng.choice(_all(file, h5py.Dataset))
    value = rng.choice(_VALUES)
    _replaced(file, name, lambda name: file.create_dataset(name, data=value))


def _numbers(file: h5py.File, rng: random.Random) -> None:
    names = [
        name
        for name in _all(file, h5py.Dataset)
        if file[name].dtype.kind in "fiu" and file[name].size
    ]
    data = file[rng.choice(names)]
    values = data[()].reshape(-1)
    odd = (
        [float("nan"), float("inf"), 1e300, -1e300, 5e-324]
        if data.dtype.kind == "f"
        else [-1, 0, np.iinfo(data.dtype).max]
    )
    with np.errstate(all="ignore"):
        values[rng.randrange(len(values)) if rng.random() < 0.7 else slice(None)] = np.array(
            rng.choice(odd)
        ).astype(data.dtype)
    data[()] = values.reshape(data.shape)


def _shape(file: h5py.File, rng: random.Random) -> None:
    name = rng.choice(_all(file, h5py.Dataset))
    content = np.asarray(file[name][()])
    changed = rng.choice(
        [
            lambda a: a.reshape(-1)[:0],
            lambda a: np.stack([a, a]),
            lambda a: a[None],
            lambda a: a.reshape(-1)[:1],
        ]
    )
    dtype = file[name].dtype
    _replaced(
        file, name, lambda name: file.create_dataset(name, data=changed(content), dtype=dtype)
    )


def _sparse(file: h5py.File, rng: random.Random) -> None:
    name = rng.choice(_all(file, h5py.Dataset))
    shape = rng.choice([(10**9, 1000), (10**12,), (10**6, 10**6)])
    chunks = (1000,) * len(shape)
    _replaced(
        file, name, lambda name: file.create_dataset(name, shape=shape, dtype="f8", chunks=chunks)
    )


def _group(file: h5py.File, rng: random.Random) -> None:
    _replaced(file, rng.choice(_all(file, h5py.Dataset)), file.create_group)


def _deleted(file: h5py.File, rng: random.Random) -> None:
    del file[rng.choice([*_all(file, h5py.Dataset), *_all(file, h5py.Group)])]


def _dataset_for_group(file: h5py.File, rng: random.Random) -> None:
    name = rng.choice(_all(file, h5py.Group))
    del file[name]
    file[name] = 1.0


def _link(file: h5py.File, rng: random.Random) -> None:
    name = rng.choice([*_all(file, h5py.Dataset), *_all(file, h5py.Group)])
    del file[name]
    file[name] = rng.choice(
        [
            h5py.SoftLink(f"/{name}"),
            h5py.SoftLink("/nowhere"),
            h5py.ExternalLink("nowhere.h5", "/"),
            h5py.SoftLink("/"),
        ]
    )


def _added(file: h5py.File, rng: random.Random) -> None:
    group = file[rng.choice(["/", *_all(file, h5py.Group)])]
    group.create_group(rng.choice(["extra", "-1", "99999999999999999999", "a b", "é\x1b[31m"]))


def stores() -> dict[str, Spoil]:
    """By name."""
    rules = (
        _attribute,
        _dataset,
        _numbers,
        _shape,
        _sparse,
        _group,
        _deleted,
        _dataset_for_group,
        _link,
        _added,
    )

    def through(rule: Callable[[h5py.File, random.Random], None]) -> Spoil:
        def spoil(path: Path, rng: random.Random) -> None:
            with h5py.File(path, "r+") as file:
                rule(file, rng)

        return spoil

    return {rule.__name__.strip("_").replace("_", " "): through(rule) for rule in rules}
