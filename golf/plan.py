"""What a run would be, from its configuration alone: parameters, arithmetic, bytes, schedule. Nothing is trained."""

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from golf import timeline
from golf.config import Run, fingerprint
from golf.legality import broken_rules
from golf.models.lm import LM
from golf.roles import roles_of
from golf.terminal import ALARM, Column, Content, console, in_style, show_facts, show_table, words
from golf.tokens.prepare import Prepared

MULTIPLIED = ("matrix", "factor", "head", "gate", "adapter")  # roles of what activations are multiplied with
MARKS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)  # where the schedule is shown, in parts of the run
BARS, SIGNS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"  # the second where a terminal has ASCII alone


def flops_per_token(run: Run, found: "Outline") -> int:
    """Multiply-adds of forward and backward, times two: 6 a weight of a matrix, for each visit of its block and each
    use of the table by the head, plus 12 * visits * dim * T / 2 for causal attention. Looking up multiplies nothing."""
    used = sum(math.prod(shape) for name, shape in found.shapes.items() if found.roles[name] in MULTIPLIED)
    used += found.model.head.table_uses * found.model.embed.table_VD.numel()
    depth = found.model.stack.effective_depth()
    return 6 * (used + found.model.repeated_params()) + 6 * depth * run.model.dim * run.batch.sequence_length


@dataclass(frozen=True, slots=True)
class Outline:
    """A run's model without weights: shapes and roles by parameter, the roles of those that are stored, and the bytes
    expected of an artifact with them."""

    model: LM
    shapes: dict[str, tuple[int, ...]]
    roles: dict[str, str]
    stored: dict[str, str]
    artifact_bytes: int

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.shapes.values()))


def outline(run: Run) -> Outline:
    """Build the model on the meta device and measure it."""
    model = run.model.build_on_meta()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    stored = model.stored_roles()
    kept = {name: shapes[name] for name in stored}
    return Outline(model, shapes, roles_of(model), stored, run.quant.predict_bytes(kept, stored, run.chosen_codec))


def show(run: Run, prepared: Prepared | None) -> None:
    """Print the plan. prepared: the data where it is ready, None where it is not."""
    out, found = console(), outline(run)
    _show_parts(found, run.optimizer.assign(found.model), run.quant.assign(found.stored))
    show_facts(_facts(run, found, prepared))
    when = timeline.timeline(run, found.model)
    out.print(f"learning rate ({type(run.schedule).__name__}, clock {run.budget.clock})")
    out.print(_rate_line(when, SIGNS if out.options.ascii_only else BARS), soft_wrap=True)
    timeline.show_stages(when)
    picture = Path(run.outputs).resolve() / "plans" / f"{run.label}-{fingerprint(run, '')[:8]}.png"
    timeline.plot(when, f"{run.label}, track {run.track}", picture)
    out.print(f"drawn in {picture}", soft_wrap=True)


def _show_parts(found: Outline, groups: dict[str, str], formats: dict[str, str]) -> None:
    numbers: Counter[tuple[str, str, str, str]] = Counter()
    for name, shape in found.shapes.items():
        key = (_part(name), found.roles[name], groups[name], formats.get(name, "not stored"))
        numbers[key] += math.prod(shape)
    rows: list[list[Content]] = [[*key, f"{count:,}"] for key, count in numbers.items()]
    rows.append(["all", "", "", "", f"{found.parameters:,}"])
    columns = [words("part"), words("role", 2), words("optimizer", 1), words("format", 3), Column("parameters")]
    show_table(columns, rows, "parameters by part", last=True)


def _part(name: str) -> str:
    """stack.blocks.3.mixer.query.weight -> block.mixer.query: the same for every block."""
    return re.sub(r"^stack\.(?:inner\.)*blocks\.\d+", "block", name).removesuffix(".weight")


def _facts(run: Run, found: Outline, prepared: Prepared | None) -> dict[str, Content]:
    predicted, cap = found.artifact_bytes, run.cap_bytes
    verdict = "fits" if predicted <= cap else in_style("over the cap", ALARM)
    budget = run.budget
    limits = [f"{budget.max_steps:,} steps"] if budget.max_steps is not None else []
    limits += [f"{budget.max_seconds:g} s"] if budget.max_seconds is not None else []
    batches = run.batches(run.launch.nproc)
    data = "not prepared yet (the run prepares it)"
    if prepared is not None:
        sizes = ", ".join(f"{name} {split.tokens:,}" for name, split in prepared.splits.items())
        data = f"{prepared.corpus}, {prepared.vocab_size} tokens in the vocabulary; tokens: {sizes}"
    broken = broken_rules(run)
    illegal: dict[str, Content] = {"ILLEGAL": "; ".join(broken)} if broken else {}
    return illegal | {
        "data": data,
        "batch": f"{run.batch.tokens_per_step:,} tokens a step: {run.batch.sequences} sequences of "
        f"{run.batch.sequence_length}, {batches.rows(batches.full)} in a forward, on {run.launch.nproc} process(es)",
        "budget": f"{' or '.join(limits)}, clock {budget.clock}",
        "arithmetic": f"{flops_per_token(run, found) / 1e6:,.1f} MFLOP a token",
        "decoder's cache": _cache(run, found.model),
        "artifact": in_style(f"about {predicted:,} bytes predicted of {cap:,} ({predicted / cap:.0%}): ", "") + verdict,
    }


def _cache(run: Run, model: LM) -> str:
    """What a decoder keeps of a training sequence, the positions that features add to it included."""
    depth = model.stack.effective_depth()
    numbers = run.model.mixer.cached_numbers(run.model.dim)
    if numbers is None or not depth:
        return "not known of this mixer" if depth else "one state, whatever the length"
    length = run.batch.sequence_length
    size = 2 * numbers * depth * model.embed.places(length).count
    return f"{numbers:,} numbers a token and layer; {size:,} bytes in bf16 for {length:,} tokens"


def _rate_line(when: timeline.Timeline, signs: str) -> str:
    """Draw the learning rate's multiplier over the run with signs from low to high."""
    values = when.tracks[0].values

    def at(part: float) -> float:
        return values[round(part * (len(values) - 1))]

    bars = "".join(signs[round(min(1.0, at(i / 48)) * (len(signs) - 1))] for i in range(49))
    return f"{bars}\n" + ", ".join(f"{at(part):.2f} at {part:.0%}" for part in MARKS)
