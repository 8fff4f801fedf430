"""What a report says first: the answer in one sentence, and what it was made of."""

import datetime
import shlex
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from golf.code_record import git
from golf.reports.analysis import Analysis, Line
from golf.reports.text import interval, number, p_text
from golf.rundir import RunDir

Facts = Sequence[tuple[str, str]]  # (what it is, what it says)


def verdict_of(analysis: Analysis) -> str:
    """Return the answer to the sweep's question in one sentence, as far as its runs give one."""
    control = analysis.sweep.control
    compared = [line for line in analysis.lines if line.difference is not None]
    if not compared:
        return _without_comparison(analysis)
    tested = [line for line in compared if not line.verdict.startswith(("no test", "tie"))]
    if not tested:
        return f"Nothing can be said of a difference from {control}: {_few(compared)}."
    better = [line for line in tested if line.verdict.startswith("better") and not line.faults]
    doubtful = [line for line in tested if line.verdict.startswith("better") and line.faults]
    worse = [line for line in tested if line.verdict == "worse"]
    if better:
        best = min(better, key=_delta)
        others = f"; so {_do(len(better) - 1)} {_names(line for line in better if line is not best)}"
        margin = best.verdict.removeprefix("better")
        return f"{best.name} beats {control}{margin}: {_numbers(best)}{others * (len(better) > 1)}."
    if doubtful:
        best = min(doubtful, key=_delta)
        return f"{best.name} scored below {control} ({_numbers(best)}), but {', '.join(best.faults)}: it may not count."
    if len(worse) == len(tested):
        return f"Every row is worse than {control}; the nearest is {_nearest(worse)}."
    open_ = [line for line in tested if line not in worse]
    return f"No row is shown to be better than {control}; the nearest is {_nearest(open_)}."


def _without_comparison(analysis: Analysis) -> str:
    scored = [line for line in analysis.lines if line.score is not None]
    if not scored:
        return "There is no finished run to speak of."
    best = min(scored, key=lambda line: line.score.mean if line.score else 0.0)
    assert best.score is not None
    lowest = f"{best.name} has {number(best.score.mean)} BPB"
    if len(scored) == 1:
        return f"{lowest}, and nothing beside it to compare with."
    return f"No row is compared with another; {lowest}, the lowest of {len(scored)}."


def _numbers(line: Line) -> str:
    difference = line.difference
    assert difference is not None
    span = interval(difference.low, difference.high, sign=True)
    return f"{number(difference.delta, sign=True)} BPB (95 % interval {span}; p {p_text(line.p_holm)})"


def _nearest(lines: Sequence[Line]) -> str:
    line = min(lines, key=_delta)
    return f"{line.name}: {_numbers(line)}"


def _few(lines: Sequence[Line]) -> str:
    return lines[0].verdict.removeprefix("no test: ")


def _delta(line: Line) -> float:
    return line.difference.delta if line.difference is not None else 0.0


def _names(lines: Iterable[Line]) -> str:
    return ", ".join(line.name for line in lines)


def _do(count: int) -> str:
    return "does" if count == 1 else "do"


# ---------------------------------------------------------------- what it is made of


def provenance_of(analyses: Sequence[Analysis], line: Sequence[str]) -> Facts:
    """Return when and by what the report was made, and of which runs. line: the arguments of golf/report.py."""
    now = datetime.datetime.now().astimezone()
    commit = git("rev-parse", "--short", "HEAD")
    runs = [run for analysis in analyses for row in analysis.sweep.rows.values() for run in row.counted]
    results = [run.result for run in runs if run.result is not None]
    commits = {str(result["environment"].get("git_commit"))[:9] for result in results}
    dirty = any(result["environment"].get("git_dirty") for result in results)
    texts = {_text(result) for result in results}
    ended = [RunDir(run.folder).result.stat().st_mtime for run in runs]
    facts = [
        ("report", f"{now:%Y-%m-%d %H:%M %z}, golf {version('golf')}, commit {commit or 'unknown'}"),
        ("command", shlex.join(["python", "golf/report.py", *line])),
        ("text", "; ".join(sorted(texts)) or "none"),
        ("code of the runs", ", ".join(sorted(commits)) + (" with uncommitted changes" if dirty else "") or "none"),
        ("folders", ", ".join(str(analysis.sweep.folder) for analysis in analyses)),
    ]
    if ended:
        days = sorted({f"{datetime.datetime.fromtimestamp(moment):%Y-%m-%d}" for moment in ended})
        facts.insert(3, ("runs ended", days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"))
    return facts


def _text(result: dict[str, Any]) -> str:
    """Return corpus, split and its hash, and how much of it was scored."""
    data, main = result["data"], result["evals"][result["eval_main"]]
    digest = (data.get("sha256") or {}).get(data["split"])
    named = f"{data['corpus']}/{data['split']}" + (f" (sha256 {digest[:12]})" if digest else "")
    return f"{named}, {main['tokens']:,} tokens, {main['bytes']:,} bytes"
