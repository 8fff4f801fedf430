"""Draw one-line mutations of the product code by generic operators: the same for the same seed and code.

`python tests/mutants/draw.py` prints them as entries of table.yaml, without what is written by hand: breaks and tests.
A site's place in the draw follows from the seed and its own text alone: where other lines change, it stays.
"""

import argparse
import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEED, COUNT = 16, 52
ROOMS = ("golf", "golf/artifact", "golf/evals", "golf/launcher", "golf/launcher/slurm", "golf/models", "golf/optim",
         "golf/quant", "golf/reports", "golf/search", "golf/submission", "golf/tokens", "hydra_plugins")  # fmt: skip
OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"), ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "*"), ast.Pow: ("**", "*"), ast.And: ("and", "or"), ast.Or: ("or", "and"),
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "amin": "amax", "amax": "amin", "any": "all", "all": "any"}
SIGHT = ("golf/reports/figures.py", "golf/reports/page.py")  # what they make is looked at
PATHS = re.compile(r"(path|folder|root|outputs|parent|place|data|run)$", re.IGNORECASE)  # what `/` joins
PROSE = {
    "print",
    "log",
    "warn",
    "say",
    "show",
    "annotate",
    "set_title",
    "add_row",
    "add_column",
}  # calls that only tell


@dataclass(frozen=True)
class Site:
    """A line and what an operator makes of it; which: the how manieth of this text in its file."""

    file: str
    before: str
    after: str
    which: int | None

    @property
    def rank(self) -> str:
        return sha256(f"{SEED}|{self.file}|{self.before}|{self.after}|{self.which}".encode()).hexdigest()


class Sites(ast.NodeVisitor):
    """Collects (line, first column, last column, text instead), columns in bytes."""

    def __init__(self, lines: list[bytes]):
        self.lines = lines
        self.found: list[tuple[int, int, int, str]] = []

    def between(self, left: ast.expr, right: ast.expr, old: str, new: str) -> None:
        """The operator between two operands, where it is on one line with the end of the left one."""
        line, start = left.end_lineno, left.end_col_offset
        assert line is not None and start is not None
        end = right.col_offset if right.lineno == line else len(self.lines[line - 1])
        at = self.lines[line - 1][start:end].find(old.encode())
        if at >= 0:
            self.found.append((line, start + at, start + at + len(old), new))

    def instead(self, node: ast.expr, new: str) -> None:
        if node.lineno == node.end_lineno:
            assert node.end_col_offset is not None
            self.found.append((node.lineno, node.col_offset, node.end_col_offset, new))

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self.between(left, right, *OPERATORS[type(op)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        joins = isinstance(node.op, ast.Div) and PATHS.search(ast.unparse(node.left))
        if type(node.op) in OPERATORS and not joins and not isinstance(node.left, ast.JoinedStr | ast.List):
            self.between(node.left, node.right, *OPERATORS[type(node.op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(left, right, *OPERATORS[type(node.op)])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not) and node.operand.lineno == node.lineno:
            self.found.append((node.lineno, node.col_offset, node.operand.col_offset, ""))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.instead(node, str(not node.value))
        elif isinstance(node.value, int | float):
            self.instead(node, str(node.value + 1))

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in PROSE:
            return
        if name in NAMES and isinstance(node.func, ast.Name):
            self.instead(node.func, NAMES[name])
        if name == "range" and node.args[-1].lineno == node.args[-1].end_lineno:
            last = node.args[-1]
            end = last.end_col_offset
            assert end is not None
            self.found.append((last.lineno, end, end, " - 1"))
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for child in node.body:  # neither decorators nor annotations nor defaults
            self.visit(child)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for child in node.body:
            self.visit(child)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Compare) and getattr(node.test.left, "id", "") == "__name__"):
            self.generic_visit(node)

    def skip(self, node: ast.AST) -> None:
        """Messages, what only tells, and what is checked twice."""

    visit_Raise = visit_JoinedStr = visit_Assert = skip  # type: ignore[assignment]


def sites(file: Path, root: Path) -> list[Site]:
    """All sites of a file, the first in the draw first."""
    lines = file.read_bytes().split(b"\n")
    visitor = Sites(lines)
    visitor.visit(ast.parse(b"\n".join(lines)))
    stripped = [line.decode().strip() for line in lines]
    count = Counter(stripped)
    found = set()
    for number, start, end, new in visitor.found:
        line = lines[number - 1]
        before, after = stripped[number - 1], (line[:start] + new.encode() + line[end:]).decode().strip()
        which = stripped[: number - 1].count(before) if count[before] > 1 else None
        found.add(Site(str(file.relative_to(root)), before, after, which))
    return sorted(found, key=lambda site: site.rank)


def drawn(room: str, root: Path) -> Iterator[Site]:
    """The sites of a room: the first of each file, then the second of each."""
    files = sorted((root / room).glob("*/*.py" if room == "hydra_plugins" else "*.py"))
    chosen = [sites(file, root) for file in files if str(file.relative_to(root)) not in SIGHT]
    for round_ in zip_longest(*chosen):
        yield from sorted((site for site in round_ if site), key=lambda site: site.rank)


def draw(count: int, root: Path) -> list[Site]:
    """So many sites, the rooms in turn."""
    rounds = zip_longest(*(drawn(room, root) for room in ROOMS))
    return [site for round_ in rounds for site in round_ if site][:count]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=COUNT)
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout")
    arguments = parser.parse_args()
    for site in draw(arguments.count, arguments.root.resolve()):
        print(f"- file: {site.file}")
        for key in ("before", "after"):
            print(f"  {key}: '{getattr(site, key).replace(chr(39), 2 * chr(39))}'")
        print(*([] if site.which is None else [f"  which: {site.which}\n"]), "  drawn: true", sep="")
