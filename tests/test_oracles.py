"""Each technique against its own mathematics, written again in plain tensor algebra."""

import copy
import math
import sys
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.compose import CONF, compose
from golf.config import Run
from golf.errors import UserError
from golf.models.init import power_law_spectrum_
from golf.models.kernels import choose_backend, flex, sdpa, window_mask
from golf.models.layers import layer_set
from golf.models.loops import Visit
from golf.models.norms import norm
from golf.models.rope import RopeConfig, rotary_tables, rotate
from golf.models.slots import Attend, Context, Frame
from golf.models.smear import GatedSmear, Smear
from golf.models.value_norm import NormGate
from golf.models.value_residual import FIRST, GateResidual, HalfResidual, PairResidual
from golf.models.xsa import XSA
from tests.test_models import built, ids_for, moved


def context_of(x_BND: Tensor, ids_BT: Tensor | None = None) -> Context:
    ids_BT = torch.zeros(x_BND.shape[:2], dtype=torch.long) if ids_BT is None else ids_BT
    return Context(ids_BT, x_BND, x_BND.shape[1] - ids_BT.shape[1], sdpa, nn.ModuleDict())


# ---------------------------------------------------------------- the whole 1.1233 stack


def test_pr584_control_against_its_definition(toy: Callable[..., Run]) -> None:
    """Techniques catalogue, section 1.2, with every part on: bigram, smear, partial RoPE, VE, XSA, LN scale, skips."""
    run = toy(
        "experiment=pr584_baseline",
        "model.layers=6",
        "model.mixer.rope.reference_length=4",
        "batch.sequence_length=32",
        "batch.tokens_per_step=256",
    )
    model, ids = moved(run), ids_for(run, rows=1, length=11)
    p = {name: value.detach() for name, value in model.named_parameters()}
    T, D, L, H, K = 11, run.model.dim, 6, run.model.mixer.heads, run.model.mixer.kv_heads
    C = D // H
    a, b = ids[0], F.pad(ids[0, :-1], (1, 0))
    bucket = torch.tensor([2047 if t == 0 else ((36313 * int(a[t])) ^ (27191 * int(b[t]))) % 2047 for t in range(T)])
    big = "embed.features.bigram."
    e = p["embed.table_VD"][a] + p[big + "scale"] * p[big + "table_E"][bucket] @ p[big + "project.weight"].T
    x = norm(e)
    g = torch.sigmoid(p["embed.features.smear.gate_D"])
    shifted = F.pad(x[:-1], (0, 0, 1, 0)) * (a != 1)[:, None]
    x = x0 = (1 - g) * x + g * shifted
    r = 2 * round(0.25 * C / 2)
    base = 10000.0 * (T / 4) ** (r / (r - 2))
    angle = torch.arange(T)[:, None] * base ** -(torch.arange(r // 2) * 2 / r)
    outputs = []
    (name,) = [n for n in p if n.startswith("shared.") and n.endswith("table_VE")]
    shared = name.removesuffix("table_VE")
    ve = p[shared + "scale"] * p[shared + "table_VE"][a] @ p[shared + "project.weight"].T
    for i in range(L):
        at = f"stack.blocks.{i}."
        if i >= L // 2:
            x = x + p["stack.skip_scale_JD"][i - L // 2] * outputs.pop()
        x = p[at + "residual.mix_D"] * x + p[at + "residual.mix0_D"] * x0
        h = norm(x) / math.sqrt(i + 1)
        q = norm((h @ p[at + "mixer.query.weight"].T).view(T, H, C))
        k = norm((h @ p[at + "mixer.key.weight"].T).view(T, K, C))
        v = h @ p[at + "mixer.values.weight"].T
        if at + "mixer.value_parts.embedding.scale" in p:
            assert i in (round(9 * 5 / 10 + 0.01), 5)
            v = v + p[at + "mixer.value_parts.embedding.scale"] * ve
        v = v.view(T, K, C)

        def turn(z: Tensor) -> Tensor:
            u, w = z[..., : r // 2], z[..., r // 2 : r]
            cos, sin = angle.cos()[:, None], angle.sin()[:, None]
            return torch.cat((u * cos + w * sin, w * cos - u * sin, z[..., r:]), -1)

        q, k = turn(q) * p[at + "mixer.gain_H"][:, None], turn(k)
        y = torch.empty(T, H, C)
        for head in range(H):
            kv = head // (H // K)
            scores = (q[:, head] @ k[:, kv].T) / math.sqrt(C) + torch.full((T, T), -math.inf).triu(1)
            y[:, head] = scores.softmax(-1) @ v[:, kv]
            if i >= L - 2:  # last:4 of 11 in 6 layers
                unit = v[:, kv] / v[:, kv].norm(dim=-1, keepdim=True)
                y[:, head] -= (y[:, head] * unit).sum(-1, keepdim=True) * unit
        x = x + p[at + "residual.mixer_scale_D"] * (y.reshape(T, D) @ p[at + "mixer.out.weight"].T)
        h = norm(x) / math.sqrt(i + 1)
        x = x + p[at + "residual.mlp_scale_D"] * (
            (h @ p[at + "mlp.up.weight"].T).relu() ** 2 @ p[at + "mlp.down.weight"].T
        )
        if i < L // 2:
            outputs.append(x)
    expected = (30 * torch.tanh(norm(x) @ p["embed.table_VD"].T / 30)).log_softmax(-1)
    with torch.no_grad():
        torch.testing.assert_close(model.log_probs(ids)[0], expected, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- layer sets


@pytest.mark.parametrize(
    "text, layers, expected",
    [
        ("all", 3, {0, 1, 2}),
        ("none", 3, set()),
        ("last:4 of 11", 11, {7, 8, 9, 10}),
        ("first:5 of 11", 11, {0, 1, 2, 3, 4}),
        ("last:4 of 11", 5, {3, 4}),
        ("first:1 of 11", 2, {0}),
        ("last:0 of 11", 5, set()),
        ("9,10 of 11", 11, {9, 10}),
        ("9,10 of 11", 3, {2}),
        ("0,2", 3, {0, 2}),
        ("first:2", 3, {0, 1}),
    ],
)
def test_layer_sets(text: str, layers: int, expected: set[int]) -> None:
    assert layer_set(text, layers) == expected


@pytest.mark.parametrize("text", ["9,10", "first:4", "12 of 11", "last:12 of 11", "late", "1..3", "", "-1"])
def test_layer_sets_refuse_what_is_not_there(text: str) -> None:
    with pytest.raises(UserError, match=r"spot='.*of 11"):
        layer_set(text, 3, "spot")


def test_a_layer_set_past_the_end_names_its_key() -> None:
    with pytest.raises(UserError, match=r"^model\.mixer\.output\.xsa\.layers='9'"):
        compose(["model/output=xsa", "model.mixer.output.xsa.layers='9'"]).model.build_on_meta()
    with pytest.raises(UserError, match=r"^model\.mixer\.output\.xsa\.layers='late'"):
        compose(["model/output=xsa", "model.mixer.output.xsa.layers=late"])


# ---------------------------------------------------------------- attention


def qkv(T: int = 9, H: int = 4, K: int = 2, C: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, T, H, C), torch.randn(2, T, K, C), torch.randn(2, T, K, C)


def slow_attention(q: Tensor, k: Tensor, v: Tensor, seen_TT: Tensor) -> Tensor:
    """One head and one query at a time."""
    out = torch.empty_like(q)
    for row in range(len(q)):
        for head in range(q.shape[2]):
            kv = head // (q.shape[2] // k.shape[2])
            for t in range(q.shape[1]):
                keys = seen_TT[t].nonzero()[:, 0]
                weight = (k[row, keys, kv] @ q[row, t, head] / math.sqrt(q.shape[3])).softmax(0)
                out[row, t, head] = weight @ v[row, keys, kv]
    return out


@pytest.mark.parametrize("kernel", [sdpa, flex], ids=["sdpa", "flex"])
@pytest.mark.parametrize("window", [None, 1, 3, 8, 20])
def test_kernels_see_the_window_and_nothing_else(kernel: Attend, window: int | None) -> None:
    q, k, v = qkv()
    reach = 99 if window is None else window
    seen = torch.tensor([[0 <= t - s <= reach for s in range(9)] for t in range(9)])
    torch.testing.assert_close(kernel(q, k, v, window), slow_attention(q, k, v, seen), atol=1e-5, rtol=1e-5)


def test_a_window_of_w_sees_w_and_itself() -> None:
    assert window_mask(10, 3, torch.device("cpu")).sum(dim=1).tolist() == [1, 2, 3, 4, 4, 4, 4, 4, 4, 4]


def test_windows_hold_in_their_layers_and_in_scoring(toy: Callable[..., Run]) -> None:
    run = toy("model/window=early", "model.mixer.window.size=2", "model.mixer.window.layers=first:2")
    model = moved(run)
    assert [block.mixer.window for block in model.stack.blocks] == [2, 2, None]
    run = toy("model/window=early", "model.mixer.window.size=2", "model.mixer.window.layers=all", "model/stack=plain")
    model, ids = moved(run), ids_for(run, rows=1)
    changed = ids.clone()
    changed[0, 4] = (changed[0, 4] + 1) % run.model.vocab_size
    same = (model.log_probs(ids) == model.log_probs(changed))[0].all(dim=-1)
    assert not same[4:11].any() and same[11:].all(), "three layers of window 2 carry a token six places"


def test_flex_is_refused_where_it_cannot_train() -> None:
    with pytest.raises(UserError, match=r"compute\.attention=flex: torch can't train with it on a CPU"):
        choose_backend("flex", torch.device("cpu"))


def test_compiled_models_hand_flash_kernels_bf16(toy: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake Hopper kernel that rejects fp32, inside a compiled forward and backward of an fp32 model."""
    seen: list[tuple[torch.dtype, tuple[int, int]]] = []

    def flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, window_size: tuple[int, int] = (-1, -1)) -> Tensor:
        if not (causal and q.dtype == k.dtype == v.dtype == torch.bfloat16):
            raise TypeError("bf16 only")
        seen.append((q.dtype, window_size))
        return sdpa(q, k, v, None if window_size[0] < 0 else window_size[0])

    module = types.ModuleType("flash_attn_interface")
    module.flash_attn_func = flash
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    run = toy("model/window=early", "model.mixer.window.layers=first:1", "model.mixer.window.size=4")
    model, ids = built(run), ids_for(run)
    model.attend = choose_backend("auto", torch.device("cuda"), run.model.mixer.kernel_channels(run.model.dim)).attend
    torch.compiler.reset()
    loss = torch.compile(model, backend="aot_eager")(ids[:, :-1], ids[:, 1:])["nll"]
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert {size for _, size in seen} == {(4, 0), (-1, -1)}


def test_flash_is_not_chosen_for_heads_that_it_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    chosen = choose_backend("auto", torch.device("cuda"), 12)
    assert chosen.name == "sdpa" and "12 channels" in chosen.reason
    with pytest.raises(UserError, match=r"compute\.attention=flash3: takes heads of a multiple of 8 channels, not 12"):
        choose_backend("flash3", torch.device("cuda"), 12)


def test_ntk_base_grows_beyond_the_reference_length_only() -> None:
    rope = RopeConfig(base=10000.0, part=0.25, reference_length=1024)
    assert (rope.channels(64), rope.channels(24), rope.channels(12), rope.channels(4)) == (16, 6, 4, 2)
    q = torch.zeros(1)

    def angle(tokens: int, extra: int = 0) -> Tensor:
        context = context_of(torch.zeros(1, tokens + extra, 4), torch.zeros(1, tokens, dtype=torch.long))
        cos, sin = rope.tables(context, 16, q)
        return torch.atan2(sin, cos)[1, 0]

    pairs = torch.arange(8) / 8
    torch.testing.assert_close(angle(1024), 10000.0**-pairs)
    torch.testing.assert_close(angle(1024, extra=4), 10000.0**-pairs, msg="registers do not stretch the base")
    torch.testing.assert_close(angle(2048), (10000 * 2 ** (16 / 14)) ** -pairs)


def test_partial_rotation_leaves_the_rest() -> None:
    x = torch.randn(1, 5, 2, 12)
    tables = rotary_tables(5, 4, 100.0, x)
    turned = rotate(x, tables)
    assert torch.equal(turned[..., 4:], x[..., 4:]) and not torch.allclose(turned[:, 1:, :, :4], x[:, 1:, :, :4])
    torch.testing.assert_close(turned[..., :4].norm(dim=-1), x[..., :4].norm(dim=-1))


def test_differential_attention_is_the_difference_of_two_maps(toy: Callable[..., Run]) -> None:
    run = toy("model/mixer=differential")
    torch.manual_seed(0)
    frame = Frame(run.model.vocab_size, run.model.dim, 3, run.model.linear).at(2)
    layer = run.model.mixer.build(frame)
    H, K, C = layer.shape.heads, layer.shape.kv_heads, layer.shape.head_dim
    q, k, v = torch.randn(1, 7, 2 * H, C // 2), torch.randn(1, 7, 2 * K, C // 2), torch.randn(1, 7, K, C)
    causal = torch.ones(7, 7, dtype=torch.bool).tril()

    def maps(part: int) -> Tensor:
        y = torch.empty(1, 7, H, C)
        for head in range(H):
            kv = head // (H // K)
            scores = q[0, :, 2 * head + part] @ k[0, :, 2 * kv + part].T / math.sqrt(C // 2)
            y[0, :, head] = scores.masked_fill(~causal, -math.inf).softmax(-1) @ v[0, :, kv]
        return y

    first, second = layer.lambda_22c.prod(1).sum(-1).exp()
    start = 0.8 - 0.6 * math.exp(-0.6)
    torch.testing.assert_close(layer.weight(), first - second + start)
    expected = (1 - start) * norm(maps(0) - layer.weight() * maps(1))
    torch.testing.assert_close(layer.mix(q, k, v, context_of(torch.zeros(1, 7, 4))), expected, atol=1e-5, rtol=1e-5)
    layer.weight = lambda: torch.zeros(())  # the identity: with lambda 0 it is plain attention of the first halves
    plain_y = layer.mix(q, k, v, context_of(torch.zeros(1, 7, 4)))
    torch.testing.assert_close(plain_y, (1 - start) * norm(maps(0)), atol=1e-5, rtol=1e-5)


def test_the_diagonal_is_masked_in_its_layers_and_position_0_sees_itself(toy: Callable[..., Run]) -> None:
    run = toy("model/mixer=diagonal_masked", "model.mixer.masked_layers=last:1")
    q, k, v = qkv(H=2, K=1, C=16)
    seen = torch.ones(9, 9, dtype=torch.bool).tril(-1)
    seen[0, 0] = True
    blocks = built(run).stack.blocks
    context = context_of(torch.zeros(2, 9, 4))
    torch.testing.assert_close(blocks[2].mixer.mix(q, k, v, context), slow_attention(q, k, v, seen))
    plain_y = slow_attention(q, k, v, torch.ones(9, 9, dtype=torch.bool).tril())
    torch.testing.assert_close(blocks[1].mixer.mix(q, k, v, context), plain_y)


# ---------------------------------------------------------------- parts of attention


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
    for part, flows in ((HalfResidual(False), False), (PairResidual(), True), (GateResidual(-1.5), True)):
        v0, v = torch.randn(2, 1, 3, 1, 4).requires_grad_().unbind()
        v0.retain_grad()
        context = context_of(torch.zeros(1, 3, 4))
        context.memo[FIRST] = v0
        part(v, v, context).sum().backward()
        assert (v0.grad is not None) == flows


def test_a_norm_gate_changes_lengths_only() -> None:
    v = torch.randn(2, 5, 3, 8)
    gate = NormGate(3)
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


# ---------------------------------------------------------------- embedding


def test_smear_does_not_cross_the_start_of_a_document() -> None:
    x = torch.randn(1, 6, 4)
    ids = torch.tensor([[5, 6, 1, 7, 8, 9]])
    for part in (Smear(4, 1), GatedSmear(4, 1)):
        for parameter in part.parameters():
            parameter.data.fill_(0.3)
        other = x.clone()
        other[0, :2] = torch.randn(2, 4)
        torch.testing.assert_close(part(x, ids)[:, 2:], part(other, ids)[:, 2:])
        part.bos_id = None
        assert not torch.allclose(part(x, ids)[:, 2], part(other, ids)[:, 2]), "without the mask it does"


def test_smears_are_their_formulas() -> None:
    x, ids = torch.randn(1, 4, 8), torch.tensor([[5, 6, 7, 8]])
    before = torch.cat((torch.zeros(1, 1, 8), x[:, :-1]), 1)
    old = Smear(8, 1)
    torch.testing.assert_close(old(x, ids), (x + before) / 2)
    new = GatedSmear(3, 1)
    torch.testing.assert_close(new(x, ids), x)
    new.weight_F.data, new.scale.data = torch.tensor([1.0, -2.0, 0.5]), torch.tensor(0.7)
    gate = torch.sigmoid((x[..., :3] * new.weight_F).sum(-1, keepdim=True))
    torch.testing.assert_close(new(x, ids), x + 0.7 * gate * before)


def test_bigram_buckets_are_the_published_hashes() -> None:
    frame = compose(["track=tiny"]).model
    ids = torch.tensor([[3, 1023, 0, 17]])
    xor = compose(["track=tiny", "model/features=bigram"]).model.embed.features["bigram"]
    hashed = xor.build(Frame(1024, 96, 2, frame.linear)).bucket(ids)
    expected = [2047] + [((36313 * a) ^ (27191 * b)) % 2047 for b, a in ((3, 1023), (1023, 0), (0, 17))]
    assert hashed[0].tolist() == expected
    linear = compose(["track=tiny", "model/features=bigram_linear"]).model.embed.features["bigram"]
    hashed = linear.build(Frame(1024, 96, 2, frame.linear)).bucket(ids)
    assert hashed[0].tolist() == [3, (1009 * 3 + 1023) % 8192, (1009 * 1023) % 8192, 17]


def test_bigram_settings_that_would_never_train_are_refused() -> None:
    with pytest.raises(UserError, match=r"features\.bigram\.table_std=0 and zero_projection=true would never train"):
        compose(["model/features=bigram", "model.embed.features.bigram.zero_projection=true"])
    with pytest.raises(UserError, match=r"features\.bigram\.multiplier=None with hash=linear"):
        compose(["model/features=bigram", "model.embed.features.bigram.hash=linear"])


def test_registers_are_seen_by_all_and_never_scored(toy: Callable[..., Run]) -> None:
    run = toy("model/features=[registers,bigram,smear]")
    model, ids = moved(run), ids_for(run)
    assert model.embed.extra == 4 and model.embed.parts()[-1].extra == 4, "they come last, however they are listed"
    assert model.embed(ids, torch.float32).shape[1] == ids.shape[1] + 4
    assert model.log_probs(ids).shape[1] == ids.shape[1]
    before = model.log_probs(ids)
    model.embed.features["registers"].vectors_nD.data[0] += 1.0
    assert not torch.isclose(before, model.log_probs(ids)).all(dim=-1).any(), "every token sees the first register"


def test_value_embeddings_give_registers_the_first_id(toy: Callable[..., Run]) -> None:
    context = context_of(torch.zeros(1, 7, 4), torch.tensor([[5, 6, 7]]))
    assert context.extra == 4 and context.padded_ids().tolist() == [[0, 0, 0, 0, 5, 6, 7]]


def test_spectral_start_has_its_power_law_and_keeps_the_size() -> None:
    torch.manual_seed(0)
    w = torch.randn(40, 12)
    before = w.norm()
    power_law_spectrum_(w, 0.5)
    s = torch.linalg.svdvals(w)
    torch.testing.assert_close(w.norm(), before)
    torch.testing.assert_close(s / s[0], torch.arange(1.0, 13) ** -0.5, atol=1e-4, rtol=1e-4)


def test_orthogonal_start_and_its_output_scaling(toy: Callable[..., Run]) -> None:
    zero, scaled = (built(toy(f"model/linear={name}")) for name in ("orthogonal", "orthogonal_scaled"))
    query = zero.stack.blocks[0].mixer.query.weight
    torch.testing.assert_close(query @ query.T, torch.eye(32), atol=1e-5, rtol=0)
    assert not zero.stack.blocks[0].mixer.out.weight.any()
    out = scaled.stack.blocks[0].mixer.out.weight
    torch.testing.assert_close(out @ out.T, torch.eye(32) / (2 * 3), atol=1e-5, rtol=0)


def test_bf16_tables_train_export_and_read_back_in_fp32(toy: Callable[..., Run]) -> None:
    model = moved(toy("model/embed=table_bf16", "optimizer=muon_decay"))
    assert model.embed.table_VD.dtype == torch.bfloat16 and torch.isfinite(model.embed.table_VD).all()


# ---------------------------------------------------------------- channel mixers and residuals


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
        mlp = compose(["track=tiny", f"model/mlp={name}"]).model.build().stack.blocks[0].mlp
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


# ---------------------------------------------------------------- stacks


def order(toy: Callable[..., Run], *overrides: str, stage: int = -1) -> list[int]:
    return [visit.block for visit in toy(*overrides).model.build_on_meta().stack.plans[stage]]


def test_orders_of_visits(toy: Callable[..., Run]) -> None:
    eleven = "model.layers=11"
    assert order(toy, "model/stack=plain", eleven) == list(range(11))
    looped = [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]
    assert order(toy, "model/stack=recurrence", eleven) == looped
    assert order(toy, "model/stack=recurrence", eleven, stage=0) == list(range(11))
    progressive = toy("model/stack=recurrence_progressive", eleven).model.build_on_meta()
    assert [len(plan) for plan in progressive.stack.plans] == [11, 13, 15]
    assert [progressive.stage(p) for p in (0.0, 0.49, 0.5, 0.64, 0.65, 1.0)] == [0, 0, 1, 1, 2, 2]
    assert order(toy, "model/stack=loop_middle", "model.layers=9") == [0, 1, 2, 3, 4, 4, 4, 5, 6, 7, 8]
    assert order(toy, "model/stack=loop_all", "model.layers=3") == [0, 1, 2, 0, 1, 2]


def test_skips_join_mirrored_visits(toy: Callable[..., Run]) -> None:
    """Records: encoder 0,1,2,3,4,5,3,4 and decoder 5,3,4,5,6,..,10, the last visit without a skip."""
    model = built(toy("model/stack=recurrence", "model.layers=11"))
    assert model.stack.skip_scale_JD.shape[0] == 8
    stack, joined, seen = model.stack, [], []

    def visit(visit: Visit, x_BTD: Tensor, context: Context) -> Tensor:
        seen.append(visit.block)
        return torch.full_like(x_BTD, float(len(seen)))

    def join(x_BTD: Tensor, skip_BTD: Tensor, number: int) -> Tensor:
        joined.append((len(seen), int(skip_BTD.flatten()[0]), number))
        return x_BTD

    stack.visit, stack.join = visit, join
    stack(torch.zeros(1, 2, 32), context_of(torch.zeros(1, 2, 32)))
    assert joined == [(8 + j, 8 - j, j) for j in range(8)], "visit 8 + j takes the output of visit 7 - j"


@pytest.mark.parametrize("stack", ["loop_middle", "loop_all", "recurrence", "recurrence_untied"])
def test_a_loop_of_one_pass_is_the_stack_without_it(stack: str, toy: Callable[..., Run]) -> None:
    run = toy(f"model/stack={stack}", "model.layers=4")
    ids = ids_for(run)
    looped = built(run)
    stage = looped.stack.plans
    looped.stack.plans = [[Visit(layer) for layer in range(4)]]
    run.model.stack.loop = None
    flat = built(run)
    own = dict(looped.named_parameters())
    with torch.no_grad():
        for name, parameter in flat.named_parameters():
            parameter.copy_(own[name][: len(parameter)] if parameter.ndim else own[name])
    assert torch.equal(flat.log_probs(ids), looped.log_probs(ids))
    assert len(stage[-1]) > 4


def test_a_looped_stack_is_the_unrolled_one(toy: Callable[..., Run]) -> None:
    run = toy("model/stack=loop_all", "model.layers=2", "model.stack.skips=null")
    model, ids = moved(run), ids_for(run)
    x = x0 = model.embed(ids, torch.float32)
    context = context_of(x0, ids)
    for turn in range(2):
        x = x + model.stack.position_LD[turn]
        for block in model.stack.blocks:
            x = block(x, context)
    torch.testing.assert_close(model.stack(x0, context_of(x0, ids)), x)
    assert model.stack.effective_depth() == 4 and model.stack.stored_depth() == 2
    assert model.repeated_params() == sum(p.numel() for p in model.stack.blocks.parameters())


def test_training_stages_and_scores(toy: Callable[..., Run]) -> None:
    run = toy("model/stack=recurrence", "model.layers=5")
    model, ids = moved(run), ids_for(run)
    losses = [model(ids, ids, stage)["nll"].item() for stage in (None, 0, 1)]
    assert losses[0] == losses[2] != losses[1], "scores take every pass"


def test_loop_positions_are_orthogonal(toy: Callable[..., Run]) -> None:
    rows = built(toy("model/stack=loop_middle")).stack.position_LD
    torch.testing.assert_close(rows @ rows.T, 1e-4 * torch.eye(3), atol=1e-8, rtol=1e-4)


def test_own_scales_of_repeated_visits(toy: Callable[..., Run]) -> None:
    tied, untied = (
        built(toy(f"model/stack={name}", "model.layers=11")) for name in ("recurrence", "recurrence_untied")
    )
    assert len(tied.stack.residuals) == 0 and len(untied.stack.residuals) == 6
    assert untied.stack.residuals["block3_again1"] is not untied.stack.blocks[3].residual


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.stack.loop.span='1,3 of 4'", r"model\.stack\.loop\.span='1,3 of 4' must be neighbouring blocks"),
        ("model.stack.loop.span=none", r"model\.stack\.loop\.span='none' must be neighbouring blocks"),
        ("model.stack.loop.again=[]", r"model\.stack\.loop\.again=\[\] must hold"),
        ("model.stack.loop.again=[0.5,0.2]", r"model\.stack\.loop\.again=\[0\.5, 0\.2\] must hold .*ascending"),
        ("model.stack.loop.again=[1.5]", r"model\.stack\.loop\.again=1\.5 must lie"),
        ("model.stack.loop.positions=sine", r"model\.stack\.loop\.positions='sine' is not a choice"),
    ],
)
def test_loops_that_cannot_be(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose(["track=h100x8", "model/stack=recurrence", override]).model.build_on_meta()


def test_shared_matrices_have_one_name_and_deltas_of_their_own(toy: Callable[..., Run]) -> None:
    run = toy("model/linear=shared_lora", "model.linear.blocks=1", "model.layers=3", "model/stack=plain")
    model, ids = moved(run), ids_for(run)
    bases = [name for name, _ in model.named_parameters() if "query" in name and name.endswith("base.weight")]
    deltas = [name for name, _ in model.named_parameters() if "query" in name and name.endswith("b_RO")]
    assert bases == ["stack.blocks.0.mixer.query.base.weight"] and len(deltas) == 3
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    block = sum(p.numel() for name, p in model.named_parameters() if name.endswith("base.weight"))
    assert model.repeated_params() == 2 * block
    layer = model.stack.blocks[2].mixer.query
    x = torch.randn(3, 32)
    weight = model.stack.blocks[0].mixer.query.base.weight
    torch.testing.assert_close(layer(x), x @ weight.T + x @ layer.a_IR @ layer.b_RO)
    twin = copy.deepcopy(model)
    twin.stack.blocks[0].mixer.query.base.weight.data.zero_()
    assert not torch.allclose(twin.log_probs(ids), model.log_probs(ids)), "a copy shares within itself"
    torch.testing.assert_close(
        twin.stack.blocks[2].mixer.query(x), x @ twin.stack.blocks[2].mixer.query.a_IR @ layer.b_RO
    )


# ---------------------------------------------------------------- heads


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
        torch.testing.assert_close(head.losses(x, targets, table)["nll"], nll)


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
    model, ids = moved(run), ids_for(run)
    x = model.hidden(ids[:, :-1])
    losses = []
    for ahead, head in ((2, model.auxiliary["mtp"].heads[0]), (3, model.auxiliary["mtp"].heads[1])):
        targets = ids[:, ahead:]
        logits = 30 * torch.tanh(x[:, : targets.shape[1]] @ head.weight.T / 30)
        losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    given = model(ids[:, :-1], ids[:, 1:])
    torch.testing.assert_close(given["mtp"], 0.15 * (losses[0] + losses[1]) / 2)
    assert "auxiliary" not in str(list(dict(run.model.exported().build_on_meta().named_parameters())))
