"""Hostile inputs over all commands and kinds of files, from a seeded grammar, and what the command
line makes of them.

Run as a program: prints a table of verdicts by kind. It forks a process that has loaded everything
for each input, so it has to run alone, with one thread. Input 137 again, and what it printed:
`python -m tests.helpers.hostile --only 137`.

What must hold of every input: no traceback, no wait of 30 seconds, no 2 GiB of memory beyond what
the process had before, no pickled code that runs, no file of the user changed, nothing
half-written, an exit status that is documented, and with status 2 one line that says why.
"""

import argparse
import atexit
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from landscape.cli import main as landscape
from tests.helpers.hostile_grammar import KINDS, Hostile, hostile_input
from tests.helpers.hostile_judge import SECONDS, Outcome, forked, judge, snapshot
from tests.helpers.hostile_study import main as make_study
from tests.helpers.hostile_study import write_other_weights

_ENDS = {0: "done", 1: "partly", 2: "refused"}
_PROGRAM = "from landscape.cli import main; main(prog_name='landscape')"


def _run_command(argv: tuple[str, ...]) -> int:
    """What the interpreter would do with `landscape ARGV`."""
    status: Any = 0
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        landscape(args=list(argv), prog_name="landscape")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    # As at the end of an interpreter.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return status


def _prepare_child(hostile: Hostile, folder: Path) -> None:
    """Give a child its folder, streams, environment and limits, as a shell would."""
    os.setpgid(0, 0)
    os.chdir(folder / "study")
    # Until the command begins, Ctrl-C would meet this program.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    files = [os.open("/dev/null", os.O_RDONLY)]
    files += [
        os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        for name in ("stdout", "stderr")
    ]
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.environ["TMPDIR"] = str(folder / "tmp")
    tempfile.tempdir = None
    for name, value in hostile.environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + 8 * 2**30,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if hostile.limit is not None:
        resource.setrlimit(getattr(resource, hostile.limit[0]), (hostile.limit[1],) * 2)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _redirect(streams: str) -> None:
    """Do to a stream what the name says."""
    stream, _, what = streams.partition(" ")
    number = ("stdin", "stdout", "stderr").index(stream)
    if what == "closed":
        os.close(number)
    elif what == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)
    else:
        reader, writer = os.pipe()
        os.dup2(writer, number)
        os.close(reader)
        os.close(writer)


@cache
def _memory_of_a_child() -> int:
    _, _, usage = os.wait4(forked(lambda: 0), 0)
    return usage.ru_maxrss * 1024


def execute(hostile: Hostile, folder: Path) -> Outcome:
    """Run a command on the study in `folder`, which is spoiled already."""

    def work() -> int:
        _prepare_child(hostile, folder)
        if hostile.fresh:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if hostile.streams:
                _redirect(hostile.streams)
            os.execv(sys.executable, [sys.executable, "-c", _PROGRAM, *hostile.argv])
        return _run_command(hostile.argv)

    before = 0 if hostile.fresh else _memory_of_a_child()
    begun = time.perf_counter()
    child = forked(work)
    pending = hostile.signal
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        seconds = time.perf_counter() - begun
        if pid:
            code: int | None = os.waitstatus_to_exitcode(status)
            break
        if pending is not None and seconds >= pending[1]:
            os.kill(child, pending[0])
            pending = None
        if seconds > SECONDS:
            _, _, usage = _kill(child)
            code = None
            break
        time.sleep(0.005)
    out, err = (
        (folder / name).read_text(errors="replace") if (folder / name).exists() else ""
        for name in ("stdout", "stderr")
    )
    return Outcome(code, seconds, max(0, usage.ru_maxrss * 1024 - before), out, err)


def _kill(child: int) -> tuple[int, int, resource.struct_rusage]:
    for kill in (os.killpg, os.kill):
        try:
            kill(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return os.wait4(child, 0)


def _load_everything() -> None:
    """Import what commands import, so that a forked child need not."""
    import importlib

    for name in (
        "landscape.pipeline",
        "landscape.pipeline.spectra",
        "landscape.clip.loaded_series",
        "landscape.clip.train",
        "matplotlib.figure",
    ):
        importlib.import_module(name)
    for name in (
        "landscape.report.from_store",
        "landscape.figures.from_store",
        "landscape.pipeline.audit",
        "landscape.manifest.init",
        "scipy.stats",
    ):
        importlib.import_module(name)


def try_input(
    number: int, valid: Path, *, seed: int, keep: Path | None = None
) -> tuple[Hostile, Outcome, list[str]]:
    """Make an input, run its command and judge it."""
    hostile = hostile_input(number, seed=seed)
    folder = Path(tempfile.mkdtemp(prefix="hostile-")) if keep is None else keep
    try:
        shutil.copytree(valid, folder / "study", symlinks=True)
        (folder / "tmp").mkdir()
        hostile.change(folder / "study")
        before = snapshot(folder / "study")
        outcome = execute(hostile, folder)
        return hostile, outcome, judge(hostile, outcome, folder, before)
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def prepare(folder: Path) -> Path:
    """Make the valid study in a child, so that this process stays without threads."""
    study = folder / "valid"
    study.mkdir()
    _load_everything()

    def work() -> int:
        for number in (1, 2):
            os.dup2(os.open(folder / "made", os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
        make_study(study)
        write_other_weights(study)
        return 0

    _, status = os.waitpid(forked(work), 0)
    if status:
        sys.exit(f"the valid study cannot be made:\n{(folder / 'made').read_text()}")
    return study


Result = tuple[int, Hostile, Outcome, list[str]]


def told(result: Result) -> str:
    """An input, what is wrong with what came of it, and the last line that was printed."""
    number, hostile, outcome, wrong = result
    last = (outcome.stderr.strip() or outcome.stdout.strip() or "nothing was printed").splitlines()[
        -1
    ]
    verdict = "; ".join(wrong) or "as it should be"
    return f"{number:4} {hostile.name}\n     {verdict} (status {outcome.status}): {last[:300]}"


def table(results: list[Result]) -> str:
    """Counts by kind, and what the inputs took."""
    columns = (
        ("inputs", 7),
        ("done", 6),
        ("partly", 8),
        ("refused", 9),
        ("stopped", 9),
        ("faults", 8),
    )
    header = "".join(
        f"{name:>{width}}"
        for name, width in (*columns, ("mean s", 8), ("max s", 7), ("max MiB", 9))
    )
    lines = [f"{'kind':14}{header}"]
    for kind in [*KINDS, "all"]:
        mine = [result for result in results if kind in (result[1].kind, "all")]
        if not mine:
            continue
        outcomes = [outcome for _, _, outcome, _ in mine]
        ends = Counter(_ENDS.get(outcome.status, "stopped") for outcome in outcomes)
        counts = {"inputs": len(mine), **ends, "faults": sum(bool(wrong) for *_, wrong in mine)}
        seconds = [outcome.seconds for outcome in outcomes]
        lines.append(
            f"{kind:14}{''.join(f'{counts.get(name, 0):{width}}' for name, width in columns)}"
            f"{sum(seconds) / len(mine):8.2f}{max(seconds):7.1f}"
            f"{max(outcome.peak for outcome in outcomes) / 2**20:9.0f}"
        )
    return "\n".join(lines)


def run_all(numbers: Iterable[int], *, seed: int = 0, keep: Path | None = None) -> Iterator[Result]:
    """Meet the commands with inputs, in a study of their own."""
    # No TemporaryDirectory: a child that ends as an interpreter does would remove it.
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        valid = prepare(folder)
        for number in numbers:
            yield number, *try_input(number, valid, seed=seed, keep=keep)
    finally:
        shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--count", type=int, default=400, help="Inputs 0 to COUNT - 1 (default 400)."
    )
    parser.add_argument(
        "--stride", type=int, default=1, help="Only inputs 0, STRIDE, 2 STRIDE, ..."
    )
    parser.add_argument("--only", type=int, help="This input alone, with what it printed.")
    parser.add_argument("--seed", type=int, default=0, help="Of the grammar (default 0).")
    parser.add_argument(
        "--keep", type=Path, help="With --only: a folder for the study, which is kept."
    )
    arguments = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        return subprocess.call(
            [sys.executable, "-m", "tests.helpers.hostile", *sys.argv[1:]],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    begun = time.perf_counter()
    alone = arguments.only is not None
    numbers = [arguments.only] if alone else range(0, arguments.count, arguments.stride)
    results: list[Result] = []
    for result in run_all(numbers, seed=arguments.seed, keep=arguments.keep):
        results.append(result)
        if result[-1] or alone:
            print(told(result), flush=True)
        if alone:
            print(f"{result[2].stdout}\n{result[2].stderr}")
    print(table(results))
    print(f"{time.perf_counter() - begun:.0f} s in all")
    return int(any(wrong for *_, wrong in results))


if __name__ == "__main__":
    sys.exit(main())
