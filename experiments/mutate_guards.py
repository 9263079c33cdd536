"""Whether the tests notice when a guard against wrong second derivatives is weakened.

Usage: python experiments/mutate_guards.py [--list] [--table] [--only 17 30-40] [--keep FILE.json]
[--timeout 120] [--budget 60]

Each mutation changes one place of the guards (`GUARDED`): a condition, a bound, a tolerance, a
refusal, an early return. The tests that execute that place are then run, the quickest first, until
one fails. pytest collects once; every mutation is applied in a fork of that process, to the code of
the function in memory. Nothing is written into the repository.

Measured first, unless FILE.json has it: what every test of `TESTS` takes and which lines of the
guards it executes. A mutation is "killed" by the test that failed, or by running out of time;
"equivalent" where `EQUIVALENT` says why no test can notice; and SURVIVED otherwise. `--keep` holds
measurements and results, so that only what has survived is run again.
"""

import argparse
import ast
import contextlib
import hashlib
import importlib
import inspect
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import timm
import torch
from guard_mutations import GUARDED, ROOT, Mutation, heads, lines_of, mutations, statements
from guard_mutations_equivalent import EQUIVALENT


def file_of(name: str) -> str:
    """Return the path of a test file in any folder of tests/, relative to the repository."""
    (path,) = (ROOT / "tests").rglob(f"test_{name}.py")
    return str(path.relative_to(ROOT))


TESTS = (
    "audit_guards",
    "audit_bounds",
    "audit_outcomes",
    "guard_edges",
    "audit_conditions",
    "graph",
    "preconditions",
    "spot_check",
    "audit",
    "finite_difference",
    "embedding_guards",
    "objective",
    "verdicts",
    "spot_check_memory",
    "audit_command",
)
# Written for mutations that had survived, and so run first.
_SHARP = tuple(
    file_of(name)
    for name in ("audit_bounds", "audit_outcomes", "guard_edges", "verdicts", "spot_check_memory")
)
# They take minutes and execute what quicker ones execute as well.
_TOO_SLOW = "torch's scan", "compiled_model", "towers_pass"
_CHILDREN = 2


# --- children -------------------------------------------------------------------------------------


def apply(mutation: Mutation) -> None:
    """Change the imported module, and whatever has imported from it."""
    module = sys.modules[mutation.file.removesuffix(".py").replace("/", ".")]
    code = compile(mutation.source, str(ROOT / mutation.file), "exec")
    if mutation.names:
        names = {"__name__": module.__name__, "__file__": module.__file__}
        tree = ast.parse(mutation.source)
        _rebind(
            module,
            [one for one in tree.body if isinstance(one, ast.Assign)],
            set(mutation.names),
            names,
        )
        return
    owner: Any = module
    for name in mutation.key.partition(": ")[0].split(".")[1:]:
        code = next(
            one for one in code.co_consts if isinstance(one, CodeType) and one.co_name == name
        )
        member = inspect.getattr_static(owner, name)
        if not isinstance(member, type):
            break
        owner = member
    function = inspect.unwrap(
        getattr(member, "fget", None) or getattr(member, "func", None) or member
    )
    function.__code__ = code


def _rebind(
    module: ModuleType, statements: list[ast.stmt], names: set[str], space: dict[str, Any]
) -> None:
    """Execute the assignments of these names again; then those of other guards that are made of
    them.
    """
    space = vars(module) | space
    for statement in statements:
        if (
            isinstance(statement, ast.Assign)
            and {getattr(one, "id", "") for one in statement.targets} & names
        ):
            exec(compile(ast.Module([statement], []), str(module.__file__), "exec"), space)
    for name in names:
        old, new = getattr(module, name), space[name]
        for other in list(sys.modules.values()):
            if isinstance(other, ModuleType) and vars(other).get(name) is old:
                setattr(other, name, new)
        for file in GUARDED:
            other = sys.modules[file.removesuffix(".py").replace("/", ".")]
            made = [
                one
                for one in ast.parse((ROOT / file).read_bytes()).body
                if isinstance(one, ast.Assign)
            ]
            made = [
                one
                for one in made
                if any(getattr(part, "id", "") == name for part in ast.walk(one.value))
            ]
            if made:
                _rebind(
                    other,
                    [*made],
                    {one.id for each in made for one in each.targets if isinstance(one, ast.Name)},
                    {},
                )


class Server:
    """Runs jobs in place of the tests that pytest collected, each in a fork of this process."""

    def __init__(self, serve: Callable[["Server"], None]) -> None:
        self._serve = serve
        self.items: dict[str, pytest.Item] = {}
        self.failed = ""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {
            item.nodeid: item
            for item in session.items
            if not any(text in item.nodeid for text in _TOO_SLOW)
        }
        self._serve(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def killer(self, mutation: Mutation | None, names: list[str]) -> str:
        """The first of the named tests that fails under a mutation, or nothing."""
        if mutation is not None:
            apply(mutation)
        for name, following in zip(names, [*names[1:], None]):
            self._run(name, following)
            if self.failed:
                break
        return self.failed

    def _run(self, name: str, following: str | None) -> None:
        item = self.items[name]
        item.config.hook.pytest_runtest_protocol(
            item=item, nextitem=self.items[following] if following else None
        )

    def measured(self, file: str) -> dict[str, Any]:
        """The seconds of every test of a file and the lines of the guards that it executes."""
        names = [name for name in self.items if name.startswith(file)]
        guards = {str(ROOT / guard): guard for guard in GUARDED}
        hit: set[tuple[str, int]] = set()

        def local(frame: FrameType, event: str, arg: Any) -> Any:
            hit.add((guards[frame.f_code.co_filename], frame.f_lineno))
            return local

        tests = {}
        for name, following in zip(names, [*names[1:], None]):
            hit.clear()
            begun = time.process_time()
            sys.settrace(
                lambda frame, event, arg: local if frame.f_code.co_filename in guards else None
            )
            self._run(name, following)
            sys.settrace(None)
            lines: dict[str, list[int]] = {}
            for guard, line in sorted(hit):
                lines.setdefault(guard, []).append(line)
            tests[name] = {
                "seconds": round(time.process_time() - begun, 2),
                "lines": lines,
                "failed": self.failed == name,
            }
        return tests


def in_children(
    jobs: list[tuple[str, Callable[[], Any]]], *, timeout: float
) -> Iterator[tuple[str, Any, float]]:
    """The results of jobs by name, each made in a process of its own; None of one that ran out of
    time or broke down.
    """
    waiting, running = list(reversed(jobs)), {}
    while waiting or running:
        while waiting and len(running) < _CHILDREN:
            name, job = waiting.pop()
            folder = Path(tempfile.mkdtemp(prefix="mutate_guards_"))
            sys.stdout.flush()
            if (child := os.fork()) == 0:
                _work(job, folder)
            running[child] = (folder, name, time.monotonic())
        time.sleep(0.02)
        for child, (folder, name, begun) in list(running.items()):
            late = time.monotonic() - begun > timeout
            if late:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
            elif os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            del running[child]
            os.waitpid(child, 0)
            result = (
                json.loads((folder / "result").read_text())
                if (folder / "result").exists() and not late
                else None
            )
            shutil.rmtree(folder)
            yield name, result, time.monotonic() - begun


def _work(job: Callable[[], Any], folder: Path) -> None:
    """In the child: leave the result in the folder."""
    os.setpgid(0, 0)
    tempfile.tempdir = str(folder)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    try:
        result = job()
    except BaseException as error:
        result = f"broke down: {error!r}"
    (folder / "written").write_text(json.dumps(result))
    (folder / "written").rename(folder / "result")
    os._exit(0)


# --- the table ------------------------------------------------------------------------------------


def tests_of(mutation: Mutation, measured: dict[str, Any], *, budget: float) -> list[str]:
    """The tests that execute the place of a mutation, the quickest first, as many as the budget of
    seconds allows.
    """
    places = {(mutation.file, line) for line in mutation.lines}
    for name in mutation.names:
        places |= _mentions(name)
    hitting = [
        (not name.startswith(_SHARP), test["seconds"], name)
        for name, test in measured.items()
        if not test.get("failed")
        and any((file, line) in places for file, lines in test["lines"].items() for line in lines)
    ]
    return within(budget, [(seconds, name) for _, seconds, name in sorted(hitting)])


def within(budget: float, tests: list[tuple[float, str]]) -> list[str]:
    """The names of tests, in their order, as long as their seconds are within the budget."""
    spent, chosen = 0.0, []
    for seconds, name in tests:
        spent += seconds
        if spent <= budget:
            chosen.append(name)
    return chosen


def _mentions(name: str) -> set[tuple[str, int]]:
    """Where the guards use a constant of a module."""
    places = set()
    for file in GUARDED:
        for function, statement in statements(ast.parse((ROOT / file).read_bytes()).body, "module"):
            parts = [part for head in heads(statement) for part in ast.walk(head)]
            if function != "module" and any(
                isinstance(part, ast.Name) and part.id == name for part in parts
            ):
                places |= {(file, line) for line in lines_of(statement)}
    return places


def _asked() -> argparse.Namespace:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--list", action="store_true", help="print the mutations and stop")
    asked.add_argument(
        "--control",
        action="store_true",
        help="also run the tests without a mutation, in the same way",
    )
    asked.add_argument(
        "--table", action="store_true", help="print what --keep holds and run nothing"
    )
    asked.add_argument("--only", nargs="*", default=[], help="numbers, or ranges of them")
    asked.add_argument(
        "--keep", type=Path, help="JSON of what was measured and seen, read and written"
    )
    asked.add_argument(
        "--tests", nargs="*", default=list(TESTS), help="test files to use, by the names in TESTS"
    )
    asked.add_argument(
        "--measure",
        nargs="*",
        default=[],
        help="test files to measure again, by the names in TESTS",
    )
    asked.add_argument("--timeout", type=float, default=120)
    asked.add_argument(
        "--budget",
        type=float,
        default=60,
        help="seconds of tests per mutation, as they were measured",
    )
    return asked.parse_args()


def _numbers(texts: list[str]) -> set[int]:
    spans = [text.split("-") for text in texts]
    return {number for span in spans for number in range(int(span[0]), int(span[-1]) + 1)}


def main() -> None:
    options = _asked()
    every = mutations()
    chosen = [one for one in every if not options.only or one.number in _numbers(options.only)]
    if options.list:
        for one in chosen:
            print(f"{one.number:4}  {one.place:34}  {one.key}")
        return
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)
    kept: dict[str, Any] = {"tests": {}, "results": {}}
    if options.keep and options.keep.exists():
        kept = json.loads(options.keep.read_text())
    if options.table:
        _print_table(chosen, kept)
        return
    server = Server(lambda server: _serve(server, chosen, kept, options))
    files = [file_of(name) for name in options.tests]
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(
            [*files, "-q", "--capture=sys", "-p", "no:cacheprovider", "-p", "no:timeout"],
            plugins=[server],
        )
    _print_table(chosen, kept)


def _serve(
    server: Server, chosen: list[Mutation], kept: dict[str, Any], options: argparse.Namespace
) -> None:
    def say(text: str) -> None:
        print(text, file=sys.__stderr__, flush=True)
        if options.keep:
            options.keep.write_text(json.dumps(kept, indent=1))

    for file in GUARDED:
        importlib.import_module(file.removesuffix(".py").replace("/", "."))
    # Lines that were measured mean nothing in other files.
    digest = hashlib.sha256(b"".join((ROOT / file).read_bytes() for file in GUARDED)).hexdigest()
    if kept.get("guards") != digest:
        kept |= {"guards": digest, "tests": {}}
    known = {name.partition("::")[0] for name in kept["tests"]}
    files = [file_of(name) for name in options.tests]
    again = [
        file
        for name, file in zip(options.tests, files)
        if file not in known or name in options.measure
    ]
    for file, tests, seconds in in_children(
        [(file, partial(server.measured, file)) for file in again], timeout=1800
    ):
        kept["tests"] = {
            name: test for name, test in kept["tests"].items() if name.partition("::")[0] != file
        } | (tests or {})
        say(f"{file}: {len(tests or ())} tests, {seconds:.0f} s")
    results, jobs, spent = kept["results"], [], {}
    for one in chosen:
        if one.key in EQUIVALENT or (not options.only and results.get(one.key, {}).get("killed")):
            continue
        measured = {name: kept["tests"][name] for name in server.items if name in kept["tests"]}
        names = tests_of(one, measured, budget=options.budget)
        results[one.key] = {"killed": "", "tests": len(names)}
        if names:
            jobs.append((f"{one.number} {one.key}", partial(server.killer, one, names)))
            spent[jobs[-1][0]] = sum(measured[name]["seconds"] for name in names)
    jobs.sort(key=lambda job: spent[job[0]])
    if options.control:
        tests = sorted(
            (kept["tests"][name]["seconds"], name) for name in server.items if name in kept["tests"]
        )
        names = within(options.budget, tests)
        for _, killer, seconds in in_children(
            [("control", partial(server.killer, None, names))], timeout=1800
        ):
            kept["control"] = (
                f"{date.today()}: without a mutation "
                f"{killer or 'all ' + str(len(names)) + ' tests passed'}"
            )
            say(f"{kept['control']} ({seconds:.0f} s)")
    for name, killer, seconds in in_children(jobs, timeout=options.timeout):
        killed = f"out of time ({options.timeout:.0f} s)" if killer is None else killer
        results[name.partition(" ")[2]]["killed"] = killed
        say(f"{name}: {killed or 'SURVIVED'} ({seconds:.0f} s)")


def _print_table(chosen: list[Mutation], kept: dict[str, Any]) -> None:
    results = kept["results"]
    print(
        f"{date.today()}, torch {torch.__version__}, timm {timm.__version__}, pytest "
        f"{pytest.__version__}"
    )
    print(kept.get("control", "no control was run"))
    told: Counter[str] = Counter()
    for one in chosen:
        killed = results.get(one.key, {}).get("killed", "")
        word = "equivalent" if one.key in EQUIVALENT else "killed" if killed else "SURVIVED"
        told[word] += 1
        by = (
            EQUIVALENT.get(one.key)
            or killed.replace("tests/", "")
            or f"{results.get(one.key, {}).get('tests', 0)} tests passed"
        )
        print(f"{one.number:4}  {one.place:34}  {one.key}\n      {word}: {by}")
    print(
        f"{len(chosen)} mutations: "
        + ", ".join(f"{count} {word}" for word, count in told.most_common())
    )


if __name__ == "__main__":
    main()
