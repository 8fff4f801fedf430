"""What a run would be, from its configuration alone: parameters, arithmetic, bytes, schedule. Nothing is trained."""

import math
from collections import Counter

from rich.console import Console
from rich.table import Table

from golf.checks import meta_model
from golf.config import Run
from golf.roles import roles_of
from golf.schedules import Tick
from golf.tokens.prepare import Prepared

MARKS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)  # where the schedule is shown, in parts of the run
BARS = " ▁▂▃▄▅▆▇█"


def flops_per_token(run: Run, shapes: dict[str, tuple[int, ...]], roles: dict[str, str]) -> int:
    """Multiply-adds of forward and backward, times two: 6 a matrix weight (the tied table counts once, as the head),
    plus 12 * layers * dim * T / 2 for causal attention."""
    used = sum(math.prod(shape) for name, shape in shapes.items() if roles[name] != "scalar")
    return 6 * used + 6 * run.model.layers * run.model.dim * run.batch.sequence_length


def show(run: Run, prepared: Prepared | None) -> None:
    """Print the plan. prepared: the data where it is ready, None where it is not."""
    console = Console(highlight=False)
    model = meta_model(run)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    roles = roles_of(model)
    console.print(_parts(shapes, roles, run))
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in _facts(run, shapes, roles, prepared).items():
        facts.add_row(name, text)
    console.print(facts)
    console.print(f"schedule ({type(run.schedule).__name__}, clock {run.budget.clock}): learning-rate multiplier")
    console.print(_schedule_line(run))


def _parts(shapes: dict[str, tuple[int, ...]], roles: dict[str, str], run: Run) -> Table:
    table = Table(title="parameters by part", title_justify="left")
    for column in ("part", "role", "optimizer group", "format"):
        table.add_column(column)
    for column in ("tensors", "parameters"):
        table.add_column(column, justify="right")
    groups = run.optimizer.assign(meta_model(run))
    formats = run.quant.assign(roles)
    tensors: Counter[tuple[str, ...]] = Counter()
    numbers: Counter[tuple[str, ...]] = Counter()
    for name, shape in shapes.items():
        part = ".".join(piece for piece in name.split(".")[:-1] if not piece.isdigit())
        key = (part or name, roles[name], groups[name], formats[name])
        tensors[key] += 1
        numbers[key] += math.prod(shape)
    for key, count in numbers.items():
        table.add_row(*key, str(tensors[key]), f"{count:,}")
    table.add_section()
    table.add_row("all", "", "", "", str(len(shapes)), f"{sum(numbers.values()):,}", style="bold")
    return table


def _facts(
    run: Run, shapes: dict[str, tuple[int, ...]], roles: dict[str, str], prepared: Prepared | None
) -> dict[str, str]:
    predicted = run.quant.predict_bytes(shapes, roles, run.chosen_codec)
    verdict = "fits" if predicted <= run.cap_bytes else "[bold red]over the cap[/]"
    budget = run.budget
    limits = [f"{budget.max_steps:,} steps"] if budget.max_steps is not None else []
    limits += [f"{budget.max_seconds:g} s"] if budget.max_seconds is not None else []
    micro = run.batch.microbatch(run.launch.nproc)
    data = "not prepared yet (the run prepares it)"
    if prepared is not None:
        sizes = ", ".join(f"{name} {split.tokens:,}" for name, split in prepared.splits.items())
        data = f"{prepared.corpus}, {prepared.vocab_size} tokens in the vocabulary; tokens: {sizes}"
    return {
        "data": data,
        "batch": f"{run.batch.tokens_per_step:,} tokens a step: {run.batch.sequences} sequences of "
        f"{run.batch.sequence_length}, {micro} in a forward, on {run.launch.nproc} process(es)",
        "budget": f"{' or '.join(limits)}, clock {budget.clock}",
        "arithmetic": f"{flops_per_token(run, shapes, roles) / 1e6:,.1f} MFLOP a token",
        "artifact": f"about {predicted:,} bytes predicted of {run.cap_bytes:,} ({predicted / run.cap_bytes:.0%}): {verdict}",
    }


def _schedule_line(run: Run) -> str:
    """The multiplier over the run; a wall-clock run is drawn as if it took max_steps, or 1,000 steps."""
    steps = run.budget.max_steps or 1000
    values = [run.schedule(Tick(round(p * steps), p, steps * (1 - p))) for p in (i / 48 for i in range(49))]
    bars = "".join(BARS[round(min(1.0, value) * (len(BARS) - 1))] for value in values)
    marks = ", ".join(f"{run.schedule(Tick(round(p * steps), p, steps * (1 - p))):.2f} at {p:.0%}" for p in MARKS)
    return f"{bars}\n{marks}"
