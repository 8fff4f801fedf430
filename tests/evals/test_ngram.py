"""Counts and mixtures where numbers are extreme, and where a pass goes on."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from golf.dist import ALONE
from golf.errors import UserError
from golf.evals import ngram
from golf.evals.book import Book
from golf.evals.evaluator import EvaluatorConfig, Pass, Resume
from golf.evals.ngram import Counts, NGramConfig
from golf.evals.scorers import FixedConfig, MixtureConfig, TemperatureConfig, Window
from golf.models.lm import LM
from tests.evals.helpers import Model, plain_counter, score, windows_of
from tests.helpers.learners import BOS, counts, documents, lora, nll_of
from tests.helpers.tiers import slow


def sharp(ids_BT: Tensor, last: int) -> Tensor:
    """All but one token have e^-130, which fp32 does not hold."""
    logits = torch.zeros(len(ids_BT), last, 384)
    logits[..., 5] = 130.0
    return F.log_softmax(logits, dim=-1)


def with_table(model: Model, vocab_size: int) -> Model:
    model.embed = type("E", (), {"table_VD": torch.zeros(vocab_size, 1)})  # type: ignore[attr-defined]
    return model


@pytest.mark.parametrize(
    "config", [windows_of(16, None, 64, chunk_tokens=32, scorer=counts(2)), documents(scorer=counts(2))]
)
def test_what_is_next_to_impossible_has_a_finite_score(config: EvaluatorConfig, stream: np.ndarray) -> None:
    """At padding too, where nothing is graded."""
    model = with_table(Model(sharp), 384)
    fixed = score(replace(config, scorer=None), model, stream, plain_counter(384))
    assert score(config, model, stream, plain_counter(384)).nats < fixed.nats < math.inf


def test_the_shortest_context_is_kept_to(model: LM, stream: np.ndarray) -> None:
    """Contexts of one token are no part of counts that begin with two."""
    from_two = replace(counts(2), shortest=2)
    scorer = from_two.open(model, ALONE)
    assert list(scorer.tables) == [2]
    one, both = (
        nll_of(windows_of(16, 4, 64, chunk_tokens=32, scorer=c), model, stream).sum() for c in (from_two, counts(2))
    )
    assert abs(one - both) > 0.1


def test_counts_are_those_of_all_keys_and_a_key_moves_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    real = ngram.merged
    monkeypatch.setattr(ngram, "merged", lambda a, b: moved.append(len(a[0]) + len(b[0])) or real(a, b))
    table, keys = Counts(), np.random.default_rng(1).permutation(4096)
    for piece in np.split(keys // 2, 512):
        table.add(piece)
    assert sum(moved) < 4096 * math.log2(512), "a round moves its own keys, not all that were counted before"
    assert len(table.parts) <= math.log2(512) + 1
    queries = list(table.between(np.array([0, 7]), np.array([2048, 8])))
    counted = sum(np.bincount(query, count, minlength=2) for query, _, count in queries)
    assert list(counted) == [4096, 2]
    assert [part.tolist() for part in table.whole()] == [list(range(2048)), [2] * 2048]


def test_keys_have_room_for_the_one_after_the_last() -> None:
    """Seven tokens of nine bits fill 63: the search for what lies before the next key would overflow."""
    uniform = with_table(Model(lambda ids, last: torch.full((len(ids), last, 512), -math.log(512))), 512)
    with pytest.raises(UserError, match=r"scorer\.longest=6: .* 62 bits; try scorer\.longest=5"):
        counts(6).open(uniform, ALONE)
    text = np.append(1, np.full(60, 511)).astype(np.uint16)
    found = score(windows_of(16, None, 32, chunk_tokens=16, scorer=counts(5)), uniform, text, plain_counter(512))
    assert found.loss < 0.9 * math.log(512)


class Kept(Resume):
    """Keeps the pass after so many rounds, and gives it to the next one."""

    def __init__(self, rounds: int):
        self.rounds, self.state = rounds, None

    def keep(self, going: Pass, seconds: float) -> None:
        if going.done == self.rounds:
            parts = going.book.state(), going.scorer.state()
            self.state = tuple({name: value.clone() for name, value in sorted(part.items())} for part in parts)

    def take_up(self, going: Pass) -> float:
        if self.state is not None:
            going.done = self.rounds
            going.book.load(self.state[0])
            going.scorer.load(self.state[1])
        return 0.0


def test_more_than_ten_documents_go_on_where_they_were(model: LM) -> None:
    """Names are read back in the order of text: tail.10 before tail.2."""
    rng = np.random.default_rng(0)
    text = np.concatenate([np.append(BOS, np.resize(rng.integers(10, 60, 7), 40 + i)) for i in range(12)])
    config, kept = documents(scorer=counts(2), documents=12), Kept(3)
    whole, again = (config.run(model, Book(text, plain_counter(384), ALONE), BOS, resume=kept) for _ in range(2))
    assert again.nats == pytest.approx(whole.nats, abs=1e-9)


@pytest.mark.parametrize("around", [slow("temperature"), "mixture"])
def test_documents_under_way_are_not_kept_in_the_middle(around: str, model: LM, stream: np.ndarray) -> None:
    """Adapters within another scorer are as little kept as they are alone."""
    scorer = {
        "temperature": TemperatureConfig(temperature=0.98, scorer=lora()),
        "mixture": MixtureConfig(share=0.01, scorers={"fixed": FixedConfig(), "adapters": lora()}),
    }[around]
    config = documents(scorer=scorer)
    saved: list[int] = []

    class Noted(Kept):
        def keep(self, going: Pass, seconds: float) -> None:
            saved.append(going.done)
            super().keep(going, seconds)

    config.run(model, Book(stream, plain_counter(384), ALONE), BOS, resume=Noted(-1))
    rounds = config.rounds(stream, BOS, ALONE)
    assert saved == [at for at in range(1, len(rounds)) if rounds[at]().begins is not None]
    kept = Noted(saved[0])
    whole, again = (config.run(model, Book(stream, plain_counter(384), ALONE), BOS, resume=kept) for _ in range(2))
    assert again.nats == pytest.approx(whole.nats, rel=1e-6)


def test_a_mixture_weighs_by_what_is_graded() -> None:
    """What its parts gave at padding counts for none of them."""
    good, bad = (torch.full((1, 2, 4), -math.log(4)) for _ in range(2))
    bad[0, 1] = torch.tensor([0.0, -50.0, -50.0, -50.0])
    parts = {"one": Given(gives=good), "two": Given(gives=bad)}
    mixture = MixtureConfig(share=0.0, scorers=parts).open(Model(sharp), ALONE)  # type: ignore[arg-type]
    window = Window(torch.zeros(1, 2, dtype=torch.int64), 2, torch.zeros(1, dtype=torch.int64))
    mixture.log_probs(window)
    mixture.observe(window, torch.tensor([[1, 1]]), torch.tensor([[True, False]]))
    assert mixture._gained_K.tolist() == pytest.approx([-math.log(4)] * 2)


class Given(FixedConfig):
    """A scorer, and its configuration, that gives what it was made with."""

    def __init__(self, gives: Tensor):
        self.gives = gives

    def open(self, model: object, ranks: object) -> "Given":  # type: ignore[override]
        return self

    def log_probs(self, window: Window) -> Tensor:
        return self.gives

    def observe(self, *_: object) -> None:
        pass


def test_counts_of_adapters_are_refused() -> None:
    around = TemperatureConfig(temperature=0.9, scorer=lora())
    with pytest.raises(ValueError, match="counts go with a scorer of one stream"):
        NGramConfig(shortest=1, longest=2, strength=1.0, scorer=around)
