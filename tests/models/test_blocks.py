"""Channel mixers, residuals and heads against their formulas."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.checks import check
from golf.conf_files import CONF
from golf.config import Run
from golf.errors import UserError
from golf.losses import CROSS_ENTROPY
from golf.models.norms import norm
from golf.models.slots import Context
from tests.helpers.models import built, context_of, ids_for, stirred
from tests.helpers.parts import run_of_line


def test_mlps_are_their_formulas() -> None:
    h = torch.randn(2, 3, 96)
    formulas = {
        "relu2": lambda u: u.clamp_min(0) ** 2,
        "leaky_relu2": lambda u: torch.where(u > 0, u, 0.5 * u) ** 2,
        "star_relu": lambda u: 1.5 * u.clamp_min(0) ** 2 + 0.25,
        "star_relu_leaky": lambda u: 1.5 * torch.where(u > 0, u, 0.5 * u) ** 2 + 0.25,
        "star_relu_gated": lambda u: 1.5 * u.clamp_min(0) ** 2 + 0.25,
        "relu2_gated": lambda u: u.clamp_min(0) ** 2,
        "swiglu": lambda u: u * torch.sigmoid(u),
        "geglu": F.gelu,
    }
    assert set(formulas) == {path.stem for path in (CONF / "model" / "mlp").glob("*.yaml")}
    for name, formula in formulas.items():
        mlp = run_of_line("track=tiny", f"model/mlp={name}").model.build().stack.blocks[0].mlp
        nn.init.normal_(mlp.down.weight)
        if "star" in name:
            mlp.activation.scale_M.data.fill_(1.5)
            mlp.activation.shift_M.data.fill_(0.25)
        up = h @ mlp.up.weight.T
        hidden = formula(h @ mlp.gate.weight.T) * up if hasattr(mlp, "gate") else formula(up)
        torch.testing.assert_close(mlp(h), hidden @ mlp.down.weight.T)


def residual_of(toy: Callable[..., Run], *overrides: str) -> list[nn.Module]:
    model = built(toy(*overrides))
    for parameter in model.stack.parameters():
        if parameter.ndim < 2:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return [block.residual for block in model.stack.blocks]


def test_layer_scale_and_parallel_blocks_are_their_formulas(toy: Callable[..., Run]) -> None:
    x, x0 = torch.randn(2, 1, 4, 32).unbind()
    context = context_of(x0)

    def mixer(h: Tensor, context: Context) -> Tensor:
        return 2 * h + 1

    def mlp(h: Tensor) -> Tensor:
        return h.square()

    blocks = residual_of(toy, "model/residual=parallel", "model.residual.parallel_layers=last:1")
    for layer, block in enumerate(blocks):
        c = 1 / math.sqrt(layer + 1)
        start = block.mix_D * x + block.mix0_D * x0
        after = start + block.mixer_scale_D * (2 * c * norm(start) + 1)
        read = start if layer == 2 else after
        expected = after + block.mlp_scale_D * (c * norm(read)).square()
        torch.testing.assert_close(block(x, context, mixer, mlp), expected)


def test_two_lanes_are_their_formula(toy: Callable[..., Run]) -> None:
    x, x0 = torch.randn(2, 1, 4, 32).unbind()
    context = context_of(x0)
    blocks = residual_of(toy, "model/residual=two_lanes", "model.residual.layers=last:2")
    for block in blocks[1:]:
        nn.init.uniform_(block.write_22, 0.5, 1.5)
    lane0 = lane1 = x
    for layer in (1, 2):
        b, c = blocks[layer], 1 / math.sqrt(layer + 1)
        a = b.mixer_scale_D * (3 * c * norm(b.mix_D * lane0 + b.mix0_D * x0))
        m = b.mlp_scale_D * (c * norm(lane1)).square()
        lane0, lane1 = (
            b.keep_2[i] * lane + b.write_22[0, i] * a + b.write_22[1, i] * m for i, lane in ((0, lane0), (1, lane1))
        )
    given = x
    for layer in (1, 2):
        given = blocks[layer](given, context, lambda h, context: 3 * h, torch.square)
    torch.testing.assert_close(given, (lane0 + lane1) / 2)
    assert not context.memo, "nothing of the lanes is left for a next visit"


def test_the_second_lane_begins_before_the_skip(toy: Callable[..., Run]) -> None:
    """The whole stack of the records that have it (PR 2135): the skip before the first block of two lanes reaches lane
    0 alone."""
    lanes = ["model/residual=two_lanes", "model.residual.layers=last:2"]
    run = toy(*lanes, "model/stack=unet_gated", "model.layers=6")
    model, ids = stirred(run), ids_for(run)
    stack, outputs = model.stack, list[Tensor]()
    x0 = lane0 = lane1 = model.embed(ids, torch.float32)
    context = context_of(x0, ids)
    for layer, block in enumerate(stack.blocks):
        r, c = block.residual, 1 / math.sqrt(layer + 1)
        if layer <= 4:
            lane1 = lane0
        if layer >= 3:
            g = stack.skip_gate_JD[layer - 3].sigmoid()
            lane0 = g * lane0 + (1 - g) * stack.skip_scale_JD[layer - 3] * outputs.pop()
        start = r.mix_D * lane0 + r.mix0_D * x0
        a = r.mixer_scale_D * block.mixer(c * norm(start), context)
        if layer < 4:
            lane0 = start + a
            lane0 = lane0 + r.mlp_scale_D * block.mlp(c * norm(lane0))
            if layer < 3:
                outputs.append(lane0)
            continue
        m = r.mlp_scale_D * block.mlp(c * norm(lane1))
        lane0, lane1 = (
            r.keep_2[i] * x + r.write_22[0, i] * a + r.write_22[1, i] * m for i, x in ((0, lane0), (1, lane1))
        )
    torch.testing.assert_close(model.hidden(ids), norm((lane0 + lane1) / 2), atol=1e-5, rtol=1e-5)


EVERY_NORM = [
    ["model/features=pause", "model/value=[norm_gate,residual_pair]", "model/input=first_block"],
    ["model/mixer=differential", "model/residual=two_lanes", "model.residual.layers=last:2"],
    ["model/mixer=mla_decoupled", "model/head=mos_residual"],
    ["model/stack=agents"],
    ["model=surge_two_pass", "model/stack=surge_single_pass"],
    ["model=hopfield"],
]


@pytest.mark.parametrize("chosen", EVERY_NORM)
def test_one_field_is_the_epsilon_of_every_norm(
    chosen: list[str], toy: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, used = toy(*chosen, "model.norm_eps=0.3"), set[float]()
    model, original = stirred(run), F.rms_norm

    def noting(x: Tensor, shape: tuple[int, ...], weight: None = None, eps: float | None = None) -> Tensor:
        used.add(-1.0 if eps is None else eps)
        return original(x, shape, weight, eps)

    monkeypatch.setattr(F, "rms_norm", noting)
    model.log_probs(ids_for(run))
    assert used == {0.3}


def test_mixtures_sum_to_one_and_are_their_formula(toy: Callable[..., Run]) -> None:
    for form in ("mos", "mos_residual"):
        run = toy(f"model/head={form}")
        head = built(run).head
        nn.init.normal_(head.mix_ED)
        x, table = norm(torch.randn(2, 3, 32)), torch.randn(run.model.vocab_size, 32)
        p = torch.zeros(2, 3, run.model.vocab_size)
        pi = (x @ head.mix_ED.T).softmax(-1)
        for expert in range(2):
            w = head.project.weight[32 * expert : 32 * (expert + 1)]
            c = torch.tanh(x @ w.T) if form == "mos" else norm(x + x @ w.T)
            p += pi[..., expert, None] * (30 * torch.tanh(c @ table.T / 30)).softmax(-1)
        torch.testing.assert_close(head.log_probs(x, table).exp(), p, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(p.sum(-1), torch.ones(2, 3))
        targets = torch.randint(run.model.vocab_size, (2, 3))
        nll = -p.gather(-1, targets[..., None]).log().mean()
        torch.testing.assert_close(head.losses(x, targets, table, CROSS_ENTROPY)["nll"], nll)


def test_temperature_and_own_matrix(toy: Callable[..., Run]) -> None:
    x, table = torch.randn(1, 2, 32), torch.randn(384, 32)
    head = built(toy("model/head=tied_temperature")).head
    head.log_gain.data.fill_(math.log(0.5))
    torch.testing.assert_close(head.logits(x, table), 30 * torch.tanh(0.5 * (x @ table.T) / 30))
    untied = built(toy("model/head=untied"))
    nn.init.normal_(untied.head.own_VD)
    torch.testing.assert_close(untied.head.logits(x, table), 30 * torch.tanh(x @ untied.head.own_VD.T / 30))


def test_further_heads_predict_further_tokens(toy: Callable[..., Run]) -> None:
    run = toy("model/auxiliary=mtp")
    model, ids = stirred(run), ids_for(run)
    x = model.hidden(ids[:, :-1])
    losses = []
    for ahead, head in ((2, model.auxiliary["mtp"].heads[0]), (3, model.auxiliary["mtp"].heads[1])):
        targets = ids[:, ahead:]
        logits = 30 * torch.tanh(x[:, : targets.shape[1]] @ head.weight.T / 30)
        losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    given = model(ids[:, :-1], ids[:, 1:])
    torch.testing.assert_close(given["mtp"], 0.15 * (losses[0] + losses[1]) / 2)
    with pytest.raises(UserError, match=r"batch\.sequence_length=32: model\.auxiliary\.mtp looks further"):
        check(toy("model/auxiliary=mtp", "model.auxiliary.mtp.heads=40"))
    run.model.auxiliary = {"nll": run.model.auxiliary["mtp"]}
    with pytest.raises(UserError, match=r"model\.auxiliary\.nll: the head's own loss has this name"):
        built(run)
    assert "auxiliary" not in str(list(dict(run.model.exported().build_on_meta().named_parameters())))
