"""Measure the English and the layout of the source: `python -m tests.house` prints a table.

tests/project/test_house.py holds the limits.
"""

import ast
import io
import re
import statistics
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "landscape"
# Rooms whose mathematics needs comments that teach.
HARD_ROOMS = ("linalg", "curvature", "kernels")
# Names that say nothing of what they hold.
EMPTY_NAMES = ("one", "found")
WIDTH = 100
# Lines of a file.
LENGTH = 400


@dataclass(frozen=True)
class Summary:
    """The first line of the docstring of a function."""

    path: Path
    function: str
    text: str

    @property
    def first_word(self) -> str:
        match = re.match(r"[`\"'(]*([A-Za-z][A-Za-z-]*)", self.text)
        return match.group(1) if match else ""

    @property
    def num_words(self) -> int:
        return len(self.text.split())

    @property
    def begins_with_verb(self) -> bool:
        return self.first_word in verbs()


@cache
def verbs() -> frozenset[str]:
    """Return the imperative verbs that docstrings may begin with, each read and accepted by a
    person.
    """
    return frozenset((Path(__file__).parent / "house_verbs.txt").read_text().split())


@cache
def sources() -> tuple[Path, ...]:
    """List the modules of the package."""
    return tuple(sorted(PACKAGE.rglob("*.py")))


@cache
def tree_of(path: Path) -> ast.Module:
    """Parse a module."""
    return ast.parse(path.read_text())


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function of a module, nested ones and methods too."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def summaries() -> list[Summary]:
    """Collect the first docstring line of every function that has a docstring."""
    collected = []
    for path in sources():
        for function in _functions(path):
            text = ast.get_docstring(function)
            if text:
                collected.append(
                    Summary(path.relative_to(ROOT), function.name, text.splitlines()[0])
                )
    return collected


def verb_share() -> float:
    """Divide the docstrings that begin with a verb by all."""
    collected = summaries()
    return sum(summary.begins_with_verb for summary in collected) / len(collected)


def summary_words() -> tuple[float, float]:
    """Compute the median and the 90th percentile of the words of a summary."""
    counts = [summary.num_words for summary in summaries()]
    return statistics.median(counts), statistics.quantiles(counts, n=10)[-1]


def empty_names() -> list[str]:
    """List where a local name or an argument says nothing of what it holds."""
    places = []
    for path in sources():
        for node in ast.walk(tree_of(path)):
            name = (
                node.id
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
                else getattr(node, "arg", None)
            )
            if name in EMPTY_NAMES and isinstance(node, ast.Name | ast.arg):
                places.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    return places


def long_lines() -> list[str]:
    """List the lines of more than WIDTH characters.

    As for ruff, words to a type checker or linter at the end of a line do not count.
    """
    return [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if len(re.sub(r"  # (type: ignore|noqa).*", "", line)) > WIDTH
    ]


def long_files(root: Path = PACKAGE) -> list[str]:
    """List the modules of more than LENGTH lines, the longest first."""
    counts = {path: len(path.read_text().splitlines()) for path in sorted(root.rglob("*.py"))}
    longest = sorted(counts.items(), key=lambda item: -item[1])
    return [f"{path.relative_to(root)}: {count}" for path, count in longest if count > LENGTH]


def comments_per_100(room: str) -> float:
    """Count the lines of a room that are comments, for every 100 lines of code."""
    comments = code = 0
    for path in sources():
        if path.relative_to(PACKAGE).parts[0] == room:
            numbers = _numbers_of_lines(path)
            comments += len(numbers[0])
            code += len(numbers[1])
    return 100 * comments / code


def _numbers_of_lines(path: Path) -> tuple[set[int], set[int]]:
    """Tell the lines that are comments alone and those of code; docstrings are neither."""
    docstrings = {
        number
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    comments, code = set(), set()
    layout = {
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
        tokenize.ENCODING,
    }
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in layout:
            code.update(range(token.start[0], token.end[0] + 1))
    code -= docstrings
    return comments - code, code


def late_imports() -> list[str]:
    """List the imports of the package's own names inside functions, outside of the command line."""
    places = []
    for path in sources():
        if path.is_relative_to(PACKAGE / "cli"):
            continue
        seen = set()
        for function in _functions(path):
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.ImportFrom | ast.Import)
                    and node.lineno not in seen
                    and _is_own(node)
                ):
                    seen.add(node.lineno)
                    places.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return places


def _is_own(node: ast.ImportFrom | ast.Import) -> bool:
    """Tell whether an import is of the package itself."""
    names = (
        [node.module or ""]
        if isinstance(node, ast.ImportFrom)
        else [alias.name for alias in node.names]
    )
    return any(name.partition(".")[0] == PACKAGE.name for name in names)


def main() -> None:
    """Print the measures."""
    median, most = summary_words()
    print(f"function docstrings that begin with a verb   {100 * verb_share():5.1f} %")
    print(f"words of a summary, median and 90th percentile {median:.0f} and {most:.0f}")
    print(f"local names {' and '.join(EMPTY_NAMES):32} {len(empty_names()):5}")
    print(f"lines over {WIDTH} characters {len(long_lines()):26}")
    print(f"files of more than {LENGTH} lines {len(long_files()):24}")
    for room in HARD_ROOMS:
        print(f"comment lines per 100 of code in {room:12} {comments_per_100(room):5.1f}")
    print(f"imports of own names inside functions        {len(late_imports()):5}")
    others = {summary.first_word for summary in summaries() if not summary.begins_with_verb}
    print("first words that are no verbs of house_verbs.txt:", " ".join(sorted(others)))


if __name__ == "__main__":
    main()
