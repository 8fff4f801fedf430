"""Count what the tests of every commit cost in tiny runs: CPU seconds of `golf/train.py track=tiny`, one thread.

    make test ARGS="--costs=outputs/costs.json"
    python benchmarks/suite.py outputs/costs.json                      # times a tiny run, then counts
    python benchmarks/suite.py outputs/costs.json --tiny-seconds=40    # where that is known already

Exit code 1 where a single test takes more than 1.5 tiny runs.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST = 1.5  # tiny runs, of one test
SHOWN = 10


def tiny_seconds() -> float:
    """Return the CPU seconds of one tiny run; its text is prepared before."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory() as outputs:
        line = [sys.executable, "golf/train.py", "track=tiny", "log=none", "launch.threads=1", f"outputs={outputs}"]
        run(["budget.max_steps=1"], line, environment)
        before = children_seconds()
        run([], line, environment)
        return children_seconds() - before


def run(further: list[str], line: list[str], environment: dict[str, str]) -> None:
    """Run a command to its end; raise with what it printed where it fails."""
    done = subprocess.run([*line, *further], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join([*line, *further])}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def children_seconds() -> float:
    """Return the CPU seconds of the processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Print the sum and the dearest tests in tiny runs; return 1 where one of them is too dear."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("costs", type=Path, help="what pytest --costs=FILE wrote")
    parser.add_argument("--tiny-seconds", type=float, help="CPU seconds of a tiny run")
    given = parser.parse_args()
    seconds = json.loads(given.costs.read_text())
    unit = given.tiny_seconds or tiny_seconds()
    print(f"a tiny run: {unit:.1f} CPU s; {len(seconds)} tests: {sum(seconds.values()) / unit:.2f} tiny runs")
    dearest = sorted(seconds, key=lambda test: -seconds[test])
    for test in dearest[:SHOWN]:
        print(f"{seconds[test] / unit:6.2f}  {test}")
    over = [test for test in dearest if seconds[test] > MOST * unit]
    for test in over:
        print(f"{test}: takes {seconds[test] / unit:.2f} tiny runs, at most {MOST}; make it smaller, or mark it slow")
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
