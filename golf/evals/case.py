"""What the probes look at: an evaluator's passes over a piece of text and over changed ones, and places to probe in it.

N: tokens of the stream; k: a place in it that is probed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor

from golf.dist import ALONE, Ranks
from golf.evals.book import NOTHING, Book, Declared, Score
from golf.evals.evaluator import EvaluatorConfig, document_starts
from golf.ledger import Ledger
from golf.models.lm import LM
from golf.tokens.tokenizer import ByteCounter

TOLERANCE = 1e-4  # nats; in fp32 a change that matters is larger, and noise is smaller
NOISE = 1e-3  # nats; what scores the same text more differently than this cannot be probed


class Traced(Book):
    """Keeps what was committed, in order, and lets everything pass that a Book would stop."""

    def __init__(self, stream: np.ndarray, counter: ByteCounter, ranks: Ranks, watched: frozenset[int]):
        super().__init__(stream, counter, ranks)
        self.nll_N = np.full(len(stream), np.nan)
        self.round_N = np.full(len(stream), -1)
        self.row_N = np.full(len(stream), -1)
        self.order: list[np.ndarray] = []
        self.excess = 0.0  # how far a sum of probabilities was from 1
        self.watched = watched
        self.logp: dict[int, Tensor] = {}
        self.rounds, self.rows = 0, 0

    def enter(self, graded: np.ndarray) -> None:
        np.add.at(self.graded_N, graded, 1)
        self.order.append(graded)

    def commit(self, position_BS: np.ndarray, logp_BSV: Tensor) -> tuple[Tensor, Tensor]:
        targets_BS, nll_BS = super().commit(position_BS, logp_BSV)
        there_BS = position_BS != NOTHING
        sums = logp_BSV.double().logsumexp(-1).cpu().numpy()[there_BS]
        off = np.nan_to_num(np.abs(np.exp(np.clip(sums, -50, 50)) - 1), nan=np.inf)
        self.excess = max(self.excess, float(off.max(initial=0)))
        self.nll_N[position_BS[there_BS]] = nll_BS.cpu().numpy()[there_BS]
        self.round_N[position_BS[there_BS]] = self.rounds
        row_BS = np.broadcast_to(np.arange(len(position_BS))[:, None] + self.rows, position_BS.shape)
        self.row_N[position_BS[there_BS]] = row_BS[there_BS]
        self.rows += len(position_BS)
        for row, column in zip(*np.nonzero(np.isin(position_BS, list(self.watched))), strict=True):
            self.logp[int(position_BS[row, column])] = logp_BSV[row, column].cpu()
        return targets_BS, nll_BS

    def close(self, seconds: float) -> Score:
        """Whatever was graded: an incomplete pass is for the probes to say."""
        return Score(*self.sums(), seconds)


def apart(one: Traced, two: Traced, which_N: np.ndarray) -> float:
    """The largest difference of the scores of these targets, nats; infinite where either is no number. What the first
    pass left out has no score to compare."""
    which_N = which_N & (one.graded_N > 0)
    with np.errstate(invalid="ignore"):  # infinite in both
        difference = np.abs(one.nll_N[which_N] - two.nll_N[which_N])
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max(initial=0))


@dataclass
class Case:
    """What is probed: an evaluator with a model on a piece of text. counter: the run's; bytes_of: those of the decoded
    text of some documents' tokens; other: held-out text that nobody scores on (the memory probe); note: how the
    evaluator differs from the one that is meant."""

    evaluator: EvaluatorConfig
    model: LM
    stream: np.ndarray
    counter: ByteCounter
    bos_id: int
    bytes_of: Callable[[np.ndarray], int] | None = None
    other: np.ndarray | None = None
    ranks: Ranks = ALONE
    ledger: Ledger = field(default_factory=Ledger)
    seed: int = 0
    note: str = ""

    def trace(
        self, stream: np.ndarray, watched: frozenset[int] = frozenset(), declared: Declared | None = None
    ) -> Traced:
        """One pass over a text. declared: of the whole, where this is a part of it."""
        book = Traced(stream, self.counter, self.ranks, watched)
        book.declared = declared

        def note(_: object) -> None:
            book.rounds += 1

        with self.ledger.phase("eval", "val"):
            self.evaluator.run(self.model, book, self.bos_id, note)
        return book

    @cached_property
    def base(self) -> Traced:
        return self.trace(self.stream, frozenset(p for k in self.places.values() for p in self.together(k)))

    @cached_property
    def plan(self) -> Traced:
        """A pass that only says in which round and row each target is graded."""
        return self.trace(self.stream)

    @cached_property
    def noise(self) -> float:
        """What the same text scores differently a second time, nats."""
        return apart(self.base, self.plan, np.ones(len(self.stream), dtype=bool))

    @property
    def tolerance(self) -> float:
        """A change beyond this is none of noise."""
        return min(NOISE, max(TOLERANCE, 10 * self.noise))

    @cached_property
    def text_of(self) -> np.ndarray:
        """The text that each token belongs to: its document where documents are alone, else all of it."""
        if not self.evaluator.alone:
            return np.zeros(len(self.stream), dtype=np.int64)
        # a document's last target is the next one's BOS
        return np.concatenate([[0], np.cumsum(self.stream == self.bos_id)[:-1]])

    @cached_property
    def places(self) -> dict[str, int]:
        """Targets to probe: within a window, at the first target of a row, of a round, of a document, each as near to
        two thirds of the text as there is one; and in the first window and the last."""
        plan, size = self.plan, len(self.stream)
        position = np.arange(1, size - 1)
        row, round_, middle = plan.row_N, plan.round_N, size * 2 // 3
        inside = position[(row[position] == row[position - 1]) & (row[position] == row[position + 1])]
        kinds = {
            "within a window": (inside, middle),
            "window edge": (position[row[position] != row[position - 1]], middle),
            "chunk edge": (position[round_[position] != round_[position - 1]], middle),
            "document edge": (position[self.stream[position - 1] == self.bos_id], middle),
            "first window": (position, min(self.evaluator.length, size) // 2),
            "last window": (position, size),
        }
        # BOS marks the documents and is left in its place
        found = {name: (at[self.stream[at] != self.bos_id], near) for name, (at, near) in kinds.items()}
        return {name: int(at[np.abs(at - near).argmin()]) for name, (at, near) in found.items() if len(at)}

    def together(self, k: int) -> list[int]:
        """Targets that one pass can probe as well as k alone: those of its round, before anybody learns, so far apart
        that no window holds two of them."""
        reach = self.evaluator.length + 1
        targets = np.arange(1 + (k - 1) % reach, len(self.stream), reach)
        alike = (self.plan.round_N[targets] == self.plan.round_N[k]) & (self.stream[targets] != self.bos_id)
        return [int(target) for target in targets[alike]]

    def past(self, k: int) -> np.ndarray:
        """Which targets are graded before k by the evaluator's own order."""
        plan, position = self.plan, np.arange(len(self.stream))
        earlier = (plan.round_N >= 0) & (plan.round_N < plan.round_N[k])
        same = (plan.round_N == plan.round_N[k]) & (self.text_of == self.text_of[k]) & (position < k)
        return earlier | same

    @property
    def declared(self) -> Declared:
        """What is public of this text before it is read."""
        starts = document_starts(self.stream, self.bos_id)
        return Declared(self.plan.rounds, np.diff(np.append(starts, len(self.stream) - 1)))

    def cut(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Take away what is not graded yet when k is: each text ends behind its last graded target, a text of which
        nothing is graded behind its first token, and the text of k with a BOS in the place of k.

        Returns the stream that is left, and place_N: where each target stands in it, NOTHING where it is gone.
        """
        past_N, place_N = self.past(k), np.full(len(self.stream), NOTHING)
        pieces: list[np.ndarray] = []
        size = 0
        for name in np.unique(self.text_of[1:]):
            target = 1 + np.flatnonzero(self.text_of[1:] == name)
            start = int(target[0]) - 1
            here = target[(target <= k) if name == self.text_of[k] else past_N[target]]
            last = here[-1] if len(here) else start
            stop = k if name == self.text_of[k] else min(int(last) + 1, self._end_of(target))
            place_N[here] = here - start + size
            pieces.append(self.stream[start:stop])
            size += stop - start
        if stop < len(self.stream):  # else the last text is whole, and no BOS ends it
            pieces.append(np.array([self.bos_id], self.stream.dtype))
        return np.concatenate(pieces), place_N

    def _end_of(self, target: np.ndarray) -> int:
        """Return the place behind the last token of the text with these targets."""
        last = int(target[-1])  # a document's last target is the next one's BOS
        return last if self.evaluator.alone and self.stream[last] == self.bos_id else last + 1

    def changed(self, which: np.ndarray) -> np.ndarray:
        """The stream with other tokens at these places. Where documents are scored alone, BOS stays where it is: cut()
        moves it; in one stream it is a token like any other."""
        generator = np.random.default_rng(self.seed)
        stream = self.stream.copy()
        free = stream != self.bos_id if self.evaluator.alone else np.ones(len(stream), dtype=bool)
        pool = np.unique(stream[free])
        at = np.flatnonzero(which & free)
        drawn = generator.integers(0, len(pool) - 1, len(at))
        own = np.searchsorted(pool, stream[at])
        stream[at] = pool[drawn + (drawn >= own)]
        return stream


SHARES = (0.35, 0.1, 0.3, 0.05, 0.2)  # of the text, from one document each: long and short ones


def sample_text(evaluator: EvaluatorConfig, stream: np.ndarray, counter: ByteCounter, bos_id: int) -> np.ndarray:
    """Beginnings of the first documents, long enough for every kind of place: two chunks and more, some documents.

    They are cut before a token that begins a word, so that no character is torn.
    """
    length = evaluator.length
    size = max(4 * length, 2 * (getattr(evaluator, "chunk_tokens", None) or 0) + 2 * length)
    starts = np.union1d([0], np.flatnonzero(stream == bos_id))
    pieces: list[np.ndarray] = []
    for number, (start, stop) in enumerate(zip(starts, np.append(starts[1:], len(stream)), strict=True)):
        wanted = round(SHARES[number % len(SHARES)] * size)
        words = np.flatnonzero(counter.mark_V.cpu().numpy()[stream[start:stop].astype(np.int64)])
        ends = words[words >= wanted]
        pieces.append(stream[start : start + (int(ends[0]) if len(ends) else stop - start)])
        if len(pieces) >= len(SHARES) and sum(len(piece) for piece in pieces) >= size:
            break
    return np.concatenate(pieces)
