"""What can't come to anything is refused before a run starts, by the key that says it."""

import pytest
import torch

from golf.checks import check, check_machine
from golf.config import fingerprint
from golf.errors import UserError
from tests.helpers.runs import composed


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["schedule=constant", "qat=late"], r"qat\.strength\.start\.rate_below=0\.15: the schedule ends at 1 of"),
        (["schedule.floor=0.3", "average=swa_tight"], r"average\.start\.rate_below=0\.2: the schedule ends at 0\.3"),
        (["schedule=constant", "late=replay"], r"late\.start\.rate_below"),
        (["late=distill", "late.share=0.1"], r"late: .* averaged weights; choose some"),
        (["late=distill", "late.share=0.1", "average=ema", "qat=late"], r"late: .* rounding of qat"),
        (["late=replay", "late.share=0.001"], r"late\.share=0\.001 of 200 steps is none; try late\.share=0\.005"),
        (["curriculum=batch", "curriculum.batch.parts=3"], r"curriculum\.batch\.parts=3 must divide .* try parts=[24]"),
        (["model=mla_64", "quant=ternary"], r"\(48, 16\) can't be cut into groups of 32 columns"),
        (["qat=late", "quant=int8", "quant.formats.int8.half_below=100000000"], "stores no integers"),
    ],
)
def test_what_never_comes_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(composed("track=tiny", "log=none", *overrides))


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
        one, four = (fingerprint(composed("track=tiny", choice, f"launch.nproc={n}"), "d") for n in (1, 4))
        assert (one != four) == cut, choice
