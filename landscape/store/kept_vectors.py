"""All kept eigenvectors of an output: those of the merged file, and those among its parts.

A part is an HDF5 file of its own, <series>.<epoch>.<batch>.vectors, which appears whole or not at
all, before the record of its batch.
"""

import re
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import h5py

from landscape.errors import StoreError
from landscape.files import write_atomically
from landscape.store.contents import StoreContents
from landscape.store.hdf5 import CORRUPT, corrupt_file_errors, groups_in, open_hdf5
from landscape.store.index import Key
from landscape.store.lines import reason_of
from landscape.store.parts import VECTORS_SUFFIX, RejectedPart
from landscape.store.table import task_key
from landscape.store.vectors import VECTOR_GROUP, StoredVectors, VectorRecord

_NAME = re.compile(rf"(.+)\.(\d{{1,19}})\.(\d{{1,19}}){re.escape(VECTORS_SUFFIX)}")
# A function to call with the key of vectors that became unreadable; None: raise the error.
OnLost = Callable[[str], object] | None


class MergedMeanwhileError(StoreError):
    """Vectors were merged into one file after the store was opened."""


class KeptVectors:
    """The eigenvectors of an output, as they were when it was opened.

    Args:
        path: The merged file.
        file: The same, open; None without a file.
        folder: Folder of the parts.

    Attributes:
        rejected: Parts that are not used, each with the reason.

    Raises:
        StoreError: If the file is damaged.
    """

    def __init__(self, path: Path, file: h5py.File | None, folder: Path) -> None:
        self.rejected: list[RejectedPart] = []
        self._path, self._folder = path, folder
        self._merged: dict[Key, dict[int, h5py.Group]] = {}
        self._parts: dict[Key, dict[int, Path]] = {}
        with corrupt_file_errors(path):
            if file is not None and VECTOR_GROUP in file:
                for series, epochs in groups_in(file[VECTOR_GROUP]):
                    for epoch, batches in groups_in(epochs):
                        self._merged[series, int(epoch)] = {
                            int(batch): group for batch, group in groups_in(batches)
                        }

    def read_parts(
        self,
        plan: StoreContents,
        identities: Mapping[Key, tuple[str, int]],
        digests: Mapping[str, str],
    ) -> None:
        """Find the usable parts; list the others in `rejected`.

        Args:
            identities: Digest of the weights and number of parameters of each checkpoint.
            digests: Digest of the samples of each stored record, by its key.
        """
        paths = sorted(self._folder.glob(f"*{VECTORS_SUFFIX}")) if self._folder.is_dir() else []
        for path in paths:
            try:
                with _opened_part(path) as vectors:
                    reason = _misfit(vectors, plan, identities, digests)
                    series, epoch, batch = vectors.series, vectors.epoch, vectors.batch
            except FileNotFoundError:
                # It has just been merged.
                continue
            except (*CORRUPT, StoreError) as error:
                reason = reason_of(error)
            if reason is not None:
                self.rejected.append(RejectedPart(path=path, reason=reason))
            else:
                self._parts.setdefault((series, epoch), {})[batch] = path

    @property
    def checkpoints(self) -> dict[Key, tuple[int, ...]]:
        """Return the batches with vectors of each (series, epoch)."""
        return {
            key: tuple(sorted({**self._merged.get(key, {}), **self._parts.get(key, {})}))
            for key in (*self._merged, *(key for key in self._parts if key not in self._merged))
        }

    def keys(self) -> frozenset[str]:
        """Return the keys of the batches with vectors."""
        return frozenset(
            task_key(*key, batch) for key, batches in self.checkpoints.items() for batch in batches
        )

    @contextmanager
    def open(self, series: str, epoch: int, batch: int) -> Iterator[StoredVectors]:
        """Open the vectors of a batch for reading.

        Raises:
            StoreError: If there are none, or they are damaged.
        """
        path = self._parts.get((series, epoch), {}).get(batch)
        group = self._merged.get((series, epoch), {}).get(batch)
        if path is None and group is None:
            raise StoreError(
                f"{self._path}: it has no vectors of {task_key(series, epoch, batch)}; `landscape "
                "spectra --keep-vectors` keeps them."
            )
        with ExitStack() as stack:
            with corrupt_file_errors(path or self._path):
                if path is None:
                    vectors = StoredVectors(
                        group, path=self._path, series=series, epoch=epoch, batch=batch
                    )
                elif path.exists():
                    vectors = stack.enter_context(_opened_part(path))
                else:
                    raise MergedMeanwhileError(
                        f"{path}: its vectors were merged since the store was opened, so they are "
                        "elsewhere now. Run the same command again."
                    )
            yield vectors

    def add(self, record: VectorRecord) -> None:
        """Store vectors as a part; they are safe on disk when this returns.

        Raises:
            OSError: If the disk does not take them.
        """
        path = self._folder / f"{record.series}.{record.epoch}.{record.batch}{VECTORS_SUFFIX}"
        write_atomically(path, record.image)
        self._parts.setdefault((record.series, record.epoch), {})[record.batch] = path

    def sources(self, wanted: Container[str], on_lost: OnLost = None) -> Iterator[StoredVectors]:
        """Read and check the vectors of some batches, and yield them open.

        Args:
            wanted: Keys of the batches.
            on_lost: Called for a part that became unreadable, which is then left out.

        Raises:
            StoreError: If the merged file is damaged; without `on_lost`, also if a part is.
        """
        for key, batches in self.checkpoints.items():
            for batch in batches:
                if task_key(*key, batch) not in wanted:
                    continue
                try:
                    with self.open(*key, batch) as vectors:
                        vectors.check()
                        yield vectors
                except StoreError:
                    if on_lost is None or batch not in self._parts.get(key, {}):
                        raise
                    on_lost(task_key(*key, batch))


@contextmanager
def _opened_part(path: Path) -> Iterator[StoredVectors]:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError("its name is none of vectors")
    series, epoch, batch = match[1], int(match[2]), int(match[3])
    with open_hdf5(path) as file:
        group = file
        for name in (VECTOR_GROUP, series, str(epoch), str(batch)):
            group = dict(groups_in(group))[name]
        yield StoredVectors(group, path=path, series=series, epoch=epoch, batch=batch)


def _misfit(
    vectors: StoredVectors,
    plan: StoreContents,
    identities: Mapping[Key, tuple[str, int]],
    digests: Mapping[str, str],
) -> str | None:
    """Explain why vectors do not belong to a plan and its records, if so."""
    series, epoch = vectors.series, vectors.epoch
    if not plan.holds(series, epoch) or vectors.batch >= plan.num_batches:
        return f"{vectors.key} is not planned"
    if vectors.digests["protocol_sha256"] != plan.protocol_sha256_of(series):
        return "its vectors were measured under another protocol"
    if vectors.k != plan.k:
        return f"it holds {vectors.k} vectors instead of {plan.k}"
    identity = (vectors.digests["checkpoint_sha256"], vectors.n)
    if identities.get((series, epoch), identity) != identity:
        return "its vectors were measured on other weights than the rest of its checkpoint"
    digest = vectors.digests["batch_sha256"]
    if digests.get(vectors.key, digest) != digest:
        return "its vectors were measured on other samples than the record of its batch"
    return None
