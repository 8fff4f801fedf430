"""Where scores are committed: each target once, by its probability in a whole distribution, and never taken back.

N: tokens of the stream; B, S, V: rows, graded positions of a row, tokens of the vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golf.dist import Ranks
from golf.errors import RunError
from golf.tokens.tokenizer import ByteCounter

NOTHING = -1  # a position that is no target: the padding of a row


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


@dataclass(frozen=True, slots=True)
class Declared:
    """What is public of a split before any of its text is read: how many rounds its evaluation has (a rate may fall
    from the first to the last), and the tokens of each document, in order (documents may be taken by length)."""

    rounds: int
    lengths_G: np.ndarray


class Book:
    """Owns the stream: evaluators name positions and hand in distributions; targets are looked up here.

    graded_N: how often each target was committed by this rank (a lawful pass: once by one rank). A second commit of a
    target raises RunError; so does, when it is closed, a book in which a target is missing or was graded by two
    ranks, or whose sum is no number.

    declared: of the whole split, where the stream is a part of it.
    """

    declared: "Declared | None" = None

    def __init__(self, stream: np.ndarray, counter: ByteCounter, ranks: Ranks):
        self.stream, self.ranks = stream, ranks
        self.counter = counter.to(ranks.device)
        self.graded_N = np.zeros(len(stream), dtype=np.uint8)
        self.tokens = 0  # the sum of graded_N: a round must not cost a pass over the stream
        self.nats = torch.zeros((), dtype=torch.float64, device=ranks.device)
        self.bytes = torch.zeros((), dtype=torch.int64, device=ranks.device)

    @property
    def targets(self) -> int:
        """How many there are to grade: all tokens but the first."""
        return len(self.stream) - 1

    def commit(self, position_BS: np.ndarray, logp_BSV: Tensor) -> tuple[Tensor, Tensor]:
        """Grade the targets at these positions of the stream (NOTHING: none) by these distributions.

        Returns targets_BS and their negative log-likelihoods nll_BS (nats, float64, 0 where there is none).
        """
        there_BS = position_BS != NOTHING
        self.enter(position_BS[there_BS])
        self.tokens += int(there_BS.sum())
        safe_BS = np.where(there_BS, position_BS, 1)
        pairs = torch.from_numpy(np.stack([self.stream[safe_BS - 1], self.stream[safe_BS]]).astype(np.int64))
        previous_BS, targets_BS = pairs.to(self.ranks.device)
        mask_BS = torch.from_numpy(there_BS).to(self.ranks.device)
        hit_BS = logp_BSV.gather(-1, targets_BS[..., None])[..., 0].double()
        nll_BS = torch.where(mask_BS, -hit_BS, 0.0)  # what stands at padding may be anything
        self.nats += nll_BS.sum()
        self.bytes += (self.counter.count(previous_BS, targets_BS) * mask_BS).sum()
        return targets_BS, nll_BS

    def enter(self, graded: np.ndarray) -> None:
        """Mark these targets as graded."""
        if (self.graded_N[graded] > 0).any() or len(np.unique(graded)) < len(graded):
            raise RunError("a target is graded a second time: scores are written once")
        self.graded_N[graded] = 1

    def sums(self) -> tuple[float, int, int]:
        """(nats, targets, bytes) graded so far, over all ranks."""
        tokens = torch.tensor(self.tokens, dtype=torch.int64, device=self.ranks.device)
        nats = self.ranks.sum_(self.nats.clone()).item()
        counts = self.ranks.sum_(torch.stack([tokens, self.bytes])).tolist()
        return nats, counts[0], counts[1]

    def close(self, seconds: float) -> Score:
        """The score of the whole stream, each of whose targets one rank graded once; RunError where that is not so."""
        nats, tokens, size = self.sums()
        graded_N = self.ranks.sum_(torch.from_numpy(self.graded_N.copy()).to(self.ranks.device))
        once = int((graded_N[1:] == 1).sum())
        if once != self.targets or tokens != self.targets:
            raise RunError(f"scored {once:,} of {self.targets:,} targets once: a score covers all of them, each once")
        if not math.isfinite(nats):
            raise RunError(f"the score is {nats}: weights, or what a scorer learnt, diverged; lower the learning rates")
        return Score(nats, tokens, size, seconds)

    def state(self) -> dict[str, Tensor]:
        """What a pass that was cut off goes on with."""
        return {"graded_N": torch.from_numpy(self.graded_N.copy()), "nats": self.nats.cpu(), "bytes": self.bytes.cpu()}

    def load(self, state: dict[str, Tensor]) -> None:
        """What state() gave."""
        self.graded_N[:] = state["graded_N"].numpy()
        self.tokens = int(self.graded_N.sum())
        self.nats.copy_(state["nats"])
        self.bytes.copy_(state["bytes"])


@dataclass(frozen=True, slots=True)
class TraceLine:
    """After a round: targets graded, nats and bytes up to here; what the scorer learnt with, nats per token."""

    tokens: int
    nats: float
    bytes: int
    learning_loss: float | None

    def as_dict(self) -> dict[str, Any]:
        bpb = self.nats / math.log(2) / max(1, self.bytes)
        return {"tokens": self.tokens, "bytes": self.bytes, "bpb": bpb, "learning_loss": self.learning_loss}
