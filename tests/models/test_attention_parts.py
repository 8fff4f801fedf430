"""The named parts of attention against their formulas."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.config import Run
from golf.errors import UserError
from golf.models.kernels import sdpa
from golf.models.norms import norm
from golf.models.slots import Context, Frame, Heads, OutputPartConfig, ValuePartConfig
from golf.models.value_norm import NormGate
from golf.models.value_residual import FIRST, GateResidual, HalfResidual, PairResidual
from golf.models.xsa import XSA
from tests.helpers.models import built, context_of, ids_for, qkv, stirred


def part_of(toy: Callable[..., Run], group: str, name: str, layer: int = 1) -> nn.Module:
    run = toy(f"model/{group}={name}")
    block = built(run).stack.blocks[layer]
    (part,) = getattr(block.mixer, f"{group}_parts").values()
    return part


def test_xsa_leaves_nothing_along_the_own_value() -> None:
    y, _, v = qkv()
    xsa = XSA(None)
    out = xsa(y, v, y)
    along = (out.unflatten(2, (2, 2)) * v.unsqueeze(3)).sum(-1)
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-5, rtol=0)
    torch.testing.assert_close(xsa(out, v, y), out, msg="a projection: twice is once")
    attended = sdpa(*qkv())
    torch.testing.assert_close(xsa(attended, v, y)[:, 0], torch.zeros_like(y[:, 0]), atol=1e-5, rtol=0)
    gated = XSA(4)
    torch.testing.assert_close(gated(y, v, y), y, msg="a share of 0 at the start")
    gated.share_H.data.fill_(99.0)
    torch.testing.assert_close(gated(y, v, y), out)


@pytest.mark.parametrize("name, start", [("out_gate", 1.0), ("sparse_gate", 0.5)])
def test_head_gates_start_where_they_say(name: str, start: float, toy: Callable[..., Run]) -> None:
    gate = part_of(toy, "output", name)
    y, h = torch.randn(2, 5, 2, 16), torch.randn(2, 5, 32)
    torch.testing.assert_close(gate(y, y, h), start * y)
    nn.init.normal_(gate.weight_HF)
    expected = y * (2 * start * torch.sigmoid(h[..., :12] @ gate.weight_HF.T))[..., None]
    torch.testing.assert_close(gate(y, y, h), expected)


def test_a_gate_wider_than_the_model_is_refused(toy: Callable[..., Run]) -> None:
    run = toy("model/output=sparse_gate", "model.mixer.output.gate.inputs=64")
    with pytest.raises(UserError, match=r"^model\.mixer\.output\.gate\.inputs=64 is more than model\.dim=32"):
        run.model.build_on_meta()


def test_value_residuals_are_their_formulas(toy: Callable[..., Run]) -> None:
    v0, v, h = torch.randn(3, 2, 5, 1, 16)

    def mixed(name: str, **values: Tensor) -> Tensor:
        part, first = part_of(toy, "value", name, 1), part_of(toy, "value", name, 0)
        for key, value in values.items():
            getattr(part, key).data.copy_(value)
        context = context_of(torch.zeros(2, 5, 4))
        assert torch.equal(first(v0, h, context), v0), "the first layer keeps its values"
        return part(v, h, context)

    torch.testing.assert_close(mixed("residual_half"), (v + v0) / 2)
    torch.testing.assert_close(mixed("residual_pair"), (v + v0) / 2)
    torch.testing.assert_close(mixed("residual_pair", mix_2=torch.tensor([0.2, 3.0])), 0.2 * v0 + 3 * v)
    g = torch.sigmoid(torch.tensor(-1.5))
    torch.testing.assert_close(mixed("residual_gate"), (1 - g) * v + g * v0)


def test_only_the_pr675_form_cuts_the_first_layers_gradient() -> None:
    for part, flows in ((HalfResidual(), False), (PairResidual(), True), (GateResidual(-1.5), True)):
        v0, v = torch.randn(2, 1, 3, 1, 4).requires_grad_().unbind()
        v0.retain_grad()
        context = context_of(torch.zeros(1, 3, 4))
        context.memo[FIRST] = v0
        part(v, v, context).sum().backward()
        assert (v0.grad is not None) == flows


def test_a_norm_gate_changes_lengths_only() -> None:
    v = torch.randn(2, 5, 3, 8)
    gate = NormGate(3, norm)
    gate.gate_K.data = torch.tensor([-99.0, 0.0, 99.0])
    out = gate(v, v, context_of(torch.zeros(2, 5, 4)))
    torch.testing.assert_close(F.cosine_similarity(out, v, dim=-1), torch.ones(2, 5, 3))
    torch.testing.assert_close(out[:, :, 0], v[:, :, 0])
    torch.testing.assert_close(out[:, :, 1], (v[:, :, 1] + norm(v[:, :, 1])) / 2)
    torch.testing.assert_close(out[:, :, 2], norm(v[:, :, 2]))


def test_a_value_embedding_is_one_table_for_its_layers(toy: Callable[..., Run]) -> None:
    run = toy("model/value=embedding", "model.mixer.value.embedding.layers='1,2'")
    model = built(run)
    (owner,) = [name for name, _ in model.named_parameters() if name.endswith("table_VE")]
    assert owner.startswith("shared.")
    assert [len(block.mixer.value_parts) for block in model.stack.blocks] == [0, 1, 1]
    calls = []
    (table,) = model.shared.values()
    table.register_forward_hook(lambda *args: calls.append(1))
    model(ids_for(run), ids_for(run))
    assert len(calls) == 1, "made once a pass"


def test_the_first_block_reaches_what_later_attention_reads(toy: Callable[..., Run]) -> None:
    part = part_of(toy, "input", "first_block")
    h, first = torch.randn(2, 2, 5, 32).unbind()
    context = context_of(torch.zeros(2, 5, 32))
    context.first_BND = first.requires_grad_()
    g = torch.sigmoid(torch.tensor(0.5))
    torch.testing.assert_close(part(h, context), g * h + (1 - g) * norm(first))
    part(h, context).sum().backward()
    assert first.grad is None, "the first block feels nothing of it"


def test_the_first_block_is_read_at_the_scale_of_the_layer(toy: Callable[..., Run]) -> None:
    """1/sqrt(layer + 1), as the h that it joins (PR 401 F1)."""
    blocks = built(toy("model/input=first_block", "model/residual=layer_scale")).stack.blocks
    h, first = torch.randn(2, 2, 5, 32).unbind()
    context = context_of(torch.zeros(2, 5, 32))
    context.first_BND = first
    for layer, block in enumerate(blocks[1:], 1):
        (part,) = block.mixer.input_parts.values()
        g = torch.sigmoid(torch.tensor(0.5))
        torch.testing.assert_close(part(h, context), g * h + (1 - g) * norm(first) / math.sqrt(layer + 1))


def test_value_embeddings_of_other_settings_have_tables_of_their_own(toy: Callable[..., Run]) -> None:
    run = toy("model/value=embedding", "model.mixer.value.embedding.layers=all")
    first = run.model.mixer.value["embedding"]
    run.model.mixer.value["second"] = dataclasses.replace(first, table_std=0.5)
    model = built(run)
    assert list(model.shared) == ["value_embedding", "value_embedding_1"]
    assert model.shared["value_embedding_1"].table_VE.std() > 10 * model.shared["value_embedding"].table_VE.std()


@dataclasses.dataclass(kw_only=True, slots=True)
class DoubleValueConfig(ValuePartConfig):
    def build(self, frame: Frame, shape: Heads) -> nn.Module | None:
        return Double() if frame.layer == frame.layers - 1 else None


@dataclasses.dataclass(kw_only=True, slots=True)
class HalveOutputConfig(OutputPartConfig):
    def build(self, frame: Frame, shape: Heads) -> nn.Module | None:
        return Halve() if frame.layer == frame.layers - 1 else None


class Double(nn.Module):
    def forward(self, v_BTKC: Tensor, h_BTD: Tensor, context: Context) -> Tensor:
        return 2 * v_BTKC


class Halve(nn.Module):
    def forward(self, y_BTHC: Tensor, v_BTKC: Tensor, h_BTD: Tensor) -> Tensor:
        return y_BTHC / 2


def test_value_and_output_parts_by_name_and_layer(toy: Callable[..., Run]) -> None:
    run = toy()
    plain, ids = stirred(run), ids_for(run)
    run.model.mixer.value, run.model.mixer.output = {"twice": DoubleValueConfig()}, {"halve": HalveOutputConfig()}
    both = built(run)
    both.load_state_dict(plain.state_dict())
    assert torch.allclose(plain.log_probs(ids), both.log_probs(ids), atol=1e-5), "doubled values, halved outputs"
    run.model.mixer.output = {}
    doubled = built(run)
    doubled.load_state_dict(plain.state_dict())
    assert not torch.allclose(plain.log_probs(ids), doubled.log_probs(ids), atol=1e-3)
    assert [len(block.mixer.value_parts) for block in both.stack.blocks] == [0, 0, 1]
    run.model.mixer.value = {"double": DoubleValueConfig()}
    with pytest.raises(ValueError, match=r"model\.mixer\.value\.double: .*try double_part"):
        built(run)
