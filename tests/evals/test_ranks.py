"""Two ranks score as one does."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from golf.compose import compose
from golf.dist import ALONE, Ranks
from golf.errors import RunError
from golf.evals.book import Book
from tests.evals.helpers import plain_counter, windows_of
from tests.helpers.learners import BOS, LEARNERS, documents, lora, repeating_stream, sgd, uneven_model
from tests.helpers.ranks import on_processes, on_threads
from tests.helpers.runs import toy_overrides
from tests.helpers.tiers import quick

CASES = LEARNERS | {
    "two steps an epoch": windows_of(16, 4, 64, chunk_tokens=64, scorer=sgd()),
    "steps of odd sizes": windows_of(16, 4, 64, chunk_tokens=80, scorer=sgd(rows=3)),
    "sgd by document": documents(scorer=sgd(), order="stream"),
    "lora, fresh": documents(scorer=lora(keep_a=False)),
    "one document at once": documents(documents=1, scorer=lora()),
}
FEW = ("fixed", "ngram", "lora", "steps of odd sizes")


class Task:
    """Scores of these cases on a made-up stream."""

    def __init__(self, folder: Path, names: Sequence[str]):
        self.folder, self.names = folder, names

    def __call__(self, ranks: Ranks) -> dict[str, Any]:
        torch.set_num_threads(1)
        model = uneven_model(compose(toy_overrides(self.folder, ["model.layers=2"])).model)
        found = {}
        for name in self.names:
            score = CASES[name].run(model, Book(repeating_stream(), plain_counter(384), ranks), BOS)
            found[name] = (score.nats, score.tokens, score.bytes)
        return found


def agree(alone: dict[str, Any], first: dict[str, Any], second: dict[str, Any], name: str) -> None:
    assert first[name] == second[name] and first[name][1:] == alone[name][1:]
    assert first[name][0] == pytest.approx(alone[name][0], rel=1e-5)


@pytest.mark.parametrize("name", quick(FEW, CASES))
def test_two_ranks_score_as_one(name: str, toy_folder: Path) -> None:
    task = Task(toy_folder, [name])
    agree(task(ALONE), *on_threads(2, task), name)


@pytest.mark.slow
def test_two_processes_score_as_one(toy_folder: Path, tmp_path: Path) -> None:
    task = Task(toy_folder, list(CASES))
    alone, both = task(ALONE), on_processes(2, tmp_path / "two", task)
    for name in CASES:
        agree(alone, *both, name)


def both_grade_the_first_two(ranks: Ranks) -> str:
    """Two ranks, four targets: each rank grades 1 and 2, nobody 3 and 4."""
    book = Book(np.arange(5, dtype=np.uint16), plain_counter(8), ranks)
    book.commit(np.array([[1, 2]]), torch.full((1, 2, 8), -math.log(8)))
    try:
        book.close(1.0)
    except RunError as error:
        return str(error)
    return "closed"


def test_a_target_that_two_ranks_grade_is_no_other() -> None:
    """As many grades as targets are not each target once."""
    for said in on_threads(2, both_grade_the_first_two):
        assert said.startswith("scored 0 of 4 targets once")
