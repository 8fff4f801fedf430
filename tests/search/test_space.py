"""What a sweep file may say of a search, and the cells that come of it."""

from pathlib import Path

import pytest

from golf.errors import UserError
from golf.launcher.grid import Axis, Plan
from golf.search.book import Trial
from golf.search.confirm import Found, base_of, confirmation
from golf.search.space import overrides_of, search_of

LR = "optimizer.groups.matrices.lr"
SPACE = {LR: {"low": 0.002, "high": 1, "log": True}}
PLAN = Plan("why", None, (5, 6), {})


def node(**fields: object) -> dict:
    return {"trials": 4, "seed": 1, "space": SPACE} | fields


@pytest.mark.parametrize(
    "wrong, message",
    [
        (3, "=3: must be keys such as trials"),
        (node(spce={}), ".spce={}: Search has no such key; did you mean space?"),
        (node(trials=0), ".trials=0 is not positive"),
        (node(keep=1.5), ".keep=1.5 must lie in 0 .. 1"),
        (node(seed="x"), ".seed='x': "),
        (node(space={}), ".space={}: nothing to search"),
        (node(space=[LR]), f".space=['{LR}']: must be keys"),
        (node(space={LR: 3}), f".space.{LR}=3: must be {{low: "),
        (node(space={LR: {"low": 2, "high": 1}}), f".space.{LR}.low=2.0 must lie below high=1.0"),
        (node(space={LR: {"low": 1, "high": float("nan")}}), f".space.{LR}.low=1.0 must lie below high=nan"),
        (node(space={LR: {"low": 0, "high": 1, "log": True}}), f".space.{LR}.low=0.0 is not positive"),
        (node(space={LR: {"low": 0.5, "high": 2, "whole": True}}), f".space.{LR}.whole=true, and low=0.5"),
        (node(space={LR: {"lo": 0, "high": 1}}), f".space.{LR}.lo=0: Range has no such key; did you mean low?"),
        (node(space={LR: {"choices": [1, 1]}}), f".space.{LR}.choices=[1, 1] must be two values or more"),
        (node(space={LR: {"choices": [1, [2]]}}), f".space.{LR}.choices=[1, [2]] must be numbers"),
        (node(space={"eval.split": {"choices": ["val", "tune"]}}), ".space.eval.split: says how a run is"),
        (node(space={"+seed": {"low": 1, "high": 2}}), ".space.+seed: says how a run is"),
        (node(space={"launch.nproc": {"low": 1, "high": 2}}), ".space.launch.nproc: says how a run is"),
    ],
)
def test_wrong_searches_are_named(wrong: object, message: str) -> None:
    with pytest.raises(UserError) as told:
        search_of(wrong)
    assert str(told.value).startswith(f"hydra.sweeper.search{message}")


def test_ends_show_every_choice_and_both_ends_of_each_range() -> None:
    space = {
        LR: SPACE[LR],
        "model": {"choices": ["baseline", "swiglu", None]},
        "n": {"low": 1, "high": 4, "whole": True},
    }
    ends = search_of(node(space=space)).ends()
    assert [tuple(end.values()) for end in ends] == [(0.002, "baseline", 1), (1.0, "swiglu", 4), (0.002, None, 1)]
    assert overrides_of(ends[2]) == [f"{LR}=0.002", "model=null", "n=1"]
    assert overrides_of({"a": True, "b": 1e-05, "c": "1e5", "d": "x y"}) == ["a=true", "b=1e-05", "c='1e5'", "d='x y'"]


@pytest.mark.parametrize(
    "plan, axes, message",
    [
        (PLAN, [Axis(LR, (f"{LR}=1",))], f"{LR}=1: hydra.sweeper.search.space searches {LR}"),
        (PLAN, [Axis("model", ("model=a", "model=b"))], "model=a model=b: a search has one configuration"),
        (PLAN, [Axis("label", ("label=x",))], "label=x: a search names its own runs"),
        (PLAN, [Axis("seed", ("seed=7", "seed=1"))], "hydra.sweeper.seeds=[7, 1]: the best is confirmed with fresh"),
        (Plan(None, None, (1, 2), {}), [], "hydra.sweeper.seeds=[1, 2]: the best is confirmed with fresh"),
        (Plan(None, None, (), {}), [], "hydra.sweeper.seeds=[]: the best is confirmed with fresh"),
        (Plan(None, None, (5,), {"a": []}), [], "hydra.sweeper.rows: a search makes its own"),
    ],
)
def test_what_cannot_be_searched_is_named(plan: Plan, axes: list[Axis], message: str) -> None:
    with pytest.raises(UserError) as told:
        base_of(search_of(node()), plan, axes)
    assert str(told.value).startswith(message)


def test_the_best_is_held_against_the_control_on_fresh_seeds() -> None:
    axes = [Axis("sweep", ("+sweep=tune_lr",)), Axis("track", ("track=tiny",)), Axis("sweep_label", ("sweep_label=x",))]
    assert base_of(search_of(node()), PLAN, axes) == ["+sweep=tune_lr", "track=tiny"]
    found = Found(Trial(7, "done", {LR: 0.03}), 0, (5, 6, 9), False, Path("x"))
    plan, cells = confirmation(found, PLAN, axes, "x")
    assert plan.seeds == (5, 6, 9) and plan.control == "control", "what was registered before the trials"
    common = "+sweep=tune_lr track=tiny sweep_label=x-confirm"
    best = f"{LR}=0.03 label=best-007"
    assert [" ".join(cell) for cell in cells] == [
        line for seed in (5, 6) for line in (f"label=control seed={seed} {common}", f"{best} seed={seed} {common}")
    ]
