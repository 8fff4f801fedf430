"""Time of a training step of each whole model of conf/model against the baseline's: architectures.py [override ...].

Models take turns, and each round is a pair with the baseline's step of that round, so that a busy machine slows both
alike; what is printed is the median of the rounds' ratios. Nothing is compiled and all is fp32: the steps of some are
loops that compile for minutes. Sizes are each model's own on the track; the parameters say what is compared.
"""

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.train_step import stepper, timed
from golf.compose import compose
from golf.conf_files import CONF
from golf.dist import pick_device
from golf.plan import outline

CONTROL, ROUNDS = "baseline", 5


def main() -> None:
    given = [argument for argument in sys.argv[1:] if not argument.startswith("only=")]
    only = next((argument.removeprefix("only=").split(",") for argument in sys.argv[1:] if argument not in given), None)
    names = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
    chosen = [name for name in names if name != CONTROL and (only is None or name in only)]
    runs = {name: compose([*given, f"model={name}", "log=none"]) for name in [CONTROL, *chosen]}
    device = pick_device(runs[CONTROL].compute.device)
    steps = {name: stepper(run, torch.float32, compiled=False, micro=run.batch.sequences) for name, run in runs.items()}
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name in chosen:
            control = timed(steps[CONTROL], device)
            ratios[name].append(timed(steps[name], device) / control)
    table = Table(title=f"a step of training against {CONTROL}'s, {ROUNDS} pairs each ({' '.join(given)})")
    for column in ("model", "parameters", "ratio", "least to most"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, run in runs.items():
        found = sorted(ratios[name]) or [1.0]
        spread = f"{found[0]:.2f} to {found[-1]:.2f}"
        table.add_row(name, f"{outline(run).parameters:,}", f"{statistics.median(found):.2f}", spread)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
