"""SURGE-M: matrices that change within a text, and passes that are corrected by errors."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from golf.config import Run
from golf.errors import UserError
from golf.models.lm import LM
from golf.models.norms import norm
from golf.models.surge import ENTERED
from golf.models.surge_error import GRU, Change, ErrorSignal, MinGRU, prefix_scan
from golf.schedules import Tick
from tests.helpers.models import built, context_of, ids_for, stirred
from tests.helpers.parts import full_size

V1, V2 = ("model/stack=surge", "model.stack.chunk=8"), ("model/stack=surge_two_pass", "model.stack.chunk=8")
ROUTINGS = ("replay", "drop", "single")
FIVE = ("model.layers=5", "model.stack.layer=2 of 5")


def twin(model: LM, run: Run) -> LM:
    """Another model with the weights that both have."""
    other, given = built(run), model.state_dict()
    other.load_state_dict({name: given[name] for name in other.state_dict()})
    return other


def lively(run: Run) -> LM:
    """A model after two steps, its network made strong, so that what it does can't be missed."""
    with torch.enable_grad():
        model = stirred(run)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "directions" in name or name.endswith(("mixer.out.weight", "error.weight_VE")):
                parameter.normal_(std=0.5)
            if name.endswith((".gate.bias", "gates.0.bias")):
                parameter.fill_(0.0)
            if name.endswith((".gate.weight_S", "keep.weight_S", "gates.0.weight_S")):
                parameter.normal_()
    return model


def errors(model: LM, ids_T: Tensor, logits_TV: Tensor, part: str) -> Tensor:
    """e_TE, written with one-hots; logits_TV: after each token."""
    p = {name.removeprefix(part): value for name, value in model.named_parameters() if name.startswith(part)}
    V = logits_TV.shape[1]
    before_TV = torch.cat((torch.zeros(1, V), logits_TV[:-1]))
    e_TE = (F.one_hot(ids_T, V) - before_TV.softmax(-1)) @ p["weight_VE"]
    e_TE = (e_TE - e_TE.mean(-1, keepdim=True)) / (e_TE.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    e_TE = e_TE * p["gain_E"] + p["bias_E"]
    if not model.stack.meta.error.surprisal:
        return e_TE
    return torch.cat((e_TE, -before_TV.log_softmax(-1).gather(-1, ids_T[:, None])), dim=-1)


# ---------------------------------------------------------------- first form


@torch.no_grad()
def test_surge_against_its_definition(toy: Callable[..., Run]) -> None:
    """The whole text at once, with a matrix of its own for the positions of each chunk."""
    model = lively(toy(*V1))
    base, ids = twin(model, toy()), ids_for(toy(), rows=1, length=29)
    meta, block = model.stack.meta, base.stack.blocks[1]
    w0 = block.mixer.out.weight.clone()
    matrices, state, seen = [w0], torch.zeros(meta.memory.width), {}
    block.residual.register_forward_pre_hook(lambda module, inputs: seen.update(entered=inputs[0][0]))

    def own_matrix(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        last = [matrices[-1]] * (4 - len(matrices))
        return torch.cat([y @ w.T for y, w in zip(inputs[0].split(8, 1), matrices + last, strict=True)], dim=1)

    block.mixer.out.register_forward_hook(own_matrix)
    for chunk in range(3):
        logits = base.log_probs(ids)[0]
        here = slice(8 * chunk, 8 * chunk + 8)
        inputs = torch.cat((seen["entered"], errors(model, ids[0], logits, "stack.meta.error.")), dim=-1)[here]
        for x in inputs:
            i, h = (
                (w @ t + b).chunk(3)
                for w, t, b in (
                    (meta.memory.input_3SF, x, meta.memory.input_3S),
                    (meta.memory.state_3SS, state, meta.memory.state_3S),
                )
            )
            r, z = (i[0] + h[0]).sigmoid(), (i[1] + h[1]).sigmoid()
            state = (1 - z) * (i[2] + r * h[2]).tanh() + z * state
        u, v = meta.directions[0].u_DS @ state, meta.directions[0].v_DS @ state
        gate = (meta.gates[0].weight_S @ state + meta.gates[0].bias).sigmoid()
        delta = matrices[-1] + gate * torch.outer(u, v @ matrices[-1]) - w0
        assert delta.norm() > 0.1 * w0.norm(), "the anchor holds"
        matrices.append(w0 + delta * (0.1 * w0.norm() / delta.norm()))
    torch.testing.assert_close(model.log_probs(ids), base.log_probs(ids), atol=1e-4, rtol=0)
    assert not torch.allclose(model.log_probs(ids), twin(model, toy()).log_probs(ids), atol=1e-3)


@pytest.mark.parametrize("chunk", [1, 5, 8, 24, 100])
@pytest.mark.parametrize(
    "parts",
    [
        (),
        ("model/window=early", "model.mixer.window.size=3", "model.mixer.window.layers=all"),
        ("model/features=registers", "model.mixer.rope.reference_length=10"),
    ],
)
def test_chunks_see_what_a_whole_pass_sees(chunk: int, parts: tuple[str, ...], toy: Callable[..., Run]) -> None:
    whole, ids = stirred(toy(*parts)), ids_for(toy())
    chunked = twin(
        whole, toy("model/stack=surge_off", f"model.stack.chunk={chunk}", "model.stack.out_std=null", *parts)
    )
    torch.testing.assert_close(chunked.log_probs(ids), whole.log_probs(ids), atol=1e-5, rtol=1e-5)
    whole.zero_grad()
    for model in (whole, chunked):
        model(ids[:, :-1], ids[:, 1:])["nll"].backward()
    for (name, a), (_, b) in zip(whole.named_parameters(), chunked.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    "parts",
    [
        ("model/features=registers", "model.embed.features.registers.count=9"),
        ("model/features=pause", "model.embed.features.pause.every=4"),
        ("model/value=residual_half",),
        ("model/value=embedding",),
        ("model/residual=two_lanes", "model.layers=5"),
        ("model/mixer=differential",),
        ("model/stack=recurrence_untied", "model.layers=6"),
    ],
)
def test_chunks_suit_other_parts(parts: tuple[str, ...], toy: Callable[..., Run]) -> None:
    run, others = toy(*parts), [part for part in parts if "/stack=" not in part]
    chunked = toy("model/stack=surge_off", "model.stack.chunk=10", "model.stack.out_std=null", *others)
    chunked.model.stack.skips, chunked.model.stack.loop = run.model.stack.skips, run.model.stack.loop
    whole, ids = stirred(run), ids_for(run)
    torch.testing.assert_close(twin(whole, chunked).log_probs(ids), whole.log_probs(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("still", ["uv", "gate"])
def test_surge_without_changes_is_its_control(still: str, toy: Callable[..., Run]) -> None:
    model, ids = lively(toy(*V1)), ids_for(toy())
    control = twin(model, toy("model/stack=surge_off", "model.stack.chunk=8"))
    assert not torch.allclose(model.log_probs(ids), control.log_probs(ids), atol=1e-3)
    with torch.no_grad():
        if still == "uv":
            model.stack.meta.directions[0].u_DS.zero_()
        else:
            model.stack.meta.gates[0].weight_S.zero_()
            model.stack.meta.gates[0].bias.fill_(-math.inf)
    assert torch.equal(model.log_probs(ids), control.log_probs(ids))


def test_the_same_seed_starts_the_same_blocks(toy: Callable[..., Run]) -> None:
    model, control = built(toy(*V1)), built(toy("model/stack=surge_off"))
    same = dict(model.named_parameters())
    assert all(torch.equal(parameter, same[name]) for name, parameter in control.named_parameters())
    assert model.stack.blocks[1].mixer.out.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_zero_u_and_v_are_a_saddle(toy: Callable[..., Run]) -> None:
    """PR 1589's fixed point; W itself is alive, unlike in the PR."""
    run = toy(*V1, "model.stack.meta.uv_std=0")
    model, ids = built(run), ids_for(toy())
    optimizer = run.optimizer.build(model, torch.float32)
    for step in range(4):
        optimizer.zero_grad()
        model(ids[:, :-1], ids[:, 1:])["nll"].backward()
        directions = model.stack.meta.directions[0]
        assert not directions.u_DS.grad.any() and not directions.v_DS.grad.any()
        assert model.stack.blocks[1].mixer.out.weight.grad.any()
        optimizer.step(1.0, Tick(step, 0.5, 10))


def test_the_network_learns_from_the_second_chunk_on(toy: Callable[..., Run]) -> None:
    model, ids = stirred(toy(*V1)), ids_for(toy())
    for chunk, alive in ((0, False), (1, True), (2, True)):
        model.zero_grad()
        model.log_probs(ids)[:, 8 * chunk : 8 * chunk + 8, 0].sum().backward()
        grad = model.stack.meta.directions[0].u_DS.grad
        assert (grad is not None and bool(grad.any())) is alive


def test_first_order_rule(toy: Callable[..., Run]) -> None:
    """A change counts for the network that made it in the next chunk alone; its memory goes back to the first token."""
    model = lively(toy(*V1))
    meta, x_BnD, ids = model.stack.meta, torch.randn(2, 8, 32), ids_for(toy(), length=8)
    old = Change(torch.randn(2, 32, 3, requires_grad=True), torch.randn(2, 32, 3, requires_grad=True))
    before = replace(meta.begin(x_BnD), changes=[old], state_BS=torch.randn(2, meta.memory.width, requires_grad=True))
    piece = context_of(x_BnD, ids)
    piece.read, piece.memo[ENTERED] = (lambda x: torch.log_softmax(x @ torch.randn(32, 384), dim=-1)), x_BnD
    after = meta(before, piece, ids, x_BnD, [model.stack.matrix(1)])
    (after.changes[0].u_BDc @ after.changes[0].y_BDc.mT).sum().backward()
    assert old.u_BDc.grad is None and old.y_BDc.grad is None and before.state_BS.grad.any()


def test_changes_reach_further_than_attention(toy: Callable[..., Run]) -> None:
    """Three layers with a window of 2 see 6 tokens back; what the first chunk changed is felt in the fourth."""
    window = ("model/window=early", "model.mixer.window.size=2", "model.mixer.window.layers=all")
    model, ids = lively(toy(*V1, *window)), ids_for(toy(), length=32)
    control = twin(model, toy("model/stack=surge_off", "model.stack.chunk=8", *window))
    changed = ids.clone()
    changed[:, :8] = (changed[:, :8] + 1) % 384
    with torch.no_grad():
        assert torch.equal(control.log_probs(ids)[:, 24:], control.log_probs(changed)[:, 24:])
        assert not torch.allclose(model.log_probs(ids)[:, 24:], model.log_probs(changed)[:, 24:], atol=1e-4)


@pytest.mark.parametrize("stack", [V1, *((*V2, f"model.stack.routing={name}") for name in ROUTINGS)])
def test_causal_across_chunks_and_each_row_by_itself(stack: tuple[str, ...], toy: Callable[..., Run]) -> None:
    model, ids = lively(toy(*stack)), ids_for(toy(), rows=3, length=29)
    with torch.no_grad():
        before = model.log_probs(ids)
        for place in (7, 8, 15, 16, 20):
            changed = ids.clone()
            changed[:, place] = (changed[:, place] + 1) % 384
            after = model.log_probs(changed)
            assert torch.equal(after[:, :place], before[:, :place])
            assert not torch.allclose(after[:, place:], before[:, place:], atol=1e-4)
        torch.testing.assert_close(model.log_probs(ids[[2, 0, 1]]), before[[2, 0, 1]], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.log_probs(ids[1:2]), before[1:2], atol=1e-5, rtol=1e-5)


def test_a_gru_at_once_is_the_gru_token_by_token(toy: Callable[..., Run]) -> None:
    model, ids = lively(toy(*V1)), ids_for(toy())
    per_token = twin(model, toy("model/stack=surge_per_token", "model.stack.chunk=8"))
    assert (model.stack.meta.memory.vectorised, per_token.stack.meta.memory.vectorised) == (True, False)
    for one in (model, per_token):
        one.zero_grad()
        one(ids[:, :-1], ids[:, 1:])["nll"].backward()
    torch.testing.assert_close(model.log_probs(ids), per_token.log_probs(ids), atol=1e-5, rtol=1e-5)
    for (name, a), (_, b) in zip(model.named_parameters(), per_token.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=name)


# ---------------------------------------------------------------- pieces


def test_gru_is_the_known_one() -> None:
    torch.manual_seed(0)
    ours, known = GRU(5, 4, vectorised=False), torch.nn.GRU(5, 4, batch_first=True)
    with torch.no_grad():
        for mine, theirs in zip(ours.parameters(), known.parameters(), strict=True):
            theirs.copy_(mine)
    x, s = torch.randn(3, 6, 5), torch.randn(3, 4)
    torch.testing.assert_close(ours(x, s), known(x, s[None])[1][0])


@pytest.mark.parametrize("length", [1, 2, 7, 8, 33])
def test_min_gru_against_a_loop(length: int) -> None:
    torch.manual_seed(0)
    module, x = MinGRU(5, 4), torch.randn(2, length, 5)
    s, states = torch.zeros(2, 4), []
    for t in range(length):
        z, h = (x[:, t] @ module.weight_2SF.T + module.bias_2S).sigmoid().chunk(2, dim=-1)
        s = (1 - z) * s + z * h
        states.append(s)
    torch.testing.assert_close(module(x), torch.stack(states, dim=1), atol=1e-6, rtol=1e-5)
    assert torch.equal(
        prefix_scan(torch.ones(1, length, 1), torch.ones(1, length, 1))[0, :, 0], torch.arange(1.0, length + 1)
    )


def test_changes_are_products_in_the_left_order() -> None:
    torch.manual_seed(0)
    change, left, right = (
        Change.none(2, 6, torch.device("cpu")),
        torch.eye(6).repeat(2, 1, 1),
        torch.eye(6).repeat(2, 1, 1),
    )
    for _ in range(4):
        g, u, v = torch.rand(2), torch.randn(2, 6), torch.randn(2, 6)
        factor = torch.eye(6) + g[:, None, None] * u[..., None] * v[:, None]
        left, right = factor @ left, right @ factor
        change = change.followed_by(g, u, v)
    found, z = torch.eye(6) + change.u_BDc @ change.y_BDc.mT, torch.randn(2, 3, 6)
    torch.testing.assert_close(found, left, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, right, atol=0.1)
    torch.testing.assert_close(z + change.of(z), z @ left.mT, atol=1e-5, rtol=1e-5)
    keep = torch.tensor([0.9, 0.5])
    torch.testing.assert_close(change.scaled(keep).of(z), keep[:, None, None] * change.of(z))
    w = torch.randn(6, 5)
    pulled = change.anchored(w, 0.1)
    sizes = (pulled.u_BDc @ pulled.y_BDc.mT @ w).norm(dim=(1, 2))
    torch.testing.assert_close(sizes, 0.1 * w.norm().expand(2), atol=1e-5, rtol=1e-4)
    loose = change.anchored(w, 1e6)
    assert torch.equal(loose.u_BDc, change.u_BDc), "the anchor pulls, it never pushes"


def test_surprisal_of_the_first_token_is_log_vocab() -> None:
    torch.manual_seed(0)
    signal = ErrorSignal(7, 4, surprisal=True)
    out = signal(torch.tensor([[3]]), torch.full((1, 1, 7), -math.log(7)))
    assert out.shape == (1, 1, 5) and out[0, 0, 4].item() == pytest.approx(math.log(7))


# ---------------------------------------------------------------- second form


@torch.no_grad()
@pytest.mark.parametrize("routing", ROUTINGS)
def test_two_passes_against_their_definition(routing: str, toy: Callable[..., Run]) -> None:
    model = lively(toy(*V2, *FIVE, f"model.stack.routing={routing}"))
    meta, stack, ids = model.stack.meta, model.stack, ids_for(toy(), rows=1, length=29)
    x0 = model.embed(ids, torch.float32)
    context, skips, z = context_of(x0, ids), stack.skip_scale_JD, {}
    hook = stack.blocks[2].mixer.register_forward_hook(lambda module, inputs, output: z.update(z=output[0]))
    first = stack.blocks[0](x0, context)
    second = stack.blocks[1](first, context)
    entered = second + skips[0] * second
    xs = stack.blocks[2](entered, context)
    hook.remove()
    later = stack.blocks[4](stack.blocks[3](xs + skips[1] * first, context), context)
    logits = model.head.log_probs(norm(later), model.embed.table_VD)[0]
    inputs = torch.cat((entered[0], errors(model, ids[0], logits, "stack.meta.error.")), dim=-1)
    states, a = meta.memory(inputs[None])[0], torch.zeros(32, 32)
    corr = torch.zeros(29, 32)
    for start in range(8, 29, 8):
        s, part = states[start - 1], meta.directions
        u, v = part.u_DS @ s + part.u_D, part.v_DS @ s + part.v_D
        gate, keep = ((one.weight_S @ s + one.bias).sigmoid() for one in (meta.gate, meta.keep))
        a = keep * a
        a = a + gate * torch.outer(u, v + a.T @ v)
        corr[start : start + 8] = z["z"][start : start + 8] @ a.T
    if routing == "single":
        final = norm(later) + norm(corr)
    else:
        x = xs + stack.blocks[2].residual.mixer_scale_D * corr
        x = x + skips[1] * first if routing == "replay" else x
        final = stack.blocks[4](stack.blocks[3](x, context), context)
    expected = model.head.log_probs(norm(final), model.embed.table_VD)
    torch.testing.assert_close(model.log_probs(ids), expected, atol=1e-4, rtol=0)
    assert not torch.allclose(model.head.log_probs(norm(later), model.embed.table_VD), expected, atol=1e-3)


@torch.no_grad()
def test_without_a_correction_two_passes_are_one(toy: Callable[..., Run]) -> None:
    model, ids = lively(toy(*V2)), ids_for(toy())
    plain = twin(model, toy()).log_probs(ids)
    corrected = model.log_probs(ids)
    assert torch.equal(corrected[:, :8], plain[:, :8]), "no correction in the first chunk"
    assert not torch.allclose(corrected[:, 8:], plain[:, 8:], atol=1e-3)
    model.stack.meta.gate.weight_S.zero_()
    model.stack.meta.gate.bias.fill_(-math.inf)
    assert torch.equal(model.log_probs(ids), plain)
    single = twin(model, toy(*V2, "model.stack.routing=single"))
    torch.testing.assert_close(single.log_probs(ids), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "routing, trained", [("replay", [True, True]), ("drop", [True, False]), ("single", [True, True])]
)
def test_which_skips_learn(routing: str, trained: list[bool], toy: Callable[..., Run]) -> None:
    model, ids = stirred(toy(*V2, *FIVE, f"model.stack.routing={routing}")), ids_for(toy())
    model.zero_grad()
    model(ids[:, :-1], ids[:, 1:])["nll"].backward()
    assert model.stack.skip_scale_JD.grad.any(dim=-1).tolist() == trained
    assert all(parameter.grad.any() for name, parameter in model.named_parameters() if "meta" in name)


def test_the_errors_teach_nothing_by_themselves(toy: Callable[..., Run]) -> None:
    """No gradient reaches the blocks through what the network reads: with z frozen they learn as without it."""
    model, ids = lively(toy(*V2, *FIVE)), ids_for(toy())
    read = []
    original = model.stack.meta.forward
    model.stack.meta.forward = lambda ids, logp, entered, z: (
        read.extend((logp, entered)) or original(ids, logp, entered, z)
    )
    model(ids[:, :-1], ids[:, 1:])["nll"].backward()
    assert len(read) == 2 and not any(tensor.requires_grad for tensor in read)


def test_depth_and_use_of_two_passes(toy: Callable[..., Run]) -> None:
    model = built(toy(*V2, *FIVE))
    assert (model.stack.stored_depth(), model.stack.effective_depth()) == (5, 7)
    assert model.repeated_params() == sum(p.numel() for p in model.stack.blocks[3:].parameters())
    single = built(toy(*V2, *FIVE, "model.stack.routing=single"))
    assert (single.stack.effective_depth(), single.repeated_params()) == (5, 0)


# ---------------------------------------------------------------- sizes, refusals


def of_network(*overrides: str) -> tuple[int, int]:
    """Parameters of the network and of the whole model, at the size of the PR's runs."""
    size = ("model.dim=256", "model.mixer.heads=4", "model.mixer.kv_heads=4", "data.vocab_size=1024")
    given = [part if part.startswith("model=") else f"model.stack.{part}" for part in overrides]
    model = full_size(*given, *size).model.build_on_meta()
    return sum(p.numel() for p in model.stack.meta.parameters()), sum(p.numel() for p in model.parameters())


def test_the_network_has_the_published_size() -> None:
    meta = ("meta.error_dim=64", "meta.state_dim=64", "meta.surprisal=false")
    assert of_network("model=surge", *meta, "layers='3,4 of 9'") == (205_442, 5_196_454)
    assert of_network("model=surge", *meta) == (172_609, 5_163_621)
    assert of_network("model=surge_two_pass", "error_dim=64", "state_dim=64") == (140_162, 5_131_174)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("model=surge", "model.stack.chunk=0"), r"model\.stack\.chunk=0 is not positive"),
        (("model=surge", "model.stack.layers=9 of 9"), r"model\.stack\.layers=.*goes past"),
        (("model=surge", "model.stack.meta.anchor=0"), r"model\.stack\.meta\.anchor=0.* is not positive"),
        (
            ("model=surge", "model/linear=shared_lora"),
            r"model\.stack\.layers: layer \d has SharedLoRA where a dense matrix is changed; try model/linear=dense",
        ),
        (("model=surge", "model.layers=1"), r"model\.layers=1 leaves U-Net skips nothing to join"),
        (("model=surge_two_pass", "model.stack.layer=all"), r"model\.stack\.layer='all' must name one block"),
        (("model=surge_two_pass", "model.stack.routing=both"), r"model\.stack\.routing='both' is not a choice"),
        (
            ("model=surge_two_pass", "model/residual=two_lanes", "model.stack.layer=last:1"),
            r"model\.stack\.layer='last:1': its block adds back as TwoLanes",
        ),
    ],
)
def test_what_cannot_be(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        full_size(*overrides).model.build_on_meta()
