"""Orders of visits, loops, skips, shared matrices."""

import copy
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from golf.config import Run
from golf.errors import UserError
from golf.loop import accumulate, warm_up
from golf.models.layers import layer_span
from golf.models.loops import Visit
from golf.models.slots import Context
from golf.schedules import Tick
from tests.helpers.models import built, context_of, ids_for, stirred
from tests.helpers.parts import full_size, run_of_line

PROGRESSIVE = ("model/stack=recurrence_progressive", "model.layers=4", "batch.max_microbatch_sequences=2")


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
    nine, repeat = "model.layers=9", "model/stack=repeat"
    assert order(toy, repeat, nine) == [0, 1, 2, 3, 3, 4, 4, 5, 6, 7, 8]
    assert order(toy, repeat, nine, "model.stack.loop.blocks='3,4,5'") == [0, 1, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8]
    assert order(toy, repeat, nine, "model.stack.loop.times=3") == [0, 1, 2, 3, 3, 3, 4, 4, 4, 5, 6, 7, 8]


def test_repeating_once_is_the_base_and_vectors_of_zero_change_nothing(toy: Callable[..., Run]) -> None:
    base, ids = stirred(toy()), ids_for(toy())
    once = built(toy("model/stack=repeat", "model.stack.loop.times=1"))
    once.load_state_dict(base.state_dict())
    assert torch.equal(once.log_probs(ids), base.log_probs(ids))
    twice, marked = (built(toy(f"model/stack={name}")) for name in ("repeat", "repeat_positions"))
    assert marked.stack.position_LD.shape == (1, 32)
    assert torch.equal(twice.log_probs(ids), marked.log_probs(ids))
    marked.stack.position_LD.data += 1.0
    marked.load_state_dict(stirred(toy("model/stack=repeat")).state_dict(), strict=False)
    before = marked.log_probs(ids)
    marked.stack.position_LD.data += 1.0
    assert not torch.allclose(marked.log_probs(ids), before, atol=1e-3)


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


@pytest.mark.parametrize("stack", ["recurrence", "recurrence_untied", "recurrence_progressive"])
def test_before_the_loop_joins_the_stack_is_the_one_without_it(stack: str, toy: Callable[..., Run]) -> None:
    run = toy(f"model/stack={stack}", "model.layers=6")
    ids = ids_for(run)
    looped = stirred(run)
    run.model.stack.loop = None
    flat = built(run)
    own = dict(looped.named_parameters())
    with torch.no_grad():
        for name, parameter in flat.named_parameters():
            parameter.copy_(own[name][: len(parameter)] if parameter.ndim else own[name])
    assert torch.equal(flat(ids, ids)["nll"], looped(ids, ids, stage=0)["nll"])
    assert not torch.equal(flat(ids, ids)["nll"], looped(ids, ids)["nll"])
    assert flat.stack.effective_depth() == 6 < looped.stack.effective_depth()


def test_a_looped_stack_is_the_unrolled_one(toy: Callable[..., Run]) -> None:
    run = toy("model/stack=loop_all", "model.layers=2", "model.stack.skips=null")
    model, ids = stirred(run), ids_for(run)
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
    model, ids = stirred(run), ids_for(run)
    losses = [model(ids, ids, stage)["nll"].item() for stage in (None, 0, 1)]
    assert losses[0] == losses[2] != losses[1], "scores take every pass"


def test_loop_positions_are_orthogonal(toy: Callable[..., Run]) -> None:
    rows = built(toy("model/stack=loop_middle")).stack.position_LD
    torch.testing.assert_close(rows @ rows.T, 1e-4 * torch.eye(3), atol=1e-8, rtol=1e-4)


def test_own_scales_of_repeated_visits(toy: Callable[..., Run]) -> None:
    run = toy("model/stack=recurrence_untied", "model.layers=11")
    model, ids = stirred(run), ids_for(run)
    assert len(model.stack.residuals) == 6 and len(built(toy("model/stack=recurrence")).stack.residuals) == 0
    both = [model(ids, ids, stage)["nll"].item() for stage in (0, 1)]
    model.stack.residuals["block3_again1"].mlp_scale_D.data += 1.0
    assert model(ids, ids, 0)["nll"].item() == both[0] and model(ids, ids, 1)["nll"].item() != both[1]
    blocks = [model.stack.blocks[layer] for layer in (3, 4, 5)]
    again = sum(p.numel() for block in blocks for part in (block.mixer, block.mlp) for p in part.parameters())
    assert model.repeated_params() == 2 * again, "scales of its own are stored, not saved"


def test_a_repeated_borrower_saves_what_it_borrows(toy: Callable[..., Run]) -> None:
    run = toy("model/stack=loop_all", "model/linear=shared_lora", "model.linear.blocks=1", "model.layers=2")
    model = built(run)
    base = sum(p.numel() for name, p in model.stack.named_parameters() if name.endswith("base.weight"))
    other = sum(p.numel() for name, p in model.stack.blocks.named_parameters() if not name.endswith("base.weight"))
    assert model.repeated_params() == 3 * base + other


def test_what_a_stage_does_not_use_stays_as_it_began(toy: Callable[..., Run]) -> None:
    """With weight decay an unused scale would fade from 1 before its visit ever joins."""
    run = toy("model/stack=recurrence_untied", "model.layers=6", "optimizer=muon_decay")
    model = built(run)
    optimizer = run.optimizer.build(model, torch.float32)
    ids = ids_for(run)
    before = {name: p.detach().clone() for name, p in model.stack.residuals.named_parameters()}
    for stage, same in ((0, True), (1, False)):
        for step in range(3):
            optimizer.differentiate(partial(accumulate, model, ids[:, :-1], ids[:, 1:], 2, stage), stage)
            optimizer.step(1.0, Tick(step, 0.5, 10))
        moved_on = [name for name, p in model.stack.residuals.named_parameters() if not torch.equal(p, before[name])]
        assert bool(moved_on) != same
    state = optimizer.state()
    optimizer.load(state)


@pytest.mark.parametrize("name", ["recurrence", "recurrence_progressive", "recurrence_untied", "loop_middle"])
def test_spans_keep_their_neighbours_at_every_depth(name: str, toy: Callable[..., Run]) -> None:
    loop = toy(f"model/stack={name}").model.stack.loop
    for layers in range(1, 30):
        span = list(layer_span(loop.span, layers))
        assert span == list(range(span[0], span[-1] + 1)) and 0 <= span[0] <= span[-1] < layers
    assert list(layer_span("3,4,5 of 11", 12)) == [3, 4, 5] and list(layer_span("3,4,5 of 11", 22)) == [
        6,
        7,
        8,
        9,
        10,
        11,
    ]
    assert list(layer_span("all", 4)) == [0, 1, 2, 3] and list(layer_span("last:2 of 11", 11)) == [9, 10]


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.stack.loop.span='1,3 of 4'", r"model\.stack\.loop\.span='1,3 of 4' must name neighbouring layers"),
        ("model.stack.loop.span=none", r"model\.stack\.loop\.span='none' must name neighbouring layers"),
        ("model.stack.loop.again=[]", r"model\.stack\.loop\.again=\[\] must hold"),
        ("model.stack.loop.again=[0.5,0.2]", r"model\.stack\.loop\.again=\[0\.5, 0\.2\] must hold .*ascending"),
        ("model.stack.loop.again=[1.5]", r"model\.stack\.loop\.again=1\.5 must lie"),
        ("model.stack.loop.again=[0.1,0.2,0.3,0.4,0.5]", r"model\.stack\.loop\.again=.* 5 different starts"),
        ("model.stack.skips.each_pass=true", r"model\.stack\.skips\.each_pass=true needs a loop over the whole stack"),
        ("model/residual=two_lanes", None),
        ("model.stack.loop.positions=sine", r"model\.stack\.loop\.positions='sine' is not a choice"),
    ],
)
def test_loops_that_cannot_be(override: str, message: str | None) -> None:
    if message is None:  # a span that ends before the lanes begin
        full_size("model.layers=11", "model/stack=recurrence", override).model.build_on_meta()
        return
    with pytest.raises(UserError, match=message):
        full_size("model/stack=recurrence", override).model.build_on_meta()


def test_shared_matrices_have_one_name_and_deltas_of_their_own(toy: Callable[..., Run]) -> None:
    run = toy("model/linear=shared_lora", "model.linear.blocks=1", "model.layers=3", "model/stack=plain")
    model, ids = stirred(run), ids_for(run)
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


def test_a_loop_may_not_cross_into_the_lanes() -> None:
    crossing = ["track=h100x8", "model.layers=11", "model/stack=recurrence", "model/residual=two_lanes"]
    with pytest.raises(UserError, match=r"model\.stack\.loop crosses the layer"):
        run_of_line(*crossing, "model.stack.loop.span='7,8 of 11'").model.build_on_meta()


def test_the_warm_up_shows_a_compiler_all_that_training_calls(
    toy: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes, layouts, whether tokens and targets are one tensor, and stages; no gradient is left."""
    dynamo = SimpleNamespace(config=SimpleNamespace(recompile_limit=2))
    monkeypatch.setitem(torch.__dict__, "_dynamo", dynamo)  # takes longer to import than all else here
    run = toy(*PROGRESSIVE)
    model, calls = built(run), Counter[tuple[object, ...]]()

    def forward(x_BT: Tensor, y_BT: Tensor, stage: int) -> dict[str, Tensor]:
        calls[x_BT.shape, x_BT.stride(), y_BT.stride(), x_BT.data_ptr() == y_BT.data_ptr(), stage] += 1
        return model(x_BT, y_BT, stage)

    warm_up([forward], run.optimizer.build(model, torch.float32), run.batches(1), run, torch.device("cpu"), stages=3)
    assert list(calls.values()) == [2, 2, 2] and dynamo.config.recompile_limit == 3, "the second call has gradients"
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    shown, ids = set(calls), torch.randint(run.model.vocab_size, (4, run.batch.sequence_length + 1))
    calls.clear()
    for stage in (0, 1, 2):
        accumulate(forward, ids[:, :-1], ids[:, 1:], 2, stage)
    assert set(calls) == shown


@pytest.mark.slow  # torch's compiler takes as long to import as torch
def test_compiled_stages_are_the_ones_that_train(toy: Callable[..., Run]) -> None:
    """After the warm-up no step compiles again, whatever layout the loader's batch has."""
    from torch._dynamo.testing import CompileCounter

    run = toy(*PROGRESSIVE)
    model, count = built(run), CompileCounter()
    torch.compiler.reset()
    forward = torch.compile(model, dynamic=False, backend=count)
    warm_up([forward], run.optimizer.build(model, torch.float32), run.batches(1), run, torch.device("cpu"), stages=3)
    assert count.frame_count == 3
    ids = torch.randint(run.model.vocab_size, (4, run.batch.sequence_length + 1))
    for stage in (0, 0, 1, 2):
        accumulate(forward, ids[:, :-1], ids[:, 1:], 2, stage)
    assert count.frame_count == 3
