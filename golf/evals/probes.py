"""Probes of legality: an evaluator is run on its own path, again and again on changed text, and what it committed is
compared (the tests of shared rules C1 to C4, issue #1017 of the challenge; what each rules out is in golf/audit.py).

N: tokens of the stream; k: a place in it that is probed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from golf.dist import ALONE, Ranks
from golf.errors import RunError
from golf.evals.book import NOTHING, Book
from golf.evals.evaluator import EvaluatorConfig
from golf.ledger import Ledger
from golf.models.lm import LM
from golf.tokens.tokenizer import ByteCounter

PASS, FAIL, UNKNOWN = "PASS", "FAIL", "cannot tell"
TOLERANCE = 1e-4  # nats; in fp32 a change that matters is larger, and noise is smaller
MEMORY = 0.5  # of the BPB on other held-out text: a score this far below it was learnt by heart


@dataclass(frozen=True, slots=True)
class Finding:
    """What one probe says. rule: what it is about, with its source."""

    probe: str
    verdict: str
    text: str
    rule: str


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
        self.excess = max(self.excess, float(np.abs(np.exp(np.clip(sums, -50, 50)) - 1).max(initial=0)))
        self.nll_N[position_BS[there_BS]] = nll_BS.cpu().numpy()[there_BS]
        self.round_N[position_BS[there_BS]] = self.rounds
        row_BS = np.broadcast_to(np.arange(len(position_BS))[:, None] + self.rows, position_BS.shape)
        self.row_N[position_BS[there_BS]] = row_BS[there_BS]
        self.rows += len(position_BS)
        for row, column in zip(*np.nonzero(np.isin(position_BS, list(self.watched))), strict=True):
            self.logp[int(position_BS[row, column])] = logp_BSV[row, column].cpu()
        return targets_BS, nll_BS


@dataclass
class Case:
    """What is probed: an evaluator with a model on a piece of text. counter: the run's; bytes_of: those of the decoded
    text of some documents' tokens; other: held-out text that nobody scores on (the memory probe)."""

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

    def trace(self, stream: np.ndarray, watched: frozenset[int] = frozenset()) -> Traced:
        """One pass over a text. What a Book refuses at the end (an incomplete pass) is for the probes to say."""
        book = Traced(stream, self.counter, self.ranks, watched)

        def note(_: object) -> None:
            book.rounds += 1

        with self.ledger.phase("eval", "val"):
            try:
                self.evaluator.run(self.model, book, self.bos_id, note)
            except RunError as error:
                if "targets" not in str(error):
                    raise
        return book

    @cached_property
    def base(self) -> Traced:
        return self.trace(self.stream, frozenset(self.places.values()))

    @cached_property
    def plan(self) -> Traced:
        """A pass that only says in which round and row each target is graded."""
        return self.trace(self.stream)

    @cached_property
    def noise(self) -> float:
        """What the same text scores differently a second time, nats."""
        return float(np.nanmax(np.abs(self.base.nll_N - self.plan.nll_N)))

    @property
    def tolerance(self) -> float:
        return max(TOLERANCE, 10 * self.noise)

    @cached_property
    def text_of(self) -> np.ndarray:
        """The text that each token belongs to: its document where documents are alone, else all of it."""
        if not self.evaluator.alone:
            return np.zeros(len(self.stream), dtype=np.int64)
        # a document's last target is the next one's BOS
        return np.concatenate([[0], np.cumsum(self.stream == self.bos_id)[:-1]])

    @cached_property
    def places(self) -> dict[str, int]:
        """Targets to probe: within a window, at the first target of a row, of a round, of a document; each as near to
        two thirds of the text as there is one."""
        plan = self.plan
        position = np.arange(1, len(self.stream) - 1)
        row, round_ = plan.row_N, plan.round_N
        inside = position[(row[position] == row[position - 1]) & (row[position] == row[position + 1])]
        kinds = {
            "within a window": inside,
            "window edge": position[row[position] != row[position - 1]],
            "chunk edge": position[round_[position] != round_[position - 1]],
            "document edge": position[self.stream[position - 1] == self.bos_id],
        }
        wanted = len(self.stream) * 2 // 3
        # BOS marks the documents and is left in its place
        found = {name: places[self.stream[places] != self.bos_id] for name, places in kinds.items()}
        return {name: int(p[np.abs(p - wanted).argmin()]) for name, p in found.items() if len(p)}

    def past(self, k: int) -> np.ndarray:
        """Which targets are graded before k by the evaluator's own order."""
        plan, position = self.plan, np.arange(len(self.stream))
        earlier = (plan.round_N >= 0) & (plan.round_N < plan.round_N[k])
        same = (plan.round_N == plan.round_N[k]) & (self.text_of == self.text_of[k]) & (position < k)
        return earlier | same

    def changed(self, which: np.ndarray) -> np.ndarray:
        """The stream with other tokens at these places; BOS stays where it is."""
        generator = np.random.default_rng(self.seed)
        stream = self.stream.copy()
        pool = np.unique(stream[stream != self.bos_id])
        at = np.flatnonzero(which & (stream != self.bos_id))
        drawn = generator.integers(0, len(pool) - 1, len(at))
        own = np.searchsorted(pool, stream[at])
        stream[at] = pool[drawn + (drawn >= own)]
        return stream


def future(case: Case) -> Finding:
    """C1: other text from k on moves no score before k, nor the distribution at k."""
    rule = "C1: scores depend on the past only (#1017; classes 1, 3, 5, 6, 11, 14)"
    worst, where = 0.0, ""
    for name, k in case.places.items():
        past_N = case.past(k)
        keep = past_N.copy()
        keep[0] = True
        found = case.trace(case.changed(~keep), frozenset([k]))
        moved = _moved(case, found, past_N, k)
        if moved > worst:
            worst, where = moved, name
    return _verdict("future", worst, where, case, rule, "text after a target moves what was scored before it")


def target(case: Case) -> Finding:
    """C1 and C2: another token at k moves no score before k, nor the distribution that k is scored by.

    Tried are the tokens that would open a gate: the likeliest one, and the one before again.
    """
    rule = "C1, C2: a distribution is fixed before its target is seen (#1017, #659, #1967; classes 2, 7, 8, 9)"
    worst, where = 0.0, ""
    for name, k in case.places.items():
        likeliest = case.base.logp[k].argsort(descending=True)[:2].tolist() if k in case.base.logp else []
        for token in {*likeliest, int(case.stream[k - 1])} - {int(case.stream[k]), case.bos_id}:
            stream = case.stream.copy()
            stream[k] = token
            moved = _moved(case, case.trace(stream, frozenset([k])), case.past(k), k)
            if moved > worst:
                worst, where = moved, name
    return _verdict("target", worst, where, case, rule, "a target moves the distribution that scores it")


def _moved(case: Case, found: Traced, past_N: np.ndarray, k: int) -> float:
    """The largest change of a score before k or of a probability at k, nats (of probabilities above e^-20)."""
    before, after = case.base.nll_N[past_N], found.nll_N[past_N]
    worst = float(np.abs(before - after).max(initial=0, where=np.isfinite(before)))
    if k in case.base.logp and k in found.logp:
        one, two = (trace.logp[k].double().clamp_min(-20) for trace in (case.base, found))
        worst = max(worst, (one - two).abs().max().item())
    return worst if np.isfinite(worst) else float("inf")


def _verdict(probe: str, worst: float, where: str, case: Case, rule: str, fault: str) -> Finding:
    if worst > case.tolerance:
        return Finding(probe, FAIL, f"{fault}: by {worst:.2g} nats ({where})", rule)
    return Finding(probe, PASS, f"{len(case.places)} places, at most {worst:.1g} nats", rule)


def normalisation(case: Case) -> Finding:
    """C2: every distribution that was committed sums to one over the whole vocabulary."""
    rule = "C2: a whole, normalised distribution over the tokens (#1017, #886; classes 2, 8, 10)"
    excess = case.base.excess
    if excess > TOLERANCE:
        return Finding("normalisation", FAIL, f"probabilities sum to {1 + excess:.4g} or as far from 1", rule)
    return Finding("normalisation", PASS, f"all {case.base.targets:,} sum to 1 within {excess:.1g}", rule)


def coverage(case: Case) -> Finding:
    """C4: each target exactly once, left to right within each text."""
    rule = "C4: every target once, in one pass, in order (#846, #959, #402; classes 4, 18, 23)"
    counts = case.base.graded_N[1:]
    missing, twice = int((counts == 0).sum()), int((counts > 1).sum())
    if missing or twice:
        return Finding("coverage", FAIL, f"{missing:,} targets never graded, {twice:,} more than once", rule)
    order = np.concatenate(case.base.order)
    document = case.text_of[order]
    back = sum(bool((np.diff(order[document == name]) < 0).any()) for name in np.unique(document))
    if back:
        return Finding("coverage", FAIL, f"text is not graded from left to right ({back} documents)", rule)
    return Finding("coverage", PASS, f"{len(counts):,} targets, each once, in order", rule)


def bytes_counted(case: Case) -> Finding:
    """The denominator is the UTF-8 length of the decoded text."""
    rule = "bytes are those of the text (#1545, #1576, #1271; class 17)"
    if case.bytes_of is None:
        return Finding("bytes", UNKNOWN, "the tokenizer is not there to decode with", rule)
    counted, decoded = case.base.sums()[2], case.bytes_of(case.stream)
    if case.base.graded_N[1:].min() == 1 == case.base.graded_N[1:].max() and counted != decoded:
        return Finding("bytes", FAIL, f"{counted:,} counted, {decoded:,} in the decoded text", rule)
    return Finding("bytes", PASS, f"{decoded:,} bytes in the decoded text and by the rule", rule)


def files(case: Case) -> Finding:
    """No training text is opened while scores are made."""
    rule = "no training data at evaluation (#593, #609; class 13)"
    _ = case.base
    if "train" in (opened := case.ledger.phases["eval"]["opened"]):
        return Finding("files", FAIL, "training shards were opened during evaluation", rule)
    return Finding("files", PASS, f"opened during evaluation: {', '.join(opened) or 'nothing'}", rule)


def memory(case: Case) -> Finding:
    """The scored text is not far better known than other text of its kind."""
    rule = "no validation text in the artifact (#168, #262; class 15)"
    if case.other is None or len(case.other) < 2:
        return Finding("memory", UNKNOWN, "there is no other held-out text to compare with", rule)
    here, there = (book.sums() for book in (case.base, case.trace(case.other)))
    ratio = (here[0] / max(1, here[2])) / (there[0] / max(1, there[2]))
    if ratio < MEMORY:
        return Finding("memory", FAIL, f"{ratio:.0%} of the bits of other held-out text: learnt by heart", rule)
    return Finding("memory", PASS, f"{ratio:.0%} of the bits of other held-out text", rule)


PROBES: dict[str, Callable[[Case], Finding]] = {
    "future": future,
    "target": target,
    "normalisation": normalisation,
    "coverage": coverage,
    "bytes": bytes_counted,
    "files": files,
    "memory": memory,
}


def probe(case: Case) -> Iterator[Finding]:
    """All of them, cheapest first where it matters: they share the passes over the unchanged text."""
    with torch.no_grad():
        for run in PROBES.values():
            yield run(case)


SHARES = (0.35, 0.1, 0.3, 0.05, 0.2)  # of the text, from one document each: long and short ones


def sample_text(evaluator: EvaluatorConfig, stream: np.ndarray, counter: ByteCounter, bos_id: int) -> np.ndarray:
    """Beginnings of the first documents, long enough for every kind of place: two chunks and more, some documents.

    They are cut before a token that begins a word, so that no character is torn.
    """
    length = getattr(evaluator, "length", 0)
    size = max(4 * length, 2 * (getattr(evaluator, "chunk_tokens", None) or 0) + 2 * length)
    starts = np.union1d([0], np.flatnonzero(stream == bos_id))
    pieces: list[np.ndarray] = []
    wanted = 0
    for number, (start, stop) in enumerate(zip(starts, np.append(starts[1:], len(stream)), strict=True)):
        wanted += round(SHARES[number % len(SHARES)] * size)
        left = wanted - sum(len(piece) for piece in pieces)
        words = np.flatnonzero(counter.mark_V.cpu().numpy()[stream[start:stop].astype(np.int64)])
        ends = words[words >= left]
        pieces.append(stream[start : start + (int(ends[0]) if len(ends) else stop - start)])
        if sum(len(piece) for piece in pieces) >= size:
            break
    return np.concatenate(pieces)
