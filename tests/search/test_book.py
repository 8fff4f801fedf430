"""The book of a search: what it draws, keeps over a kill, and judges."""

import math
from pathlib import Path
from typing import Any

import pytest

from golf.errors import UserError
from golf.search.book import Book, Trial, mend
from golf.search.space import Search, search_of

SPACE = {"a.lr": {"low": 0.001, "high": 10, "log": True}, "a.mix": {"low": 0, "high": 1}}
FEW = {"a.n": {"low": 1, "high": 2, "whole": True}}


def search(**fields: Any) -> Search:
    return search_of({"trials": 9, "seed": 1, "startup": 3, "space": SPACE} | fields)


def result(bpb: float, *, over: int = 0, legal: bool | None = None) -> dict[str, Any]:
    return {"val_bpb": bpb, "steps": 8, "total_bytes": 100 + over, "cap_bytes": 100, "legal": legal}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "search.journal"


def test_a_search_that_goes_on_draws_what_an_undisturbed_one_does(file: Path, tmp_path: Path) -> None:
    undisturbed = Book(tmp_path / "calm", search())
    calm = [undisturbed.ask() for _ in range(5)]
    rough = [Book(file, search()).ask() for _ in range(5)]
    assert [trial.values for trial in rough] == [trial.values for trial in calm]
    assert len({str(trial.values) for trial in rough}) == 5, "no draw is repeated"
    other = Book(tmp_path / "other", search(seed=2)).ask()
    assert other.values != rough[0].values


def test_what_was_left_is_asked_again_and_what_was_told_is_not(file: Path) -> None:
    before = Book(file, search())
    asked = [before.ask() for _ in range(4)]
    before.done(0, result(2.0))
    before.report(1, [(2, 5.0)])
    before.pruned(1, "too bad")
    before.refused(3, "does not fit")
    after = Book(file, search())
    assert after.open() == [asked[2]] and after.asked == 4
    told = [(trial.state, trial.bpb, trial.reason) for trial in after.trials()]
    assert told == [
        ("done", 2.0, ""),
        ("pruned", 5.0, "too bad"),
        ("open", None, ""),
        ("refused", None, "does not fit"),
    ]


def test_a_kill_before_the_values_were_drawn_loses_nothing(file: Path, tmp_path: Path) -> None:
    undisturbed = Book(tmp_path / "calm", search()).ask()
    book = Book(file, search())
    book._seed(0)
    half = book.study.ask()
    search().space["a.lr"].suggest(half, "a.lr")
    copy = tmp_path / "copy"
    copy.write_bytes(file.read_bytes())
    (again,) = Book(file, search()).open()
    assert Book(copy, search()).open() == [again], "what is drawn now has its seed too"
    assert again.values["a.lr"] == undisturbed.values["a.lr"] and set(again.values) == set(SPACE)


def test_half_a_line_is_cut_off(file: Path) -> None:
    first = Book(file, search()).ask()
    with open(file, "a") as journal:
        journal.write('{"op_code":5,"work')
    mend(file)
    second = Book(file, search()).ask()
    assert Book(file, search()).open() == [first, second]


def test_a_folder_holds_one_search(file: Path) -> None:
    Book(file, search()).define("hash", (5, 6))
    again = Book(file, search(trials=99, startup=1, keep=None, warmup=0.5))
    again.define("hash", (7,))
    assert again.registered == (5, 6), "as they were before any trial"
    for other, base, what in (
        (search(seed=2), "hash", "its seed differs"),
        (search(space={**SPACE, "a.mix": {"low": 0, "high": 2}}), "hash", "its space differs"),
        (search(), "another", "the configuration that its trials change differs"),
    ):
        with pytest.raises(UserError, match=what):
            Book(file, other).define(base, (5, 6))


def told(file: Path, scores: list[float], **fields: Any) -> tuple[Book, int]:
    """A book with finished trials that had these scores at steps 2 and 4, and one more that is open."""
    book = Book(file, search(**fields))
    for score in scores:
        number = book.ask().number
        book.report(number, [(2, score + 1), (4, score)])
        book.done(number, result(score))
    return book, book.ask().number


def test_who_is_not_among_the_best_at_a_step_is_behind(file: Path) -> None:
    book, number = told(file, [2.0, 2.2, 2.4])
    assert book.behind(number) == "", "no score yet"
    book.report(number, [(2, 3.1)])
    assert book.behind(number) == ""
    book.report(number, [(2, 9.9), (4, 2.3)])
    assert book.behind(number) == "2.3000 BPB at step 4 is not among the best 50% there", "step 2 was known"


def test_a_better_score_before_is_no_excuse_for_one_that_is_no_number(file: Path) -> None:
    book, number = told(file, [2.0, 2.2, 2.4], keep=None)
    book.report(number, [(2, 9.0)])
    assert book.behind(number) == "", "keep=null: none is stopped by comparison"
    book.report(number, [(2, 1.0), (4, math.nan)])
    assert book.behind(number) == "its score at step 4 is no number"


def test_nobody_is_behind_before_enough_have_finished(file: Path) -> None:
    book, number = told(file, [2.0, 2.2], startup=3)
    book.report(number, [(2, 99.0)])
    assert book.behind(number) == ""


def test_what_is_over_the_cap_or_illegal_is_never_the_best(file: Path) -> None:
    book = Book(file, search())
    assert book.best() is None
    for score in (result(1.0, over=1), result(1.1, legal=False), result(3.0), result(2.0, over=-9)):
        book.done(book.ask().number, score)
    assert book.best() == book.trials()[3] and [trial.counts for trial in book.trials()] == [False, False, True, True]


def test_the_same_values_are_not_run_twice(file: Path) -> None:
    book = Book(file, search(space=FEW, startup=99))
    fresh: dict[int, Trial] = {}
    for _ in range(6):
        trial = book.ask()
        if not book.settle(trial):
            fresh[trial.values["a.n"]] = trial
            book.report(trial.number, [(2, 5.0)])
            book.done(trial.number, result(float(trial.values["a.n"]), over=3 - trial.values["a.n"]))
    assert len(fresh) == 2, "a search of two values trains two"
    for trial in book.trials():
        twin = book.trials()[fresh[trial.values["a.n"]].number]
        assert (trial.state, trial.bpb, trial.counts) == (twin.state, twin.bpb, twin.counts)
        assert trial == twin or trial.reason == f"the same as trial {twin.number}"
