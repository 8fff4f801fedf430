"""Changes to a piece of source text, collected by position and made at once, so that what stays keeps its form."""

import ast
from dataclasses import dataclass, field


@dataclass(slots=True)
class Edits:
    """Replacements of spans (line, column in characters), lines counted from 1. A deletion swallows what is in it."""

    lines: list[str]
    spans: list[tuple[int, int, str]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.starts, at = [0], 0
        for line in self.lines:
            at += len(line)
            self.starts.append(at)

    def at(self, line: int, utf8_column: int) -> int:
        """The place of a node's (lineno, col_offset) in the text."""
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:utf8_column].decode())

    def begin(self, node: ast.AST) -> int:
        return self.at(node.lineno, node.col_offset)  # type: ignore[attr-defined]

    def end(self, node: ast.AST) -> int:
        return self.at(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def replace(self, begin: int, end: int, text: str = "") -> None:
        self.spans.append((begin, end, text))

    def put(self, node: ast.AST, text: str) -> None:
        self.replace(self.begin(node), self.end(node), text)

    def drop_lines(self, first: int, last: int) -> None:
        """Whole lines, with the blank ones above them."""
        while first > 1 and not self.lines[first - 2].strip():
            first -= 1
        self.replace(self.starts[first - 1], self.starts[last])

    def dedent(self, first: int, last: int, by: int) -> None:
        """Take `by` blanks from the beginning of lines first .. last."""
        for line in range(first, last + 1):
            if self.lines[line - 1][:by].isspace() and self.lines[line - 1].strip():
                self.replace(self.starts[line - 1], self.starts[line - 1] + by)

    def applied(self, first: int, last: int) -> str:
        """Lines first .. last as they become."""
        low, high, text, done = self.starts[first - 1], self.starts[last], "".join(self.lines), []
        at = low
        for begin, end, new in sorted(set(self.spans), key=lambda span: (span[0], -span[1])):
            if begin < low or end > high or begin < at:
                continue  # elsewhere, or within what is deleted
            done.append(text[at:begin] + new)
            at = end
        return "".join(done) + text[at:high]


def first_line(node: ast.stmt, lines: list[str]) -> int:
    """Where a definition begins, its decorators and the comment right above it included."""
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    while first > 1 and lines[first - 2].lstrip().startswith("#") and not lines[first - 2].lstrip().startswith("# ---"):
        first -= 1
    return first
