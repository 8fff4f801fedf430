"""From the command line to the cells of a search, and from its best trial to the sweep that tests it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from golf.errors import UserError
from golf.launcher.grid import Axis, Plan, expand, key_of, quoted, value_of
from golf.search.book import Trial
from golf.search.space import AT, Search, overrides_of

CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to. failed: how many trials' runs failed; registered: the seeds written down before any trial;
    untuned: whether the best is the control's own configuration; folder: of the confirmation."""

    best: Trial
    failed: int
    registered: tuple[int, ...]
    untuned: bool
    folder: Path


def base_of(search: Search, plan: Plan, axes: Sequence[Axis]) -> list[str]:
    """The overrides that all trials share. Raises UserError where a sweep file or command line cannot be searched."""
    if plan.rows or plan.control:
        raise UserError("hydra.sweeper.rows: a search makes its own, control and its best; leave out rows and control")
    searched = {key_of(key) for key in search.space}
    for axis in axes:
        if axis.key in searched:
            raise UserError(f"{axis.options[0]}: {AT}.space searches {axis.key}; leave one of them out")
        if axis.swept and axis.key != "seed":
            raise UserError(f"{' '.join(axis.options)}: a search has one configuration; start one for each")
        if axis.key == "label":
            raise UserError(f"{axis.options[0]}: a search names its own runs; leave it out, or set sweep_label")
    seeds = seeds_of(plan, axes)
    if not seeds or str(search.seed) in seeds:
        raise UserError(
            f"hydra.sweeper.seeds=[{', '.join(seeds)}]: the best is confirmed with fresh seeds; register some, none of "
            f"them {AT}.seed={search.seed}"
        )
    return [axis.options[0] for axis in axes if axis.key not in ("seed", "sweep_label")]


def seeds_of(plan: Plan, axes: Sequence[Axis]) -> list[str]:
    """The seeds of the confirmation, as texts; the command line's where it names any."""
    given = [axis for axis in axes if axis.key == "seed"]
    return [value_of(option) for option in given[0].options] if given else [str(seed) for seed in plan.seeds]


def confirmation(found: Found, plan: Plan, axes: Sequence[Axis], label: str) -> tuple[Plan, list[list[str]]]:
    """(what is written down, cells) of the sweep that holds the best against the untuned control.

    label: of the trials' folder; the confirmation has one beside it.
    """
    name = best_name(found.best)
    rows = {CONTROL: [], name: overrides_of(found.best.values)}
    purpose = f"is the best of {label} ({found.best.name}) better than the untuned control"
    axes = [axis for axis in axes if axis.key != "sweep_label"]
    axes.append(Axis("sweep_label", (f"sweep_label={quoted(confirm_label(label))}",)))
    cells = expand(Plan(purpose, CONTROL, plan.seeds, rows), axes)
    return Plan(purpose, CONTROL, found.registered, rows), cells


def confirm_label(label: str) -> str:
    return f"{label}-confirm"


def best_name(best: Trial) -> str:
    """Its row: named after the trial, so that another best, of a search that went on, is another row."""
    return f"best-{best.number:03d}"
