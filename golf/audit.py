"""The audit's door: is this score one that may be submitted? The probes run on the run's own artifact and evaluator.

    python golf/audit.py run=outputs/single/RUN                    a row for each probe, and audit.json
    python golf/audit.py run=outputs/single/RUN evaluator=plain    another of the run's evaluators
    python golf/audit.py sweep=outputs/SWEEP                       a row for each finished run of a sweep
    python golf/audit.py experiments=all                           a row for each experiment, with fresh weights
    python golf/audit.py run=outputs/single/RUN known_bad=true     do the probes catch what is known to be illegal?

PASS and FAIL are what was seen; `cannot tell` is what no program can. The exit code is 1 where anything failed.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # it held golf/ itself


from golf.arguments import key_values, print_help, switched_on
from golf.auditing import MADE_UP, audit_experiment, audit_folder, experiments, known_bad
from golf.door import in_one_line
from golf.errors import UserError
from golf.evals.probes import FAIL, PASS, PROBES, UNKNOWN
from golf.files import path_of, paths_of
from golf.requantise import open_source
from golf.suggestions import hint
from golf.terminal import Column, Content, in_style, show_table, words

GO_WITH = {"run": ("evaluator", "known_bad"), "sweep": ("evaluator",), "experiments": ()}
KEYS = ("run", "sweep", "experiments", "evaluator", "known_bad")
COLOURS = {PASS: "green", FAIL: "bold red"}


@in_one_line
def main(arguments: list[str]) -> int:
    """Exit code 0, 1 where a probe failed, 2 and one line for bad input."""
    if print_help(arguments, __doc__ or ""):
        return 0 if arguments else 2
    given = key_values(arguments, KEYS)
    check(given)
    if "experiments" in given:
        return over_experiments(given["experiments"])
    if "sweep" in given:
        return over_sweep(path_of(given["sweep"]), given.get("evaluator"))
    if switched_on(given, "known_bad"):
        return confusion(path_of(given["run"]))
    return max(over_run(folder, given.get("evaluator")) for folder in paths_of(given["run"]))


def check(given: dict[str, str]) -> None:
    """One thing to audit, and nothing that would be ignored beside it."""
    named = [key for key in GO_WITH if key in given]
    if not named:
        raise UserError("run=(none): name the folder of a finished run, such as run=outputs/single/RUN")
    for key, value in given.items():
        if key != named[0] and key not in GO_WITH[named[0]]:
            raise UserError(f"{key}={value}: does not go with {named[0]}=...; leave one of them out")
    if switched_on(given, "known_bad") and "evaluator" in given:
        raise UserError(f"evaluator={given['evaluator']}: does not go with known_bad=true; leave it out")


def over_run(folder: Path, evaluator: str | None) -> int:
    """A row for each probe."""
    report = audit_folder(folder, evaluator)
    findings = report["findings"]
    rows = [[found["probe"], coloured(found["verdict"]), found["text"], found["rule"]] for found in findings]
    title = f"{folder.name}: {report['evaluator']}, {report['probed_tokens']:,} tokens probed"
    columns = [words("probe"), Column("verdict"), words("what was seen"), words("rule and source", 1)]
    show_table(columns, rows, title)
    print(f"{'legal as far as can be told' if report['legal'] else 'ILLEGAL'}, {report['seconds']:.0f} s")
    return 0 if report["legal"] else 1


def over_sweep(folder: Path, evaluator: str | None) -> int:
    """A row for each finished run; one without this evaluator says so."""
    runs = sorted(path.parent for path in folder.glob("*/result.json"))
    if not runs:
        raise UserError(f"sweep={folder}: holds no finished run; name a folder such as outputs/smoke")
    rows: list[list[Content]] = []
    failures, lacking = 0, []
    for run in runs:
        try:
            report = audit_folder(run, evaluator)
        except UserError as error:
            lacking.append(error)
            rows.append([run.name, evaluator or "", UNKNOWN, str(error)])
            continue
        failed = [found["probe"] for found in report["findings"] if found["verdict"] == FAIL]
        failures += bool(failed)
        rows.append([run.name, report["evaluator"], coloured(FAIL if failed else PASS), ", ".join(failed)])
    if len(lacking) == len(runs):
        raise lacking[0]
    columns = [words("run"), words("evaluator", 1), Column("legal"), words("failed")]
    show_table(columns, rows, f"{folder}: audit")
    return 1 if failures else 0


def over_experiments(names: str) -> int:
    """A row for each experiment of conf/, as it comes."""
    chosen = experiments() if names == "all" else names.split(",")
    if unknown := set(chosen) - set(experiments()):
        name = sorted(unknown)[0]
        near = hint(name, ["all", *experiments()])
        raise UserError(f"experiments={name}: there is none of this name in conf/experiment{near}")
    print("experiments, with fresh weights on made-up text, windows of 64 (tiny track)")
    wide, failures = max(map(len, chosen)), 0
    print(f"{'':{wide}}  {'legal':14}  {'declared':13}  {'  '.join(f'{probe:13}' for probe in MADE_UP)}", flush=True)
    for name in chosen:
        verdicts = [found.verdict for found in audit_experiment(name)]
        failures += (failed := FAIL in verdicts)
        said = "NO" if failed else "as far as seen"
        print(f"{name:{wide}}  {said:14}  {'  '.join(f'{verdict:13}' for verdict in verdicts)}", flush=True)
    return 1 if failures else 0


def confusion(folder: Path) -> int:
    """Every cheat against every probe."""
    rows = known_bad(open_source(folder, weights=False))
    lines: list[list[Content]] = []
    missed = 0
    for name, expected, findings in rows:
        marks = {found.probe: "F" if found.verdict == FAIL else "." for found in findings}
        caught = marks[expected] == "F"
        missed += not caught
        cells = [f"[{marks[probe]}]" if probe == expected else marks.get(probe, "") for probe in PROBES]
        lines.append([name, *cells, coloured(PASS if caught else FAIL)])
    columns = [words("cheat"), *(Column(probe, spare=1) for probe in PROBES), Column("caught")]
    title = f"known cheats on {folder.name} (F: fails the probe; in brackets: the one that must catch it)"
    show_table(columns, lines, title)
    return 1 if missed else 0


def coloured(verdict: str) -> Content:
    return in_style(verdict, COLOURS.get(verdict, ""))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
