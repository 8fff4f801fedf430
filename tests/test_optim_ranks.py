"""Several ranks against one: the same weights, the same state, and runs that go on with another number of ranks."""

import json
import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.checkpoint import load_meta, load_tensors, unpack
from golf.dist import ALONE
from tests.helpers.parts import run_of_line
from tests.helpers.ranks import on_processes, on_threads, run_on_threads
from tests.helpers.runs import Job, toy_overrides
from tests.helpers.tiers import slow
from tests.helpers.toy_matrices import CLIP, CUT, TASKS, VARIANTS, WHOLE, clipped_apart, everything, steps


@cache
def alone(variant: str) -> dict[str, Any]:
    """steps() of one rank."""
    return steps(VARIANTS[variant], ALONE, WHOLE)


@cache
def on_several(world: int, task: str) -> list[dict[str, Any]]:
    """What a task comes to on each of so many ranks, as threads."""
    return on_threads(world, TASKS[task])


WORLDS = [2, 3]


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], atol=1e-3, rtol=1e-3) for k in one)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("world", WORLDS)
def test_ranks_together_are_one_rank(world: int, variant: str) -> None:
    """The first half of the steps without one block, with a gradient that one rank alone has throughout."""
    found = on_several(world, variant)
    for rank in found:
        for what in ("weights", "state"):
            assert close(rank[what], alone(variant)[what])
            assert same(rank[what], found[0][what]), "ranks do not drift apart"


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_ranks_that_are_processes_do_as_threads(world: int, tmp_path: Path) -> None:
    """By gloo, with and without reduce-scatter."""
    for rank, found in enumerate(on_processes(world, tmp_path / "meeting", everything)):
        for task in TASKS:
            expected = on_several(world, task)[rank]
            assert close(found[task]["weights"], expected["weights"]), task
            assert close(found[task]["state"], expected["state"]), task


def test_variants_are_different_runs() -> None:
    """Else the comparisons with one rank show less than they say."""
    weights = [alone(variant)["weights"] for variant in VARIANTS]
    assert not any(close(one, other) for i, one in enumerate(weights) for other in weights[:i])


@pytest.mark.parametrize("world", WORLDS)
def test_a_backend_without_reduce_scatter_gives_the_same(world: int) -> None:
    both = zip(on_several(world, "no scatter"), on_several(world, "parts"), strict=True)
    assert all(close(rank["weights"], other["weights"]) for rank, other in both)


@pytest.mark.parametrize("world", WORLDS)
def test_ranks_give_their_state_to_one_and_take_it(world: int) -> None:
    parts, whole, rest = VARIANTS["parts"], alone("parts")["weights"], WHOLE[CUT:]
    gave = on_several(world, "half")
    for rank, took in zip(gave, on_several(world, "resumed"), strict=True):
        assert close(steps(parts, ALONE, rest, rank)["weights"], whole)
        assert close(took["weights"], whole)
    blank = {**gave[0], "state": {k: torch.zeros_like(t) for k, t in gave[0]["state"].items()}}
    assert not close(steps(parts, ALONE, rest, blank)["weights"], whole), "the state matters"


@pytest.mark.parametrize("world", WORLDS)
def test_a_local_clip_is_of_each_rank(world: int) -> None:
    expected = clipped_apart(world, CLIP)
    assert all(close(rank["weights"], expected) for rank in on_several(world, "local"))
    assert not close(steps({"clip_norm": CLIP}, ALONE, range(10, 11))["weights"], expected), (
        "it is not that of the mean"
    )


# ---------------------------------------------------------------- whole runs

LINE = ["optimizer/update=[mousse,normuon]", "optimizer.clip_norm=0.3"]
EVERY = ["checkpoint.every_steps=3", "log.every_steps=1"]
SWAPPED = [(2, 1), (1, 2)]


def of_a_line(job: Callable[..., Job], steps: int, ranks: int, outputs: str) -> Job:
    return job(*LINE, *EVERY, f"budget.max_steps={steps}", f"launch.nproc={ranks}", outputs=outputs)


@pytest.fixture
def job(toy_folder: Path, tmp_path: Path) -> Callable[..., Job]:
    """job(*overrides) -> a toy job in a folder of its own, put together without Hydra."""

    def make(*extra: str, outputs: str) -> Job:
        return Job(run_of_line(*toy_overrides(toy_folder, [f"outputs={tmp_path / outputs}", *extra])))

    return make


@pytest.mark.parametrize("first, second", SWAPPED)
def test_runs_resume_on_another_number_of_ranks(first: int, second: int, job: Callable[..., Job]) -> None:
    """Cut off behind its fifth step; the whole on one rank is what comes out: weights, moments, place in the text."""
    whole = of_a_line(job, 6, 1, "whole")
    run_on_threads(whole, trains_only=True)
    broken = of_a_line(job, 6, first, "broken")
    run_on_threads(broken, last_step=5)
    assert load_meta(broken.folder.checkpoint)["step"] == 3
    again = of_a_line(job, 6, second, "broken")
    assert "resumed at step 3" in run_on_threads(again, trains_only=True) and again.folder == broken.folder
    (ours, we), (theirs, they) = (load_tensors(one.folder.checkpoint) for one in (whole, again))
    assert all(close(unpack(ours, part), unpack(theirs, part)) for part in ("model", "optimizer"))
    assert all(we[key] == they[key] for key in ("step", "train_tokens", "loader"))


@pytest.mark.slow
@pytest.mark.parametrize("first, second", SWAPPED)
def test_killed_runs_resume_on_another_number_of_ranks(first: int, second: int, job: Callable[..., Job]) -> None:
    """Killed after its tenth step at the earliest; the whole on one rank is what comes out."""
    whole = of_a_line(job, 20, 1, "whole")
    whole.here()
    broken = of_a_line(job, 20, first, "broken")
    worker = broken.start()
    broken.wait_for_step(worker, 11)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.communicate()
    again = of_a_line(job, 20, second, "broken")
    assert "resumed at step" in again.go() and again.folder == broken.folder
    assert again.result()["world_size"] == second
    ours, theirs = load_tensors(whole.folder.weights)[0], load_tensors(again.folder.weights)[0]
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-3
    assert whole.result()["val_bpb"] == pytest.approx(again.result()["val_bpb"], abs=1e-3)


@pytest.mark.parametrize("way", ["threads", slow("processes")])
def test_a_run_with_an_ascent_logs_the_loss_of_its_weights(way: str, job: Callable[..., Job]) -> None:
    """The first loss is that of the same start without; two ranks are one."""
    short = ["log.every_steps=1", "budget.max_steps=4"]
    jobs = [
        job("optimizer=sam", *short, outputs="one"),
        job("optimizer=sam", *short, "launch.nproc=2", outputs="two"),
        job(*short, outputs="plain"),
    ]
    losses = []
    for one in jobs:
        if way == "processes" and one.run.launch.nproc > 1:
            one.go()
        else:
            run_on_threads(one, trains_only=True)
        losses.append([json.loads(line)["loss"] for line in one.folder.metrics.read_text().splitlines()])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert losses[0][0] == losses[2][0] and losses[0][2:] != pytest.approx(losses[2][2:], abs=1e-3)
