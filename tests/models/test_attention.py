"""Attention against its own mathematics: kernels, windows, rotation, the other mixers."""

import math
import sys
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from golf.config import Run
from golf.errors import UserError
from golf.models import tiled as tiles
from golf.models.kernels import choose_backend, flex, sdpa, window_mask
from golf.models.layers import layer_set
from golf.models.norms import norm
from golf.models.rope import RopeConfig, rotary_tables, rotate
from golf.models.slots import Attend, Frame
from tests.helpers.models import built, context_of, ids_for, qkv, stirred
from tests.helpers.parts import run_of_line
from tests.helpers.tiers import slow


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
        run_of_line("model/output=xsa", "model.mixer.output.xsa.layers='9'").model.build_on_meta()
    with pytest.raises(UserError, match=r"^model\.mixer\.output\.xsa\.layers='late'"):
        run_of_line("model/output=xsa", "model.mixer.output.xsa.layers=late")


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


def tiled_by_three(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """tiles.tiled with tiles so small that a toy has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE", 3)
        return tiles.tiled(q, k, v, window)


@pytest.mark.parametrize("kernel", [sdpa, tiled_by_three, flex], ids=["sdpa", "tiled", "flex"])
@pytest.mark.parametrize("window", [None, 1, 3, 8, 20])
def test_kernels_see_the_window_and_nothing_else(kernel: Attend, window: int | None) -> None:
    q, k, v = qkv()
    reach = 99 if window is None else window
    seen = torch.tensor([[0 <= t - s <= reach for s in range(9)] for t in range(9)])
    torch.testing.assert_close(kernel(q, k, v, window), slow_attention(q, k, v, seen), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_tiles_have_the_gradients_of_the_whole(window: int | None) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 11, heads, 8, requires_grad=True) for heads in (6, 2, 2)]
    upstream = torch.randn(2, 11, 6, 8)
    tiled, whole = (torch.autograd.grad(kernel(*inputs, window), inputs, upstream) for kernel in (tiled_by_three, sdpa))
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.wide  # minutes of a C++ compiler
def test_compiled_tiles_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 5)
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 11, 4, 8), torch.randn(2, 11, 2, 8), torch.randn(2, 11, 2, 8)
    compiled = torch.compile(tiles.tiled, dynamic=False, fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v, 6), sdpa(q, k, v, 6), atol=1e-5, rtol=1e-5)


def test_a_window_of_w_sees_w_and_itself() -> None:
    assert window_mask(10, 3, torch.device("cpu")).sum(dim=1).tolist() == [1, 2, 3, 4, 4, 4, 4, 4, 4, 4]


def test_windows_hold_in_their_layers_and_in_scoring(toy: Callable[..., Run]) -> None:
    run = toy("model/window=early", "model.mixer.window.size=2", "model.mixer.window.layers=first:2")
    model = stirred(run)
    assert [block.mixer.window for block in model.stack.blocks] == [2, 2, None]
    run = toy("model/window=early", "model.mixer.window.size=2", "model.mixer.window.layers=all", "model/stack=plain")
    model, ids = stirred(run), ids_for(run, rows=1)
    changed = ids.clone()
    changed[0, 4] = (changed[0, 4] + 1) % run.model.vocab_size
    same = (model.log_probs(ids) == model.log_probs(changed))[0].all(dim=-1)
    assert not same[4:11].any() and same[11:].all(), "three layers of window 2 carry a token six places"


def test_flex_is_refused_where_it_cannot_train() -> None:
    with pytest.raises(UserError, match=r"compute\.attention=flex: torch can't train with it on a CPU"):
        choose_backend("flex", torch.device("cpu"))


def test_attention_backend_is_never_silently_another() -> None:
    cpu = torch.device("cpu")
    assert choose_backend("auto", cpu).attend is tiles.tiled
    with pytest.raises(ValueError, match=r"compute\.attention=flash3: not usable"):
        choose_backend("flash3", cpu)


def test_flash_kernels_are_found_by_their_function_and_get_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake Hopper with a package that rejects fp32, as the real ones do, and one that only shares a name."""

    def flash(
        q: Tensor, k: Tensor, v: Tensor, causal: bool, window_size: tuple[int, int] = (-1, -1)
    ) -> tuple[Tensor, None]:
        assert causal and q.dtype == k.dtype == v.dtype == torch.bfloat16
        return sdpa(q, k, v, window_size[0] if window_size[0] >= 0 else None), None

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu = torch.device("cuda")
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)
    assert choose_backend("auto", gpu).name == "sdpa", "a module without the function is another package"
    interface = types.ModuleType("flash_attn_interface")
    interface.flash_attn_func = flash
    monkeypatch.setitem(sys.modules, "flash_attn_interface", interface)
    chosen = choose_backend("auto", gpu)
    assert chosen.name == "flash3" and "(9, 0)" in chosen.reason
    q, k, v = (torch.randn(1, 5, heads, 8) for heads in (4, 2, 2))
    assert chosen.attend(q, k, v).dtype == torch.float32
    assert torch.allclose(chosen.attend(q, k, v), sdpa(q, k, v), atol=0.05)


@pytest.mark.parametrize("compiled", [False, slow(True)], ids=["eager", "compiled"])
def test_models_hand_flash_kernels_bf16(
    compiled: bool, toy: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake Hopper kernel that rejects fp32, inside a forward and backward of an fp32 model, as compiled too."""
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
    if compiled:
        torch.compiler.reset()
    forward = torch.compile(model, backend="aot_eager") if compiled else model
    loss = forward(ids[:, :-1], ids[:, 1:])["nll"]
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


def test_rotation_depends_on_distance_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8)
    tables = rotary_tables(12, 8, 100.0, q.dtype, q.device)
    turned_q, turned_k = (rotate(t.expand(1, 12, 1, 8), tables)[0, :, 0] for t in (q, k))
    scores = turned_q @ turned_k.T
    assert torch.allclose(scores[3, 1], scores[9, 7], atol=1e-5) and torch.allclose(scores.diag(), (q * k).sum())


def test_partial_rotation_leaves_the_rest() -> None:
    x = torch.randn(1, 5, 2, 12)
    tables = rotary_tables(5, 4, 100.0, x.dtype, x.device)
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
