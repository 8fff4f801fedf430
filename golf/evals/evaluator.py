"""Scores: nats per token and bits per byte of a token stream, every target once.

The evaluator owns the stream and commits the scores; what it scores is asked only for log-probabilities over the
whole vocabulary, so that a score can be checked to be one. N: tokens of the stream.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from golf.dist import Ranks
from golf.fields import OPERATIONAL, one_of, positive
from golf.tokens.tokenizer import ByteCounter

LogProbs = Callable[[Tensor, int], Tensor]  # ids_BT, last -> log p of the token after each of the last positions
SPLITS = ("val", "tune")


@dataclass(frozen=True, slots=True)
class Score:
    """One pass over a stream: sums over all ranks, and this pass's clock."""

    nats: float
    tokens: int
    bytes: int
    seconds: float

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def bpb(self) -> float:
        """Bits per byte."""
        return self.nats / math.log(2) / self.bytes


@dataclass(kw_only=True, slots=True)
class EvaluatorConfig:
    """The slot. legal and notes go into the result: whether such a score may be submitted, and why."""

    legal: ClassVar[bool]
    notes: ClassVar[str]

    def run(self, log_probs: LogProbs, stream: np.ndarray, counter: ByteCounter, ranks: Ranks) -> Score:
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """evaluators by name; `main` gives the run's score, `plain` the ladder; every_steps=null scores at the end only."""

    main: str
    split: str
    every_steps: int | None
    evaluators: dict[str, EvaluatorConfig]

    def __post_init__(self) -> None:
        one_of("split", self.split, SPLITS)
        positive(every_steps=self.every_steps)
        one_of("main", self.main, tuple(self.evaluators))
        if "plain" not in self.evaluators:
            raise ValueError("evaluators=... must hold one named plain: the quant gap is measured with it")


@dataclass(frozen=True, slots=True)
class Window:
    """Inputs start .. start+length-1; the last `scored` of their next tokens are graded."""

    start: int
    length: int
    scored: int


def windows(tokens: int, length: int, stride: int) -> Iterator[Window]:
    """Cover targets 1 .. tokens-1, each once, in order. The first window grades all its targets, later ones the last
    `stride`; the last one is moved back to keep its length, so that the tail has at least as much context."""
    targets = tokens - 1
    first = min(length, targets)
    yield Window(0, first, first)
    done = first
    while done < targets:
        scored = min(stride, targets - done)
        yield Window(done + scored - length, length, scored)
        done += scored


@dataclass(kw_only=True, slots=True)
class WindowsConfig(EvaluatorConfig):
    """Windows of `length` tokens every `stride` (null: length, no overlap), about batch_tokens in one forward.

    stride < length is the sliding window of PR 50: every target but the first window's has length - stride tokens of
    context or more.
    """

    legal: ClassVar[bool] = True
    notes: ClassVar[str] = "fixed weights, causal, every target once"

    length: int
    stride: int | None
    batch_tokens: int = field(metadata=OPERATIONAL)

    def __post_init__(self) -> None:
        positive(length=self.length, stride=self.stride, batch_tokens=self.batch_tokens)
        if self.stride is not None and self.stride > self.length:
            raise ValueError(f"stride={self.stride} would skip targets; at most length={self.length}")

    @torch.no_grad()
    def run(self, log_probs: LogProbs, stream: np.ndarray, counter: ByteCounter, ranks: Ranks) -> Score:
        """Score the stream (N token ids): windows are shared out over ranks, sums are float64 and int64."""
        started = time.perf_counter()
        counter = counter.to(ranks.device)
        plan = list(windows(len(stream), self.length, self.stride or self.length))
        share = plan[len(plan) * ranks.rank // ranks.world : len(plan) * (ranks.rank + 1) // ranks.world]
        nats = torch.zeros((), dtype=torch.float64, device=ranks.device)
        counts = torch.zeros(2, dtype=torch.int64, device=ranks.device)
        rows = max(1, self.batch_tokens // self.length)
        for (length, scored), alike in groupby(share, key=lambda w: (w.length, w.scored)):
            starts = np.array([window.start for window in alike])
            for batch in np.split(starts, range(rows, len(starts), rows)):
                ids_BT = stream[batch[:, None] + np.arange(length + 1)].astype(np.int64)
                tokens_BT = torch.from_numpy(ids_BT).to(ranks.device)
                targets_BS, previous_BS = tokens_BT[:, -scored:], tokens_BT[:, -scored - 1 : -1]
                logp_BSV = log_probs(tokens_BT[:, :-1], scored)
                nats -= logp_BSV.gather(-1, targets_BS[..., None]).double().sum()
                counts[0] += targets_BS.numel()
                counts[1] += counter.count(previous_BS, targets_BS).sum()
        ranks.sum_(nats)
        ranks.sum_(counts)
        tokens, size = counts.tolist()
        assert tokens == len(stream) - 1, f"scored {tokens} targets of {len(stream) - 1}"
        return Score(nats.item(), tokens, size, time.perf_counter() - started)
