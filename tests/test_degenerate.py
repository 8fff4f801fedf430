"""Degenerate numbers in every setting: refused before anything starts, or a run to its end. No traceback between."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from golf.checks import check, check_data
from golf.compose import compose
from golf.errors import UserError
from golf.nodes import plain
from tests.helpers.runs import Job, toy_overrides
from tests.helpers.tiers import slow

BASES: dict[str, list[str]] = {
    "the default": [],
    "an experiment": ["experiment=pr584_baseline", "quant=int6_gptq", "eval=sliding"],
    "latent attention": ["model=mla_128", "quant=waterfill", "average=ema_swa", "qat=late"],
    "test-time training": ["experiment=pr401_sota254_ttt"],
    "recurrence": ["experiment=pr675_recursive_1x8", "quant=int8"],
}
VALUES = ("0", "1", "-1", "2", "3", "0.5", "1e-30", ".nan", ".inf", str(10**9), str(10**18), str(10**30))
LONG = ("budget.", "batch.", "scale.")  # numbers that make a run of any length
NOT_OF_A_RUN = ("launch", "log", "checkpoint", "data", "seed")


def numbers(node: Any, path: str = "") -> Iterator[str]:
    """Yield the keys of all numbers, and of what is null, in a tree of settings."""
    if isinstance(node, dict):
        for key, value in node.items():
            if not str(key).startswith("_"):
                yield from numbers(value, f"{path}.{key}" if path else key)
    elif node is None or (isinstance(node, int | float) and not isinstance(node, bool)):
        yield path


def refusal(line: list[str]) -> str | None:
    """Return why a command line is refused before anything starts; None where it is a run."""
    try:
        run = compose(line)
        check(run)
        check_data(run, run.data.prepare(Path(run.data_dir), log=lambda text: None))
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        return str(error)
    return None


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("count", [8, slow(300)])
def test_a_degenerate_number_is_refused_or_is_a_plan(base: str, count: int, toy_folder: Path) -> None:
    line = toy_overrides(toy_folder, [*BASES[base], "budget.max_steps=3"])
    keys = [key for key in numbers(plain(compose(line))) if not key.startswith(NOT_OF_A_RUN)]
    rng, refused = random.Random(base), 0
    assert refusal(line) is None, "it is a run as it is"
    for _ in range(count):
        override = f"{rng.choice(keys)}={rng.choice(VALUES)}"
        refused += refusal([*line, override]) is not None
    assert refused


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("base", BASES)
def test_a_small_number_that_is_taken_is_a_run(base: str, toy_folder: Path, tmp_path: Path) -> None:
    """It may end in a line, where weights diverge or a clock is too short; a traceback is a fault."""
    line = toy_overrides(toy_folder, [*BASES[base], "budget.max_steps=3", f"outputs={tmp_path}"])
    keys = [key for key in numbers(plain(compose(line))) if not key.startswith((*NOT_OF_A_RUN, *LONG))]
    rng, ended = random.Random(base), 0
    for _ in range(30):
        override = f"{rng.choice(keys)}={rng.choice(VALUES[:7])}"
        if refusal([*line, override]) is None:
            job = Job(compose([*line, override, "rerun=true"]))
            assert "Traceback" not in job.here(code=None), override
            ended += job.folder.result.exists()
    assert ended


def test_rows_of_one_token_are_a_run(job: Callable[..., Job]) -> None:
    one = job(
        "batch.sequence_length=1", "batch.tokens_per_step=8", "budget.max_steps=2", "batch.max_microbatch_sequences=8"
    )
    one.here()
    assert one.result()["steps"] == 2
