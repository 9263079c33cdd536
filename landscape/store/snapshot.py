"""What lies on disk of an output at one moment: the merged file, the parts, and their plan."""

from dataclasses import dataclass
from pathlib import Path

import h5py

from landscape.errors import StoreError
from landscape.store import schema
from landscape.store.contents import StoreContents
from landscape.store.index import Entry
from landscape.store.module_tables import ModuleTables
from landscape.store.parts import (
    RejectedPart,
    parts_folder,
    read_parts,
    read_plan,
    split_compatible,
)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The merged file and the parts beside it, which belong together.

    Attributes:
        plan: The planned content of the output.
        merged_plan: The planned content of the merged file; None without a file.
        file: The merged file, open; None without a file.
        entries: Where the records of the parts lie.
        rejected: Parts that are not used, each with the reason.
    """

    plan: StoreContents
    merged_plan: StoreContents | None
    file: h5py.File | None
    entries: tuple[Entry, ...]
    rejected: tuple[RejectedPart, ...]


def read_snapshot(path: Path, *, fallback: StoreContents | None) -> Snapshot | None:
    """Read the snapshot of an output; None if nothing is there.

    Args:
        fallback: Given by a writer: the plan for parts whose own plan is lost.

    Raises:
        StoreError: If it is no store, of another version of the schema, or damaged, or its plan is
            lost.
    """
    folder = parts_folder(path)
    planned = read_plan(folder)
    # Parts first, then the file: a merge in between moves records to the file, which is read next.
    entries, rejected = read_parts(folder)
    if isinstance(planned, RejectedPart):
        rejected, planned = [planned, *rejected], None
    file = schema.open_file(path, to_write=fallback is not None)
    try:
        merged_plan = None if file is None else schema.read_plan_of_file(file, path)
        if (
            planned is not None
            and merged_plan is not None
            and planned.protocol != merged_plan.protocol
        ):
            raise StoreError(
                f"{folder}: its parts were not measured for {path}, which has other settings; "
                "move it away."
            )
        module_tables = ModuleTables(path, file)
        identities = module_tables.identities | (
            {} if file is None else schema.stored_checkpoints(file, path)
        )
        plans = (plan for plan in (planned, merged_plan, fallback) if plan is not None)
        plan = next((plan for plan in plans if all(plan.holds(*key) for key in identities)), None)
        if plan is None:
            if file is None and not entries and not rejected:
                return None
            raise StoreError(
                f"{path}: its plan is lost; run `landscape spectra` on its manifest again, "
                "which restores it."
            )
        modules = {
            name: names
            for name, _ in identities
            if (names := module_tables.modules(name)) is not None
        }
        entries, foreign = split_compatible(entries, plan, identities, modules)
        return Snapshot(plan, merged_plan, file, tuple(entries), (*rejected, *foreign))
    except BaseException:
        if file is not None:
            file.close()
        raise
