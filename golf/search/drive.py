"""A search on the slots of this machine: as one trial ends the next is drawn, and what falls behind is told to stop."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from golf.config import Run, fingerprint
from golf.errors import RunError, UserError
from golf.launcher import sweep, tables
from golf.launcher.board import LOOK_SECONDS, UNDER_WAY, Board
from golf.launcher.cells import Cell, find
from golf.launcher.executor import Task
from golf.launcher.grid import Plan, quoted
from golf.launcher.scheduler import Scheduler
from golf.launcher.standing import logged
from golf.rundir import attempts_in
from golf.search import table
from golf.search.book import JOURNAL, Book, Trial, mend
from golf.search.confirm import CONTROL, Found, confirm_label
from golf.search.space import AT, Search, overrides_of
from golf.sinks import clock

Compose = Callable[[list[str]], Cell]
CellOf = Callable[[str, dict[str, Any]], Cell]  # of a trial's name and values


class Trials(Board):
    """Who watches a search: it hands the scheduler new trials, enters what comes of them, and judges those that run."""

    def __init__(self, folder: Path, plan: Plan, book: Book, slots: int | None, cell_of: CellOf, split: str):
        super().__init__(folder, plan, [], slots)
        self.at_once = slots or book.search.startup  # on a cluster: as many as may be drawn without a result
        self.there = attempts_in(folder)
        self.folder, self.book, self.cell_of, self.split = folder, book, cell_of, split
        self.scheduler: Scheduler | None = None
        self.tasks: list[Task] = []
        self.numbers: dict[str, int] = {}  # of the trials, by their tasks' names
        self.look_at: dict[str, float] = {}  # when its scores are read next, by name
        self.left = deque(book.open())

    def feed(self, scheduler: Scheduler) -> None:
        """Draw trials until every slot has one, unless nothing more is to be started."""
        self.scheduler = scheduler
        while sum(self.count[state] for state in UNDER_WAY) < self.at_once:
            task = None if scheduler.halted or scheduler.heard else self._next()
            if task is None:
                break
            self.tasks.append(task)
            self.enter(task)
            scheduler.take([task])

    def _next(self) -> Task | None:
        while (trial := self._asked()) is not None:
            self.to_come = len(self.left) + max(0, self.book.search.trials - self.book.asked)
            if self.book.settle(trial):
                continue
            try:
                cell = self.cell_of(trial.name, trial.values)
                (prepared,) = sweep.ready_data([cell])
            except UserError as error:
                self.book.refused(trial.number, str(error))
                self.note(f"{trial.name}: refused: {error}")
                continue
            task = sweep.task_of(cell, prepared, self.there)
            self.numbers[task.name] = trial.number
            self.book.started(trial.number, task.folder.path.name)
            sweep.register(self.folder, self.plan, [task])
            return task
        return None

    def _asked(self) -> Trial | None:
        """One that was left, else a new one; None where there are as many as were asked for."""
        if self.left:
            return self.left.popleft()
        return self.book.ask() if self.book.asked < self.book.search.trials else None

    # ---------------------------------------------------------------- what the scheduler tells and asks

    def changed(self, task: Task) -> None:
        number = self.numbers[task.name]
        if task.result is not None:
            self._report(task)
            self.book.done(number, task.result)
        elif task.state == "pruned":
            self.book.pruned(number, task.reason)
        elif task.state == "failed":
            self._report(task)
            if why := self.book.diverged(number):  # no fault of the machine: the same would come of it again
                self.book.pruned(number, f"{why}; {task.reason}")
        super().changed(task)
        if self.scheduler is not None:
            self.feed(self.scheduler)

    def hopeless(self, task: Task) -> str:
        now = time.monotonic()
        if now < self.look_at.get(task.name, 0.0):
            return ""
        self.look_at[task.name] = now + LOOK_SECONDS
        spent = self._report(task)
        return self.book.behind(self.numbers[task.name]) if spent >= self.book.search.warmup else ""

    def _report(self, task: Task) -> float:
        """Enter the scores on the way; returns the share of the budget that was spent at the last of them."""
        scores = logged(task.folder, "val_bpb")
        self.book.report(self.numbers[task.name], [(step, bpb) for step, _, bpb in scores])
        return spent_of(task.run, *scores[-1][:2]) if scores else 0.0

    # ---------------------------------------------------------------- what people see

    def text(self) -> str:
        lines = table.lines_of(self.book, self.folder, self.split)
        said = table.sentence(self.book.search, self.book.registered, self.split)
        left = self._seconds_left()
        about = f"; about {clock(left)} left" if left else ""
        return table.status_text(self.folder.name, self.plan.purpose, said, lines, about)


def spent_of(run: Run, step: int, seconds: float) -> float:
    """The share of a run's budget that is spent, by its clock."""
    if run.budget.clock == "steps":
        assert run.budget.max_steps is not None
        return step / run.budget.max_steps
    assert run.budget.max_seconds is not None
    return seconds / run.budget.max_seconds


def launch(search: Search, plan: Plan, base: Sequence[str], label: str, compose: Compose) -> Found | None:
    """Run the trials that are missing; None where they were only to be shown (launch.dry_run, launch.status, plan).

    base: the overrides that all trials share; label: of their folder; compose: overrides -> their checked cell.
    Raises UserError for bad input before anything starts, RunError where no trial has a score or another launcher is
    at work, and StoppedError after a signal, with every run saved.
    """
    common = [*base, f"seed={search.seed}"]

    def cell_of(name: str, values: dict[str, Any]) -> Cell:
        names = [f"sweep_label={quoted(label)}", f"label={name}"]
        cell = compose([*common, *names, *overrides_of(values)])
        _check(search, cell.run)
        return cell

    ends = [cell_of(f"end-{index}", values) for index, values in enumerate(search.ends(), 1)]
    control = compose([*common, f"sweep_label={quoted(confirm_label(label))}", f"label={CONTROL}"])
    _check(search, control.run)
    folder, run = sweep.sweep_folder(ends), control.run
    if run.launch.status or run.launch.dry_run or run.plan:
        _show(search, plan, control, ends)
        return None
    executor = run.launch.executor([run] * search.trials)
    prepared = sweep.ready_data([control, *ends])[0]
    folder.mkdir(parents=True, exist_ok=True)
    with sweep.held(folder):
        mend(folder / JOURNAL)
        book = Book(folder / JOURNAL, search)
        book.define(fingerprint(run, prepared.digest, with_seed=False), plan.seeds)
        trials_plan = Plan(plan.purpose, None, (search.seed,), {})
        with Trials(folder, trials_plan, book, executor.slots, cell_of, run.eval.split) as trials:
            scheduler = Scheduler([], executor, run.launch, trials)
            trials.feed(scheduler)
            scheduler.run()
    table.show(table.lines_of(book, folder, run.eval.split), str(folder))
    tables.show_failures(trials.tasks)
    scheduler.raise_if_stopped("search", "the same command")
    if scheduler.halted:
        raise RunError("launch.on_failure=stop ended the search early; the same command goes on with it")
    if (best := book.best()) is None:
        raise RunError("no trial has a score that counts; the table says why")
    print(f"best: {best.name}, {best.bpb:.4f} BPB on {run.eval.split}: {' '.join(overrides_of(best.values))}")
    failed = sum(trial.state == "open" for trial in book.trials())
    untuned = fingerprint(cell_of(best.name, best.values).run, "") == fingerprint(run, "")
    return Found(best, failed, book.registered, untuned, sweep.sweep_folder([control]))


def _check(search: Search, run: Run) -> None:
    """Raise UserError where a run must not guide this search, or cannot."""
    if run.eval.split == "val" and not search.allow_val:
        raise UserError(
            "eval.split=val: a search would choose by scores on the validation text; set eval.split=tune, or, for no "
            f"score that counts, {AT}.allow_val=true"
        )
    if run.rerun:
        raise UserError("rerun=true: a search trains no trial twice; leave it out, or give another sweep_label")
    every, steps = run.eval.every_steps, run.budget.max_steps
    if search.keep is not None and (every is None or (steps is not None and every >= steps)):
        raise UserError(
            f"eval.every_steps={every}: trials are stopped by scores on the way, and there are none; set fewer than "
            f"budget.max_steps={steps}, or {AT}.keep=null"
        )


def _show(search: Search, plan: Plan, control: Cell, ends: Sequence[Cell]) -> None:
    """The ends of the space, or where each trial stands; nothing is touched."""
    run, cells, folder = control.run, [control, *ends], sweep.sweep_folder(ends)
    title = f"{folder.name}: {plan.purpose}" if plan.purpose else folder.name
    begun = (folder / JOURNAL).exists()
    lines = table.lines_of(Book(folder / JOURNAL, search), folder, run.eval.split) if begun else None
    if run.launch.status:
        if lines is None:
            print(f"{folder.name}: no trial yet")
        else:
            table.show(lines, title)
        if (confirmation := sweep.sweep_folder([control]) / "STATUS.md").exists():
            print(f"of the best, with fresh seeds: {confirmation}")
        return
    if run.launch.dry_run:
        tables.show_cells(cells, find(cells), f"{title}; the control and the ends of the space")
        print(table.sentence(search, plan.seeds, run.eval.split))
        if lines is not None:
            print(f"so far: {lines.count}")
        return
    sweep.show_plans(cells[:1], find(cells[:1]))
