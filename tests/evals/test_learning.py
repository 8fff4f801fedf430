"""What learns at evaluation, part by part: warm-ups, averages, decay and rates; adapters; phases."""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from golf.dist import ALONE, Ranks
from golf.evals import ttt_lora
from golf.evals.learning import AdamWLearnerConfig
from golf.evals.lesson import lesson_of
from golf.evals.scorers import Graded, MixtureConfig, TemperatureConfig, Window
from golf.evals.ttt_lora import LoRAScorer, Phased, PhasedConfig
from golf.evals.ttt_sgd import SGDScorer
from golf.models.lm import LM
from tests.evals.helpers import windows_of
from tests.helpers.learners import BOS, LEARNERS, SGD, documents, lora, sgd

IDS = torch.tensor([[1, 20, 30, 40, 20, 30, 40, 20]])
FIXED = replace(SGD, momentum=0.0)


def taught(index: int = 0, rounds: int = 3) -> Graded:
    text = np.resize(np.array([1, 20, 30, 40]), 17).astype(np.uint16)
    return lesson_of(text, 0, 16, 8, ALONE).graded(index, rounds, ALONE.device)


def change(scorer: SGDScorer, name: str, graded: Graded) -> Tensor:
    before = scorer.weights[name].detach().clone()
    scorer.update(graded)
    return scorer.weights[name].detach() - before


def test_the_rate_rises_over_the_warm_up(model: LM) -> None:
    """The first of two warm-up chunks trains at a third of the rate."""
    name = "embed.table_VD"
    fields: dict[str, Any] = {"learner": FIXED, "epochs": 1, "rows": 2, "cosine": False}
    cold, warm = (sgd(warmup_chunks=n, **fields).open(model, ALONE) for n in (0, 2))
    expected = change(cold, name, taught()) / 3
    torch.testing.assert_close(change(warm, name, taught()), expected, rtol=1e-4, atol=1e-8)


def test_what_trains_is_fp32_whatever_the_model_is(model: LM) -> None:
    """A step that bf16 would round away is taken; the model itself stays as it is."""
    coarse = copy.deepcopy(model)
    coarse.embed.table_VD.data = coarse.embed.table_VD.data.bfloat16()
    scorers = [sgd(learner=replace(FIXED, lr=1e-6)).open(coarse, ALONE), phased(length=16).open(coarse, ALONE)]
    for scorer in scorers:
        assert {w.dtype for w in scorer.model.parameters()} == {torch.float32}
    assert change(scorers[0], "embed.table_VD", taught()).abs().max() > 0
    assert coarse.embed.table_VD.dtype == torch.bfloat16


@pytest.mark.parametrize("around", [
    lambda scorer: scorer,
    lambda scorer: TemperatureConfig(temperature=0.9, scorer=scorer),
    lambda scorer: MixtureConfig(share=0.0, scorers={"one": scorer, "two": sgd()}),
])  # fmt: skip
def test_rows_are_no_longer_than_windows(around: Any) -> None:
    """Positions are made for windows: longer rows of a phase would stop the score when its time comes."""
    with pytest.raises(ValueError, match=r"^scorer\.(scorer\.|scorers\.one\.)?length=17 is more than a window; .*=16$"):
        documents(scorer=around(phased(length=17)))
    assert documents(length=32, scorer=around(phased(length=17))).shortened(8).scorer == around(phased(length=8))


def test_the_average_is_what_scores(model: LM) -> None:
    window = Window(IDS, 8, torch.zeros(1, dtype=torch.int64))
    scorer = sgd(ema=0.5, rows=2, epochs=1).open(model, ALONE)
    before = {name: w.detach().clone() for name, w in scorer.weights.items()}
    scorer.update(taught())
    assert scorer.mean is not None
    with torch.no_grad():
        scored, last = scorer.log_probs(window), scorer.model.log_probs(IDS, 8)
        for name, w in scorer.weights.items():
            w.copy_((before[name] + w) / 2)
        torch.testing.assert_close(scored, scorer.model.log_probs(IDS, 8))
    assert (scored - last).abs().max() > 1e-4


def test_deeper_blocks_train_faster(model: LM) -> None:
    optimizer = sgd(layer_rates=True).open(model, ALONE)
    rates = {name: group["lr"] for name, group in zip(optimizer.weights, optimizer.optimizer.param_groups, strict=True)}
    for layer in range(2):
        own = {rate for name, rate in rates.items() if name.startswith(f"stack.blocks.{layer}.")}
        assert own and all(rate == pytest.approx(0.05 * (layer + 1) / 2) for rate in own)


def test_weights_decay(model: LM) -> None:
    """Decay adds weight_decay times the weight to its gradient."""
    name, fields = "embed.table_VD", {"epochs": 1, "rows": 2, "cosine": False, "clip_norm": 1e9}
    plain, decayed = (
        change(sgd(learner=replace(FIXED, weight_decay=d), **fields).open(model, ALONE), name, taught())
        for d in (0.0, 0.1)
    )
    own = dict(model.named_parameters())[name].detach()
    torch.testing.assert_close(decayed - plain, -0.05 * 0.1 * own, rtol=1e-2, atol=1e-6)


def test_moments_come_back_where_the_weights_are(model: LM) -> None:
    """But for Adam's step, which torch keeps on the CPU."""
    learner = AdamWLearnerConfig(lr=0.001, weight_decay=0.0, beta1=0.9, beta2=0.99, eps=1e-8)
    kept = sgd(learner=learner).open(model, ALONE)
    kept.update(taught())
    elsewhere = sgd(learner=learner).open(model, ALONE)
    elsewhere.model.to("meta")
    elsewhere.weights = {name: w for name, w in elsewhere.model.named_parameters() if name in kept.weights}
    elsewhere.load(kept.state())
    for moments in elsewhere.optimizer.state.values():
        assert {key: value.device.type for key, value in moments.items()} == {
            "step": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta",
        }  # fmt: skip


def begun(model: LM, **fields: Any) -> LoRAScorer:
    scorer = lora(**fields).open(model, ALONE)
    scorer.begin(np.array([BOS]))
    return scorer


def test_new_documents_begin_with_b_at_zero(model: LM) -> None:
    """Whatever was learnt of the last ones, they score as the model does, whether A is kept or not."""
    window = Window(IDS, 8, torch.zeros(1, dtype=torch.int64))
    for keep_a in (True, False):
        scorer = begun(model, keep_a=keep_a)
        scorer.update(taught())
        with torch.no_grad():
            assert (scorer.log_probs(window) - model.log_probs(IDS)).abs().max() > 1e-4
            scorer.begin(np.array([BOS]))
            torch.testing.assert_close(scorer.log_probs(window), model.log_probs(IDS))


def test_an_adapters_part_is_scaled_by_alpha_over_rank(model: LM) -> None:
    scorer = begun(model, alpha=12.0, rank=4)
    torch.nn.init.normal_(scorer.b["head"])
    x_BTI = torch.randn(1, 3, model.embed.table_VD.shape[1])
    expected = x_BTI @ scorer.a["head"][0].T @ scorer.b["head"][0].T * 3
    torch.testing.assert_close(scorer._delta("head", x_BTI), expected)


def test_an_adapter_learns_what_was_just_graded(model: LM) -> None:
    """The loss is the mean over the mask, not over the window."""
    graded = taught()
    mask_BT = torch.zeros_like(graded.mask_BT)
    mask_BT[:, -2:] = True
    loss = begun(model).update(replace(graded, mask_BT=mask_BT))
    logp = model.log_probs(graded.rows_BT).gather(-1, graded.targets_BT[..., None])[..., 0]
    assert loss == pytest.approx(-logp[:, -2:].mean().item(), rel=1e-5)


def test_adapters_go_on_matrices_only(model: LM) -> None:
    """A pattern of everything passes over weights that are vectors, and over methods of that name."""
    expected = {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    model.head.weight = lambda: None  # a method of that name
    try:
        assert set(lora(matrices={"all": "*"}).open(model, ALONE).sizes) >= expected | {"head"}
    finally:
        del model.head.weight


def phased(**fields: Any) -> PhasedConfig:
    settings: dict[str, Any] = {"adapters": lora(), "learner": FIXED, "boundaries": {"b": 4, "a": 2}, "rows": 2}
    return PhasedConfig(**(settings | {"length": 8, "clip_norm": 1.0} | fields))


def test_a_phase_trains_at_a_rate_that_falls(model: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []

    class Noted(ttt_lora.Step):
        def __call__(self, *rows: Tensor) -> float:
            rates.append(self.optimizer.param_groups[0]["lr"])
            return super().__call__(*rows)

    monkeypatch.setattr(ttt_lora, "Step", Noted)
    scorer = phased().open(model, ALONE)
    scorer.texts = [[np.resize(np.array([1, 20, 30]), 25)], [np.resize(np.array([1, 40, 50]), 17)]]
    scorer.begin(np.array([BOS]))
    assert rates == pytest.approx([0.05 * 0.5 * (1 + math.cos(math.pi * i / 2)) for i in range(3)])  # 3 + 2 rows


def test_phases_that_were_passed_are_not_passed_again(model: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr(Phased, "_phase", lambda self: counted.append(len(self.texts)))

    def batches(scorer: Phased, count: int) -> None:
        for _ in range(count):
            scorer.begin(np.array([BOS, BOS]))
            for text in scorer.under_way:
                text.append(np.array([20, 30]))

    config = phased(boundaries={"b": 6, "a": 2})
    whole = config.open(model, ALONE)
    batches(whole, 4)
    assert counted == [2, 6]
    counted.clear()
    first, second = (config.open(model, ALONE) for _ in range(2))
    batches(first, 2)
    second.load(first.state())
    batches(second, 2)
    assert counted == [2, 6]


def test_in_brief_phases_come_with_the_first_documents() -> None:
    config = replace(LEARNERS["phased"], documents=64, scorer=phased(boundaries={"z": 9, "a": 90, "no": None}))
    brief = config.in_brief()
    assert brief.documents == 2 and brief.chosen.boundaries == {"z": 2, "a": 4}
    inner = TemperatureConfig(temperature=0.9, scorer=phased())
    assert inner.in_brief().scorer.boundaries == {"a": 2, "b": 4}
    mixed = MixtureConfig(share=0.0, scorers={"one": inner, "two": sgd()}).in_brief()
    assert mixed.scorers["one"] == inner.in_brief() and mixed.scorers["two"] == sgd()


def test_a_learner_wants_chunks() -> None:
    with pytest.raises(ValueError, match=r"chunk_tokens=None: .* try chunk_tokens=512"):
        windows_of(16, scorer=sgd())
    windows_of(16, scorer=TemperatureConfig(temperature=0.9, scorer=LEARNERS["fixed"].chosen))


@pytest.mark.parametrize("name", ["temperature", "mixture"])
def test_what_holds_adapters_wants_documents(name: str) -> None:
    fixed = LEARNERS["fixed"].chosen
    around = {
        "temperature": TemperatureConfig(temperature=0.9, scorer=lora()),
        "mixture": MixtureConfig(share=0.1, scorers={"adapters": lora(), "fixed": fixed}),
    }[name]
    with pytest.raises(ValueError, match="scorer: learns for each document"):
        windows_of(16, chunk_tokens=32, scorer=around)


def test_ranks_without_documents_have_no_adapters(model: LM) -> None:
    """Rank 1 of 2 with one document under way; its first document draws what one rank would draw for it."""
    other, alone = lora().open(model, Ranks(1, 2, torch.device("cpu"))), lora().open(model, ALONE)
    for scorer in (other, alone):
        for first_G in (np.array([BOS]), np.array([BOS, BOS])):
            scorer.begin(first_G)
    assert torch.equal(other.a["head"], alone.a["head"][1:]) and len(other.b["head"]) == 1
