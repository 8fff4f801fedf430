"""Keys and values kept from chunk to chunk: less is passed, and every score stays what it is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from golf.checks import check
from golf.config import Run
from golf.dist import ALONE
from golf.errors import UserError
from golf.evals.cache import Cache
from golf.evals.ngram import NGramConfig
from golf.evals.scorers import FixedConfig, MixtureConfig, Scorer, TemperatureConfig
from golf.evals.ttt_lora import PhasedConfig
from golf.models.lm import LM, declared_length
from tests.evals.helpers import windows_of
from tests.helpers.learners import SGD, documents, lora, nll_of
from tests.helpers.tiers import slow

Toy = Callable[..., Run]
LAST = {"mlp": "stack.blocks.1.mlp.*", "out": "stack.blocks.1.mixer.out", "query": "stack.blocks.1.mixer.query"}


def fixed(cache: bool) -> FixedConfig:
    return FixedConfig(cache=cache)


def counted(cache: bool) -> NGramConfig:
    return NGramConfig(shortest=1, longest=2, strength=4.0, scorer=fixed(cache))


def adapted(cache: bool, **fields: Any) -> Any:
    return lora(matrices={}, cache=cache, **fields)


SCORERS: dict[str, Callable[[bool], Any]] = {
    "ngram": counted,
    "head": adapted,
    "last block": lambda cache: replace(adapted(cache), matrices=LAST),
    "phased": lambda cache: PhasedConfig(
        adapters=adapted(cache), learner=SGD, boundaries={"a": 2}, rows=4, length=16, clip_norm=1.0
    ),
    "mixture": lambda cache: TemperatureConfig(
        temperature=0.9, scorer=MixtureConfig(share=0.01, scorers={"count": counted(cache), "head": adapted(cache)})
    ),
}


class Passed:
    """Counts the inputs that blocks see."""

    def __init__(self, model: LM, monkeypatch: pytest.MonkeyPatch):
        self.inputs = 0
        forward = type(model.stack).forward

        def counting(stack: Any, x_BND: Tensor, context: Any) -> Tensor:
            self.inputs += x_BND.shape[0] * x_BND.shape[1]
            return forward(stack, x_BND, context)

        monkeypatch.setattr(type(model.stack), "forward", counting)

    def taken(self) -> int:
        inputs, self.inputs = self.inputs, 0
        return inputs


EDGES = [("last block", 24, 8), ("phased", 24, 8), ("mixture", 24, 8), ("ngram", 64, 8), ("head", 64, 5),
         ("head", 16, 16), slow("ngram", 24, 8), slow("head", 24, 8), slow("head", 64, 8), slow("ngram", 64, 5),
         slow("ngram", 16, 16)]  # fmt: skip


@pytest.mark.parametrize("name, length, chunk", EDGES)
def test_scores_are_those_of_whole_windows(
    name: str, length: int, chunk: int, model: LM, stream: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents of 2 to 61 tokens: within a window, past its edge, on it, and windows of one chunk."""
    passed, found, inputs = Passed(model, monkeypatch), [], []
    for cache in (False, True):
        config = documents(length=length, chunk_tokens=chunk, scorer=SCORERS[name](cache), batch_tokens=2 * length)
        found.append(nll_of(config, model, stream))
        inputs.append(passed.taken())
    assert abs(found[0].mean() - found[1].mean()) < 1e-6
    assert np.abs(found[0] - found[1]).max() < 1e-5
    if length > chunk:
        assert inputs[1] < (0.5 if length == 64 else 0.8) * inputs[0]


def test_a_window_that_has_moved_is_passed_whole(model: LM, stream: np.ndarray) -> None:
    """Kept keys are dropped with the first window, and not taken for those of other text."""
    scorer = fixed(True).open(model, ALONE)
    seen = []

    class Watched(Scorer):
        def log_probs(self, window: Any) -> Tensor:
            logp = scorer.log_probs(window)
            seen.append((window.ids_BT.shape[1], sorted(scorer.cache.begun)))
            torch.testing.assert_close(logp, model.log_probs(window.ids_BT, window.scored), atol=1e-5, rtol=1e-5)
            return logp

        def begin(self, first_G: np.ndarray) -> None:
            scorer.begin(first_G)

        def update(self, graded: Any) -> None:
            scorer.update(graded)

    class Chosen(FixedConfig):
        learns = True

        def open(self, model: LM, ranks: Any) -> Scorer:
            return Watched()

    nll_of(documents(length=24, documents=1, scorer=Chosen()), model, stream)
    ends = [kept for length, kept in seen if length == 24]
    assert [0] in ends and [] in ends and all(kept == [0] for length, kept in seen if length < 24)


def test_other_text_in_a_document_is_noticed(model: LM) -> None:
    """What is kept is asked for by the inputs that made it, not by the document's number alone."""
    cache, slot_B = Cache(model), torch.tensor([3])
    ids_BT = torch.arange(20, 32)[None]
    with torch.no_grad(), declared_length(model, 12):
        cache.hidden(ids_BT[:, :8], 8, slot_B)
        other_BT = ids_BT.clone()
        other_BT[:, 2] = 50
        for text_BT in (other_BT, ids_BT):
            torch.testing.assert_close(cache.hidden(text_BT, 4, slot_B), model.hidden(text_BT)[:, -4:])
        assert not cache.begun


def test_what_learning_reaches_is_refused(model: LM) -> None:
    for pattern in ("stack.blocks.1.mixer.key", "stack.blocks.0.mlp.*", "stack.blocks.0.mixer.out"):
        scorer = lora(matrices={"one": pattern}, cache=True).open(model, ALONE)
        with pytest.raises(UserError, match=r"scorer\.cache=true: .* what learns would change them"):
            scorer.begin(np.array([1]))


HEAD = "ttt_head.scorer.cache=true: keys and values are kept, and "
REFUSED = {
    "eval=ttt_lora eval.evaluators.ttt_lora.scorer.cache=true": "ttt_lora.scorer.cache=true: .* would change them",
    "eval=ttt_head model/stack=surge": HEAD + "model.stack keeps more of a text",
    "eval=ttt_head model/mixer=diagonal_masked": HEAD + "model.mixer.masked_layers has a mask",
    "eval=ttt_head model/mixer=mla_decoupled model.mixer.absorb=true": "ttt_head.* try model.mixer.absorb=false",
    "eval=ttt_lora eval.evaluators.ttt_lora.scorer.matrices.mlp=nope": "ttt_lora.scorer.matrices.mlp=nope: fits no",
}


@pytest.mark.parametrize("overrides", list(REFUSED))
def test_what_cannot_be_kept_is_refused_before_a_run(overrides: str, toy: Toy) -> None:
    with pytest.raises(UserError, match=rf"^eval\.evaluators\.{REFUSED[overrides]}"):
        check(toy(*overrides.split()))


def test_where_nothing_could_be_kept_it_is_said() -> None:
    with pytest.raises(ValueError, match=r"scorer\.cache=true: each window begins at another token"):
        windows_of(16, 4, 64, chunk_tokens=32, scorer=counted(True))
    with pytest.raises(ValueError, match=r"scorer\.cache=true: nothing learns"):
        documents(scorer=fixed(True))
    assert documents(scorer=counted(True)).caches and not documents(scorer=counted(False)).caches
