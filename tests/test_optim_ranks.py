"""Several ranks against one: the same weights, the same state, and runs that go on with another number of ranks."""

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.checkpoint import load_tensors
from golf.dist import ALONE
from tests.helpers.runs import Job
from tests.ranks import CLIP, VARIANTS, clipped_apart, everything, on_ranks, steps


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """everything() of each of so many ranks."""
    return on_ranks(request.param, tmp_path_factory.mktemp("ranks") / "meeting", everything)


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], atol=1e-3, rtol=1e-3) for k in one)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_together_are_one_rank(variant: str, found: list[dict[str, Any]]) -> None:
    """20 steps, the first ten without one block, with a gradient that one rank alone has throughout."""
    alone = steps(VARIANTS[variant], ALONE, range(20))
    for rank in found:
        assert close(rank[variant]["weights"], alone["weights"]) and close(rank[variant]["state"], alone["state"])
        assert same(rank[variant]["weights"], found[0][variant]["weights"]), "ranks do not drift apart"
        assert same(rank[variant]["state"], found[0][variant]["state"])


def test_variants_are_different_runs() -> None:
    """Else the comparisons with one rank show less than they say."""
    weights = [steps(variant, ALONE, range(20))["weights"] for variant in VARIANTS.values()]
    assert not any(close(one, other) for i, one in enumerate(weights) for other in weights[:i])


def test_a_backend_without_reduce_scatter_gives_the_same(found: list[dict[str, Any]]) -> None:
    assert all(close(rank["no scatter"]["weights"], rank["parts"]["weights"]) for rank in found)


def test_ranks_give_their_state_to_one_and_take_it(found: list[dict[str, Any]]) -> None:
    parts = VARIANTS["parts"]
    whole = steps(parts, ALONE, range(20))["weights"]
    for rank in found:
        assert close(steps(parts, ALONE, range(8, 20), rank["half"])["weights"], whole)
        assert close(rank["resumed"]["weights"], whole)
    blank = {**found[0]["half"], "state": {k: torch.zeros_like(t) for k, t in found[0]["half"]["state"].items()}}
    assert not close(steps(parts, ALONE, range(8, 20), blank)["weights"], whole), "the state matters"


def test_a_local_clip_is_of_each_rank(found: list[dict[str, Any]]) -> None:
    expected = clipped_apart(len(found), CLIP)
    assert all(close(rank["local"], expected) for rank in found)
    assert not close(steps({"clip_norm": CLIP}, ALONE, range(10, 11))["weights"], expected), (
        "it is not that of the mean"
    )


WHOLE_RUN = ["optimizer/update=[mousse,normuon]", "optimizer.clip_norm=0.3", "budget.max_steps=20"]


@pytest.mark.parametrize("first, second", [(2, 1), (1, 2)])
def test_runs_resume_on_another_number_of_ranks(first: int, second: int, job: Callable[..., Job]) -> None:
    """Killed after its tenth step at the earliest; the whole on one rank is what comes out."""
    whole = job(*WHOLE_RUN, outputs="whole")
    whole.here()
    every = ["checkpoint.every_steps=5", "log.every_steps=1"]
    broken = job(*WHOLE_RUN, *every, f"launch.nproc={first}", outputs="broken")
    worker = broken.start()
    broken.wait_for_step(worker, 11)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.communicate()
    again = job(*WHOLE_RUN, *every, f"launch.nproc={second}", outputs="broken")
    assert "resumed at step" in again.go() and again.folder == broken.folder
    assert again.result()["world_size"] == second
    ours, theirs = load_tensors(whole.folder.weights)[0], load_tensors(again.folder.weights)[0]
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-3
    assert whole.result()["val_bpb"] == pytest.approx(again.result()["val_bpb"], abs=1e-3)


def test_a_run_with_an_ascent_logs_the_loss_of_its_weights(job: Callable[..., Job]) -> None:
    """The first loss is that of the same start without; two ranks are one."""
    jobs = [
        job("optimizer=sam", "log.every_steps=1", outputs="one"),
        job("optimizer=sam", "log.every_steps=1", "launch.nproc=2", outputs="two"),
        job("log.every_steps=1", outputs="plain"),
    ]
    losses = []
    for one in jobs:
        one.go() if one.run.launch.nproc > 1 else one.here()
        losses.append([json.loads(line)["loss"] for line in one.folder.metrics.read_text().splitlines()])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert losses[0][0] == losses[2][0] and losses[0][2:] != pytest.approx(losses[2][2:], abs=1e-3)
