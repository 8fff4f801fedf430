"""What each model part costs a training step: paired ratios against the control, on one thread, at a track's scale.

    python benchmarks/parts.py [--track laptop] [--pairs 7] [model/output=xsa ...]

Control and variant step in turn in one process, so that whatever else the machine does falls on both. The arithmetic
column is the ratio of multiply-adds in a plan: matrices and causal attention, without what is done element by element.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from golf.compose import compose
from golf.conf_files import CONF
from golf.config import Run
from golf.loop import accumulate
from golf.plan import flops_per_token, outline
from golf.schedules import Tick

GROUPS = (
    "features",
    "mixer",
    "rope",
    "window",
    "input",
    "value",
    "output",
    "mlp",
    "residual",
    "stack",
    "linear",
    "head",
)


class Trainee:
    """A model that takes training steps on made-up tokens."""

    def __init__(self, run: Run):
        torch.manual_seed(0)
        self.model = run.model.build()
        self.optimizer = run.optimizer.build(self.model, torch.float32)
        self.ids = torch.randint(run.model.vocab_size, (run.batch.sequences, run.batch.sequence_length + 1))
        batches = run.batches(1)
        self.micro = batches.rows(batches.full)

    def step(self) -> float:
        """Seconds of one step, in the last stage of the stack."""
        started = time.perf_counter()
        self.optimizer.zero_grad()
        accumulate(self.model, self.ids[:, :-1], self.ids[:, 1:], self.micro, stage=len(self.model.stack.starts))
        self.optimizer.step(1.0, Tick(0, 0.5, 10))
        return time.perf_counter() - started


def choices() -> list[str]:
    """Every option of every part but those that the control has."""
    control = {"mixer=gqa", "rope=full", "mlp=relu2", "residual=resid_mix", "stack=unet", "linear=dense", "head=tied"}
    names = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / "model" / group).glob("*.yaml"))]
    names.append("auxiliary=mtp")
    return [f"model/{name}" for name in names if name not in control]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="parts to time; default: all")
    parser.add_argument("--track", default="laptop")
    parser.add_argument("--pairs", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    base = [f"track={args.track}", "compute.precision=fp32"]
    control_run = compose(base)
    control = Trainee(control_run)
    flops = flops_per_token(control_run, outline(control_run))
    control.step()
    print("| part | step, ratio | spread of pairs | arithmetic, ratio |\n|---|---|---|---|")
    for override in args.overrides or choices():
        run = compose([*base, override])
        variant = Trainee(run)
        variant.step()
        ratios = sorted(variant.step() / control.step() for _ in range(args.pairs))
        arithmetic = flops_per_token(run, outline(run)) / flops
        spread = f"{ratios[0]:.2f} .. {ratios[-1]:.2f}"
        print(
            f"| {override.removeprefix('model/')} | {statistics.median(ratios):.2f} | {spread} | {arithmetic:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
