"""What can't come to anything is refused before a run starts, by the key that says it."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from golf.checks import check, check_data, check_machine
from golf.conf_files import load_part
from golf.config import Run, fingerprint
from golf.errors import UserError
from tests.helpers.runs import composed


@cache
def tiny(*overrides: str) -> Run:
    """A run of the track `tiny`, composed once: tests change copies."""
    return composed("track=tiny", "log=none", *overrides)


def part(name: str, **fields: Any) -> Any:
    """A part of such a run, by the name of its YAML."""
    return load_part(name, scale=asdict(tiny().scale), **fields)


@pytest.mark.parametrize(
    "parts, message",
    [
        (
            lambda: {"schedule": part("schedule/constant"), "qat": part("qat/late")},
            r"qat\.strength\.start\.rate_below=0\.15: the schedule ends at 1 of",
        ),
        (
            lambda: {"schedule": part("schedule/constant"), "late": part("late/replay")},
            r"late\.start\.rate_below",
        ),
        (lambda: {"late": part("late/distill", share=0.1)}, r"late: .* averaged weights; choose some"),
        (
            lambda: {
                "late": part("late/distill", share=0.1),
                "average": part("average/ema"),
                "qat": part("qat/late"),
            },
            r"late: .* rounding of qat",
        ),
        (
            lambda: {"late": part("late/replay", share=0.001)},
            r"late\.share=0\.001 of 200 steps is none; try late\.share=0\.005",
        ),
        (
            lambda: {"curriculum": {"batch": part("curriculum/batch", parts=3)}},
            r"curriculum\.batch\.parts=3 must divide .* try parts=[24]",
        ),
    ],
    ids=["qat", "replay", "distill", "distill and qat", "no step", "parts"],
)
def test_what_never_comes_is_refused(parts: Callable[[], dict[str, Any]], message: str) -> None:
    run = replace(tiny(), **parts())
    with pytest.raises(UserError, match=message):
        check(run)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["schedule.floor=0.3", "average=swa_tight"], r"average\.start\.rate_below=0\.2: the schedule ends at 0\.3"),
        (["model=mla_64", "quant=ternary"], r"\(48, 16\) can't be cut into groups of 32 columns"),
        (["qat=late", "quant=int8", "quant.formats.int8.half_below=100000000"], "stores no integers"),
    ],
)
def test_what_never_comes_is_refused_of_files_that_are_made_of_others(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(tiny(*overrides))


def test_a_plan_needs_no_such_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    run = composed("track=h100x8", "log=none")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check(run)
    with pytest.raises(UserError, match=r"compute\.device=cuda: no CUDA device is visible"):
        check_machine(run)


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule=d2z", "average=ema_swa", "qat=late", "late=replay"],
        ["optimizer/update=[rows]", "optimizer/decay=taper", "curriculum=[length,batch]", "loss=entropy_weighted"],
    ],
)
@pytest.mark.parametrize("track", ["tiny", "laptop"])
def test_the_examples_of_the_readme_are_runs(track: str, overrides: list[str]) -> None:
    check(composed(f"track={track}", "log=none", *overrides))


def test_where_the_cut_of_a_batch_is_mathematics_it_is_part_of_the_run() -> None:
    """One rank's finished run must not pass for that of four where the two are not the same."""
    for choice, cut in (("optimizer=muon", False), ("optimizer=muon_polar", True), ("loss=entropy_weighted", True)):
        run = tiny(choice)
        one, four = (fingerprint(replace(run, launch=replace(run.launch, nproc=n)), "d") for n in (1, 4))
        assert (one != four) == cut, choice


@pytest.mark.parametrize("split", ["val", "tune"])
@pytest.mark.parametrize("tokens, size", [(0, 0), (1, 0), (1, 3), (3, 0), (0, None)])
def test_a_split_with_nothing_to_score_is_refused(split: str, tokens: int, size: int | None, toy: Any) -> None:
    run = toy(f"eval.split={split}")
    prepared = run.data.prepare(Path(run.data_dir), log=lambda line: None)
    check_data(run, prepared)
    prepared.splits[split] = replace(prepared.splits[split], tokens=tokens, bytes=size)
    with pytest.raises(UserError, match=rf"^eval\.split={split}: .* has {tokens} tokens of .* nothing to score"):
        check_data(run, prepared)


def test_rows_of_one_token_measure_no_allocation() -> None:
    with pytest.raises(UserError, match=r"^batch\.sequence_length=1: quant\.allocation .* at least 2"):
        check(tiny("batch.sequence_length=1", "batch.tokens_per_step=8", "quant=waterfill"))


ONE_START = "average.start.rate_below=null"
LAST = "the last of 20 steps begins at 0"


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([ONE_START, "average.start.progress=0.99"], rf"average\.start\.progress=0\.99: {LAST}\.95"),
        ([ONE_START, "average.start.progress=1.0"], rf"average\.start\.progress=1\.0: {LAST}\.95"),
        (["average.every_steps=21"], r"average\.every_steps=21: no such step comes in the part of 20 steps"),
        ([ONE_START, "average.every_steps=11", "average.start.progress=0.6"], r"average\.every_steps=11: no such step"),
        (
            ["qat=late", "qat.strength.start.progress=0.97", "qat.strength.start.rate_below=null"],
            rf"qat\.strength\.start\.progress=0\.97: {LAST}\.95",
        ),
    ],
)
def test_a_stage_that_no_step_reaches_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(tiny("budget.max_steps=20", "average=swa", *overrides))


@pytest.mark.parametrize("overrides", [
    ["average.start.progress=0.95", "average.every_steps=20"], ["average.start.progress=0.0", "average.every_steps=20"],
    ["average.start.progress=0.5", "average.every_steps=19"],
])  # fmt: skip
def test_a_stage_of_the_last_step_is_a_stage(overrides: list[str]) -> None:
    check(tiny("budget.max_steps=20", "average=swa", ONE_START, *overrides))


@pytest.mark.parametrize(
    "overrides, key",
    [
        (["model/stack=recurrence", "model.stack.loop.again=[0.97]"], r"model\.stack\.loop\.again"),
        (["curriculum=batch", "curriculum.batch.parts=2", "curriculum.batch.steps=20"], r"curriculum\.batch"),
        (["curriculum=length", "curriculum.length.share=1.0"], r"curriculum\.length"),
    ],
)
def test_what_no_step_of_the_model_or_the_curriculum_reaches_is_refused(overrides: list[str], key: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}: never begins, as {LAST}\.95 of the run"):
        check(tiny("budget.max_steps=20", *overrides))


def test_what_the_last_step_of_the_model_or_the_curriculum_reaches_is_taken() -> None:
    check(tiny("budget.max_steps=20", "model/stack=recurrence", "model.stack.loop.again=[0.95]"))
    check(tiny("budget.max_steps=20", "curriculum=batch", "curriculum.batch.parts=2", "curriculum.batch.steps=19"))
