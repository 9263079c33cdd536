"""The places of the guards that `mutate_guards.py` changes, and how."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The files of the guards, and of those that are more than guards the functions.
GUARDED: dict[str, tuple[str, ...] | None] = {
    "landscape/curvature/audits/examination.py": None,
    "landscape/curvature/audits/objective_audit.py": None,
    "landscape/curvature/audits/report.py": None,
    "landscape/curvature/audits/blame.py": None,
    "landscape/curvature/audits/differences.py": None,
    "landscape/curvature/audits/judgement.py": None,
    "landscape/curvature/guards/explanations.py": None,
    "landscape/curvature/guards/graph.py": None,
    "landscape/curvature/guards/nodes.py": None,
    "landscape/curvature/guards/preconditions.py": None,
    "landscape/curvature/audits/spot_check.py": None,
    "landscape/curvature/hvp/evaluation.py": (
        "as_differentiated",
        "value_of",
        "twice_evaluated",
        "backward_in_place",
        "check_gradients",
    ),
    "landscape/curvature/operators/finite_difference.py": (
        "module",
        "__init__",
        "matmat",
        "_loss_and_gradient",
        "_check_slope",
        "_estimated_error",
    ),
    "landscape/pipeline/audit.py": (
        "audit_target",
        "audit_subject",
        "verdict_of",
        "_audited_in_turn",
        "stored_verdicts",
        "check_hvp",
    ),
}


@dataclass(frozen=True)
class Mutation:
    """One change of one place.

    Attributes:
        file: Below the root of the repository.
        lines: That are executed whenever the place is.
        names: Of a constant of the module; whatever mentions it executes it.
        key: What was changed, in words that stay the same when other lines come and go.
        source: The whole file, changed.
    """

    number: int
    file: str
    lines: tuple[int, ...]
    names: tuple[str, ...]
    key: str
    source: bytes

    @property
    def place(self) -> str:
        return f"{self.file.removeprefix('landscape/')}:{self.lines[0]}"


_ORDERED = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def mutations() -> list[Mutation]:
    """All of them, numbered in the order of the files and their lines."""
    made: list[Mutation] = []
    for file, functions in GUARDED.items():
        source = (ROOT / file).read_bytes()
        starts = [0]
        for line in source.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        for function, statement, node, text in _changes(ast.parse(source), functions):
            begin, end = (starts[line - 1] + column for line, column in _ends(node))
            changed = source[:begin] + text.encode() + source[end:]
            key = (
                f"{Path(file).stem}.{function}: {_short(source[begin:end].decode())} -> "
                f"{_short(text)}"
            )
            if again := sum(one.key.partition(" #")[0] == key for one in made):
                key += f" #{again + 1}"
            names: tuple[str, ...] = ()
            if function == "module" and isinstance(statement, ast.Assign):
                names = tuple(
                    target.id for target in statement.targets if isinstance(target, ast.Name)
                )
            made.append(Mutation(len(made) + 1, file, lines_of(statement), names, key, changed))
    return made


def _ends(node: ast.expr | ast.stmt) -> tuple[tuple[int, int], tuple[int, int]]:
    assert node.end_lineno is not None and node.end_col_offset is not None
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:97] + "..."


def lines_of(statement: ast.stmt) -> tuple[int, ...]:
    """Of a compound statement those of its head."""
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else statement.end_lineno
    return tuple(range(statement.lineno, max(last or 0, statement.lineno) + 1))


Change = tuple[str, ast.stmt, ast.expr | ast.stmt, str]


def _changes(tree: ast.Module, functions: tuple[str, ...] | None) -> Iterator[Change]:
    """Name of the function, the statement around, what is replaced and by what text."""
    for function, statement in statements(tree.body, "module"):
        leaf = function.rpartition(".")[2]
        chosen = functions is None or bool(set(function.split(".")) & set(functions))
        if leaf in ("__str__", "name_of", "describe_batch") or not chosen:
            continue
        for node, text in [*_of_statement(statement), *_of_expressions(statement)]:
            yield function, statement, node, text


def statements(body: list[ast.stmt], function: str) -> Iterator[tuple[str, ast.stmt]]:
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            name = statement.name if function == "module" else f"{function}.{statement.name}"
            if not any(
                isinstance(one, ast.Name) and one.id == "property"
                for one in statement.decorator_list
            ) or name.count("."):
                yield from statements(statement.body, name)
            continue
        if function == "module" and not isinstance(statement, ast.Assign):
            continue
        yield function, statement
        for part in ("body", "orelse", "finalbody"):
            yield from statements(getattr(statement, part, []), function)
        for handler in getattr(statement, "handlers", []):
            yield from statements(handler.body, function)


def _of_statement(statement: ast.stmt) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Results and checks left out; conditions that never or always hold.

    Left out is what another mutation includes: a refusal or an early return that is all of a
    condition's body, and a refusal that always happens, which every test sees.
    """
    if isinstance(statement, ast.Expr):
        if isinstance(statement.value, (ast.Yield, ast.YieldFrom)) and ast.unparse(
            statement
        ) not in ("yield", "yield timeline"):
            yield statement, "pass"
        if isinstance(statement.value, ast.Call) and "super()" not in ast.unparse(statement):
            yield statement, "pass"
    if isinstance(statement, ast.If):
        last = statement.body[-1]
        if not isinstance(last, ast.Raise):
            yield statement.test, "True"
        yield statement.test, "False"
        if isinstance(last, (ast.Return, ast.Continue, ast.Break)) and len(statement.body) > 1:
            yield last, "pass"


def heads(statement: ast.stmt) -> Iterator[ast.expr]:
    """The expressions of a statement that are not in statements of their own."""
    for _, value in ast.iter_fields(statement):
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, ast.expr):
                yield one
            elif isinstance(one, ast.withitem):
                yield one.context_expr


def _of_expressions(statement: ast.stmt) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    whole = statement.test if isinstance(statement, ast.If) else None
    for head in [] if isinstance(statement, (ast.While, ast.Assert)) else heads(statement):
        operands = [
            value
            for node in ast.walk(head)
            if isinstance(node, ast.BoolOp)
            for value in node.values
        ]
        for node in ast.walk(head):
            if isinstance(node, ast.Compare) and len(node.ops) == 1:
                yield from _of_comparison(node)
            elif isinstance(node, ast.BoolOp) and not isinstance(node.values[-1], ast.Constant):
                for dropped in node.values:
                    word = " and " if isinstance(node.op, ast.And) else " or "
                    yield (
                        node,
                        "("
                        + word.join(
                            ast.unparse(value) for value in node.values if value is not dropped
                        )
                        + ")",
                    )
            elif (
                isinstance(node, ast.UnaryOp)
                and isinstance(node.op, ast.Not)
                and node not in [whole, *operands]
            ):
                yield node, f"bool({ast.unparse(node.operand)})"
            elif (
                isinstance(node, ast.IfExp)
                and "cuda" not in ast.unparse(node)
                and "'" not in ast.unparse(node.body)
            ):
                yield node, f"({ast.unparse(node.body)})"
                yield node, f"({ast.unparse(node.orelse)})"
            elif isinstance(node, ast.comprehension):
                for condition in node.ifs:
                    yield condition, "True"
            elif (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") in ("max", "min")
                and len(node.args) > 1
            ):
                for value in node.args:
                    yield node, f"({ast.unparse(value)})"
            elif (
                isinstance(node, ast.Constant)
                and type(node.value) is float
                and node.value not in (0.0, 0.5, 1.0)
            ):
                yield node, f"{node.value * 100:.6g}"
                yield node, f"{node.value / 100:.6g}"


def _of_comparison(node: ast.Compare) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """The bound moved both ways, where it is a size and no count."""
    left, right = ast.unparse(node.left), ast.unparse(node.comparators[0])
    bound = node.comparators[0]
    counted = isinstance(bound, ast.Constant) or "len(" in right + left or "argsize" in right
    if isinstance(node.ops[0], _ORDERED) and not counted:
        sign = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}[type(node.ops[0])]
        yield node, f"(({left}) {sign} 100 * ({right}))"
        yield node, f"(({left}) {sign} ({right}) / 100)"
