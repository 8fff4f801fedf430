"""Batches that grow: whole rows, few shapes, the same on any number of ranks."""

import pytest

from golf.curriculum import Batches, BatchWarmupConfig, CurriculumConfig, LengthConfig, Shape
from golf.errors import UserError
from golf.schedules import Tick
from tests.helpers.parts import run_of_line

FULL = Shape(384, 2048)  # PR 401's batch
LENGTH = LengthConfig(divisors=[8, 4, 2], share=0.25)
WARMUP = BatchWarmupConfig(parts=3, first=1, steps=1000)


def at(progress: float = 0.0, step: int = 0) -> Tick:
    return Tick(step, progress, 100)


def test_length_goes_by_the_published_steps() -> None:
    batches = Batches(FULL, {"length": LENGTH}, 64, 8)
    points = [0.0, 0.083, 0.084, 0.166, 0.167, 0.2499, 0.25, 1.0]
    shapes = [batches.at(at(progress)) for progress in points]
    assert [shape.length for shape in shapes] == [256, 256, 512, 512, 1024, 1024, 2048, 2048]
    assert all(shape.tokens == FULL.tokens for shape in shapes)


def test_the_batch_grows_in_whole_parts() -> None:
    batches = Batches(FULL, {"batch": WARMUP}, 64, 8)
    assert [batches.at(at(step=step)).sequences for step in (0, 499, 500, 999, 1000, 9999)] == [
        128, 128, 256, 256, 384, 384,
    ]  # fmt: skip


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "curriculum", [{}, {"length": LENGTH}, {"batch": WARMUP}, {"length": LENGTH, "batch": WARMUP}], ids=str
)
def test_every_batch_is_whole_forwards_of_a_known_shape(curriculum: dict[str, CurriculumConfig], world: int) -> None:
    batches = Batches(FULL, curriculum, 64, world)
    known = batches.forwards()
    assert len(known) == len({shape.length for shape in known}), "one shape, so one graph, for each length"
    for step in range(0, 2000, 7):
        shape = batches.at(at(step / 2000, step))
        assert shape in batches.shapes
        rows = batches.rows(shape)
        assert Shape(rows, shape.length) in known
        assert shape.sequences % (rows * world) == 0
        assert rows * shape.length <= 64 * FULL.length
    assert batches.at(at(1.0, 2000)) == FULL


def test_without_a_curriculum_rows_are_the_most_that_fit() -> None:
    assert Batches(Shape(96, 512), {}, 64, 1).rows(Shape(96, 512)) == 48
    assert Batches(Shape(96, 512), {}, 7, 2).rows(Shape(96, 512)) == 6
    assert Batches(Shape(97, 512), {}, 7, 1).rows(Shape(97, 512)) == 1


def test_the_world_changes_no_batch() -> None:
    """Only how it is cut: seeds must not depend on the number of GPUs."""
    one, eight = (Batches(FULL, {"a": LENGTH, "b": WARMUP}, 64, world) for world in (1, 8))
    assert one.shapes == eight.shapes


@pytest.mark.parametrize(
    "curriculum, world, message",
    [
        (
            {"length": LengthConfig(divisors=[3], share=0.1)},
            1,
            r"curriculum\.length\.divisors=.*: 3 does not divide",
        ),
        ({"batch": BatchWarmupConfig(parts=5, first=1, steps=9)}, 1, r"curriculum\.batch\.parts=5 must divide the 384"),
        ({}, 5, r"launch\.nproc=5 must divide the 384 sequences"),
    ],
)
def test_what_cannot_be_cut_is_said(curriculum: dict[str, CurriculumConfig], world: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Batches(FULL, curriculum, 64, world)


@pytest.mark.parametrize("track", ["tiny", "laptop", "h100x1", "h100x8"])
@pytest.mark.parametrize("experiment", ["baseline_naive", "pr584_baseline", "pr401_v2"])
def test_the_curricula_of_conf_fit_every_track(track: str, experiment: str) -> None:
    run = run_of_line(f"track={track}", "curriculum=[length,batch]", f"experiment={experiment}")
    batches = run.batches(run.launch.nproc)
    assert len(batches.shapes) >= 4 and batches.shapes[-1].tokens == run.batch.tokens_per_step
