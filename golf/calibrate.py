"""Calibration as a phase of a run: what the quantiser asks for, on whose clock, and the time to keep for it."""

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from golf.config import Budget, Run
from golf.dist import Ranks
from golf.errors import RunError
from golf.ledger import Ledger
from golf.models.lm import LM
from golf.quant.calibration import Source, gradient_power, measure
from golf.tokens.prepare import Prepared

SLACK = 1.2  # a calibration may take so much longer than its first pass foretells


@dataclass(frozen=True, slots=True)
class Measured:
    """What a calibration found, by parameter name: the inputs' means of x x^T, the power of gradients."""

    hessians: dict[str, Tensor]
    power: dict[str, float]


def calibrate(run: Run, prepared: Prepared, model: LM, ranks: Ranks, ledger: Ledger) -> Measured:
    """Measure what this quantiser asks for, which may be nothing. All ranks call it."""
    config = run.quant.calibration
    hessians, gradients = run.quant.reads_hessians, run.quant.allocation.reads_gradients
    if not hessians and not gradients:
        return Measured({}, {})
    source = Source(
        model=model,
        length=run.batch.sequence_length,
        rows=run.batch.max_microbatch_sequences,
        seed=run.seed,
        ranks=ranks,
        open_training=lambda: run.loader.open(
            prepared.splits[run.loader.split].shards,
            bos_id=prepared.bos_id,
            seed=run.seed,
            rank=ranks.rank,
            world=ranks.world,
        ),
    )
    with ledger.phase("calibrate", *([run.loader.split] if config.reads_training else [])):
        return Measured(
            measure(config, source) if hessians else {}, gradient_power(config, source) if gradients else {}
        )


def reserved(run: Run, prepared: Prepared, model: LM, ranks: Ranks) -> tuple[Budget, float]:
    """(the budget that is left for steps, seconds kept for a calibration that counts as training).

    The seconds are measured: the second of two single passes, times how many there will be. All ranks call it. Raises
    RunError where nothing would be left for training.
    """
    budget, quant = run.budget, run.quant
    counts = quant.calibration.reads_training and (quant.reads_hessians or quant.allocation.reads_gradients)
    if budget.max_seconds is None or not counts:
        return budget, 0.0
    a_pass = run.batch.max_microbatch_sequences * run.batch.sequence_length * ranks.world
    short = replace(run, quant=replace(quant, calibration=replace(quant.calibration, tokens=a_pass)))
    for _ in range(2):  # the first one warms up
        started = time.perf_counter()
        calibrate(short, prepared, model, ranks, Ledger())
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()
        took = torch.tensor(time.perf_counter() - started, device=ranks.device)
    mean = ranks.sum_(took).item() / ranks.world
    seconds = SLACK * mean * max(1.0, quant.calibration.tokens / a_pass)
    if seconds >= budget.max_seconds:
        raise RunError(
            f"budget.max_seconds={budget.max_seconds}: the calibration alone takes {seconds:.1f} s of it; lower "
            "quant.calibration.tokens, or take quant/calibration=self, whose time does not count"
        )
    return replace(budget, max_seconds=budget.max_seconds - seconds), seconds
