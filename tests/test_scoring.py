"""Which passes go on where they were, what is entered of them, and what is said."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from golf.compose import compose
from golf.config import Run
from golf.dist import ALONE, Ranks
from golf.errors import RunError
from golf.evals.book import Score
from golf.keeping import PASSES, EvalFiles
from golf.models.lm import LM
from golf.scoring import Scoring
from golf.tokens.prepare import Prepared
from tests.helpers.ranks import on_threads
from tests.helpers.runs import Job, toy_overrides

NGRAM = ["eval=ngram", "scale.seq=0.03125", "eval.evaluators.ngram.chunk_tokens=128"]


class Cut(Exception):
    """A pass ends here."""


@pytest.fixture(autouse=True)
def each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("golf.keeping.SAVE_SECONDS", 0.0)


@pytest.fixture
def scoring(toy: Callable[..., Run], toy_folder: Path) -> Scoring:
    run = toy(*NGRAM)
    return short(Scoring(run.eval, prepared_of(run, toy_folder), ALONE))


@pytest.fixture
def model(toy: Callable[..., Run]) -> LM:
    return toy().model.build()


def prepared_of(run: Run, toy_folder: Path) -> Prepared:
    return run.data.prepare(toy_folder / "data", log=lambda line: None)


def short(scoring: Scoring) -> Scoring:
    stream = scoring.stream()[:900]
    scoring.stream = lambda: stream  # type: ignore[method-assign]
    return scoring


def cut(scoring: Scoring, model: LM, files: EvalFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Score up to the third round, of which two are kept."""
    chosen = type(scoring.config.evaluators["ngram"])
    grade = chosen.grade

    def cut_off(self: Any, going: Any, round_: Any, index: int) -> None:
        if index == 2:
            raise Cut
        grade(self, going, round_, index)

    with monkeypatch.context() as patched, pytest.raises(Cut):
        patched.setattr(chosen, "grade", cut_off)
        scoring.score(model, "ngram", files)


def rounds_of(scoring: Scoring, model: LM, files: EvalFiles, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Score]:
    """(the first round that is graded, the score)."""
    chosen, rounds = type(scoring.config.evaluators["ngram"]), []
    grade = chosen.grade

    def noted(self: Any, going: Any, round_: Any, index: int) -> None:
        rounds.append(index)
        grade(self, going, round_, index)

    with monkeypatch.context() as patched:
        patched.setattr(chosen, "grade", noted)
        score = scoring.score(model, "ngram", files)
    return rounds[0], score


def test_the_same_pass_goes_on_with_its_seconds(
    scoring: Scoring, model: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = EvalFiles(tmp_path, "artifact", lambda line: None)
    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr("golf.evals.evaluator.time.perf_counter", lambda: next(clock))
    cut(scoring, model, files, monkeypatch)  # begins at 0, keeps at 100 and 200
    first, score = rounds_of(scoring, model, files, monkeypatch)
    rounds = len(scoring.config.evaluators["ngram"].rounds(scoring.stream(), scoring.prepared.bos_id, ALONE))
    assert first == 2 and score.seconds == 200 + 100 * (rounds - 2 + 1)
    assert not list((tmp_path / "checkpoint").iterdir())


@pytest.mark.parametrize("other", ["artifact", "settings", "text"])
def test_another_pass_begins_anew(
    other: str, scoring: Scoring, model: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file, other settings, other text."""
    cut(scoring, model, EvalFiles(tmp_path, "artifact", lambda line: None), monkeypatch)
    of = "other" if other == "artifact" else "artifact"
    if other == "settings":
        ngram = scoring.config.evaluators["ngram"]
        changed = replace(ngram, scorer=replace(ngram.chosen, strength=7.0))  # type: ignore[call-arg]
        scoring.config = replace(scoring.config, evaluators=scoring.config.evaluators | {"ngram": changed})
    if other == "text":
        scoring.prepared = replace(scoring.prepared, tokenizer_sha256="0" * 64)
    first, _ = rounds_of(scoring, model, EvalFiles(tmp_path, of, lambda line: None), monkeypatch)
    assert first == 0 and not list((tmp_path / "checkpoint").iterdir())


class CutOnRanks:
    """The first rounds of a pass, on this rank."""

    def __init__(self, toy_folder: Path, folder: Path):
        self.toy_folder, self.folder = toy_folder, folder

    def __call__(self, ranks: Ranks) -> int:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("golf.keeping.SAVE_SECONDS", 0.0)
            run = compose(toy_overrides(self.toy_folder, NGRAM))
            scoring = short(Scoring(run.eval, prepared_of(run, self.toy_folder), ranks))
            torch.manual_seed(0)
            cut(scoring, run.model.build(), EvalFiles(self.folder, "artifact", lambda line: None), patched)
        return len(list((self.folder / "checkpoint").iterdir()))


@pytest.mark.wide
def test_what_two_ranks_began_one_begins_anew(
    scoring: Scoring, model: LM, toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves nothing of theirs behind."""
    on_threads(2, CutOnRanks(toy_folder, tmp_path))
    assert len(list((tmp_path / "checkpoint").iterdir())) == 2
    first, score = rounds_of(scoring, model, EvalFiles(tmp_path, "artifact", lambda line: None), monkeypatch)
    assert first == 0 and score.tokens == len(scoring.stream()) - 1
    assert not list((tmp_path / "checkpoint").iterdir())


def test_every_pass_over_validation_text_is_entered(toy: Callable[..., Run], toy_folder: Path, tmp_path: Path) -> None:
    """Those during training, of the last weights and of the artifact; none over other text."""
    for split, entered in (("val", ["plain"] * 4 + ["sliding"]), ("tune", [])):
        overrides = [f"outputs={tmp_path / split}", "eval=sliding", "eval.every_steps=2", f"eval.split={split}"]
        job = Job(compose(toy_overrides(toy_folder, [*overrides, "scale.seq=0.03125"])))
        job.here()
        ledger = tmp_path / split / PASSES
        lines = [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []
        assert [line["evaluator"] for line in lines] == entered
        assert all(line["run"] == job.folder.path.name and line["bpb"] > 0 for line in lines)


@pytest.mark.parametrize("chunk, said", [(128, False), (4096, True)])
def test_a_learner_that_never_learnt_says_so(
    chunk: int, said: bool, scoring: Scoring, model: LM, tmp_path: Path
) -> None:
    lines: list[str] = []
    windows = replace(scoring.config.evaluators["ngram"], chunk_tokens=chunk)  # type: ignore[call-arg]
    scoring.config = replace(scoring.config, evaluators={"plain": windows, "ngram": windows})
    scoring.score(model, "ngram", EvalFiles(tmp_path, "artifact", lines.append))
    assert any("nothing was learnt" in line and "899 targets are one round" in line for line in lines) == said


def test_no_number_is_no_score(scoring: Scoring, model: LM) -> None:
    with torch.no_grad():
        model.embed.table_VD[5] = torch.nan
    with pytest.raises(RunError, match=r"the score is nan: .*lower the learning rates"):
        scoring.score(model)
