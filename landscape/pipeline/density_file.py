"""The file of densities behind a figure: stored records and missing batches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from landscape.errors import StoreError
from landscape.store import DensityRecord, is_density_file, read_densities, write_densities

Key = tuple[str, int]


def stored_digests(target: Path) -> dict[Key, str]:
    """Return the weights' digest of each checkpoint in a file of densities.

    Empty if there is no such file.

    Raises:
        StoreError: If the file is damaged.
    """
    records = read_densities(target) if is_density_file(target) else []
    return {(record.series, record.epoch): record.checkpoint_sha256 for record in records}


class DensityFile:
    """The records of a file that match the request.

    Args:
        requests: The fields of `DensityRecord` that identify each checkpoint, in order.

    Attributes:
        known: By requested checkpoint, the record that was measured as requested; it may hold some
            of the batches, or more.

    Raises:
        StoreError: If the file is something else, or damaged.
    """

    def __init__(self, target: Path, requests: Mapping[Key, Mapping[str, Any]]) -> None:
        if target.exists() and not is_density_file(target):
            raise StoreError(
                f"{target}: holds something else, or is damaged, and would be overwritten by the "
                "densities behind the figure; name another output with -o, or remove it."
            )
        self.target = target
        self._order = list(requests)
        stored = (
            {(record.series, record.epoch): record for record in read_densities(target)}
            if target.exists()
            else {}
        )
        self.known: dict[Key, DensityRecord] = {}
        for key, facts in requests.items():
            record = stored.pop(key, None)
            if record is not None and _answers(record, facts):
                self.known[key] = record
        settings = next(iter(requests.values()))["settings"] if requests else None
        # Other checkpoints stay in the file if they were measured in the same way.
        self._others = [
            record
            for record in stored.values()
            if settings is not None and record.matches(settings)
        ]

    def missing(self, key: Key, num_batches: int) -> tuple[int, ...]:
        """List the batches of a checkpoint that are not measured.

        Only the first `num_batches` count.
        """
        there = self.known[key].batches if key in self.known else ()
        return tuple(index for index in range(num_batches) if index not in there)

    def is_audited(self, key: Key) -> bool:
        """Tell whether a checkpoint has a record that passed an audit."""
        return key in self.known and self.known[key].audited

    def keep(self, key: Key, record: DensityRecord) -> None:
        """Store a record: write the whole file again."""
        self.known[key] = record
        write_densities(
            self.target,
            [*(self.known[key] for key in self._order if key in self.known), *self._others],
        )


def _answers(record: DensityRecord, facts: Mapping[str, Any]) -> bool:
    """Tell whether a record has these weights and was measured as requested."""
    return record.checkpoint_sha256 == facts["checkpoint_sha256"] and record.matches(
        facts["settings"]
    )
