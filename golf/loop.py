"""The training loop: one function, read from top to bottom. golf/export.py turns its weights into a score."""

import itertools
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from golf.averaging import Averager, weights_of
from golf.calibrate import reserved
from golf.config import Budget, Recipe
from golf.curriculum import Batches
from golf.dist import Ranks, pick_precision
from golf.errors import RunError
from golf.keeping import Keeping, LoopState, Parts
from golf.late import Late, begun
from golf.launcher.processes import signals_to_obey
from golf.ledger import Ledger
from golf.losses import Loss
from golf.models.kernels import Backend, choose_backend
from golf.models.lm import LM, Forward
from golf.optim.optimizer import Optimizer
from golf.qat import QAT
from golf.schedules import Tick
from golf.scoring import Scoring
from golf.sinks import Sink
from golf.stages import never_begun
from golf.tokens.prepare import Prepared

RECENT_STEPS = 64  # the wall clock's estimate of a step: the median of so many
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
SETTLED_STEPS = 5  # before so many there is no estimate: the first may have waited for a compiler


@dataclass(frozen=True, slots=True)
class Trained:
    """What training leaves in memory. never_begun: keys of what was asked for and the run was too short for."""

    model: LM
    averager: Averager
    scoring: Scoring
    backend: Backend
    never_begun: list[str]


class Stopped(BaseException):
    """A signal asked the run to stop; its state is saved. No `except Exception` on the way may swallow it."""

    def __init__(self, signum: int, step: int):
        super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}")
        self.signum = signum


class StopRequest:
    """SIGTERM, SIGINT, SIGUSR2 (a cluster's warning) and SIGHUP (a closed terminal) set a flag, read once a step.

    A second SIGINT kills as usual; the others come in twos, from a cluster's scheduler and from what passes them on.
    """

    def __init__(self) -> None:
        self.signum = 0

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """To the end of the loop or, where it stops, of the process: what is told on the way out is not cut short."""
        old = {number: signal.signal(number, self._note) for number in signals_to_obey(STOP_SIGNALS)}
        stopped = False
        try:
            yield self
        except Stopped:
            stopped = True
            raise
        finally:
            if not stopped:
                for number, handler in old.items():
                    signal.signal(number, handler)
        if self.signum:  # it came with the last step, when nobody looked any more
            signal.raise_signal(self.signum)

    def _note(self, signum: int, frame: Any) -> None:
        self.signum = signum
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def tick_of(budget: Budget, state: LoopState, late_share: float = 0.0) -> Tick:
    """Where the run stands by the budget's clock; it ends where the last `late_share` of the budget begins."""
    if budget.clock == "steps":
        assert budget.max_steps is not None
        steps = budget.max_steps - round(late_share * budget.max_steps)
        return Tick(state.step, min(1.0, state.step / steps), max(0, steps - state.step))
    assert budget.max_seconds is not None
    seconds = budget.max_seconds * (1 - late_share)
    left = max(0.0, seconds - state.train_seconds)
    recent = state.step_seconds[-RECENT_STEPS:]
    settled = len(recent) >= SETTLED_STEPS or left == 0.0
    return Tick(state.step, 1 - left / seconds, left / statistics.median(recent or [1.0]) if settled else float("inf"))


def is_over(budget: Budget, state: LoopState) -> bool:
    """Whether a limit has been reached, whichever comes first."""
    steps_done = budget.max_steps is not None and state.step >= budget.max_steps
    return steps_done or (budget.max_seconds is not None and state.train_seconds >= budget.max_seconds)


def due(state: LoopState, every: int | None) -> bool:
    return every is not None and state.step > 0 and state.step % every == 0


def train(
    run: Recipe, prepared: Prepared, keeping: Keeping, ranks: Ranks, sinks: Sink, state: LoopState, ledger: Ledger
) -> Trained:
    """Train to the end of the budget, or raise Stopped with the state saved. `state` is kept current throughout."""
    # ---------------------------------------------------------------- data and model
    torch.manual_seed(run.seed)
    dtype = pick_precision(run.compute.precision, ranks.device)
    backend = choose_backend(run.compute.attention, ranks.device, run.model.mixer.kernel_channels(run.model.dim))
    sinks.note(f"attention: {backend.name} ({backend.reason}); precision: {str(dtype).removeprefix('torch.')}")
    model = run.model.build().to(ranks.device)
    model.compute_dtype, model.attend, model.loss = dtype, backend.attend, Loss(run.loss)
    scoring = Scoring(run.eval, prepared, ranks, keeping)
    loader = run.loader.open_split(prepared, run.model.vocab_size, run.seed, ranks)

    # ---------------------------------------------------------------- optimizer, averaging, forward passes
    optimizer = run.optimizer.build(model, dtype, ranks)
    averager = run.average.build(weights_of(model))
    compiled = partial(torch.compile, dynamic=False) if run.compute.compile else as_it_is
    qat = QAT(compiled(model)) if run.qat is None else run.qat.build(model, run.quant, compiled)
    late = Late() if run.late is None else run.late.build(model, compiled)
    batches = run.batches(ranks.world)

    # ---------------------------------------------------------------- resume
    parts = Parts(model, optimizer, averager, late, loader)
    if resumed := keeping.restore(parts, state, ledger):
        sinks.note(resumed)

    # ---------------------------------------------------------------- warm-up of compiled shapes, outside the clock
    if run.compute.compile:
        started = time.perf_counter()
        forwards = [*qat.forwards(), *late.forwards()]
        warm_up(forwards, optimizer, batches, run, ranks.device, stages=len(model.stack.starts) + 1)
        sinks.note(f"compiled in {time.perf_counter() - started:.0f} s (not counted as training)")

    # ---------------------------------------------------------------- time to keep for what counts as training later
    budget, kept_seconds = reserved(run, prepared, model, ranks)
    if kept_seconds:
        sinks.note(f"{kept_seconds:.1f} s of the budget are kept for calibration, as measured")

    # ---------------------------------------------------------------- the loop: N + 1 times, the last without a step
    record: dict[str, Any] = {}
    with StopRequest().listening() as request:
        while True:
            over = is_over(budget, state)
            if record and (due(state, run.eval.every_steps) and not over):
                with ledger.phase("eval", run.eval.split), averager.applied(model):
                    score = scoring.score(model)
                    record |= {"val_loss": score.loss, "val_bpb": score.bpb}
            if record and (due(state, sinks.every_steps) or state.step == 1 or over or "val_bpb" in record):
                sinks.step(record)
            stopping, saving = ranks.any_of(request.signum > 0, keeping.due(state))
            if stopping or over or saving:
                keeping.save(parts, state, ledger, ranks)
            if stopping:
                raise Stopped(request.signum or signal.SIGTERM, state.step)
            if over:
                break

            started = time.perf_counter()
            tick = run.schedule.at(tick_of(budget, state, late.share))
            shape = batches.at(tick)
            x_BT, y_BT = late.batch(loader, shape, tick)
            forward = late.forward(qat.forward(tick), averager, tick)
            stage = model.stage(tick.progress)
            rows = batches.rows(shape)
            gradients = partial(accumulate, forward, x_BT.to(ranks.device), y_BT.to(ranks.device), rows, stage)
            nll = optimizer.differentiate(gradients, (stage, begun(tick)))
            multiplier = late.multiplier(run.schedule(tick), tick)
            optimizer.step(multiplier, tick)
            averager.update(weights_of(model), tick)

            loss, seconds = exchange(nll, started, ranks)
            state.step, state.progress, state.decay = state.step + 1, tick.progress, tick.decay
            state.train_tokens += shape.tokens
            state.train_seconds += seconds
            state.step_seconds.append(seconds)
            ledger.add("train", seconds, (run.loader.split,))
            if not loss < float("inf"):
                raise RunError(
                    f"loss became {loss} at step {state.step}; lower the learning rates or set optimizer.clip_norm"
                )
            record = describe(run, state, loss, multiplier)
    loader.close()
    last = Tick(state.step - 1, state.progress, 0.0, state.decay)
    missed = [*never_begun(run, model.stack.starts, last), *averager.never_begun()]
    if missed:
        sinks.note(f"never begun, though asked for: {', '.join(missed)}")
    return Trained(model, averager, scoring, backend, missed)


def describe(run: Recipe, state: LoopState, loss: float, multiplier: float) -> dict[str, Any]:
    """The record of one step for the sinks."""
    median = statistics.median(state.step_seconds[-RECENT_STEPS:])
    by_steps = (run.budget.max_steps - state.step) * median if run.budget.max_steps is not None else float("inf")
    by_clock = run.budget.max_seconds - state.train_seconds if run.budget.max_seconds is not None else float("inf")
    return {
        "step": state.step,
        "loss": loss,
        "lr_multiplier": multiplier,
        "step_ms": 1000 * state.step_seconds[-1],
        "train_seconds": state.train_seconds,
        "train_tokens": state.train_tokens,
        "seconds_left": max(0.0, min(by_steps, by_clock)),
    }


def accumulate(forward: Forward, x_BT: Tensor, y_BT: Tensor, micro: int, stage: int) -> Tensor:
    """Add the gradients of the rows' mean loss, `micro` rows at a time; returns the mean nats per token (float64)."""
    parts = len(x_BT) // micro
    x_BT, y_BT = x_BT.contiguous(), y_BT.contiguous()  # the layout that warm_up() compiled for
    nll = torch.zeros((), dtype=torch.float64, device=x_BT.device)
    for x_bT, y_bT in zip(x_BT.split(micro), y_BT.split(micro), strict=True):
        losses = forward(x_bT, y_bT, stage)
        (torch.stack(list(losses.values())).sum() / parts).backward()
        nll += losses["nll"].detach() / parts
    return nll


def exchange(nll: Tensor, started: float, ranks: Ranks) -> tuple[float, float]:
    """Mean loss over ranks, and the step's seconds by rank 0's clock, the same on every rank."""
    loss = nll.item()  # waits for the device, so that the clock below counts the work
    seconds = time.perf_counter() - started
    shared = torch.tensor(
        [loss / ranks.world, seconds if ranks.first else 0.0], dtype=torch.float64, device=ranks.device
    )
    loss, seconds = ranks.sum_(shared).tolist()
    return loss, seconds


def as_it_is(module: nn.Module) -> nn.Module:
    """What stands in for torch.compile where a run does not compile."""
    return module


def warm_up(
    forwards: list[Forward], optimizer: Optimizer, batches: Batches, run: Recipe, device: torch.device, *, stages: int
) -> None:
    """Compile forward and backward of every pass, stage and shape on made-up tokens: no text read, no weight moved."""
    graphs = len(forwards) * len(batches.forwards()) * stages
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, graphs)
    generator = torch.Generator(device).manual_seed(0)
    for shape in batches.forwards():
        size = (shape.sequences, shape.length)
        x_BT = torch.randint(run.model.vocab_size, size, device=device, generator=generator)
        y_BT = x_BT.clone()  # a graph for two names of one tensor would be another graph
        for forward, stage in itertools.product(forwards, range(stages)):
            for _ in range(2):
                torch.stack(list(forward(x_BT, y_BT, stage).values())).sum().backward()
            optimizer.zero_grad()
