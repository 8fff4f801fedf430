"""The cells of a sweep: composed, typed and checked all together, before any of them starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from golf import checks
from golf.config import Run, fingerprint
from golf.errors import UserError
from golf.nodes import plain
from golf.tokens.prepare import Prepared

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a sweep and the overrides that give it."""

    run: Run
    overrides: list[str]

    @property
    def name(self) -> str:
        return f"{self.run.label}-s{self.run.seed}"


def collect(overrides: Sequence[list[str]], run_of: Callable[[list[str]], Run]) -> list[Cell]:
    """Compose, type and check every cell. One UserError names all that are wrong."""
    cells: list[Cell] = []
    wrong: dict[str, list[list[str]]] = {}
    checked: set[str] = set()
    for line in overrides:
        try:
            run = run_of(line)
            kind = fingerprint(run, "", with_seed=False) + repr((run.launch, run.log, run.data))
            if kind not in checked:  # the model of a row is built once, not once a seed
                checks.check(run)
                if not run.launch.dry_run:
                    run.launch.check(run, lone=False)
                checked.add(kind)
            cells.append(Cell(run, line))
        except UserError as error:
            wrong.setdefault(str(error), []).append(line)
    if wrong:
        raise UserError(_all_wrong(wrong, len(overrides)))
    _check_together(cells)
    return cells


def _all_wrong(wrong: dict[str, list[list[str]]], total: int) -> str:
    lines = [f"{text} (in {len(cells)} of {total} cells: {_who(cells[0])})" for text, cells in wrong.items()]
    return "\n  ".join([f"{len(lines)} things are wrong:", *lines]) if len(lines) > 1 else lines[0]


def _who(overrides: list[str]) -> str:
    return " ".join(override for override in overrides if override.startswith(("label=", "seed="))) or "all alike"


def _check_together(cells: Sequence[Cell]) -> None:
    """Refuse what holds for a whole sweep and differs between its cells, and two cells that are one run."""
    first = cells[0].run
    for cell in cells[1:]:
        for key in ("outputs", "sweep_label", "plan"):
            if getattr(cell.run, key) != getattr(first, key):
                raise UserError(f"{key}={getattr(cell.run, key)}: one sweep has one; the first cell has another")
        if type(cell.run.launch) is not type(first.launch):
            raise UserError("launch: one sweep has one; take it out of the rows and off the axes")
        for key in first.launch.SHARED:
            value, other = getattr(cell.run.launch, key), getattr(first.launch, key)
            if value != other:
                raise UserError(f"launch.{key}={value}: one sweep has one; the first cell has {other}")
    seen: dict[str, Cell] = {}
    for cell in cells:
        twin = seen.setdefault(fingerprint(cell.run, repr(plain(cell.run.data))), cell)
        if twin is not cell:
            raise UserError(
                f"{twin.name} and {cell.name} are the same run: nothing that is left of their overrides makes a "
                f"difference to what is trained; take one out ({' '.join(cell.overrides)})"
            )


def prepare(cells: Sequence[Cell]) -> list[Prepared]:
    """The data of every cell, each kind fetched and tokenised once, and checked against its model."""
    found = _for_each_kind(cells, lambda run: run.data.prepare(Path(run.data_dir).resolve()))
    for cell, prepared in zip(cells, found, strict=True):
        checks.check_data(cell.run, prepared)
    return found


def find(cells: Sequence[Cell]) -> list[Prepared | None]:
    """The data of every cell where it is prepared already, else None. Nothing is made."""
    return _for_each_kind(cells, lambda run: run.data.find(Path(run.data_dir).resolve()))


def _for_each_kind(cells: Sequence[Cell], get: Callable[[Run], T]) -> list[T]:
    keys = [repr((plain(cell.run.data), cell.run.data_dir)) for cell in cells]
    kinds = {key: cell.run for key, cell in zip(keys, cells, strict=True)}
    made = {key: get(run) for key, run in kinds.items()}
    return [made[key] for key in keys]
