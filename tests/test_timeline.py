"""What a plan says of a run is what its loop does."""

import pytest

from golf.config import Run
from golf.timeline import RATE, Timeline, Track, show_stages, timeline
from tests.helpers.parts import run_of_line

CRAFT = [
    "experiment=pr584_baseline",
    "schedule=d2z",
    "average=ema_swa",
    "qat=late",
    "late=replay",
    "late.share=0.1",
    "curriculum=[length,batch]",
    "model/stack=recurrence",
]


def looked(*overrides: str) -> tuple[Run, Timeline, dict[str, Track]]:
    run = run_of_line("track=laptop", *overrides)
    found = timeline(run, run.model.build_on_meta())
    return run, found, {track.name: track for track in found.tracks}


def test_everything_that_changes_is_there_and_nothing_else() -> None:
    _, found, tracks = looked(*CRAFT)
    assert set(tracks) == {
        RATE,
        "matrices momentum",
        "average start",
        "late start",
        "qat strength",
        "rows a step",
        "tokens a row",
        "stage of the stack",
        "late stage",
    }
    assert found.steps[0] == 0 and found.steps[-1] == 449 and found.total == 450 and not found.imagined
    assert set(looked("schedule=constant", "optimizer.groups.matrices.momentum.start=0.95")[2]) == {RATE}


@pytest.mark.parametrize("clock", [[], ["budget.clock=seconds", "budget.max_seconds=60", "budget.max_steps=null"]])
def test_things_happen_when_they_should(clock: list[str]) -> None:
    """The late stage takes the last tenth; the rest of the run is the first nine tenths, on either clock."""
    run, found, tracks = looked(*CRAFT, *clock)
    total = found.total
    assert found.imagined == bool(clock)
    joins = run.model.build_on_meta().stack.starts[0]

    def first(name: str) -> float:
        values = tracks[name].values
        return found.steps[next(i for i, value in enumerate(values) if value != values[0])] / total

    assert first("late stage") == pytest.approx(0.9, abs=0.01)
    assert first("qat strength") == pytest.approx(0.85 * 0.9, abs=0.01)
    assert first("average start") == pytest.approx(0.8 * 0.9, abs=0.01)
    assert first("stage of the stack") == pytest.approx(joins * 0.9, abs=0.01)
    assert tracks["tokens a row"].values[-1] == 512 and tracks["tokens a row"].values[0] == 64
    assert tracks[RATE].values[-1] == pytest.approx(0.1), "the replay has a rate of its own"


def test_the_table_has_a_row_for_each_stretch(capsys: pytest.CaptureFixture) -> None:
    found = Timeline(
        [0, 1, 2, 3, 4],
        5,
        False,
        [Track(RATE, [1.0, 1.0, 0.5, 0.25, 0.0], False), Track("qat strength", [0, 0, 0, 1, 1], True)],
    )
    show_stages(found)
    lines = [line.strip("│").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line] for line in lines]
    assert cells == [["0-3", "1 to 0.5", "0"], ["3-5", "0.25 to 0", "1"]]
