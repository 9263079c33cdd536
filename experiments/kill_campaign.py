"""Kill `landscape spectra` with SIGKILL at random moments, and count what is lost, wrong or
computed twice.

    python experiments/kill_campaign.py --place local --kills 40 --seed 0

A tiny study of 18 batches is measured again and again by two workers, each time into a new store,
while processes of the run are killed. What the moments hit: starting up, preparing, measuring,
writing the log, merging. A killed parent is followed by the same command, until the store is whole;
any other killed process must cost the run nothing but time.

    local      --workers 2; kills the parent and its children
    dask       --cluster with `cluster: local`; kills the parent (with it the scheduler), workers,
               their nannies and children
    scheduler  --scheduler, with a scheduler and two workers started by hand; kills these, the
               children and the parent
    slurm      --cluster on a Slurm of one node (tests/helpers/slurm_node.py, as root); kills
               as dask does
    store      writers of a store alone, in its log and its merge
               (tests/helpers/crash_store_writers.py)

"parent, log" and "parent, merge" are kills aimed at a growing log and at the file into which the
logs are merged. Columns:

    lost    records that were in the store before a kill and are not there after it, or at the end
    wrong   records that differ from those of --workers 1 in any bit of any column but `seconds`, or
            in their settings but for the choice of the product, which holds times
    twice   units (records) of which a computation was thrown away, most at one kill; a unit is
            what a worker gets at a time
    died    processes that ended with that kill; a unit each may be computed twice, and no more
    orphans seconds, at most, that a child lived on after its parent was killed; "stay" for
            more than --patience
    lines   on standard error about one kill, at most
    status  of the runs that were not killed themselves: how often each

Every process logs the begin and the end of each record that it computes (sitecustomize on
PYTHONPATH), so that what is computed twice is counted. Ends with status 1 if anything is lost or
wrong or more than the above is computed twice.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from json import loads
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from kill_places import ROOT, SERVERS, TAG, Process, at_place, environment_of, is_below, processes

from landscape.cli import main as landscape
from landscape.manifest import canonical_json
from landscape.store import SpectrumStore, parts_folder

# How many kills each place gets of a hundred.
SHARES = {"local": 40, "dask": 10, "scheduler": 10, "slurm": 15, "store": 25}
VICTIMS = {
    "local": ("parent", "child", "child", "parent, log", "parent, merge"),
    "dask": ("parent", "child", "worker", "nanny", "parent, log", "parent, merge"),
    "scheduler": ("parent", "child", "worker", "scheduler", "scheduler"),
    "slurm": ("parent", "child", "worker", "nanny"),
}
# Kills of processes other than the parent in one run: a third of the same unit would make its
# records failures.
KILLS_PER_RUN = 2
# What a run says, with status 2, whose scheduler is killed before it is done.
NO_SCHEDULER = "the Dask scheduler has gone|no Dask scheduler answers|no scheduler file"
# Seconds after which a run hangs.
RUN_TIMEOUT = 400.0
# Runs that a store gets to become whole.
MAX_RUNS = 50


@dataclass
class Kill:
    """One SIGKILL and what came of it.

    Attributes:
        died: Numbers of the processes that ended with it; only those that calculate, and the
            parent.
    """

    place: str
    victim: str
    died: frozenset[int]
    lost: int = 0
    wrong: int = 0
    units: set[tuple[str, str]] = field(default_factory=set)
    records: int = 0
    orphan_seconds: float = 0.0
    lines: int = 0


def values_of(output: Path) -> dict[str, str]:
    """Digest of every stored record in all columns but its seconds; empty where there is no store
    yet.
    """
    if not output.exists() and not (parts_folder(output) / "plan.json").exists():
        return {}
    result = {}
    with SpectrumStore.open(output) as store:
        assert not store.rejected, store.rejected
        for series, epoch in store.identities:
            table = store.records(series, epoch)
            facts = (
                f"{table.checkpoint_sha256} {table.num_params} {table.model} {table.label} "
                f"{table.num_planned} "
            )
            # Of the choice of the product, times and limits are stored.
            settings = {
                name: value for name, value in table.settings.items() if name != "product_choice"
            }
            facts += canonical_json([settings, table.versions])
            columns = {
                name: value
                for name, value in vars(table).items()
                if np.ndim(value) and name != "seconds"
            }
            for row, key in enumerate(table.keys):
                # Rows are filled up with NaN to the length of the longest that is stored.
                cells = [
                    f"{name}: {bits_of(column[row])}" for name, column in sorted(columns.items())
                ]
                result[key] = sha256("\n".join([facts, *cells]).encode()).hexdigest()
    return result


def log_bytes(parts: Path) -> int:
    """Size of all logs of a growing store."""
    size = 0
    for log in parts.glob("records.*.log"):
        try:
            size += log.stat().st_size
        # Merged and removed.
        except FileNotFoundError:
            pass
    return size


def bits_of(cell: Any) -> str:
    """The value of a column in one row, without the NaN that rows are filled up with."""
    array = np.asarray(cell)
    if array.ndim and array.dtype.kind == "f":
        array = array[~np.isnan(array)]
    return str(cell) if array.dtype.kind == "U" else array.tobytes().hex()


class Campaign:
    """The kills of one place."""

    def __init__(self, folder: Path, place: str, *, seed: int, patience: float) -> None:
        self.folder, self.place, self.patience = folder, place, patience
        self.generator = random.Random(seed)
        self.num_runs, self.tag = 0, f"{os.getpid()}-0"
        self.log = folder / "computed.log"
        self.kills: list[Kill] = []
        self.statuses: Counter[int] = Counter()
        self.stores: Counter[str] = Counter()
        self.problems: list[str] = []
        self.where: list[str] = []
        self.keep_servers: Callable[[], None] = lambda: None
        self.log.touch()
        self.environment = environment_of(folder, self.log)
        (folder / "study").mkdir()
        make = "from pathlib import Path; from tests.helpers.spectra_study import make_study; "
        make += f"make_study(Path({str(folder / 'study')!r}), with_config=True, epochs=(0, 1, 2))"
        subprocess.run([sys.executable, "-c", make], env=self.environment, check=True)

    def start(self, output: Path, where: list[str]) -> "subprocess.Popen[bytes]":
        command = [
            sys.executable,
            "-m",
            "landscape",
            "spectra",
            str(self.folder / "study" / "checkpoints.yaml"),
        ]
        command += ["-o", str(output), "--unaudited", "--device", "cpu", "--threads", "1", *where]
        with open(output.with_suffix(".stderr"), "wb") as stderr:
            return subprocess.Popen(
                command,
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=self.folder,
            )

    def undisturbed(self) -> None:
        """Measure in one process, which gives the reference, and at this place, which says how long
        a run takes.
        """
        reference = self.folder / "reference.h5"
        assert self.start(reference, ["--workers", "1"]).wait(RUN_TIMEOUT) == 0
        self.reference = values_of(reference)
        self.keep_servers()
        begun = time.monotonic()
        assert self.start(self.folder / "undisturbed.h5", self.where).wait(RUN_TIMEOUT) == 0
        self.span = time.monotonic() - begun
        assert values_of(self.folder / "undisturbed.h5") == self.reference, (
            "the undisturbed run has other values"
        )

    def run(self, num_kills: int) -> None:
        """Fill one store after the other until there were so many kills."""
        while len(self.kills) < num_kills:
            output = self.folder / f"killed{sum(self.stores.values())}.h5"
            # Workers that go on hold it open.
            os.truncate(self.log, 0)
            first = len(self.kills)
            for _ in range(MAX_RUNS):
                if self.one_run(output, num_kills) == 0:
                    break
            self.count_twice(self.kills[first:])
            values = values_of(output)
            lost, wrong = self.compare(values, self.reference)
            equal = not lost and not wrong and not parts_folder(output).exists()
            self.stores["equal" if equal else "other"] += 1
            if self.kills:
                self.kills[-1].lost += lost
                self.kills[-1].wrong += wrong

    def compare(self, values: dict[str, str], before: dict[str, str]) -> tuple[int, int]:
        """Count the records of `before` that are lost, and those whose values are not the
        reference's.
        """
        lost = len(before.keys() - values.keys())
        return lost, sum(value != self.reference.get(key) for key, value in values.items())

    def one_run(self, output: Path, num_kills: int) -> int:
        """Run the command once; its status, negative if it was killed."""
        self.keep_servers()
        self.num_runs += 1
        self.environment[TAG] = self.tag = f"{os.getpid()}-{self.num_runs}"
        before = values_of(output)
        run, deadline, kills = self.start(output, self.where), time.monotonic() + RUN_TIMEOUT, []
        while len(self.kills) < num_kills and len(kills) < KILLS_PER_RUN and run.poll() is None:
            victim = self.generator.choice(VICTIMS[self.place])
            if (process := self.wait_for_moment(run, output, victim)) is None:
                break
            if (kill := self.strike(process, victim, output, before)) is None:
                continue
            kills.append(kill)
            if process.kind == "parent":
                if (status := run.wait()) >= 0:
                    # It had just ended.
                    self.kills.pop()
                    return status
                self.after_parent(kills[-1], output, before)
                return -signal.SIGKILL
            self.keep_servers()
        try:
            status = run.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.problems.append(
                f"{output.name}: did not end in {RUN_TIMEOUT:.0f} s after "
                f"{[kill.victim for kill in kills]}"
            )
            run.kill()
            return run.wait()
        self.after_run(kills, status, output)
        return status

    def wait_for_moment(
        self, run: "subprocess.Popen[bytes]", output: Path, victim: str
    ) -> Process | None:
        """Wait for a random moment, or for that of an aimed kill; None if the run has ended
        before.
        """
        kind, _, aim = victim.partition(", ")
        parts = parts_folder(output)
        size = log_bytes(parts)
        at = time.monotonic() + (0 if aim else self.generator.uniform(0, self.span))
        while run.poll() is None:
            if aim == "log":
                ready = log_bytes(parts) > size
            else:
                ready = any(parts.glob(".merged*")) if aim == "merge" else time.monotonic() >= at
            if ready and aim:
                time.sleep(self.generator.uniform(0, 0.02))
            if ready and (of_kind := [one for one in self.there() if one.kind == kind]):
                return self.generator.choice(of_kind)
            time.sleep(0.0005 if aim else 0.02)
        return None

    def there(self) -> list[Process]:
        return processes(self.tag) + processes(SERVERS)

    def strike(
        self, process: Process, victim: str, output: Path, before: dict[str, str]
    ) -> Kill | None:
        """Kill a process, once what is stored at this moment is known; None if it has just
        ended.
        """
        if "," not in victim:
            before |= values_of(output)
        there = self.there()
        if process.kind in ("parent", "scheduler"):
            died = {one.pid for one in there if one.kind in ("parent", "child")}
        else:
            died = {process.pid} | {
                one.pid
                for one in there
                if one.kind == "child" and is_below(one, process.pid, there)
            }
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return None
        self.kills.append(Kill(self.place, victim, frozenset(died)))
        print(
            f"{self.place} {len(self.kills)}: {victim}, {len(before)} records, {output.name}",
            file=sys.stderr,
            flush=True,
        )
        return self.kills[-1]

    def after_parent(self, kill: Kill, output: Path, before: dict[str, str]) -> None:
        """Wait until the children have gone, and look at what is stored."""
        begun = time.monotonic()
        while any(one.kind == "child" and one.pid in kill.died for one in self.there()):
            kill.orphan_seconds = time.monotonic() - begun
            if kill.orphan_seconds > self.patience:
                break
            time.sleep(0.02)
        values = values_of(output)
        lost, wrong = self.compare(values, before)
        kill.lost += lost
        kill.wrong += wrong
        if (
            values
            and (result := CliRunner().invoke(landscape, ["info", str(output)])).exit_code != 0
        ):
            self.problems.append(
                f"landscape info {output.name}: status {result.exit_code}: {result.output}"
            )

    def after_run(self, kills: list[Kill], status: int, output: Path) -> None:
        """Check the status of a run that has ended by itself, and what it said."""
        self.statuses[status] += 1
        text = output.with_suffix(".stderr").read_text()
        about = [
            line
            for line in text.splitlines()
            if not re.fullmatch(r"\w+ epoch \d+|\d+ workers?: .*", line)
        ]
        for kill in kills:
            kill.lines = max(kill.lines, -(-len(about) // len(kills)))
        allowed = [0]
        if any(kill.victim == "scheduler" for kill in kills) and re.search(NO_SCHEDULER, text):
            allowed.append(2)
        if len(kills) > 1 and "for the second time with the same work" in text:
            allowed.append(2)
        if status not in allowed:
            self.problems.append(
                f"{output.name}: status {status} after {[kill.victim for kill in kills]}: "
                f"{text[-600:]}"
            )

    def count_twice(self, kills: list[Kill]) -> None:
        """Attribute every computation of a record but the last to the kill in which its process
        died.
        """
        begun: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for line in self.log.read_text().splitlines():
            what, key, pid, unit, _ = line.split()
            if what == "begin":
                begun[key].append((int(pid), unit))
        if begun.keys() != self.reference.keys():
            self.problems.append(
                f"the log of what was computed names {len(begun)} of {len(self.reference)} records"
            )
        for key, computations in begun.items():
            for pid, unit in computations[:-1]:
                kill = next((kill for kill in kills if pid in kill.died), None)
                if kill is None:
                    self.problems.append(
                        f"{key}: computed twice, though process {pid} was not killed"
                    )
                    continue
                kill.units.add((str(pid), unit))
                kill.records += 1
        self.problems += [
            f"{kill}: more units than processes"
            for kill in kills
            if len(kill.units) > len(kill.died)
        ]


def table_of(campaign: Campaign) -> str:
    by_victim: dict[str, list[Kill]] = defaultdict(list)
    for kill in campaign.kills:
        by_victim[kill.victim].append(kill)
    lines = [
        f"{'place':10}{'victim':15}{'kills':>6}{'lost':>6}{'wrong':>6}{'twice':>8}{'died':>5}{'orphans':>9}{'lines':>6}"
    ]
    for victim, kills in sorted(by_victim.items()):
        most = max(kills, key=lambda kill: (len(kill.units), kill.records))
        orphans = max(kill.orphan_seconds for kill in kills)
        lived = (
            "-"
            if victim.split(",")[0] != "parent"
            else "stay"
            if orphans > campaign.patience
            else f"{orphans:.1f}"
        )
        lines.append(
            f"{campaign.place:10}{victim:15}{len(kills):6d}{sum(kill.lost for kill in kills):6d}"
            f"{sum(kill.wrong for kill in kills):6d}{f'{len(most.units)} ({most.records})':>8}"
            f"{len(most.died):5d}{lived:>9}"
            f"{max(kill.lines for kill in kills):6d}"
        )
    twice = sum(bool(kill.units) for kill in campaign.kills)
    statuses = ", ".join(
        f"{status}: {number}" for status, number in sorted(campaign.statuses.items())
    )
    lines.append(
        f"{campaign.stores['equal']} of {sum(campaign.stores.values())} stores bit-equal to "
        f"--workers 1; status {statuses}; {twice} kills cost a computation; an undisturbed run "
        f"takes {campaign.span:.0f} s"
    )
    return "\n".join(lines + [f"PROBLEM {problem}" for problem in campaign.problems])


def kill_at(place: str, num_kills: int, *, seed: int, patience: float) -> bool:
    """Do and print the kills of one place; whether all is as it must be."""
    begun = time.monotonic()
    if place == "store":
        command = [
            sys.executable,
            "-m",
            "tests.helpers.crash_store_writers",
            "random",
            str(num_kills),
            str(seed),
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        result = loads(
            subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            ).stdout
        )
        counts = (
            "{kills} kills of writers: {lost} lost, {twice} written twice, {finished} of "
            "{finished} stores right"
        )
        print(
            f"{place:10}{counts.format(**result)}, {time.monotonic() - begun:.0f} s",
            end="\n\n",
            flush=True,
        )
        return not result["lost"] and not result["twice"]
    with tempfile.TemporaryDirectory(prefix="landscape-kills-", ignore_cleanup_errors=True) as name:
        campaign = Campaign(Path(name), place, seed=seed, patience=patience)
        with at_place(place, Path(name), campaign.environment) as (
            campaign.where,
            campaign.keep_servers,
        ):
            campaign.undisturbed()
            campaign.run(num_kills)
        print(
            table_of(campaign),
            f"{time.monotonic() - begun:.0f} s",
            sep="\n",
            end="\n\n",
            flush=True,
        )
    lost = sum(kill.lost + kill.wrong for kill in campaign.kills)
    return not (lost or campaign.problems or campaign.stores["other"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--place", choices=[*SHARES, "all"], default="all")
    parser.add_argument(
        "--kills", type=int, help="in all at this place; default: 40, 10, 10, 15 and 25, a hundred"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=3.0, help="seconds to wait for orphans")
    options = parser.parse_args()
    places = SHARES if options.place == "all" else {options.place: SHARES[options.place]}
    print(
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, seed {options.seed}",
        end="\n\n",
        flush=True,
    )
    right = [
        kill_at(place, options.kills or number, seed=options.seed, patience=options.patience)
        for place, number in places.items()
    ]
    raise SystemExit(0 if all(right) else 1)


if __name__ == "__main__":
    main()
