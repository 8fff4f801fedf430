"""Calibration as a phase of a run: what the quantiser asks for, on whose clock, and the time to keep for it."""

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from golf.config import Budget, Recipe
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


def calibrate(run: Recipe, prepared: Prepared, model: LM, ranks: Ranks, ledger: Ledger) -> Measured:
    """Measure what this quantiser asks for, which may be nothing. All ranks call it."""
    if not (run.quant.reads_hessians or run.quant.allocation.reads_gradients):
        return Measured({}, {})
    config = run.quant.calibration
    source = Source(
        model=model,
        length=run.batch.sequence_length,
        rows=run.batch.max_microbatch_sequences,
        seed=run.seed,
        ranks=ranks,
        open_training=lambda: run.loader.open_split(prepared, run.model.vocab_size, run.seed, ranks),
    )
    with ledger.phase("calibrate", *([run.loader.split] if config.reads_training else [])):
        hessians = measure(config, source) if run.quant.reads_hessians else {}
        return Measured(hessians, gradient_power(config, source) if run.quant.allocation.reads_gradients else {})


def reserved(run: Recipe, prepared: Prepared, model: LM, ranks: Ranks) -> tuple[Budget, float]:
    """(the budget that is left for steps, seconds kept for a calibration that counts as training).

    The seconds are measured: the second of two single passes, times how many there will be. All ranks call it. Raises
    RunError where nothing would be left for training.
    """
    budget, quant, limit = run.budget, run.quant, run.budget.max_seconds
    if limit is None or not run.quant.calibration.reads_training:
        return budget, 0.0
    if not (run.quant.reads_hessians or run.quant.allocation.reads_gradients):
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
    if seconds >= limit:
        raise RunError(
            f"budget.max_seconds={limit}: the calibration alone takes {seconds:.1f} s of it; lower "
            "quant.calibration.tokens, or take quant/calibration=self, whose time does not count"
        )
    return replace(budget, max_seconds=limit - seconds), seconds
