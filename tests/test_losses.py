"""Losses against their formulas in float64, and that only training sees them."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from golf.conf_files import CONF, load_part
from golf.config import Run, fingerprint, identity
from golf.errors import UserError
from golf.losses import CROSS_ENTROPY, PARTS, EntropyWeightsConfig, Loss, LossPartConfig, ZLossConfig
from golf.models import cross_entropy
from golf.models.cross_entropy import softmax_loss, statistics
from golf.models.lm import LM
from golf.rundir import RunDir
from golf.schedules import Tick
from tests.helpers.models import ids_for, moved
from tests.helpers.quant import OTHER_LOSS_AND_CALIBRATION, copy_of
from tests.helpers.tiers import slow, wide

LOSSES = sorted(path.stem for path in (CONF / "loss").glob("*.yaml"))
Toy = Callable[..., Run]
HEADS = sorted(path.stem for path in (CONF / "model" / "head").glob("*.yaml"))
N, V, D = 150, 101, 8  # no power of two, and no multiple of the chunks below
BOTH = "[entropy_weighted,z_loss]"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_ELEMENTS, "cpu", 6144)  # 60 tokens of V, 16 of a toy model


def parts_of(choice: str) -> dict[str, LossPartConfig]:
    """What `loss=choice` makes of conf/loss/: the parts of a name, or of names in brackets."""
    names = [name for name in choice.strip("[]").split(",") if name != "cross_entropy"]
    return {name: load_part(f"loss/{name}") for name in names}


def loss_of(choice: str, **changed: float) -> Loss:
    """The loss of conf/loss/, its z-loss made large enough to see."""
    parts = parts_of(choice)
    for part in parts.values():
        if isinstance(part, ZLossConfig):
            part.coefficient = changed.get("coefficient", 0.1)
    return Loss(parts)


def inputs(dtype: torch.dtype = torch.float32, gain: float | None = 0.3) -> tuple[list[Tensor], Tensor]:
    """[x_ND, table_VD, log_gain], which want gradients, and targets_N."""
    torch.manual_seed(0)
    leaves = [torch.randn(N, D, dtype=dtype), torch.randn(V, D)] + ([] if gain is None else [torch.tensor(gain)])
    return [leaf.requires_grad_() for leaf in leaves], torch.randint(V, (N,))


def reference(leaves: list[Tensor], targets: Tensor, softcap: float | None, loss: Loss) -> tuple[Tensor, Tensor]:
    """(objective, nll) from whole logits, formulas written out."""
    z = leaves[0] @ leaves[1].T * (leaves[2].exp() if len(leaves) > 2 else 1)
    logits = z if softcap is None else softcap * torch.tanh(z / softcap)
    nll, lse, p = F.cross_entropy(logits, targets, reduction="none"), logits.logsumexp(-1), logits.softmax(-1).detach()
    objective, weight = torch.zeros_like(nll), torch.ones_like(nll)
    for part in loss.parts:
        if isinstance(part, EntropyWeightsConfig):
            entropy = -(p * p.log()).sum(-1)
            weight = torch.clip(0.5 + entropy / entropy.mean(), 0.5, 1.5)
            weight = weight / weight.mean()
        else:
            assert isinstance(part, ZLossConfig)
            objective = objective + part.coefficient * lse**2
    return (objective + weight * nll).mean(), nll.mean()


@pytest.mark.parametrize("loss", [*LOSSES, BOTH])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("gain", [None, 0.3])
def test_fused_is_the_eager_form_in_float64(loss: str, softcap: float | None, gain: float | None) -> None:
    leaves, targets = inputs(gain=gain)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected, expected_nll = reference(exact, targets, softcap, loss_of(loss))
    log_gain = leaves[2] if len(leaves) > 2 else None
    found, nll = softmax_loss(*leaves[:2], targets, softcap=softcap, log_gain=log_gain, loss=loss_of(loss))
    torch.testing.assert_close((found.double(), nll.double()), (expected, expected_nll), rtol=1e-6, atol=0)
    assert not nll.requires_grad
    torch.testing.assert_close(sum(loss_of(loss).named(found, nll).values()), found)
    for ours, theirs in zip(
        torch.autograd.grad(0.7 * found, leaves), torch.autograd.grad(0.7 * expected, exact), strict=True
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-5, atol=2e-6)
    with torch.no_grad():
        alone = softmax_loss(*leaves[:2], targets, softcap=softcap, log_gain=log_gain, loss=loss_of(loss))
    torch.testing.assert_close(alone, (found.detach(), nll), rtol=1e-6, atol=0)
    assert alone[0].grad_fn is None


@pytest.mark.parametrize("rows", [1, N - 1, N, N + 1, 10 * N])
def test_chunks_of_any_size_give_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> list[Tensor]:
        leaves, targets = inputs()
        found = softmax_loss(*leaves[:2], targets, softcap=3.0, log_gain=leaves[2], loss=loss_of(BOTH))
        return [*found, *torch.autograd.grad(found[0], leaves)]

    before = gradients()
    monkeypatch.setitem(cross_entropy.CHUNK_ELEMENTS, "cpu", rows * V)
    torch.testing.assert_close(gradients(), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("table_type", [torch.float32, torch.bfloat16])
def test_bf16_is_as_close_as_the_eager_form(table_type: torch.dtype) -> None:
    leaves, targets = inputs(torch.bfloat16, gain=None)
    x, table = leaves[0], leaves[1].detach().to(table_type).requires_grad_()
    exact = [leaf.detach().double().requires_grad_() for leaf in (x, table)]
    true = torch.autograd.grad(reference(exact, targets, 3.0, CROSS_ENTROPY)[0], exact)
    logits = 3 * torch.tanh(F.linear(x, table.to(x.dtype)).float() / 3)
    eager = torch.autograd.grad(F.cross_entropy(logits, targets), (x, table))
    found = torch.autograd.grad(softmax_loss(x, table, targets, softcap=3.0)[0], (x, table))
    assert [gradient.dtype for gradient in found] == [torch.bfloat16, table_type]
    for ours, theirs, best in zip(found, eager, true, strict=True):
        error, usual = (((gradient.double() - best).norm() / best.norm()).item() for gradient in (ours, theirs))
        assert error < 1.5 * usual and error < 0.01, "each chunk's share is rounded once, and a bf16 sum once more"


def test_a_share_of_the_loss_is_not_rounded_to_bf16() -> None:
    """A third of the loss, as with three microbatches: 1/3 in bf16 would make every gradient larger by 0.2 %."""
    leaves, targets = inputs(torch.bfloat16, gain=None)
    objective, _ = softmax_loss(*leaves, targets, softcap=3.0)
    whole = torch.autograd.grad(objective, leaves, retain_graph=True)
    third = torch.autograd.grad(objective / 3, leaves)
    assert torch.equal(third[0], (whole[0].float() / 3).bfloat16())
    torch.testing.assert_close(third[1], whole[1] / 3)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    leaves, targets = inputs(gain=None)
    (slope,) = torch.autograd.grad(softmax_loss(*leaves, targets, softcap=None)[0] ** 2, leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_statistics_of_uniform_and_of_certain_predictions() -> None:
    x, targets = torch.tensor([[0.0], [1.0]]), torch.tensor([3, 2])
    table = torch.tensor([[0.0], [0.0], [200.0], [0.0]])
    found = statistics(x, table, None, targets, None)
    torch.testing.assert_close(found.nll_N, torch.tensor([math.log(4), 0.0]))
    torch.testing.assert_close(found.lse_N, torch.tensor([math.log(4), 200.0]))
    torch.testing.assert_close(found.entropy_N, torch.tensor([math.log(4), 0.0]))


def test_entropy_weights_are_the_formula_with_mean_one() -> None:
    part = parts_of("entropy_weighted")["entropy_weighted"]
    entropy = torch.tensor([0.0, 1.0, 2.0, 5.0])  # of mean 2: 0.5, 1.0, 1.5 and 3.0, which is cut to 1.5
    torch.testing.assert_close(part.weights(entropy), torch.tensor([0.5, 1.0, 1.5, 1.5]) / 1.125)
    torch.testing.assert_close(part.weights(torch.full((5,), 3.3)), torch.ones(5))


def test_z_loss_of_a_uniform_prediction_is_known() -> None:
    table = torch.randn(V, D, requires_grad=True)
    objective, nll = softmax_loss(
        torch.zeros(N, D),
        table,
        torch.zeros(N, dtype=torch.long),
        softcap=30.0,
        loss=loss_of("z_loss", coefficient=0.5),
    )
    assert nll.item() == pytest.approx(math.log(V), rel=1e-6)
    assert objective.item() == pytest.approx(math.log(V) + 0.5 * math.log(V) ** 2, rel=1e-6)


@pytest.mark.parametrize("choice", LOSSES)
def test_penalties_know_their_derivative_and_weights_their_mean(choice: str) -> None:
    torch.manual_seed(0)
    lse = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    loss = loss_of(choice)
    value, slope = loss.penalty(lse)
    expected = torch.autograd.grad(value.sum(), lse)[0] if value.requires_grad else torch.zeros_like(lse)
    torch.testing.assert_close(slope, expected)
    weight = loss.weights(torch.rand(9))
    assert weight.mean().item() == pytest.approx(1.0, abs=1e-6)
    assert loss.weighs or torch.equal(weight, torch.ones(9)), "a part that weighs says so"


# ---------------------------------------------------------------- in models


def run_of(toy: Toy, head: str, loss: str = "cross_entropy", *, mtp: bool = False, layers: int = 2) -> Run:
    """A toy run with this head and this loss."""
    run = copy_of(toy)
    auxiliary = {"mtp": load_part("model/auxiliary/mtp")} if mtp else {}
    model = replace(run.model, head=load_part(f"model/head/{head}"), auxiliary=auxiliary, layers=layers)
    return replace(run, model=model, loss=parts_of(loss))


def test_a_run_has_the_parts_that_it_names(toy: Toy) -> None:
    found = toy(f"loss={BOTH}", "model/auxiliary=mtp")
    made = run_of(toy, "tied", BOTH, mtp=True, layers=3)
    assert (found.loss, found.model) == (made.loss, made.model)


def model_of(run: Run) -> LM:
    model = moved(run)
    model.loss = Loss(run.loss)
    return model


def trained(model: Callable[..., dict[str, Tensor]], ids: Tensor) -> Tensor:
    """The objective, as the loop adds it up."""
    return torch.stack(list(model(ids[:, :-1], ids[:, 1:]).values())).sum()


@pytest.mark.parametrize("head", HEADS)
def test_gradients_are_those_of_log_probs(head: str, toy: Toy) -> None:
    """All of a model's, the table's from both its uses, against autograd through whole log-probabilities."""
    run = run_of(toy, head)
    model, ids = model_of(run), ids_for(run)
    parameters = list(model.parameters())
    found = torch.autograd.grad(trained(model, ids), parameters)
    expected = -model.log_probs(ids[:, :-1]).gather(-1, ids[:, 1:, None]).mean()
    for ours, theirs in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["mos", "mos_residual"])
def test_mixtures_honour_the_loss(form: str, toy: Toy) -> None:
    """Weights from the mixture's entropy, the penalty from every expert's own softmax."""
    run = run_of(toy, form)
    model, ids = model_of(run), ids_for(run)
    x, targets, table = model.hidden(ids[:, :-1]), ids[:, 1:], model.embed.table_VD
    log_p = model.head.log_probs(x, table)
    entropy = -(log_p.exp() * log_p).sum(-1).detach()
    weight = torch.clip(0.5 + entropy / entropy.mean(), max=1.5)
    lse = model.head.experts_of(x, table)[1].logsumexp(-1)
    nll = -log_p.gather(-1, targets[..., None])[..., 0]
    expected = (weight / weight.mean() * nll).mean() + 0.1 * lse.square().mean()
    found = model.head.losses(x, targets, table, loss_of(BOTH))
    torch.testing.assert_close(found["nll"], nll.mean())
    torch.testing.assert_close(sum(found.values()), expected)
    parameters = list(model.head.parameters())
    gradients = [torch.autograd.grad(v, parameters, retain_graph=True) for v in (sum(found.values()), expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [*LOSSES, BOTH])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_with_every_loss(head: str, loss: str, toy: Toy) -> None:
    run = run_of(toy, head, loss, mtp=True)
    model, ids = model_of(run), ids_for(run)
    plain = copy.deepcopy(model)
    plain.loss = CROSS_ENTROPY
    found, usual = (one(ids[:, :-1], ids[:, 1:]) for one in (model, plain))
    torch.testing.assert_close(found["nll"].detach(), usual["nll"].detach(), msg="nll is plain whatever the loss is")
    torch.testing.assert_close(found["mtp"], usual["mtp"])
    assert (PARTS in found) == bool(run.loss)
    assert torch.equal(model.log_probs(ids), plain.log_probs(ids)), "scores know no loss"
    optimizer = run.optimizer.build(model, torch.float32)
    optimizer.zero_grad()
    trained(model, ids).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    optimizer.step(1.0, Tick(0, 0.5, 10))
    assert trained(model, ids).isfinite()


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operation gave."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        for tensor in given if isinstance(given, tuple | list) else (given,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return given


@pytest.fixture
def saved() -> Iterator[list[Tensor]]:
    """What is kept for backward passes."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def elements(tensors: list[Tensor]) -> list[int]:
    """Sizes of tensors, each counted once."""
    return list({tensor.data_ptr(): tensor.numel() for tensor in tensors}.values())


@pytest.mark.parametrize("head", HEADS)
def test_whole_logits_are_never_held(head: str, toy: Toy, saved: list[Tensor]) -> None:
    """Not at once, by forward and backward of a model with further heads (the same instrument sees them in log_probs),
    and not in pieces that are kept."""
    run = run_of(toy, head, BOTH, mtp=True)
    model, ids = model_of(run), ids_for(run, rows=8, length=33)
    whole = 8 * 32 * run.model.vocab_size
    with Largest() as training:
        trained(model, ids).backward()
    with Largest() as scoring, torch.no_grad():
        model.log_probs(ids[:, :-1])
    assert scoring.elements >= whole
    assert training.elements < whole / 4
    x_BTD = model.hidden(ids[:, :-1]).detach()
    saved.clear()
    model.head.losses(x_BTD, ids[:, 1:], model.embed.table_VD, model.loss)
    logits = [tensor for tensor in saved if tensor.shape[-1:] == (run.model.vocab_size,)]
    assert saved and sum(elements(logits)) < whole / 2


@pytest.mark.parametrize(
    "head, loss", [wide("tied", "cross_entropy"), wide("tied_temperature", BOTH), slow("mos", BOTH)]
)
def test_compiled_it_is_the_same_and_keeps_no_logits(head: str, loss: str, toy: Toy, saved: list[Tensor]) -> None:
    torch.compiler.reset()
    run = run_of(toy, head, loss)
    model, ids = model_of(run), ids_for(run, length=25)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(trained(model, ids), parameters)
    saved.clear()
    whole = torch.compile(model, dynamic=False, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(trained(whole, ids), parameters)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert 0 < max(elements(saved)) < 2 * 24 * run.model.vocab_size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_ELEMENTS, "cuda", 6144)
    leaves, targets = inputs(gain=None)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = torch.autograd.grad(reference(exact, targets, 3.0, loss_of(BOTH))[0], exact)
    there = [leaf.detach().cuda().requires_grad_() for leaf in leaves]
    found = torch.autograd.grad(softmax_loss(*there, targets.cuda(), softcap=3.0, loss=loss_of(BOTH))[0], there)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double().cpu(), theirs, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- in runs


def test_the_loop_trains_the_loss_and_logs_plain_nats(finished: Callable[..., Path]) -> None:
    """The first logged loss is that of the same first weights; what is learned from them is another thing."""
    folders = [RunDir(finished(*overrides)) for overrides in ((), OTHER_LOSS_AND_CALIBRATION)]
    assert folders[0].path.name != folders[1].path.name
    plain, other = ([json.loads(line) for line in one.metrics.read_text().splitlines()] for one in folders)
    assert [line["step"] for line in plain] == [line["step"] for line in other] and plain[0]["step"] == 1
    assert plain[0]["loss"] == pytest.approx(other[0]["loss"], abs=1e-6)
    assert plain[-1]["loss"] != other[-1]["loss"]


def test_plain_cross_entropy_is_the_absence_of_parts(toy: Toy) -> None:
    """Runs made before there were losses keep their names."""
    plain = toy()
    assert plain.loss == {} and "loss" not in identity(plain, "")
    for same in (["loss=[]"], ["loss=cross_entropy"], ["loss=z_loss", "loss.z_loss=null"]):
        assert fingerprint(toy(*same), "") == fingerprint(plain, "")
    for other in (parts_of("z_loss"), parts_of("entropy_weighted"), {"z_loss": ZLossConfig(coefficient=1.0)}):
        assert fingerprint(replace(plain, loss=other), "") != fingerprint(plain, "")


@pytest.mark.parametrize(
    "part, key, value, message",
    [
        ("z_loss", "coefficient", 0, r"^loss\.z_loss\.coefficient=0\.0 is not positive"),
        ("entropy_weighted", "floor", -1, r"^loss\.entropy_weighted\.floor=-1\.0 is not positive"),
        ("entropy_weighted", "ceiling", 0.4, r"^loss\.entropy_weighted\.ceiling=0\.4 must lie in 0\.5 \.\. "),
    ],
)
def test_wrong_losses_are_refused(part: str, key: str, value: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_part(f"loss/{part}", **{key: value})


def test_no_auxiliary_loss_takes_the_place_of_the_parts(toy: Toy) -> None:
    model = run_of(toy, "tied", mtp=True).model
    model.auxiliary = {PARTS: model.auxiliary["mtp"]}
    with pytest.raises(UserError, match=r"model\.auxiliary\.loss\.parts"):
        model.build_on_meta()
