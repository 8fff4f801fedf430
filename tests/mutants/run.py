"""Count the teeth of the default tier: each mutation of table.yaml in a copy of the checkout, and whether a test fails.

`python -m tests.mutants.run` (make mutants). Exit code 1: too few are caught, one survives that the table does not say
survives, a line is not there, or mapped tests fail without a mutation.
"""

import argparse
import os
import queue
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

from tests.mutants.copies import Copy
from tests.mutants.table import Mutation, mutations

ROOT = Path(__file__).resolve().parents[2]
LEAST_SHARE = 0.95


def caught(mutation: Mutation, tests: tuple[str, ...], copies: "queue.Queue[Copy]", timeout: float) -> bool:
    """Return whether the tests fail with the mutation, and print how."""
    copy, start = copies.get(), time.monotonic()
    original = (copy.folder / mutation.file).read_text()
    try:
        copy.write(mutation.file, mutation.applied(copy.folder))
        code, said = copy.test(tests, timeout, "-x", "-n0")
    finally:
        copy.write(mutation.file, original)
        copies.put(copy)
    failed = next((line for line in said if line.startswith(("FAILED", "ERROR"))), "")
    absent = code == 5 or failed.startswith("ERROR: not found")  # else pytest's code 4 is a file that fails on import
    word = "NO SUCH TEST" if absent else {0: "SURVIVES", -1: f"caught: hangs, {timeout:.0f} s"}.get(code, "caught")
    print(f"{time.monotonic() - start:5.0f} s  {mutation}\n         {word} {failed}", flush=True)
    return code != 0 and not absent


def why_unsound(tests: tuple[str, ...], outcomes: dict[str, bool]) -> str:
    """Return what is wrong with tests that ran without a mutation; empty where nothing is."""
    for test in tests:
        heads = (f"{test}::", f"{test}[")
        cases = [passes for name, passes in outcomes.items() if name == test or name.startswith(heads)]
        if not cases:
            return f"{test} is no test of the default tier"
        if not all(cases):
            return f"{test} fails without it"
    return ""


def outcomes_of(copy: Copy, tests: Iterable[str], workers: int) -> dict[str, bool]:
    """Return file::test[case] -> whether it passes without a mutation, for the tests that there are."""
    there = [test for test in tests if is_there(copy.folder, test)]
    report = copy.folder / "unmutated.xml"
    processes = f"-n{workers if workers > 1 else 0}"
    code, said = copy.test(there, 7200, processes, f"--junitxml={report}", "-o", "junit_family=xunit1")
    if code not in (0, 1):
        raise SystemExit("\n".join(["the tests do not run without a mutation", *said[-20:]]))
    return {
        f"{case.get('file')}::{case.get('name')}": case.find("failure") is None and case.find("error") is None
        for case in ElementTree.parse(report).iter("testcase")
    }


def is_there(root: Path, test: str) -> bool:
    """Return whether a checkout has a test of this name."""
    file, _, name = test.partition("::")
    return (root / file).exists() and f"def {name.split('[')[0]}" in (root / file).read_text()


def main() -> int:
    """Try the table; return 1 where too few are caught or an entry is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutations whose line in the table has this text")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout")
    parser.add_argument("--compare", action="store_true", help="older code: tests_before; pass over what it has not")
    parser.add_argument("--unchecked", action="store_true", help="take it that the tests pass without a mutation")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--timeout", type=float, default=400, help="seconds for the tests of one mutation")
    options = parser.parse_args()
    chosen = [mutation for mutation in mutations() if options.only in f"{mutation} {mutation.breaks}"]
    tests_of = {m: (m.tests_before or m.tests) if options.compare else m.tests for m in chosen}
    wrong = {mutation: why for mutation in chosen if (why := mutation.why_missing(options.root))}
    with tempfile.TemporaryDirectory(prefix="mutants-") as place, ThreadPoolExecutor(options.workers) as pool:
        made = [Copy(options.root, Path(place).resolve() / str(worker)) for worker in range(options.workers)]
        copies: queue.Queue[Copy] = queue.Queue()
        for copy in made:
            copies.put(copy)
        every = dict.fromkeys(test for mutation in chosen if mutation not in wrong for test in tests_of[mutation])
        if options.unchecked:
            outcomes = dict.fromkeys(every, True)
        else:
            outcomes = outcomes_of(made[0], every, options.workers) if every else {}
        wrong |= {m: why for m in chosen if m not in wrong and (why := why_unsound(tests_of[m], outcomes))}
        tried = [mutation for mutation in chosen if mutation not in wrong]
        found = pool.map(lambda mutation: caught(mutation, tests_of[mutation], copies, options.timeout), tried)
        survivors = [mutation for mutation, is_caught in zip(tried, found, strict=True) if not is_caught]
    share = 1 - len(survivors) / max(1, len(tried))
    print(f"\n{len(tried) - len(survivors)} of {len(tried)} mutations caught: {share:.1%}")
    for mutation in survivors:
        print(f"survives: {mutation}\n    breaks: {mutation.breaks}\n    reason: {mutation.survives or 'NONE'}")
    for mutation, why in wrong.items():
        print(f"{'not comparable' if options.compare else 'ERROR'}: {mutation}: {why}")
    if options.compare:
        return 0
    return int(share < LEAST_SHARE or bool(wrong) or not all(mutation.survives for mutation in survivors))


if __name__ == "__main__":
    sys.exit(main())
