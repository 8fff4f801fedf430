"""Count the teeth of the default tier: each mutation of table.yaml in a copy of the checkout, and whether a test fails.

`python tests/mutants/run.py` (make mutants). Exit code 1: too few are caught, one survives that the table does not say
survives, a line is not there, or mapped tests fail without a mutation.
"""

import argparse
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import yaml

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("table.yaml")
LEAST_SHARE = 0.95
MARK = "GOLF_MUTANTS_IN"  # an environment variable of all processes of a copy


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A line of the product, what it becomes, and the tests that should notice. which: the how manieth of that text in
    its file, where there are several. survives: why no test can or need notice. tests_before: where the tests of the
    code before commit 45ce710 have other names. drawn: by draw.py."""

    file: str
    before: str
    after: str
    breaks: str
    tests: tuple[str, ...]
    which: int | None = None
    drawn: bool = False
    survives: str | None = None
    tests_before: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.before}  ->  {self.after}"

    def applied(self, root: Path) -> str:
        """The file's text with the mutation. Raises ValueError where the line is not there, or is not one."""
        lines = (root / self.file).read_text().split("\n") if (root / self.file).exists() else []
        places = [number for number, line in enumerate(lines) if line.strip() == self.before]
        if len(places) <= (self.which or 0) or (self.which is None and len(places) > 1):
            raise ValueError(f"{len(places)} such lines")
        number = places[self.which or 0]
        indent = lines[number][: len(lines[number]) - len(lines[number].lstrip())]
        return "\n".join([*lines[:number], indent + self.after, *lines[number + 1 :]])

    def why_missing(self, root: Path) -> str:
        """Empty where the line is there."""
        try:
            self.applied(root)
        except ValueError as error:
            return str(error)
        return ""


def mutations() -> list[Mutation]:
    """The table."""
    entries = yaml.safe_load(TABLE.read_text())
    return [Mutation(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}) for entry in entries]


class Copy:
    """A copy of a checkout, in which tests run."""

    def __init__(self, root: Path, folder: Path):
        self.folder = folder
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in filter(None, subprocess.check_output(listed, cwd=root, text=True).split("\0")):
            if (root / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, folder / name, follow_symlinks=False)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PYTHON"))}
        threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self.environment = kept | threads | {"PYTHONPATH": str(folder), MARK: str(folder)}
        shown = "import golf, hydra_plugins.golf_launcher as plugin; print(golf.__file__, plugin.__file__)"
        python = [sys.executable, "-c", shown]
        found = subprocess.check_output(python, cwd=folder, env=self.environment, text=True).split()
        if not all(Path(file).is_relative_to(folder) for file in found):
            raise SystemExit(f"golf comes from {found}, not from the copy in {folder}")

    def write(self, file: str, text: str) -> None:
        """Write a source file; no bytecode of what it was is left."""
        (self.folder / file).write_text(text)
        for bytecode in (self.folder / file).parent.glob(f"__pycache__/{Path(file).stem}.*"):
            bytecode.unlink()

    def test(self, tests: Iterable[str], timeout: float, *options: str) -> tuple[int, list[str]]:
        """Run these tests: pytest's exit code (-1 where it hangs), what it printed."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *tests]
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=out, stderr=out)
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = -1
            self.clean()
            out.seek(0)
            return code, out.read().splitlines()

    def clean(self) -> None:
        """End what the tests left running, and forget the examples that hypothesis found."""
        mark = f"{MARK}={self.folder}\0".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
        shutil.rmtree(self.folder / ".hypothesis", ignore_errors=True)


def caught(mutation: Mutation, tests: tuple[str, ...], copies: "queue.Queue[Copy]", timeout: float) -> bool:
    """Whether the tests fail with the mutation; tells how."""
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
    """What is wrong with tests that ran without a mutation; empty where nothing is."""
    for test in tests:
        heads = (f"{test}::", f"{test}[")
        cases = [passes for name, passes in outcomes.items() if name == test or name.startswith(heads)]
        if not cases:
            return f"{test} is no test of the default tier"
        if not all(cases):
            return f"{test} fails without it"
    return ""


def outcomes_of(copy: Copy, tests: Iterable[str], workers: int) -> dict[str, bool]:
    """file::test[case] -> whether it passes without a mutation; tests that are not there are left out."""
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
    file, _, name = test.partition("::")
    return (root / file).exists() and f"def {name.split('[')[0]}" in (root / file).read_text()


def main() -> int:
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
