"""The trials of a search as a table: printed at the end and by launch.status, kept current in STATUS.md."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from golf.launcher.standing import read_standing
from golf.launcher.tables import coloured
from golf.reports.text import as_paragraph, in_markdown
from golf.rundir import RunDir
from golf.search.book import Book, Trial
from golf.search.space import Search
from golf.terminal import Column, show_table, words


@dataclass(frozen=True, slots=True)
class Lines:
    """header: names of columns; rows: one a trial, as texts, the state in the column before the last three."""

    header: list[str]
    rows: list[list[str]]
    states: Counter[str]

    @property
    def count(self) -> str:
        return ", ".join(f"{number} {state}" for state, number in self.states.items()) or "no trial yet"


def lines_of(book: Book, folder: Path, split: str) -> Lines:
    """What stands in the book and, for a trial that is open, in its run's folder."""
    trials = [_now(trial, folder) for trial in book.trials()]
    rows = [
        [
            str(trial.number),
            *(_value(trial.values.get(key)) for key in book.search.space),
            "" if trial.bpb is None else f"{trial.bpb:.4f}",
            trial.state,
            "" if trial.step is None else f"{trial.step:,}",
            trial.reason if trial.counts else "over the cap or illegal: never the best",
            trial.folder or "",
        ]
        for trial in trials
    ]
    header = ["trial", *_short(list(book.search.space)), f"BPB on {split}", "state", "step", "reason", "folder"]
    return Lines(header, rows, Counter(trial.state for trial in trials))


def _now(trial: Trial, folder: Path) -> Trial:
    if trial.state != "open" or trial.folder is None:
        return trial
    run = read_standing(RunDir(folder / trial.folder))
    bpb = trial.bpb if run.bpb is None else run.bpb
    return Trial(trial.number, run.state, trial.values, bpb, run.step, run.message, trial.folder)


def show(lines: Lines, title: str) -> None:
    state = lines.header.index("state")
    rows = [[*row[:state], coloured(row[state]), *row[state + 1 :]] for row in lines.rows]
    trial, *space, bpb = (Column(name) for name in lines.header[:state])
    columns = [trial, *(replace(column, spare=1) for column in space), bpb, words("state")]
    show_table([*columns, Column("step", spare=2), words("reason"), words("folder", 3)], rows, title)
    print(lines.count)


def status_text(name: str, purpose: str | None, said: str, lines: Lines, left: str) -> str:
    """STATUS.md: the question, what the search is, how far, and one line a trial."""
    text = [f"# {name}", "", *([as_paragraph(purpose), ""] if purpose else []), said, ""]
    text += [f"{time.strftime('%Y-%m-%d %H:%M:%S')}: {lines.count}{left}.", ""]
    text += [_markdown(lines.header), "|" + "---|" * len(lines.header), *map(_markdown, lines.rows)]
    return "\n".join(text) + "\n"


def sentence(search: Search, seeds: Sequence[int], split: str) -> str:
    """What the search is, in a line."""
    keep = "none is stopped" if search.keep is None else f"stopped unless among the best {search.keep:.0%} on the way"
    confirmed = ", ".join(map(str, seeds))
    return (
        f"{search.trials} trials with seed {search.seed}, scored on {split}, {keep}; "
        f"the best is confirmed with seeds {confirmed}."
    )


def _markdown(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(in_markdown, cells)) + " |"


def _short(keys: list[str]) -> list[str]:
    """The last two words of each key; all of it where two would be alike."""
    short = [".".join(key.split(".")[-2:]) for key in keys]
    return short if len(set(short)) == len(keys) else keys


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
