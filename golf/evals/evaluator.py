"""Evaluators: the order in which a token stream is graded, and who may learn from what was graded when.

A round is graded whole, by one scorer, before that scorer is told of it. What the scorer gives is a distribution over
the whole vocabulary for each target; the book looks the targets up, so that a score can be checked to be one.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import ClassVar, Self

import numpy as np
import torch

from golf.dist import Ranks
from golf.evals.book import NOTHING, Book, Declared, Score, TraceLine
from golf.evals.lesson import Lesson, lesson_of, tensor
from golf.evals.scorers import ORDER, FixedConfig, Scorer, ScorerConfig, Window
from golf.fields import OPERATIONAL, one_of, positive
from golf.models.lm import LM, declared_length
from golf.nodes import configs

SPLITS = ("val", "tune")
Note = Callable[["Pass"], None]  # told after each round
Planned = tuple[np.ndarray, np.ndarray, np.ndarray]  # ids_BT, position_BS, slot_B of one forward


@dataclass(frozen=True, slots=True)
class Round:
    """What is graded before anybody learns from it: the forwards of this rank's share, then what they taught.

    begins: first tokens of the documents that begin here, all ranks' (rank r has r, r + world, ...), None where none
    does.
    """

    forwards: Iterator[Planned]
    begins: np.ndarray | None
    learn: Callable[[], Lesson]


@dataclass(slots=True)
class Pass:
    """An evaluation under way: the book, the scorer, rounds done and what each came to."""

    book: Book
    scorer: Scorer
    rounds: int
    done: int = 0
    trace: list[TraceLine] = field(default_factory=list)


def quietly(_: Pass) -> None:
    """Tells nobody."""


@dataclass(kw_only=True, slots=True)
class EvaluatorConfig:
    """The slot. legal and notes go into the result: whether such a score may be submitted, and why.

    scorer: who gives the distributions (null: the model as it is); batch_tokens: about so many inputs in one forward;
    length: inputs of a window, at most. Positions are made for that length whatever the text (LM.text_length).
    """

    legal: ClassVar[bool] = True
    notes: ClassVar[str] = ""
    alone: ClassVar[bool] = False  # each document is scored by itself

    scorer: ScorerConfig | None = None
    batch_tokens: int = field(metadata=OPERATIONAL)
    length: int

    def rounds(
        self, stream: np.ndarray, bos_id: int, ranks: Ranks, declared: Declared | None = None
    ) -> list[Callable[[], Round]]:
        """The rounds in order, each made when it is its turn. All ranks have equally many."""
        raise NotImplementedError

    def shortened(self, length: int) -> Self:
        """The same in windows of so many tokens at most, for tries on little text."""
        raise NotImplementedError

    def in_brief(self) -> Self:
        """The same, with what takes many documents brought forward, so that little text meets all that it does."""
        return self

    @property
    def depends_on(self) -> dict[str, str]:
        """As of ScorerConfig, of the whole."""
        raise NotImplementedError

    def describe(self) -> str:
        return f"{self.chosen.describe()}; {self.notes}"

    @property
    def chosen(self) -> ScorerConfig:
        return self.scorer or FixedConfig()

    def check_rows(self) -> None:
        """Raise ValueError where a scorer trains on rows longer than the windows that positions are made for."""
        for path, part in configs(self.chosen):
            length = getattr(part, "length", 0)
            if length > self.length:
                key = f"scorer.{path}.length".replace("..", ".")
                raise ValueError(f"{key}={length} is more than a window; at most length={self.length}")

    @property
    def caches(self) -> bool:
        """Whether its scorer, or one of those inside, keeps keys and values from chunk to chunk."""
        return any(getattr(part, "cache", False) for _, part in configs(self.chosen))

    @torch.no_grad()
    def run(self, model: LM, book: Book, bos_id: int, note: Note = quietly, resume: "Resume | None" = None) -> Score:
        """Grade the book's stream from its first target to its last, and close the book."""
        with declared_length(model, self.length):
            return self._run(model, book, bos_id, note, resume)

    def _run(self, model: LM, book: Book, bos_id: int, note: Note, resume: "Resume | None") -> Score:
        started, ranks = time.perf_counter(), book.ranks
        rounds = self.rounds(book.stream, bos_id, ranks, book.declared)
        number = len(rounds) if book.declared is None else book.declared.rounds
        going = Pass(book, self.chosen.open(model, ranks), number)
        if resume is not None:
            started -= resume.take_up(going)
        for index in range(going.done, len(rounds)):
            self.grade(going, rounds[index](), index)
            note(going)
            # what a scorer learnt of the documents under way is not kept
            if resume is not None and (not self.chosen.documents or _anew(rounds, index + 1)):
                resume.keep(going, time.perf_counter() - started)
        return book.close(time.perf_counter() - started)

    def grade(self, going: Pass, round_: Round, index: int) -> None:
        """One round: commit everything, then let the scorer learn from it."""
        book, scorer, device = going.book, going.scorer, going.book.ranks.device
        if round_.begins is not None:
            scorer.begin(round_.begins)
        for ids_BT, position_BS, slot_B in round_.forwards:
            window = Window(tensor(ids_BT, device), position_BS.shape[1], tensor(slot_B, device))
            targets_BS, _ = book.commit(position_BS, scorer.log_probs(window))
            scorer.observe(window, targets_BS, torch.from_numpy(position_BS != NOTHING).to(device))
        loss = None
        if index < going.rounds - 1:  # nothing comes after the last round
            loss = scorer.update(round_.learn().graded(index, going.rounds, device))
        nats, tokens, size = book.sums()
        going.trace.append(TraceLine(tokens, nats, size, loss))
        going.done = index + 1


def _anew(rounds: list[Callable[[], Round]], index: int) -> bool:
    """Whether new documents begin with this round."""
    return index < len(rounds) and rounds[index]().begins is not None


class Resume:
    """Where a pass that was cut off is kept; golf/keeping.py has the one that writes files."""

    def take_up(self, going: Pass) -> float:
        """Put the pass where it was; returns the seconds it had taken."""
        raise NotImplementedError

    def keep(self, going: Pass, seconds: float) -> None:
        """Keep it, if it is time to."""
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
class Span:
    """Inputs start .. start+length-1; the last `scored` of their next tokens are graded."""

    start: int
    length: int
    scored: int

    @property
    def first(self) -> int:
        """The first target it grades."""
        return self.start + self.length - self.scored + 1


def windows(tokens: int, length: int, stride: int) -> Iterator[Span]:
    """Cover targets 1 .. tokens-1, each once, in order. The first window grades all its targets, later ones the last
    `stride`. The last one begins where a full one would and ends with the text: no score depends on where that is."""
    targets = tokens - 1
    first = min(length, targets)
    yield Span(0, first, first)
    done = first
    while done < targets:
        scored = min(stride, targets - done)
        yield Span(done + stride - length, length - stride + scored, scored)
        done += scored


@dataclass(kw_only=True, slots=True)
class WindowsConfig(EvaluatorConfig):
    """All text as one stream: windows of `length` tokens every `stride` (null: length, no overlap).

    stride < length is the sliding window of PR 50: every target but the first window's has length - stride tokens of
    context or more. chunk_tokens: a round is the windows whose first target lies in so many tokens (PR 461; null: the
    whole stream is one round, for scorers that do not learn).
    """

    notes: ClassVar[str] = "causal, every target once, in the order of the stream"

    stride: int | None
    chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        positive(length=self.length, stride=self.stride, batch_tokens=self.batch_tokens, chunk_tokens=self.chunk_tokens)
        if self.stride is not None and self.stride > self.length:
            raise ValueError(f"stride={self.stride} would skip targets; at most length={self.length}")
        if self.chunk_tokens is not None and self.chunk_tokens < self.length:
            raise ValueError(f"chunk_tokens={self.chunk_tokens} is less than a window; at least length={self.length}")
        if self.chosen.documents:
            raise ValueError("scorer: learns for each document; take an evaluator of documents, such as eval=ttt_lora")
        if self.caches:
            raise ValueError("scorer.cache=true: each window begins at another token; take an evaluator of documents")
        self.check_rows()
        if self.chunk_tokens is None and self.chosen.learns:
            raise ValueError(
                f"chunk_tokens=None: the scorer would have nothing to learn from; try chunk_tokens={32 * self.length}"
            )

    @property
    def depends_on(self) -> dict[str, str]:
        """Windows of one round are beside one another, and nobody learns until all of them are graded."""
        return {ORDER: "a window holds the text before it, of whatever document"}

    def shortened(self, length: int) -> Self:
        """Chunks of two windows at most."""
        length = min(length, self.length)
        stride = self.stride and -(-self.stride * length // self.length)
        scorer = self.scorer and self.scorer.shortened(length)
        return replace(self, length=length, stride=stride, chunk_tokens=self.chunk_tokens and 2 * length, scorer=scorer)

    def rounds(
        self, stream: np.ndarray, bos_id: int, ranks: Ranks, declared: Declared | None = None
    ) -> list[Callable[[], Round]]:
        """One for each chunk; its windows are shared out over ranks, in order."""
        size = self.chunk_tokens or len(stream)
        plan = windows(len(stream), self.length, self.stride or self.length)
        chunks = [list(spans) for _, spans in groupby(plan, key=lambda span: (span.first - 1) // size)]

        def make(index: int) -> Round:
            spans = chunks[index]
            share = spans[len(spans) * ranks.rank // ranks.world : len(spans) * (ranks.rank + 1) // ranks.world]
            stop = spans[-1].start + spans[-1].length
            return Round(
                forwards=self._forwards(stream, share),
                begins=stream[:1] if index == 0 else None,
                learn=lambda: lesson_of(stream, spans[0].first - 1, stop, self.length, ranks),
            )

        return [lambda index=index: make(index) for index in range(len(chunks))]  # type: ignore[misc]

    def _forwards(self, stream: np.ndarray, spans: list[Span]) -> Iterator[Planned]:
        rows = max(1, self.batch_tokens // self.length)
        for (length, scored), alike in groupby(spans, key=lambda span: (span.length, span.scored)):
            starts = np.array([span.start for span in alike])
            for batch in np.split(starts, range(rows, len(starts), rows)):
                position_BS = batch[:, None] + np.arange(length - scored + 1, length + 1)
                yield stream[batch[:, None] + np.arange(length)], position_BS, np.zeros(len(batch), dtype=np.int64)


def document_starts(stream: np.ndarray, bos_id: int) -> np.ndarray:
    """Return where each document begins that has a target."""
    starts = np.union1d([0], np.flatnonzero(stream == bos_id))
    return starts[starts < len(stream) - 1]


@dataclass(kw_only=True, slots=True)
class DocumentsConfig(EvaluatorConfig):
    """Each document by itself, from its BOS: no text of another is its context. `documents` of them are under way at
    once, `chunk_tokens` of each are graded in a round, with the last `length` tokens of the document before their end
    as inputs (the records' TTT by document, PR 1530). Where the scorer learns nothing, all chunks of a document's first
    window are one round: a causal forward of the last one holds what a cache of keys and values would have held for the
    others, exactly. Where it learns, chunks meet other weights; a scorer whose learning reaches no key and no value may
    keep those (its `cache`) until the window moves.

    order: stream, or longest first (so that documents beside one another are alike in length; an order that is fixed
    before anything is graded).
    """

    notes: ClassVar[str] = "causal, every target once, each document from its own start"
    alone: ClassVar[bool] = True

    chunk_tokens: int
    documents: int
    order: str

    def __post_init__(self) -> None:
        positive(length=self.length, chunk_tokens=self.chunk_tokens, documents=self.documents)
        positive(batch_tokens=self.batch_tokens)
        one_of("order", self.order, ("stream", "longest"))
        if self.caches and not self.chosen.learns:
            raise ValueError("scorer.cache=true: nothing learns, so first windows are one forward; set cache=false")
        self.check_rows()
        if self.chunk_tokens > self.length:
            raise ValueError(f"chunk_tokens={self.chunk_tokens} is more than a window; at most length={self.length}")

    @property
    def depends_on(self) -> dict[str, str]:
        return self.chosen.depends_on

    def shortened(self, length: int) -> Self:
        """Chunks in the same proportion."""
        length = min(length, self.length)
        scorer = self.scorer and self.scorer.shortened(length)
        return replace(self, length=length, chunk_tokens=-(-self.chunk_tokens * length // self.length), scorer=scorer)

    def in_brief(self) -> Self:
        """Two documents at once, so that a few make several batches."""
        return replace(self, documents=min(2, self.documents), scorer=self.scorer and self.scorer.in_brief())

    def rounds(
        self, stream: np.ndarray, bos_id: int, ranks: Ranks, declared: Declared | None = None
    ) -> list[Callable[[], Round]]:
        """For each batch of documents one for each of the longest one's chunks; documents are shared out over ranks."""
        starts = document_starts(stream, bos_id)
        stops = np.append(starts[1:], len(stream) - 1)  # the last target: the next document's BOS
        lengths_G = stops - starts if declared is None else declared.lengths_G
        chosen = np.argsort(-lengths_G, kind="stable") if self.order == "longest" else np.arange(len(starts))
        once = self.chunk_tokens if self.chosen.learns else self.length - self.length % self.chunk_tokens
        made: list[Callable[[], Round]] = []
        for first in range(0, len(chosen), self.documents):
            batch = chosen[first : first + self.documents]
            longest = int((stops - starts)[batch].max())
            ends = range(once + self.chunk_tokens, longest + self.chunk_tokens, self.chunk_tokens)
            for done, end in pairwise([0, min(once, longest), *ends]):
                made.append(
                    lambda batch=batch, done=done, end=end: self._round(  # type: ignore[misc]
                        stream, starts[batch], stops[batch], done, end, ranks
                    )
                )
        return made

    def _round(
        self, stream: np.ndarray, start_G: np.ndarray, stop_G: np.ndarray, done: int, end: int, ranks: Ranks
    ) -> Round:
        """Targets done+1 .. end of each document that is so long; this rank's documents are r, r + world, ..."""
        everywhere = np.flatnonzero(stop_G - start_G > done)
        place = np.flatnonzero(everywhere % ranks.world == ranks.rank)
        here = everywhere[place]
        back = max(0, end - self.length)
        position_GU = start_G[here, None] + np.arange(back, end + 1)
        there_GU = position_GU <= stop_G[here, None]
        text_GU = stream[np.where(there_GU, position_GU, 0)]
        graded_GT = there_GU[:, 1:] & (np.arange(back, end) >= done)

        def forwards() -> Iterator[Planned]:
            rows = max(1, self.batch_tokens // (end - back))
            for part in np.split(np.arange(len(here)), range(rows, len(here), rows)):
                if len(part):
                    position_BS = np.where(graded_GT[part], position_GU[part, 1:], NOTHING)[:, done - back :]
                    yield text_GU[part, :-1], position_BS, here[part]

        def learn() -> Lesson:
            goes_on_B = (stop_G - start_G)[here] > end
            bounds = zip(start_G, np.minimum(start_G + end, stop_G), strict=True)
            new_G = [stream[start + done + 1 : last + 1] for start, last in bounds]
            return Lesson(text_GU, graded_GT, here, goes_on_B, place, len(everywhere), new_G)

        return Round(forwards(), stream[start_G] if done == 0 else None, learn)
