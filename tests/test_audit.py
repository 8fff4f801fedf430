"""golf/evaluate.py and golf/audit.py: other scores of a finished run, and whether its score may be submitted."""

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golf import audit, auditing, evaluate
from golf.compose import compose
from golf.dist import ALONE
from golf.evals.known_bad import KNOWN_BAD
from golf.evals.probes import FAIL, PASS, PROBES, UNKNOWN
from golf.keeping import PASSES, EvalFiles
from golf.reports.load import traces
from golf.requantise import open_source
from golf.scoring import Scoring
from golf.submission import code_size
from golf.submission.entry import code_of
from golf.submission.pack import Packed
from tests.helpers.runs import made_once, toy_overrides
from tests.helpers.tiers import slow, wide

SLIDING = ("scale.seq=0.03125", "eval=sliding")
CODE = Packed(b"x" * 20_000, "brotli", 100_000, 50_000, {})
every_probe = slow(tuple(PROBES))

Make = Callable[..., Path]


@pytest.fixture
def run(finished: Make) -> Path:
    """A finished run, only to be read."""
    return finished(*SLIDING)


@pytest.fixture(autouse=True)
def code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """To pack a run's code takes seconds; tests of the tier `slow` do."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(code_size, "code_of", lambda run: CODE)


def probed_by(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the audit run these of its probes only."""
    monkeypatch.setattr(auditing, "probe", lambda case: [PROBES[name](case) for name in names])


def results_beside(run: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) | {"folder": path.parent} for path in run.parents[1].glob("*/*/result.json")]
    return {result["label"].removeprefix("baseline-int6-"): result for result in found}


def verdicts(run: Path) -> dict[str, str]:
    report = json.loads((run / "audit.json").read_text())
    return {found["probe"]: found["verdict"] for found in report["findings"]}


def test_an_honest_run_passes_and_its_result_says_so(finished_copy: Make, capsys: pytest.CaptureFixture) -> None:
    run = finished_copy(*SLIDING)
    assert audit.main([f"run={run}"]) == 0
    printed = capsys.readouterr().out
    assert "legal as far as can be told" in printed and "write" not in printed
    found = verdicts(run)
    assert {probe for probe, verdict in found.items() if verdict == UNKNOWN} == {"tuning"}
    assert FAIL not in found.values() and set(found) >= {"declared", "future", "recorded", "phases", "overlap", "clock"}
    result = json.loads((run / "result.json").read_text())
    assert result["legal"] is True and result["legality"] == []
    assert result["phases"]["train"]["opened"] == ["train"] and result["phases"]["eval"]["opened"] == ["val"]


def test_the_size_of_code_is_measured_once(finished_copy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is written down; what is written down is said again."""
    source = open_source(finished_copy(*SLIDING))
    there = source.result["artifact_bytes"]
    said = auditing.size(source)
    assert said.text.startswith(
        f"with code {there + 20_000:,} packed, {there + 50_000:,} minified, {there + 100_000:,} as source, of "
    )
    assert (source.folder.path.parents[1] / code_size.FILE).exists()
    monkeypatch.delattr(code_size, "code_of")
    assert auditing.size(source) == said


@pytest.mark.slow
def test_the_size_of_code_is_that_of_the_packed_file(finished_copy: Make) -> None:
    source = open_source(finished_copy(*SLIDING))
    packed, there = code_of(source.run), source.result["artifact_bytes"]
    sizes = (len(packed.file), packed.minified_bytes, packed.raw_bytes)
    assert 10_000 < sizes[0] < sizes[1] / 2 < sizes[2] / 4
    for _ in range(2):
        said = auditing.size(source)
        assert said.verdict == PASS and all(f"{there + count:,} " in said.text for count in sizes)


@pytest.fixture
def rescored(finished: Make, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A copy of a run with a sweep of other scores beside it; what was printed of them is in said.txt."""

    def make(place: Path) -> None:
        run = finished(*SLIDING)
        shutil.copytree(run.parents[1], place / "outputs")
        own = place / "outputs" / run.parent.name / run.name
        with open(place / "said.txt", "w") as said, contextlib.redirect_stdout(said):
            assert evaluate.main(["-m", f"run={own}", "eval=plain,ngram"]) == 0

    made = shutil.copytree(made_once(tmp_path_factory, "rescored", make), tmp_path / "rescored")
    return made / "outputs" / "/".join(finished(*SLIDING).parts[-2:])


def test_other_evaluators_are_runs_of_their_own(rescored: Path, capsys: pytest.CaptureFixture) -> None:
    check_scores(rescored, ("plain", "ngram"), (rescored.parents[2] / "said.txt").read_text())
    assert evaluate.main([f"run={rescored}", "quant=int8"]) == 2
    assert "quant=int8: only eval can change" in capsys.readouterr().err


@pytest.mark.slow
def test_adapters_are_runs_of_their_own(finished_copy: Make, capsys: pytest.CaptureFixture) -> None:
    run = finished_copy(*SLIDING)
    assert evaluate.main(["-m", f"run={run}", "eval=plain,ttt_sgd,ttt_lora"]) == 0
    check_scores(run, ("plain", "ttt_sgd", "ttt_lora"), capsys.readouterr().out)


def check_scores(run: Path, labels: tuple[str, ...], printed: str) -> None:
    """Each is a run of its own beside the first, with its artifact and its own trace."""
    found = results_beside(run)
    first = json.loads((run / "result.json").read_text())
    for label in labels:
        one = found[label]
        assert label in printed and one["eval_main"] == label and one["parent"] == first["fingerprint"]
        assert one["post_quant_bpb"] == first["post_quant_bpb"] and one["artifact_bytes"] == first["artifact_bytes"]
        assert (one["folder"] / "artifact.golf").read_bytes() == (run / "artifact.golf").read_bytes()
        assert one["quant_seconds"] == first["quant_seconds"] and one["phases"]["eval"]["opened"] == ["val"]
    lines = traces(found[labels[1]]["folder"])
    assert set(lines) == {"sliding", labels[1]} and len(lines[labels[1]]) > 2
    assert [a["tokens"] for a in lines["sliding"]] == [b["tokens"] for b in lines[labels[1]]]
    assert lines[labels[1]][-1]["bpb"] == pytest.approx(found[labels[1]]["val_bpb"])
    passes = [json.loads(line) for line in (run.parents[1] / PASSES).read_text().splitlines()]
    assert {"sliding", *labels} <= {entry["evaluator"] for entry in passes}


def test_choosing_is_done_on_other_text(finished_copy: Make) -> None:
    run = finished_copy(*SLIDING)
    before = len((run.parents[1] / PASSES).read_text().splitlines())
    assert evaluate.main([f"run={run}", "eval=sliding", "eval.split=tune"]) == 0
    assert len((run.parents[1] / PASSES).read_text().splitlines()) == before
    assert results_beside(run)["sliding-eval.split_tune"]["data"]["split"] == "tune"


@pytest.mark.parametrize("probes", [("coverage",), every_probe])
def test_a_sweep_of_scores_is_audited_row_by_row(
    probes: tuple[str, ...], rescored: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed_by(probes, monkeypatch)
    folder = results_beside(rescored)["ngram"]["folder"]
    assert audit.main([f"sweep={folder.parent}"]) == 0
    assert f"{folder.name}" in capsys.readouterr().out and verdicts(folder)[probes[-1]] == PASS
    assert audit.main([f"sweep={folder.parent}", "evaluator=ngram"]) == 0
    assert "the run has plain" in " ".join(capsys.readouterr().out.split()), "a row for the one without it"


@pytest.mark.parametrize("probes", [("coverage",), every_probe])
def test_training_on_the_scored_text_is_found_three_times(
    probes: tuple[str, ...], finished_copy: Make, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed_by(probes, monkeypatch)
    run = finished_copy("scale.seq=0.03125", "loader.split=val")
    assert audit.main([f"run={run}"]) == 1 and "ILLEGAL" in capsys.readouterr().out
    found = verdicts(run)
    assert found["declared"] == found["phases"] == FAIL
    assert all(found[probe] == PASS for probe in probes)
    result = json.loads((run / "result.json").read_text())
    assert result["legal"] is False
    assert any(reason.startswith("declared: trains on text") for reason in result["legality"])


def test_records_that_do_not_add_up_are_found(finished_copy: Make) -> None:
    source = open_source(finished_copy(*SLIDING))
    entry = source.result["evals"]["sliding"]

    def with_(**changes: Any) -> Any:
        return replace(source, result=source.result | changes)

    part = with_(evals={"sliding": entry | {"tokens": entry["tokens"] - 5}})
    assert auditing.recorded(source, "sliding").verdict == PASS and auditing.recorded(part, "sliding").verdict == FAIL
    fewer = with_(evals={"sliding": entry | {"bytes": entry["bytes"] - 5}})
    assert (
        "bytes of" in auditing.recorded(fewer, "sliding").text
        and "bytes of" not in auditing.recorded(part, "sliding").text
    )
    for untrue in (
        with_(val_bpb=0.1),
        with_(evals={"sliding": entry | {"val_bpb": 0.1}}),
        with_(evals={"sliding": entry | {"val_loss": entry["val_loss"] / 2}}, val_bpb=entry["val_bpb"]),
    ):
        found = auditing.recorded(untrue, "sliding")
        assert found.verdict == FAIL and "BPB; the loss, tokens and bytes recorded make" in found.text
    exact = source.result["artifact_bytes"] + len(CODE.file)
    verdicts = [auditing.size(with_(cap_bytes=cap)).verdict for cap in (exact, exact - 1)]
    assert verdicts == [PASS, FAIL] and auditing.size(with_(artifact_bytes=1)).verdict == FAIL
    assert f"{exact:,} packed" in auditing.size(source).text and "as source" in auditing.size(source).text
    phases = source.result["phases"]
    peeked = phases | {"train": phases["train"] | {"opened": ["train", "val"]}}
    late = phases | {"eval": phases["eval"] | {"opened": ["train", "val"]}}
    old = {name: {"seconds": 0, "reads": []} for name in phases}
    assert [auditing.phases(with_(phases=p)).verdict for p in (phases, peeked, late, old)] == [
        PASS,
        FAIL,
        FAIL,
        UNKNOWN,
    ]
    limited = replace(source, run=replace(source.run, budget=replace(source.run.budget, max_seconds=0.001)))
    assert auditing.clock(source, "sliding").verdict == PASS and auditing.clock(limited, "sliding").verdict == FAIL
    own = replace(source.prepared, splits=source.prepared.splits | {"train": source.prepared.splits["val"]})
    assert auditing.overlap(source.prepared, "val").verdict == PASS and auditing.overlap(own, "val").verdict == FAIL


def test_a_few_documents_may_stand_in_both_texts(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in a thousand by chance, and no more."""
    source = open_source(run)
    texts: dict[str, Any] = {}
    monkeypatch.setattr(auditing, "documents_of", lambda split, bos_id: texts[split.sha256])
    val, train = (source.prepared.splits[name].sha256 for name in ("val", "train"))
    texts[val] = [np.array([1, i]) for i in range(2000)]
    for shared, verdict in ((2, PASS), (3, FAIL)):
        texts[train] = texts[val][:shared]
        assert auditing.overlap(source.prepared, "val").verdict == verdict


@pytest.mark.wide
def test_marks_are_made_anew_for_another_evaluator(finished_copy: Make) -> None:
    """What the configuration breaks is known of the new one; of the audit only what it found of training goes on."""
    run = finished_copy("scale.seq=0.03125", "loader.split=tune")
    assert json.loads((run / "result.json").read_text())["legality"] == []
    assert evaluate.main([f"run={run}", "eval=plain", "eval.split=tune"]) == 0
    own = results_beside(run)["plain-eval.split_tune"]
    assert own["legal"] is False and own["legality"][0].startswith("trains on text that scores are taken on")
    found = json.loads((run / "result.json").read_text())
    marks = ["target: a target moves it", "phases: train: train, val", "overlap: 9 of 10", "declared: of another split"]
    (run / "result.json").write_text(json.dumps(found | {"legal": False, "legality": marks}))
    assert evaluate.main([f"run={run}", "eval=sliding"]) == 0
    assert results_beside(run)["sliding"]["legality"] == marks[1:3] and results_beside(run)["sliding"]["legal"] is False


@pytest.mark.parametrize("probes", [("normalisation", "coverage", "bytes"), every_probe])
def test_the_audit_is_audited(
    probes: tuple[str, ...], run: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row for each cheat (three of them here; tests/evals/test_probes.py has all), and code 1 where one is missed."""
    probed_by(probes, monkeypatch)
    some = {name: KNOWN_BAD[name] for name in ("hashed_cache", "subset", "doubled_space")}
    monkeypatch.setattr(auditing, "KNOWN_BAD", some)
    assert audit.main([f"run={run}", "known_bad=true"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in some) and printed.count("[F]") == len(some)
    missed = replace(some["subset"], probe="bytes")
    monkeypatch.setattr(auditing, "KNOWN_BAD", {"subset": missed})
    assert audit.main([f"run={run}", "known_bad=true"]) == 1 and "[.]" in capsys.readouterr().out


@pytest.mark.parametrize("names", [("baseline_naive",), slow(("baseline_naive", "pr401"))])
def test_experiments_have_a_row_each(names: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    assert audit.main([f"experiments={','.join(names)}"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in names) and "as far as seen" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["runs=x"], "runs=x: takes run, sweep"),
        (["evaluator=plain"], "run=(none)"),
        (["run=/absent"], "run=/absent: no finished run"),
        (["sweep=/absent"], "holds no finished run"),
        (["experiments=nope"], "experiments=nope: there is none"),
        (["run=RUN", "evaluator=ttt"], "evaluator=ttt: the run has plain, sliding"),
        (["sweep=FOLDER", "evaluator=ttt"], "evaluator=ttt: the run has plain, sliding"),
        (["sweep=FOLDER", "known_bad=true"], "known_bad=true: does not go with sweep=..."),
        (["run=RUN", "sweep=FOLDER"], "sweep=FOLDER: does not go with run=..."),
        (["experiments=all", "run=RUN"], "experiments=all: does not go with run=..."),
        (["experiments=pr401", "evaluator=plain"], "evaluator=plain: does not go with experiments=..."),
        (["run=RUN", "known_bad=yes"], "known_bad=yes: true or false"),
        (["run=RUN", "known_bad=true", "evaluator=plain"], "evaluator=plain: does not go with known_bad=true"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, run: Path, capsys: pytest.CaptureFixture) -> None:
    given = [argument.replace("RUN", str(run)).replace("FOLDER", str(run.parent)) for argument in arguments]
    assert audit.main(given) == 2
    captured = capsys.readouterr()
    assert message.replace("FOLDER", str(run.parent)) in captured.err and len(captured.err.strip().splitlines()) == 1


@pytest.mark.parametrize("choice", ["ttt_sgd", slow("ngram"), wide("mixture"), wide("ttt_lora"), wide("phased")])
def test_a_score_that_was_cut_off_goes_on(
    choice: str, run: Path, toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of a pass, the second one begins where the first was kept, and ends with the same score."""
    source = open_source(run)
    by_document = choice in ("ttt_lora", "phased")
    extra = [f"eval.evaluators.{choice}.{'documents=3' if by_document else 'chunk_tokens=128'}"]
    if choice == "phased":
        extra += [f"eval.evaluators.phased.scorer.boundaries.{name}={n}" for name, n in (("first", 2), ("second", 5))]
    config = compose(toy_overrides(toy_folder, [SLIDING[0], f"eval={choice}", *extra])).eval
    scoring = Scoring(config, source.prepared, ALONE)
    scoring.stream = lambda: full[:900]  # type: ignore[method-assign]
    full = Scoring(config, source.prepared, ALONE).stream()
    model = auditing.case_of(source, "plain").model
    whole = scoring.score(model, choice)
    monkeypatch.setattr("golf.keeping.SAVE_SECONDS", 0.0)
    files = EvalFiles(tmp_path, "artifact", lambda line: None)
    chosen, rounds = type(config.evaluators[choice]), []
    grade = chosen.grade

    def cut(self: Any, going: Any, round_: Any, index: int) -> None:
        rounds.append(index)
        if len(rounds) == total * 2 // 3:
            raise KeyboardInterrupt
        grade(self, going, round_, index)

    total = len(config.evaluators[choice].rounds(full[:900], source.prepared.bos_id, ALONE))
    monkeypatch.setattr(chosen, "grade", cut)
    with pytest.raises(KeyboardInterrupt):
        scoring.score(model, choice, files)
    assert list((tmp_path / "checkpoint").iterdir())
    at = len(rounds)
    again = scoring.score(model, choice, files)
    assert 0 < rounds[at] < at, "it went on, and not from the start"
    assert (again.tokens, again.bytes) == (whole.tokens, whole.bytes)
    assert again.nats == pytest.approx(whole.nats, rel=1e-6)
    assert not list((tmp_path / "checkpoint").iterdir()) and len(traces(tmp_path)[choice]) == total
