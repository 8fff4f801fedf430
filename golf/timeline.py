"""What changes during a run, known before it: schedules, switches and batches at every moment, as a table and plot."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from golf.config import Run
from golf.keeping import LoopState
from golf.late import Late, begun
from golf.loop import SETTLED_STEPS, as_it_is, tick_of
from golf.models.lm import LM
from golf.nodes import configs
from golf.schedules import Schedule, Start, Switch, Tick
from golf.terminal import Column, show_table

IMAGINED_STEPS = 1000  # of a run on the wall clock that no number of steps limits
MOMENTS = 400  # at which a run is looked at
RATE = "learning rate"


@dataclass(frozen=True, slots=True)
class Track:
    """One quantity over the moments of a run. stepped: it has few values and jumps between them."""

    name: str
    values: list[float]
    stepped: bool

    @property
    def changes(self) -> bool:
        return len(set(self.values)) > 1


@dataclass(frozen=True, slots=True)
class Timeline:
    """steps: optimizer steps taken at each moment, the last the one before the end; total: steps of the run; imagined:
    whether nothing says how many. The learning rate's multiplier is always there, the first track."""

    steps: list[int]
    total: int
    imagined: bool
    tracks: list[Track]


def timeline(run: Run, model: LM) -> Timeline:
    """Look at a run without running it; a run on the wall clock as if every step took the same time."""
    late = Late() if run.late is None else run.late.build(model, as_it_is)
    steps = run.budget.max_steps or IMAGINED_STEPS
    at = sorted({round(i * (steps - 1) / MOMENTS) for i in range(MOMENTS + 1)})
    ticks = [run.schedule.at(_tick(run, step, steps, late.share)) for step in at]
    batches = run.batches(run.launch.nproc)
    tracks = [Track(RATE, [late.multiplier(run.schedule(tick), tick) for tick in ticks], False)]
    tracks += [Track(name, [look(tick) for tick in ticks], stepped) for name, look, stepped in _scheduled(run)]
    tracks.append(Track("rows a step", [batches.at(tick).sequences for tick in ticks], True))
    tracks.append(Track("tokens a row", [batches.at(tick).length for tick in ticks], True))
    tracks.append(Track("stage of the stack", [model.stage(tick.progress) + 1 for tick in ticks], True))
    tracks.append(Track("late stage", [float(late.share > 0 and begun(tick)) for tick in ticks], True))
    return Timeline(
        at, steps, run.budget.max_steps is None, [track for track in tracks if track.name == RATE or track.changes]
    )


def _tick(run: Run, step: int, steps: int, late_share: float) -> Tick:
    """The loop's own tick, for a run whose steps all take the same time."""
    seconds = (run.budget.max_seconds or 1.0) / steps
    state = LoopState(step=step, train_seconds=step * seconds, step_seconds=[seconds] * SETTLED_STEPS)
    return tick_of(run.budget, state, late_share)


def _scheduled(run: Run) -> Iterator[tuple[str, Callable[[Tick], float], bool]]:
    """(name, value at a tick, whether it jumps) of every schedule and start in the configuration but the rate's."""
    for path, part in configs(run):
        if isinstance(part, Schedule) and not path.startswith("schedule"):
            yield _short(path), part, isinstance(part, Switch)
        elif isinstance(part, Start) and not path.endswith("strength.start"):
            yield _short(path), Switch(start=part), True


def _short(path: str) -> str:
    """optimizer.groups.matrices.momentum -> matrices momentum: the last two words."""
    return " ".join(path.split(".")[-2:])


# ---------------------------------------------------------------- for people


def show_stages(found: Timeline) -> None:
    """Print a row for each stretch between jumps: what holds in it, and from where to where the rest goes."""
    jumping, gliding = ([t for t in found.tracks if t.stepped == stepped] for stepped in (True, False))
    states = list(zip(*(track.values for track in jumping), strict=True)) or [()] * len(found.steps)
    cuts = [0, *(i for i in range(1, len(states)) if states[i] != states[i - 1]), len(states)]
    title = f"stages, if {found.total:,} steps fit into the time" if found.imagined else "stages"
    rows = []
    for first, end in itertools.pairwise(cuts):
        until = found.steps[end] if end < len(states) else found.total
        reached = [f"{found.steps[first]:,}-{until:,}"]
        reached += [_span(track.values[first], track.values[end - 1]) for track in gliding]
        rows.append([*reached, *(_number(track.values[first]) for track in jumping)])
    show_table([Column("steps"), *(Column(track.name, spare=1) for track in [*gliding, *jumping])], rows, title)


def _span(first: float, last: float) -> str:
    return _number(first) if _number(first) == _number(last) else f"{_number(first)} to {_number(last)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.2g}"


def plot(found: Timeline, title: str, path: Path) -> None:
    """Draw a timeline as a PNG: one narrow panel for each quantity."""
    from matplotlib.figure import Figure  # here: every start of a run would wait for it

    count = len(found.tracks)
    height = 0.8 + 1.05 * count  # inches
    figure = Figure(figsize=(8, height))
    panels = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    # margins by hand: matplotlib's layout engine draws all text once more to find them
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.45 / height, top=1 - 0.55 / height, hspace=0.6)
    for axes, track in zip(panels, found.tracks, strict=True):
        style = "steps-post" if track.stepped else "default"
        axes.plot(found.steps, track.values, drawstyle=style, color="#3d7fc4", linewidth=1.8)
        axes.set_title(track.name, loc="left", fontsize=9)
        if track.stepped or track.name == RATE:
            axes.set_ylim(0.0, 1.12 * max(track.values))
        else:
            axes.margins(y=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    panels[-1].set_xlabel("optimizer steps", fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=110)
