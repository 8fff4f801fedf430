"""Orders of visits, loops, skips, shared matrices."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from golf.compose import compose
from golf.config import Run
from golf.errors import UserError
from golf.models.loops import Visit
from golf.models.slots import Context
from tests.models.helpers import context_of
from tests.models.test_every_model import built, ids_for, moved


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
