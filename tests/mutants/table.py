"""The mutations of table.yaml."""

from dataclasses import dataclass
from pathlib import Path

import yaml

TABLE = Path(__file__).with_name("table.yaml")


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A line of the product, what it becomes, and the tests that should notice.

    which: which of several such lines in its file, counted from 0; drawn: by draw.py; survives: why no test can or need
    notice; tests_before: the tests' names in code before commit 45ce710, where they differ.
    """

    file: str
    before: str
    after: str
    breaks: str
    tests: tuple[str, ...]
    which: int | None = None
    drawn: bool = False
    survives: str | None = None
    tests_before: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.before}  ->  {self.after}"

    def applied(self, root: Path) -> str:
        """Return the file's text with the mutation. Raises ValueError where there is no such line, or several."""
        lines = (root / self.file).read_text().split("\n") if (root / self.file).exists() else []
        places = [number for number, line in enumerate(lines) if line.strip() == self.before]
        if len(places) <= (self.which or 0) or (self.which is None and len(places) > 1):
            raise ValueError(f"{len(places)} such lines")
        number = places[self.which or 0]
        indent = lines[number][: len(lines[number]) - len(lines[number].lstrip())]
        return "\n".join([*lines[:number], indent + self.after, *lines[number + 1 :]])

    def why_missing(self, root: Path) -> str:
        """Return why the mutation cannot be applied; empty where it can."""
        try:
            self.applied(root)
        except ValueError as error:
            return str(error)
        return ""


def mutations() -> list[Mutation]:
    """Return the entries of table.yaml."""
    entries = yaml.safe_load(TABLE.read_text())
    return [Mutation(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}) for entry in entries]
