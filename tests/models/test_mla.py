"""Latent attention against grouped-query attention with the products of its factors, and against its formulas."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from golf.config import Run
from golf.errors import UserError
from golf.models.kernels import sdpa
from golf.models.norms import norm
from golf.models.rope import rotary_tables, rotate
from golf.models.slots import Attend, Frame
from golf.models.tiled import tiled
from golf.plan import _cache
from tests.helpers.models import context_of, ids_for, moved
from tests.helpers.parts import full_size, run_of_line

HEADS = ("model.mixer.heads=4", "model.mixer.kv_heads=2")


def mixer_of(run: Run) -> nn.Module:
    """One layer's mixer, every matrix of it random."""
    torch.manual_seed(0)
    mixer = run.model.mixer.build(Frame(run.model.vocab_size, run.model.dim, 3, run.model.linear).at(1, "mixer"))
    nn.init.normal_(mixer.out.weight, std=0.2)
    nn.init.uniform_(mixer.gain_H, 0.5, 1.5)
    return mixer


@pytest.mark.parametrize("latent", [8, 32])
def test_it_is_grouped_query_attention_with_the_products_of_its_factors(latent: int, toy: Callable[..., Run]) -> None:
    """Latent 32 is the whole width: with factors that give W_k and W_v there is no rank to lose."""
    mla = mixer_of(toy("model/mixer=mla", f"model.mixer.latent={latent}", *HEADS))
    gqa = mixer_of(toy(*HEADS))
    same = {name: value for name, value in mla.state_dict().items() if name in gqa.state_dict()}
    products = {
        name: getattr(mla, up).weight @ mla.down.weight for name, up in (("key", "key_up"), ("values", "value_up"))
    }
    gqa.load_state_dict(same | {f"{name}.weight": w for name, w in products.items()})
    h = torch.randn(2, 9, 32)
    torch.testing.assert_close(mla(h, context_of(h)), gqa(h, context_of(h)), atol=1e-5, rtol=1e-5)
    if latent == 32:
        whole = mixer_of(toy(*HEADS))
        mla.load_state_dict({n: w for n, w in whole.state_dict().items() if n in mla.state_dict()}, strict=False)
        mla.down.weight.data = torch.eye(32)
        mla.key_up.weight, mla.value_up.weight = whole.key.weight, whole.values.weight
        torch.testing.assert_close(mla(h, context_of(h)), whole(h, context_of(h)), atol=1e-6, rtol=1e-6)


def test_keys_and_values_together_have_the_rank_of_the_latent(toy: Callable[..., Run]) -> None:
    mla = mixer_of(toy("model/mixer=mla", "model.mixer.latent=6", *HEADS))
    stacked = torch.cat(mla.keys_values(torch.eye(32)), dim=-1)
    assert stacked.shape == (32, 32) and torch.linalg.matrix_rank(stacked) == 6


def test_initial_values(toy: Callable[..., Run]) -> None:
    mla, pr = (mixer_of(toy(f"model/mixer={name}", "model.mixer.latent=16")) for name in ("mla", "mla_pr"))
    torch.testing.assert_close(mla.down.weight @ mla.down.weight.T, torch.eye(16), atol=1e-5, rtol=0)
    values = mla.value_up(mla.down(norm(torch.randn(500, 32))))
    assert values.std().item() == pytest.approx(3**-0.5, rel=0.15), "as in grouped-query attention"
    assert 0.22 < mla.key_up.weight.abs().max().item() <= 0.25
    assert pr.key_up.weight.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("name, parameters", [("mla_128", 15_880_264), ("mla_64", 15_290_440)])
def test_published_sizes(name: str, parameters: int) -> None:
    run = full_size(f"model={name}")
    assert sum(p.numel() for p in run.model.build_on_meta().parameters()) == parameters
    assert run.model.mixer.cached_numbers(512) == int(name.removeprefix("mla_"))


def test_a_plan_says_what_a_decoder_keeps() -> None:
    """The cache-size report: numbers a token and layer, and the bytes of a whole text in bf16."""

    def said(*overrides: str) -> str:
        run = full_size(*overrides)
        return _cache(run, run.model.build_on_meta())

    assert said() == "512 numbers a token and layer; 9,437,184 bytes in bf16 for 1,024 tokens"
    assert said("model=mla_128") == "128 numbers a token and layer; 2,359,296 bytes in bf16 for 1,024 tokens"
    assert said("model=pause_4_64") == "512 numbers a token and layer; 10,027,008 bytes in bf16 for 1,024 tokens"
    assert said("model=mps") == "one state, whatever the length"


def test_size_of_the_published_form() -> None:
    run = full_size("model=mla_decoupled")
    d, heads, latent, turned, layers = 512, 8, 128, 32, 9
    rest = 17_059_912 - layers * 2 * d * 256
    attention = latent * d + 2 * d * latent + d * turned + d * heads * turned
    assert sum(p.numel() for p in run.model.build_on_meta().parameters()) == rest + layers * attention
    assert run.model.mixer.cached_numbers(d) == latent + turned
    assert run.model.mixer.kernel_channels(d) == 64 + turned
    assert replace(run.model.mixer, absorb=True).kernel_channels(d) == latent + turned
    for latent, turned in ((130, 30), (124, 32)):
        odd = replace(run.model.mixer, absorb=True, latent=latent, rotary_dim=turned)
        assert odd.kernel_channels(d) % 8, "a width that flash kernels refuse is not hidden by one that they take"


def published(mixer: nn.Module, h: Tensor, turned: int) -> Tensor:
    """One text, one head and one query at a time."""
    T, (H, K, C) = len(h), (mixer.shape.heads, mixer.shape.kv_heads, mixer.shape.head_dim)
    tables = rotary_tables(T, turned, 10000.0, h.dtype, h.device)
    c = h @ mixer.down.weight.T
    c = c / (c.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    shared = rotate((h @ mixer.key_turned.weight.T)[None, :, None], tables)[0, :, 0]
    own = rotate((h @ mixer.query_turned.weight.T).view(1, T, H, turned), tables)[0]
    y = torch.empty(T, H, C)
    for head in range(H):
        rows = slice(head // (H // K) * C, (head // (H // K) + 1) * C)
        q = torch.cat((h @ mixer.query.weight[head * C : (head + 1) * C].T, own[:, head]), -1) * mixer.gain_H[head]
        k = torch.cat((c @ mixer.key_up.weight[rows].T, shared), -1)
        for t in range(T):
            weight = (k[: t + 1] @ q[t] / math.sqrt(C + turned)).softmax(0)
            y[t, head] = weight @ (c[: t + 1] @ mixer.value_up.weight[rows].T)
    return y.view(T, H * C) @ mixer.out.weight.T


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("kernel", [sdpa, tiled])
def test_decoupled_form_is_its_formula_absorbed_or_not(kernel: Attend, kv_heads: int, toy: Callable[..., Run]) -> None:
    shape = ("model.mixer.heads=4", f"model.mixer.kv_heads={kv_heads}", "model.mixer.latent=12")
    mixer = mixer_of(toy("model/mixer=mla_decoupled", *shape, "model.mixer.rotary_dim=6", "model.mixer.absorb=true"))
    h = torch.randn(1, 9, 32)
    widths: list[int] = []

    def seen(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        widths.append(k.shape[-1])
        assert q.shape[-1] == k.shape[-1] == v.shape[-1]
        return kernel(q, k, v, window)

    context = replace(context_of(h), attend=seen)
    expected = published(mixer, h[0], 6)
    torch.testing.assert_close(mixer(h, context)[0], expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(mixer(h, context)[0], expected, atol=1e-5, rtol=1e-5)
    assert widths == [8 + 6, 12 + 6]


def test_absorbed_models_score_as_they_train_with_parts_that_read_values(toy: Callable[..., Run]) -> None:
    run = toy("model/mixer=mla_decoupled", "model.mixer.absorb=true", "model/output=xsa", *HEADS)
    model, ids = moved(run, steps=4), ids_for(run)
    whole = model.log_probs(ids)
    with torch.no_grad():
        absorbed = model.log_probs(ids)
        assert not torch.equal(absorbed, whole), "another path"
        torch.testing.assert_close(absorbed, whole, atol=1e-4, rtol=1e-5)
        for block in model.stack.blocks:  # an adapter on a matrix that the absorbed form would never run
            block.mixer.key_up.register_forward_hook(lambda module, inputs, output: 3 * output)
        assert not torch.allclose(model.log_probs(ids), whole, atol=1e-3)


@pytest.mark.parametrize("name", ["mla", "mla_decoupled"])
def test_parts_of_attention_and_windows_go_with_it(name: str, toy: Callable[..., Run]) -> None:
    parts = ("model/value=[residual_gate,embedding]", "model/output=[xsa,sparse_gate]", "model/input=first_block")
    run = toy(f"model/mixer={name}", *parts, "model/window=early", "model.mixer.window.size=3", *HEADS)
    model, ids = moved(run), ids_for(run)
    assert [len(block.mixer.value_parts) for block in model.stack.blocks] == [1, 1, 2]
    assert model.stack.blocks[0].mixer.window == 3
    changed = ids.clone()
    changed[:, 10] = (changed[:, 10] + 1) % run.model.vocab_size
    before, after = model.log_probs(ids), model.log_probs(changed)
    assert torch.equal(before[:, :10], after[:, :10]) and not torch.allclose(before[:, 10:], after[:, 10:])


def test_the_decoupled_form_learns(toy: Callable[..., Run]) -> None:
    """Nothing norms its queries and keys: a few dozen steps at the usual rates stay finite and get somewhere."""
    run = toy("model/mixer=mla_decoupled", "model.layers=2")
    losses: list[float] = []
    moved(run, steps=40, losses=losses)
    assert losses[39] < losses[1] - 1


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.mixer\.rotary_dim=7 must be even"):
        run_of_line("model/mixer=mla_decoupled", "model.mixer.rotary_dim=7")
    with pytest.raises(UserError, match=r"model\.mixer\.absorb=true leaves no values"):
        run_of_line("model/mixer=mla_decoupled", "model.mixer.absorb=true", "model/value=norm_gate")
    with pytest.raises(UserError, match=r"model\.mixer\.latent=0 must lie in"):
        run_of_line("model/mixer=mla", "model.mixer.latent=0")
    with pytest.raises(UserError, match=r"model\.mixer\.kv_heads=3 must divide"):
        run_of_line("model/mixer=mla", "model.mixer.kv_heads=3")
