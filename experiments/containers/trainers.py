"""Write checkpoints with the trainers themselves and compare what landscape reads with what was in
memory.

Run by run.sh; its output is kept in table.txt.
"""

import importlib.metadata
import logging
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import torch
import writers_libraries
import writers_torch
import writers_trainers
from common import Case, make_net

from landscape.clip.checkpoint import load_checkpoint
from landscape.containers.outline import outline
from landscape.errors import CheckpointError

WRITERS = (*writers_trainers.WRITERS, *writers_libraries.WRITERS, *writers_torch.WRITERS)


def check(case: Case) -> list[str]:
    """What is wrong with landscape's reading of a file; empty if nothing is."""
    faults = []
    if case.refused is not None:
        try:
            load_checkpoint((case.make or make_net)(), case.path)
        except CheckpointError as error:
            return [] if case.refused in str(error) else [f"refused otherwise: {error}"]
        return ["not refused"]
    for copy, state in case.copies.items():
        model = (case.make or make_net)()
        try:
            info = load_checkpoint(model, case.path, weights=copy)
        except CheckpointError as error:
            faults.append(f"{copy} refused: {error}")
            continue
        read = model.state_dict()
        # composer's copy stores the counters of batch norm, which evaluation does not read, as
        # plain numbers.
        filled = any("Filled in '1.num_batches_tracked'" in note for note in info.notes)
        names = [name for name in state if not (filled and name.endswith("num_batches_tracked"))]
        wrong = [name for name in names if not torch.equal(read[name], state[name])]
        faults += [f"{copy}: {len(wrong)} tensors differ, {wrong[:2]}"] if wrong else []
        faults += [f"epoch {info.epoch}, truth {case.epoch}"] if info.epoch != case.epoch else []
        faults += [] if tuple(case.copies) == info.available else [f"available {info.available}"]
        seen = outline(case.path)
        agrees = (seen.epoch, seen.layout, seen.available) == (
            info.epoch,
            info.layout,
            info.available,
        )
        faults += (
            [] if agrees else [f"outline differs: {seen.layout} {seen.epoch} {seen.available}"]
        )
    return faults


def main() -> int:
    """Print a row for every file; the number of rows that failed."""
    failed = 0
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}")
    print(f"{'written by':<34} {'file':<46} {'copies':<12} {'epochs':<7} landscape")
    for package, write in WRITERS:
        name = package.split()[0]
        version = (
            f" {importlib.metadata.version(name)}"
            if name != "torch" and " by hand" not in package
            else ""
        )
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                cases = write(Path(folder))
            except Exception as error:
                failed += 1
                print(
                    f"{package + version:<34} cannot be run: {type(error).__name__}: "
                    f"{' '.join(str(error).split())[:120]}",
                    flush=True,
                )
                traceback.print_exc(file=sys.stderr)
                continue
            for case in cases:
                faults = check(case)
                failed += bool(faults)
                verdict = "; ".join(faults) or ("refused, rightly" if case.refused else "right")
                epoch = "-" if case.epoch is None else case.epoch
                print(
                    f"{package + version:<34} {case.what:<46} {'+'.join(case.copies):<12} "
                    f"{epoch:<7} {verdict}",
                    flush=True,
                )
            os.chdir("/")
    print(f"{failed} failed")
    return failed


if __name__ == "__main__":
    raise SystemExit(bool(main()))
