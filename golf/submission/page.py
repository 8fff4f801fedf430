"""A record's README: what it is, every started seed, sizes by each way of counting, how it was run and is repeated."""

from typing import Any

from golf.reports.load import Started
from golf.reports.stats import summarize
from golf.submission.entry import Entry
from golf.submission.record import SeedResult, Submission


def readme(entry: Entry, record: Submission, command: str, overrides: str, notes: list[str]) -> str:
    """Markdown. command: what repeats a seed; overrides: golf's command line of the row; notes: what to know of it."""
    return (
        "\n\n".join(
            [
                f"# {record.name}",
                *([record.blurb] if record.blurb != record.name else []),
                _headline(record),
                *_forced(record),
                "## Results\n\n" + _results(record),
                *_comparison(record),
                "## Size\n\n" + _sizes(record),
                "## Run it\n\n" + _how(entry, command, overrides),
                "## Checks\n\n" + _checks(entry, record, notes),
            ]
        )
        + "\n"
    )


def _headline(record: Submission) -> str:
    count = len(record.seeds)
    spread = f", sd {record.val_bpb_std:.5f}" if record.val_bpb_std is not None else ""
    score = f"**{record.val_bpb:.5f} BPB** (mean of {count} seed{'s' * (count != 1)}{spread})"
    return f"{score}, **{record.bytes_total:,} bytes** at most, track `{record.track}`, {record.hardware}."


def _forced(record: Submission) -> list[str]:
    if not record.forced:
        return []
    lines = "\n".join(f"- {text}" for text in record.forced)
    return [f"**Submitted with `force=true`, though:**\n\n{lines}"]


def _results(record: Submission) -> str:
    rows = [_seed_row(seed, found) for seed, found in record.seed_results.items()]
    head = ["seed", "state", "val BPB", "val loss", "steps", "train s", "eval s", "artifact bytes", "total bytes"]
    table = [head, ["---", "---", *["---:"] * 7], *rows]
    text = "\n".join(f"| {' | '.join(row)} |" for row in table)
    if len(record.seeds) < 2:
        return text
    known = [found.val_bpb for found in record.seed_results.values() if found.val_bpb is not None]
    told = summarize(known)
    interval = f"95 % interval of the mean: {told.low:.5f} to {told.high:.5f}"
    return f"{text}\n\nEvery seed that was started is listed. {interval}."


def _seed_row(seed: str, found: SeedResult) -> list[str]:
    def shown(value: float | int | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        seed,
        found.state,
        shown(found.val_bpb, ".6f"),
        shown(found.val_loss, ".6f"),
        shown(found.steps, ",d"),
        shown(found.train_time_s, ".1f"),
        shown(found.eval_time_s, ".1f"),
        shown(found.artifact_bytes, ",d"),
        shown(found.bytes_total, ",d"),
    ]


def _comparison(record: Submission) -> list[str]:
    found = record.comparison
    if found is None:
        return []
    p = "none (too few seeds, or another text)" if found.p_value is None else f"{found.p_value:.2g}"
    verdict = "shown" if found.shown else "**not shown**"
    return [
        f"Against {found.name} ({found.val_bpb:.5f} BPB, {found.seeds} seeds; {found.source}): "
        f"{found.delta_bpb:+.5f} BPB; {found.test} against a gain of less than {found.margin_bpb:.5f} BPB "
        f"(0.005 nats a token): p = {p}, {verdict}."
    ]


def _sizes(record: Submission) -> str:
    code = record.code_countings
    shipped = code.shipped + record.bytes_model
    lines = [
        f"| counting | code | with the largest artifact | of {record.cap_bytes:,} |",
        "| --- | ---: | ---: | ---: |",
    ]
    ways = {
        "the file that is shipped (**counts**)": code.shipped,
        "the readable source": code.source,
        "as if minified and compressed": code.packed,
    }
    for name, size in ways.items():
        total = size + record.bytes_model
        lines.append(f"| {name} | {size:,} | {total:,} | {total / record.cap_bytes:.2%} |")
    return "\n".join(lines) + f"\n\nLargest artifact: {record.bytes_model:,} bytes; in all {shipped:,}."


def _how(entry: Entry, command: str, overrides: str) -> str:
    made = entry.counted[0].result
    assert made is not None
    environment: dict[str, Any] = made["environment"]
    keys = ("python", "torch", "cuda", "numpy", "sentencepiece", "platform", "cpu", "cores", "gpus")
    facts = [f"- {key}: {environment[key]}" for key in keys if environment.get(key)]
    facts.append(f"- attention: {made['attention']['backend']}; precision: {made['precision']}")
    readable = (
        "" if entry.ship == "plain" else " `train_gpt_readable.py` is the same program before packing, to be read."
    )
    return (
        f"```\npip install -r requirements.txt\n{command}\n```\n\n"
        f"`DATA_PATH` is a folder with `*{entry.run.loader.split}_*.bin` and `*{entry.run.eval.split}_*.bin`, "
        f"`TOKENIZER_PATH` its SentencePiece model (sha256 {entry.prepared.tokenizer_sha256[:16]}).{readable}\n\n"
        "`python golf/submit.py reproduce=FOLDER data=DATA` runs `train_gpt.py` of this folder again, as whoever types "
        "it, with the threads and processes that `submission.json` records, and compares. It is this folder's own "
        "code: read it before.\n\n"
        f"golf made it from one configuration: `python golf/train.py {overrides}`.\n\n" + "\n".join(facts)
    )


def _checks(entry: Entry, record: Submission, notes: list[str]) -> str:
    said = [f"- {name.replace('_', ' ')}: {'yes' if holds else '**no**'}" for name, holds in record.compliance.items()]
    audits = [f"- seed {run.seed}: {_audited(run)}" for run in entry.counted]
    return "\n".join([*said, *audits, *(f"- {note}" for note in notes)])


def _audited(run: Started) -> str:
    assert run.result is not None
    if run.result["legal"]:
        return (
            "golf's audit found nothing against the rules (causality, targets, normalisation, coverage, bytes, files)"
        )
    return "; ".join(run.result["legality"]) or "not audited"
