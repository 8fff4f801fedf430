"""Every scorer against what it claims: the past only, whole distributions, and learning that is what it says."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from golf.conf_files import CONF
from golf.config import Run
from golf.dist import ALONE
from golf.errors import RunError, UserError
from golf.evals.book import NOTHING, Book
from golf.evals.evaluator import DocumentsConfig
from golf.evals.ngram import NGramConfig
from golf.evals.scorers import FixedConfig, MixtureConfig, TemperatureConfig
from golf.models.lm import LM
from tests.evals.helpers import Averaging, Model, plain_counter, score, windows_of
from tests.helpers.learners import BOS, INSIDE, LEARNERS, SGD, documents, lora, nll_of, sgd
from tests.helpers.tiers import slow, wide

EVALS = sorted(path.stem for path in (CONF / "eval").glob("*.yaml"))
ELSEWHERE = ("plain", "sliding", "ttt_sgd", "ngram", "documents", "ttt_short", "pr254", "pr401_v2", "pr401_v7")
Toy = Callable[..., Run]
KINDS = [*((name, "LM" if name in INSIDE else "small") for name in LEARNERS)]
KINDS += [wide(name, "LM") for name in LEARNERS if name not in INSIDE]


@pytest.mark.parametrize("name, kind", KINDS)
def test_the_past_only_and_all_of_it_once(
    name: str, kind: str, model: LM, small: Averaging, stream: np.ndarray
) -> None:
    """The scores before a change do not move, those after it do; nothing is left out; the model is left alone."""
    model = model if kind == "LM" else small
    before = {key: value.clone() for key, value in model.state_dict().items()}
    base = nll_of(LEARNERS[name], model, stream)
    assert np.isfinite(base).all() and len(base) == len(stream) - 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert np.array_equal(base, nll_of(LEARNERS[name], model, stream)), "the same again"
    changed = stream.copy()
    at = 120  # in the sixth document
    changed[at:] = np.where(stream[at:] == BOS, BOS, (stream[at:] - 10 + 7) % 50 + 10)
    found = nll_of(LEARNERS[name], model, changed)
    if isinstance(LEARNERS[name], DocumentsConfig) and LEARNERS[name].order == "longest":
        first = stream[:121].tolist().count(BOS) - 1  # the longest documents are graded first: compare the very first
        bounds = np.flatnonzero(stream == BOS)
        longest = int(np.argmax(np.diff(np.append(bounds, len(stream)))))
        assert longest < first
        own = slice(bounds[longest], bounds[longest] + 8)
        assert np.array_equal(base[own], found[own])
    else:
        assert np.abs(base[: at - 1] - found[: at - 1]).max() < 1e-5
    assert not np.array_equal(base[at:], found[at:])


@pytest.mark.parametrize(
    "name", ["sgd", slow("sgd, averaged"), "ngram", slow("mixture"), "ngram by document", "lora", "phased"]
)
def test_what_learns_gains_on_text_that_repeats(name: str, model: LM, small: Averaging, stream: np.ndarray) -> None:
    model = small if "ngram" in name else model
    fixed = documents() if isinstance(LEARNERS[name], DocumentsConfig) else LEARNERS["fixed"]
    assert nll_of(LEARNERS[name], model, stream).mean() < nll_of(fixed, model, stream).mean() - 0.02


def test_documents_are_scored_as_if_alone(small: Averaging, stream: np.ndarray) -> None:
    """Each target from the last 16 tokens of its own document, whatever stands before or beside it."""
    found, bounds = nll_of(documents(), small, stream), np.flatnonzero(stream == BOS)
    with torch.no_grad():
        for start, stop in zip(bounds, np.append(bounds[1:], len(stream) - 1), strict=True):
            for target in range(start + 1, stop + 1):
                end = start + 8 * math.ceil((target - start) / 8)
                context = stream[max(start, end - 16) : target].astype(np.int64)
                logp = small.log_probs(torch.from_numpy(context)[None])[0, -1]
                assert found[target - 1] == pytest.approx(-logp[int(stream[target])].item(), abs=1e-4)


class Learning(FixedConfig):
    """The model as it is, that says it learns."""

    @property
    def learns(self) -> bool:
        return True


def test_without_learning_a_documents_first_window_is_one_forward(model: LM, stream: np.ndarray) -> None:
    """The scores are those of chunk after chunk, for a fraction of the inputs."""
    inputs = []

    def counted(ids_BT: Tensor, scored: int) -> Tensor:
        inputs.append(ids_BT.numel())
        return model.log_probs(ids_BT, scored)

    found, spent = [], []
    for scorer in (FixedConfig(), Learning()):
        found.append(nll_of(documents(length=32, scorer=scorer), Model(counted), stream))
        spent.append(sum(inputs))
        inputs.clear()
    assert np.abs(found[0] - found[1]).max() < 1e-5
    assert spent[0] < 0.7 * spent[1]


@pytest.mark.parametrize("config", [windows_of(512, 16, chunk_tokens=8192), windows_of(24, 5), documents(length=512)])
def test_shortened_windows_keep_their_proportions(config: Any) -> None:
    short = config.shortened(64)
    assert short.length == min(64, config.length) and short.chosen == config.chosen
    if isinstance(config, DocumentsConfig):
        assert short.chunk_tokens == config.chunk_tokens * short.length / config.length
    else:
        assert short.stride == config.stride * short.length / config.length
        assert short.chunk_tokens == (config.chunk_tokens and 128)


def test_sgd_is_the_loop_that_it_says(model: LM, stream: np.ndarray) -> None:
    """Chunk by chunk with plain torch: score, then two epochs in steps of two rows, cosine over the chunks but one."""
    import copy

    found = nll_of(windows_of(16, None, 64, chunk_tokens=32, scorer=sgd(learner=replace(SGD, lr=0.1))), model, stream)
    copied, scored, starts = copy.deepcopy(model), [], range(0, len(stream) - 1, 32)
    optimizer = torch.optim.SGD(copied.parameters(), lr=0.1, momentum=0.9)
    for index, start in enumerate(starts):
        stop = min(start + 32, len(stream) - 1)
        rows = []
        for first in range(start, stop, 16):
            x = torch.from_numpy(stream[first : min(first + 16, stop) + 1].astype(np.int64))[None]
            rows.append(x)
            with torch.no_grad():
                logp = copied.log_probs(x[:, :-1])
            scored += (-logp.gather(-1, x[:, 1:, None])).flatten().tolist()
        if index == len(starts) - 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * index / (len(starts) - 2)))
        for _ in range(2):
            optimizer.zero_grad()
            x = torch.cat(rows)
            F.nll_loss(copied.log_probs(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(copied.parameters(), 1.0)
            optimizer.step()
    np.testing.assert_allclose(found, scored, atol=1e-4)


def test_what_is_frozen_stays_and_rates_grow_with_depth(model: LM) -> None:
    scorer = sgd(freeze_layers="first:1 of 2", freeze={"tables": "embed.*"}).open(model, ALONE)
    assert not any(name.startswith(("stack.blocks.0.", "embed.")) for name in scorer.weights)
    assert any(name.startswith("stack.blocks.1.") for name in scorer.weights)
    rates = {group["lr"] for group in sgd(layer_rates=True).open(model, ALONE).optimizer.param_groups}
    assert sorted(rates) == pytest.approx([0.05 / 2, 0.05])
    with pytest.raises(UserError, match=r"scorer\.freeze\.tables=embd\.\*: fits no parameter"):
        sgd(freeze={"tables": "embd.*"}).open(model, ALONE)
    with pytest.raises(UserError, match="nothing is left"):
        sgd(freeze={"all": "*"}).open(model, ALONE)
    with pytest.raises(UserError, match=r"scorer\.matrices\.all=nope: fits no matrix"):
        lora(matrices={"all": "nope"}).open(model, ALONE)


def test_nothing_trains_from_the_stop_on(model: LM, stream: np.ndarray) -> None:
    book = Book(stream, plain_counter(384), ALONE)
    lines = []
    config = windows_of(16, None, 64, chunk_tokens=32, scorer=sgd(stop_chunk=2, warmup_chunks=1))
    config.run(model, book, BOS, lambda going: lines.append(going.trace[-1]))
    assert [line.learning_loss is not None for line in lines] == [True, True] + [False] * (len(lines) - 2)
    assert lines[-1].tokens == len(stream) - 1 and lines[-1].nats == pytest.approx(book.nats.item())


def test_counts_are_exact_and_the_mixture_is_dirichlets(stream: np.ndarray) -> None:
    """Against dictionaries of everything graded before, rounds of eight targets."""
    V, strength = 384, 3.0
    uniform = Model(lambda ids_BT, last: torch.full((len(ids_BT), last, V), -math.log(V)))
    uniform.embed = type("E", (), {"table_VD": torch.zeros(V, 1)})  # type: ignore[attr-defined]
    config = NGramConfig(shortest=1, longest=2, strength=strength, scorer=FixedConfig())
    found = nll_of(windows_of(8, None, 8, chunk_tokens=8, scorer=config), uniform, stream)
    text, expected = stream.tolist(), []
    for target in range(1, len(text)):
        known = 8 * ((target - 1) // 8) + 1  # tokens that are graded when this round begins
        begins = known - 1  # of its window
        p = 1 / V
        for n in (1, 2):
            if target - n < begins:
                continue
            context = text[target - n : target]
            followers = [text[i] for i in range(n, known) if text[i - n : i] == context]
            p = (followers.count(text[target]) + strength * p) / (len(followers) + strength)
        expected.append(-math.log(p))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_contexts_without_exact_keys_are_refused(model: LM) -> None:
    with pytest.raises(UserError, match=r"scorer\.longest=6: .*try scorer\.longest=5"):
        NGramConfig(shortest=1, longest=6, strength=1.0, scorer=FixedConfig()).open(model, ALONE)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_mixture_follows_the_better_of_its_parts(share: float, model: LM, stream: np.ndarray) -> None:
    """Round by round, from what its parts give alone: Bayes' weights, of which a share is dealt out anew."""
    bad = TemperatureConfig(temperature=20.0, scorer=FixedConfig())
    mixed = MixtureConfig(share=share, scorers={"fixed": FixedConfig(), "bad": bad})
    found, *parts = (
        nll_of(windows_of(16, None, 16, chunk_tokens=16, scorer=scorer), model, stream) for scorer in (mixed, None, bad)
    )
    weight_K, expected, most = np.full(2, 0.5), [], 0.5
    for start in range(0, len(found), 16):
        p_KS = np.exp(-np.stack(parts)[:, start : start + 16])
        expected.append(-np.log(weight_K @ p_KS))
        weight_K = weight_K * p_KS.prod(1) / (weight_K @ p_KS.prod(1))
        weight_K = (1 - share) * weight_K + share / 2
        most = max(most, weight_K.max())
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-4)
    assert most > 0.8, "one of them is better"


def test_scorers_of_documents_want_documents() -> None:
    with pytest.raises(ValueError, match="scorer: learns for each document"):
        windows_of(16, scorer=lora())
    with pytest.raises(ValueError, match="fewer than two"):
        MixtureConfig(share=0.1, scorers={"one": FixedConfig()})


def test_a_target_is_graded_once_and_every_one() -> None:
    book = Book(np.arange(6, dtype=np.uint16), plain_counter(8), ALONE)
    logp_BSV = torch.full((1, 2, 8), -math.log(8))
    book.commit(np.array([[1, 2]]), logp_BSV)
    for again in ([[2, 3]], [[4, 4]]):
        with pytest.raises(RunError, match="second time"):
            book.commit(np.array(again), logp_BSV)
    with pytest.raises(RunError, match="scored 2 of 5 targets once"):
        book.close(1.0)
    book.commit(np.array([[3, NOTHING], [5, 4]]), logp_BSV.expand(2, -1, -1))
    assert book.close(1.0).nats == pytest.approx(5 * math.log(8)) and book.sums()[2] == 5


def test_the_sums_of_a_round_do_not_go_through_the_stream() -> None:
    book = Book(np.arange(6, dtype=np.uint16), plain_counter(8), ALONE)
    book.commit(np.array([[1, 2]]), torch.full((1, 2, 8), -math.log(8)))
    again = Book(np.arange(6, dtype=np.uint16), plain_counter(8), ALONE)
    again.load(book.state())
    for one in (book, again):
        del one.graded_N  # as long as the stream
        assert one.sums() == (pytest.approx(2 * math.log(8)), 2, 2)


@pytest.mark.parametrize("nothing", [-math.inf, math.nan])
def test_padding_may_hold_anything(nothing: float) -> None:
    book = Book(np.arange(3, dtype=np.uint16), plain_counter(8), ALONE)
    logp_BSV = torch.full((1, 3, 8), -math.log(8))
    logp_BSV[:, 2] = nothing
    _, nll_BS = book.commit(np.array([[1, 2, NOTHING]]), logp_BSV)
    assert nll_BS[0, 2] == 0 and book.close(1.0).nats == pytest.approx(2 * math.log(8))


@pytest.mark.parametrize("choice", [slow(name) if name in ELSEWHERE else name for name in EVALS])
def test_every_eval_in_conf_scores_a_toy_run(choice: str, toy: Toy, model: LM, stream: np.ndarray) -> None:
    """What a YAML says runs, covers every target and says what it is."""
    run = toy(f"eval={choice}", "scale.seq=0.03125")
    evaluator = run.eval.evaluators[run.eval.main]
    found = score(evaluator, model, stream, plain_counter(384), BOS)
    assert found.tokens == len(stream) - 1 and math.isfinite(found.nats) and evaluator.legal
    assert run.eval.main == (choice if choice in run.eval.evaluators else "ttt_sgd") and len(evaluator.describe()) > 30
