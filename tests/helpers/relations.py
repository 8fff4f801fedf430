"""Relations between scores: changes of a pass, of a text or of the numbers of tokens, that may move no score.

N: tokens of the stream; k: a target in it; V: the vocabulary.
"""

import copy
import tempfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from golf.dist import Ranks
from golf.evals import probes
from golf.evals.case import Case
from golf.evals.evaluator import EvalConfig, EvaluatorConfig, WindowsConfig
from golf.evals.learning import LearnerConfig
from golf.evals.scorers import BESIDE, ORDER
from golf.evals.ttt_lora import PhasedConfig
from golf.evals.ttt_sgd import SGDScorerConfig
from golf.ledger import Ledger
from golf.models.lm import LMConfig, declared_length
from golf.nodes import configs
from golf.scoring import Scoring
from golf.tokens.prepare import Prepared, Split
from golf.tokens.shards import write_shards
from golf.tokens.tokenizer import ByteCounter
from tests.helpers.learners import BOS, uneven_model
from tests.helpers.parts import toy_of
from tests.helpers.ranks import on_threads

V = 67  # no other size of these models: an axis of so many is the vocabulary's
CONTROLS = 4  # ids that golf knows by number: padding, BOS, EOS, unknown
SMALL = (f"data.vocab_size={V}", "model.dim=32", "model.layers=2", "scale.seq=0.015625")
LENGTH = 24  # of a window
STD = 0.2  # of what is added to new weights: each has a say that can be seen
BATCH, RANKS, SHARDS, NUMBERS, PREFIX = "batch size", "ranks", "shards", "numbers of tokens", "prefix"


def text() -> np.ndarray:
    """Return documents of one phrase, each from another place of it on, two of one length and one empty, and a last
    BOS: so every document has the BOS after it among its targets, wherever it stands."""
    phrase = np.random.default_rng(0).integers(CONTROLS, V, 9)
    sizes = ((20, 0), (36, 4), (0, 0), (1, 7), (20, 2))
    texts = [np.append(BOS, np.resize(np.roll(phrase, by), size)) for size, by in sizes]
    return np.concatenate([*texts, [BOS]]).astype(np.uint16)


def counter() -> ByteCounter:
    """Return tables in which tokens have 1 to 4 bytes, and some a mark."""
    rng = np.random.default_rng(1)
    base_V, mark_V, boundary_V = rng.integers(1, 5, V), rng.random(V) < 0.5, np.arange(V) < CONTROLS
    base_V[boundary_V], mark_V[boundary_V] = 0, False
    return ByteCounter(*(torch.from_numpy(table) for table in (base_V, mark_V, boundary_V)))


def model_of(choice: str = "model=baseline") -> LMConfig:
    """Return a model for rows of 16 tokens: what turns otherwise in longer texts does so in windows of 24."""
    shorter = ["model.stack.most=4"] if choice == "model/stack=universal_pr" else []
    return toy_of(choice, *SMALL, "batch.sequence_length=16", *shorter).model


def evaluator_of(choice: str) -> EvaluatorConfig:
    """Return the evaluator that gives the score of a YAML of conf/eval, with all that it does met by little text."""
    chosen = toy_of(f"eval={choice}", *SMALL).eval
    return chosen.evaluators[chosen.main].in_brief()


def case_of(evaluator: EvaluatorConfig, model: LMConfig, name: str, places: int = 2) -> Case:
    """Return an evaluator, in short windows, and a new model on the text. name: it decides where text is cut, half of
    the places in the first half of the rounds."""
    case = Case(eager(evaluator.shortened(LENGTH)), uneven_model(model.exported(), STD), text(), counter(), BOS)
    case.plan = case.base = case.trace(case.stream, frozenset(range(len(case.stream))))  # type: ignore[misc]
    targets = np.random.default_rng(zlib.crc32(name.encode())).permutation(np.arange(1, len(case.stream)))
    targets = targets[np.argsort(case.stream[targets] == BOS, kind="stable")]  # behind a document's last little is left
    late = case.plan.round_N[targets] >= max(1, (case.plan.rounds - 1) / 2)
    chosen = [*targets[~late][: -(-places // 2)], *targets[late][: places // 2]]
    case.places = {f"target {k}": int(k) for k in chosen}  # type: ignore[misc]
    return case


def eager(evaluator: EvaluatorConfig) -> EvaluatorConfig:
    """Return it with four rounds at least, if any learn, and with what learns learning so fast that little text moves
    it; gradients are not clipped, so that their size has a say."""
    chunks = isinstance(evaluator, WindowsConfig) and evaluator.chunk_tokens
    evaluator = copy.deepcopy(evaluator.shortened(LENGTH // 2) if chunks else evaluator)
    for _, part in configs(evaluator):
        if isinstance(part, LearnerConfig):
            part.lr *= 10
        if isinstance(part, SGDScorerConfig | PhasedConfig):
            part.clip_norm *= 100
        if isinstance(part, SGDScorerConfig):
            part.epochs = min(part.epochs, 2)
            part.ema = part.ema and part.ema**100
    return evaluator


def rounding(case: Case) -> float:
    """Return how far scores move where weights do by a rounding, nats: some learning multiplies such differences."""
    model, generator = copy.deepcopy(case.model), torch.Generator().manual_seed(0)
    for w in model.parameters():
        w.data = w.data * (1 + 3e-7 * torch.randn(w.shape, generator=generator))
    found = replace(case, model=model).trace(case.stream)
    return float(np.abs(found.nll_N - case.plan.nll_N)[1:].max())


@dataclass(frozen=True)
class Variant:
    """Another pass. place_N: where each target of the case's own text stands in its stream; world: how many ranks."""

    case: Case
    stream: np.ndarray
    place_N: np.ndarray
    world: int = 1

    @classmethod
    def of(cls, case: Case) -> "Variant":
        return cls(case, case.stream, np.arange(len(case.stream)))

    def scores(self) -> tuple[np.ndarray, set[tuple[float, int, int]]]:
        """nll_N of each target of the case's own text, and each rank's sums (nats, targets, bytes) over all ranks."""

        def one(ranks: Ranks) -> tuple[np.ndarray, tuple[float, int, int]]:
            trace = replace(self.case, ranks=ranks, ledger=Ledger()).trace(self.stream)
            return trace.nll_N, trace.sums()

        if self.world == 1:
            trace = self.case.trace(self.stream)
            return trace.nll_N[self.place_N], {trace.sums()}
        with declared_length(self.case.model, self.case.evaluator.length):  # which each rank leaves as it found it
            shares, sums = zip(*on_threads(self.world, one), strict=True)
        graded = np.isfinite(shares).sum(0) == 1
        return np.where(graded, np.nansum(shares, 0), np.nan)[self.place_N], set(sums)


Change = Callable[[Variant], Variant]


def each_row_alone(variant: Variant) -> Variant:
    """Forwards of one row."""
    case = variant.case
    return replace(variant, case=replace(case, evaluator=replace(case.evaluator, batch_tokens=1)))


def two_ranks(variant: Variant) -> Variant:
    return replace(variant, world=2)


def five_ranks(variant: Variant) -> Variant:
    """So many that some have nothing to grade now and then."""
    return replace(variant, world=5)


def many_shards(variant: Variant) -> Variant:
    """The stream as a run reads it from files of eleven tokens each."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_shards(Path(folder), "val", [variant.stream], 11)
        split = Split(shards=paths, tokens=len(variant.stream), documents=None, bytes=None, shard_sha256=[])
        prepared = Prepared(
            corpus="made up", folder=Path(folder), tokenizer=Path("none"), vocab_size=V, bos_id=BOS,
            splits={"val": split}, tokenizer_sha256="", text_sha256=None, settings={},
        )  # fmt: skip
        chosen = EvalConfig(main="plain", split="val", every_steps=None, evaluators={"plain": variant.case.evaluator})
        with mock.patch.object(ByteCounter, "from_tokenizer", lambda path: variant.case.counter):
            return replace(variant, stream=np.array(Scoring(chosen, prepared, variant.case.ranks).stream()))


def other_order(variant: Variant) -> Variant:
    """The documents in another order."""
    starts = np.flatnonzero(variant.stream == BOS)  # the last one is the end
    places = [np.arange(start, stop) for start, stop in pairwise(starts)]
    turned = np.random.default_rng(2).permutation(len(places))
    origin = np.concatenate([*(places[number] for number in turned), starts[-1:]])
    to_N = np.zeros(len(origin), dtype=np.int64)
    to_N[origin[:-1] + 1] = np.arange(1, len(origin))  # a document's last target is the BOS after it
    return replace(variant, stream=variant.stream[origin], place_N=to_N[variant.place_N])


def other_numbers(variant: Variant) -> Variant:
    """Other numbers for the same tokens: with them go the rows of all tables."""
    place_V = np.arange(V)
    place_V[CONTROLS:] = np.random.default_rng(3).permutation(place_V[CONTROLS:])
    origin_V, case = torch.from_numpy(np.argsort(place_V)), variant.case
    model = copy.deepcopy(case.model)
    for w in model.parameters():
        for axis in np.flatnonzero(np.array(w.shape) == V).tolist():
            w.data = w.data.index_select(axis, origin_V)
    tables = (case.counter.base_V, case.counter.mark_V, case.counter.boundary_V)
    other = replace(case, model=model, counter=ByteCounter(*(table[origin_V] for table in tables)))
    return replace(variant, case=other, stream=place_V[variant.stream].astype(variant.stream.dtype))


CHANGES: dict[str, Change] = {
    BATCH: each_row_alone,
    RANKS: two_ranks,
    ORDER: other_order,
    NUMBERS: other_numbers,
    SHARDS: many_shards,
}


def moved_by(changes: Iterable[Change], case: Case) -> str:
    """Say how far these changes together move scores; empty where they do not."""
    variant = Variant.of(case)
    for change in changes:
        variant = change(variant)
    if len(variant.stream) != len(case.stream):
        return f"a stream of {len(variant.stream)} tokens, not {len(case.stream)}"
    nll_N, sums = variant.scores()
    nats, *counts = case.plan.sums()
    if len(sums) > 1 or list(next(iter(sums))[1:]) != counts:
        return f"sums of {sums}, not {counts}"
    return distance(case, np.append(nll_N - case.plan.nll_N, (next(iter(sums))[0] - nats) / counts[0])[1:])


def distance(case: Case, apart: np.ndarray) -> str:
    """Say how far scores are apart; empty where they are not."""
    worst = float(np.nan_to_num(np.abs(apart), nan=np.inf).max())
    return "" if worst <= case.tolerance else f"by {worst:.2g} nats"


def beside(case: Case) -> str:
    """Other text beside a document of the first batch, or beside the last window of a round."""
    plan, position = case.plan, np.arange(len(case.stream))
    if case.evaluator.alone:
        kept_N = which_N = case.text_of == case.text_of[1:][plan.round_N[1:] == 0].max()
    else:
        k = int(position[plan.round_N == plan.rounds // 2].max())
        which_N = plan.row_N == plan.row_N[k]
        kept_N = ((plan.round_N < plan.round_N[k]) | (position >= k - case.evaluator.length)) & (position <= k)
    found = case.trace(case.changed(~kept_N))
    return distance(case, (found.nll_N - plan.nll_N)[which_N & (position > 0)])


def prefix(case: Case) -> str:
    """Other text from each of the case's places on, or none."""
    found = [probe(case) for probe in (probes.cut, probes.future)]
    return "; ".join(finding.text for finding in found if finding.verdict != probes.PASS)


RELATIONS = [*CHANGES, BESIDE, PREFIX]


def relation(name: str, case: Case) -> str:
    """Say how far what is named moves scores; empty where it does not."""
    with torch.no_grad():
        return {BESIDE: beside, PREFIX: prefix}[name](case) if name not in CHANGES else moved_by([CHANGES[name]], case)


def moving(case: Case, expected: set[str]) -> dict[str, str]:
    """Return what moves scores, and how far. Changes that are not expected to are made together first, in one pass."""
    with torch.no_grad():
        quiet = [name for name in CHANGES if name not in expected]
        still = not moved_by([CHANGES[name] for name in quiet], case)
    left = [name for name in RELATIONS if not (still and name in quiet)]
    found = {name: text for name in left if (text := relation(name, case))}
    assert still or found, f"{quiet} move scores together, and none alone"
    return found


def declared(evaluator: EvaluatorConfig, model: LMConfig) -> set[str]:
    """Return what may move scores, as evaluator and model say."""
    hashes = any(getattr(part, "hashes_ids", False) for _, part in configs(model))
    return set(evaluator.depends_on) | ({NUMBERS} if hashes else set())
