"""Two ranks score as one does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from golf.compose import compose
from golf.dist import ALONE, Ranks
from golf.evals.book import Book
from tests.conftest import toy_overrides
from tests.evals.helpers import plain_counter
from tests.evals.test_scorers import BOS, LEARNERS
from tests.ranks import on_ranks

NAMES = ["fixed", "sgd", "sgd, averaged", "ngram", "mixture", "documents", "lora", "phased"]


class Task:
    """Scores of every learner on a made-up stream."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, ranks: Ranks) -> dict[str, Any]:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = compose(toy_overrides(self.folder, [])).model.build()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
        rng = np.random.default_rng(0)
        texts = [np.append(BOS, np.resize(rng.integers(10, 60, 7), size)) for size in (30, 3, 60, 17, 1, 45, 26)]
        stream = np.concatenate(texts).astype(np.uint16)
        found = {}
        for name in NAMES:
            score = LEARNERS[name].run(model, Book(stream, plain_counter(384), ranks), BOS)
            found[name] = (score.nats, score.tokens, score.bytes)
        return found


@pytest.fixture(scope="module")
def found(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    task = Task(toy_folder)
    return task(ALONE), on_ranks(2, tmp_path_factory.mktemp("ranks") / "two", task)


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_score_as_one(name: str, found: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    """Adapters draw their first numbers on each rank, so theirs is another score of the same text."""
    alone, (first, second) = found
    assert first[name] == second[name] and first[name][1:] == alone[name][1:]
    loose = name in ("lora", "phased")
    assert first[name][0] == pytest.approx(alone[name][0], rel=0.05 if loose else 1e-5)
