"""Run as a program: writers of a store that are killed with SIGKILL, and what is left of their
work.

Prints one line of JSON. In a program of its own because it forks, which a process with threads must
not do.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from landscape.store import SpectrumStore, SpectrumWriter, parts_folder
from tests.helpers.store_records import manifest_of, record_of
from tests.helpers.store_vectors import vector_record_of, vectors_of

CALLS = ("replace", "unlink", "fsync", "rmdir", "mkdir", "ftruncate", "write", "pwrite")
# Calls that may be cut off in the middle, by the number of bytes.
WRITES = ("write", "pwrite")
# SIGKILL leaves the same files in memory as on a disk, and there fsync takes no time.
FOLDER = "/dev/shm" if os.path.isdir("/dev/shm") else None


def write_everything(output, manifest, *, unit=1, with_vectors=False, acknowledge=lambda key: None):
    """Write what is missing, `unit` records at once, and merge; the first of every unit is given
    twice.
    """
    with SpectrumWriter(output, manifest) as writer:
        done = writer.completed_vectors() if with_vectors else writer.completed_keys()
        new = [key for key in writer.plan.keys() if key not in done]
        for start in range(0, len(new), unit):
            keys = new[start : start + unit]
            if with_vectors:
                kept = [vector_record_of(key, writer.plan) for key in keys]
                writer.add_all([record_of(key) for key in keys], vectors=kept)
            elif unit == 1:
                writer.add(record_of(keys[0]))
            else:
                writer.add_all([record_of(key) for key in [keys[0], *keys]])
            for key in keys:
                acknowledge(key)
        writer.merge()


def in_child(work):
    """Fork, work, and return the wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    return child


def die_at_call(number, stride):
    """Kill this process just before its `number`-th call of one that changes files or brings them
    to the disk.

    A call that writes counts twice: before it, and after it has written half; of pieces of a merged
    file, one in `stride`.
    """
    count = pieces = 0

    def moments(name):
        """Whether each of the moments at which this call may die is one after half of it."""
        nonlocal pieces
        pieces += name == "pwrite"
        # The first is the name of the lock's owner.
        return (
            ()
            if name == "pwrite" and pieces % stride != 1
            else (False, True)
            if name in WRITES
            else (False,)
        )

    def wrapped(name, call):
        def call_or_die(*arguments, **options):
            nonlocal count
            for half in moments(name):
                count += 1
                if count == number:
                    if half:
                        target, content, *offset = arguments
                        call(target, memoryview(content).cast("B")[: len(content) // 2], *offset)
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return call_or_die

    for name in CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))


def check_vectors(output):
    """Compare every kept vector with its key."""
    with SpectrumStore.open(output) as store:
        assert store.completed_vectors() == frozenset(store.plan.keys()), "vectors are missing"
        for vectors in store.vectors.sources(store.vectors.keys()):
            lost = np.linalg.norm(vectors.read(0, vectors.n).T - vectors_of(vectors.key), axis=0)
            assert np.allclose(lost, vectors.rounding, rtol=1e-6), vectors.key


def check_finished(output, manifest):
    """Read the finished output and compare every value with its key; the folder of parts must be
    gone.
    """
    assert not parts_folder(output).exists(), "the parts were not removed"
    with SpectrumStore.open(output) as store:
        assert sorted(store.completed_keys()) == sorted(store.plan.keys()), "records are missing"
        num_rows = 0
        for series in store.series():
            for epoch in store.epochs(series):
                table = store.records(series, epoch)
                num_rows += table.num_records
                for row, key in enumerate(table.keys):
                    record = record_of(key)
                    assert np.array_equal(table.eigenvalues[row], record.values), key
                    assert np.array_equal(
                        table.ritz_values[row, : len(record.ritz_values)], record.ritz_values
                    ), key
                    assert table.loss[row] == record.loss, key
        assert num_rows == len(store.plan.keys()), "a record is there twice"


def stored_keys(output, *, with_vectors=False):
    if not output.exists() and not (parts_folder(output) / "plan.json").exists():
        return frozenset()
    with SpectrumStore.open(output) as store:
        assert not store.rejected, store.rejected
        return store.completed_vectors() if with_vectors else store.completed_keys()


def at_every_call(folder, unit, stride, *, with_vectors=False):
    """Kill before and within each file operation of a run that resumes an older output, then finish
    it.

    Args:
        unit: Records that are added at once.
        stride: A merge writes its file in hundreds of small pieces: one in so many is enough.
        with_vectors: Keep eigenvectors too; the older output has none.

    A merge takes hundreds of operations and does not depend on `unit`: of units of several records
    its first 20 are enough, and half as many of a merge with vectors, which takes twice the time.
    """
    template = folder / "template"
    template.mkdir()
    first, both = (
        manifest_of(template, series=("wide",), epochs=epochs, num_batches=2 if with_vectors else 4)
        for epochs in [(0,), (0, 2)]
    )
    write_everything(template / "x.h5", first)
    kills = torn = unmerged = 0
    # Not counted among the calls that kill.
    write = os.write
    for number in range(1, 100_000):
        output = folder / f"run{number}" / "x.h5"
        output.parent.mkdir()
        shutil.copy(template / "x.h5", output)
        before = stored_keys(output, with_vectors=with_vectors)

        reading, writing = os.pipe()

        def killed_run(number=number, output=output, writing=writing):
            die_at_call(number, stride)
            acknowledge = partial(lambda to, key: write(to, f"{key}\n".encode()), writing)
            options = {"unit": unit, "with_vectors": with_vectors}
            write_everything(output, both, acknowledge=acknowledge, **options)

        _, status = os.waitpid(in_child(killed_run), 0)
        os.close(writing)
        with open(reading) as pipe:
            acknowledged = frozenset(pipe.read().split())
        after = stored_keys(output, with_vectors=with_vectors)
        assert before | acknowledged <= after, "a record that was stored is lost"
        torn += any(
            not log.read_bytes().endswith(b"\n")
            for log in parts_folder(output).glob("*.log")
            if log.stat().st_size
        )
        unmerged += any(file.stat().st_size for file in parts_folder(output).glob(".merged*"))
        again = partial(write_everything, output, both, with_vectors=with_vectors)
        _, again = os.waitpid(in_child(again), 0)
        assert again == 0, "the second run failed"
        check_finished(output, both)
        if with_vectors:
            check_vectors(output)
        shutil.rmtree(output.parent)
        if status == 0 or (unit > 1 and unmerged == (10 if with_vectors else 20)):
            return {"kills": kills, "torn": torn, "unmerged": unmerged}
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
        kills += 1
    raise AssertionError("it never ran through")


def at_random_moments(folder, num_kills, seed):
    """Kill runs at random moments; what a writer acknowledged must stay, and nothing is written
    twice.
    """
    generator = random.Random(seed)
    kills, lost, twice, finished = 0, 0, 0, 0
    patience = 0.0
    while kills < num_kills:
        workplace = Path(tempfile.mkdtemp(dir=folder))
        output, manifest = workplace / "x.h5", manifest_of(workplace, num_batches=10)
        acknowledged: set[str] = set()
        status = -1
        while status != 0:
            reading, writing = os.pipe()

            def run(writing=writing, output=output, manifest=manifest):
                def acknowledge(key):
                    os.write(writing, f"{key}\n".encode())

                write_everything(output, manifest, unit=1 + finished % 3, acknowledge=acknowledge)

            started = time.monotonic()
            child = in_child(run)
            os.close(writing)
            # The first run of all goes undisturbed: it measures how long one takes on this machine.
            if patience and kills < num_kills:
                time.sleep(generator.uniform(0, patience))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            patience = patience or time.monotonic() - started
            with open(reading) as pipe:
                new = pipe.read().split()
            twice += len(acknowledged & set(new))
            acknowledged |= set(new)
            lost += len(acknowledged - stored_keys(output))
            kills += status != 0
        finished += 1
        check_finished(output, manifest)
    return {"kills": kills, "lost": lost, "twice": twice, "finished": finished}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        if sys.argv[1] == "every_call":
            unit, stride = map(int, sys.argv[2:4])
            options = {"with_vectors": "vectors" in sys.argv[4:]}
            print(json.dumps(at_every_call(Path(name), unit, stride, **options)))
        else:
            print(json.dumps(at_random_moments(Path(name), int(sys.argv[2]), int(sys.argv[3]))))
