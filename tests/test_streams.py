"""Processes whose streams are gone go on as if they were read."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from golf.code_record import ROOT
from tests.helpers.runs import Job

SCRIPT = """
import os, sys
from golf.terminal import lasting_streams
with lasting_streams():
    number = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    for _ in range(3):
        print("x" * 100_000)
        print("x" * 100_000, file=sys.stderr)
    print("a last word", end="")
sys.exit(0 if number > 2 else 9)
"""


@pytest.mark.parametrize("redirection", [">&- 2>&- <&-", "<&- | true", "2>&1 | head -c 3", "> /dev/full 2> /dev/full"])
def test_a_process_ends_as_if_it_were_read(redirection: str, tmp_path: Path) -> None:
    """Its files are never taken for a stream that is closed; nothing fails while Python ends."""
    line = f'{sys.executable} -c "$SCRIPT" {tmp_path / "file"} {redirection}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", line], env={**os.environ, "SCRIPT": SCRIPT}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.slow
def test_a_run_outlives_its_reader(job: Callable[..., Job]) -> None:
    """As `| head -3` leaves it: trained to the end, scored, and exit code 0."""
    one = job("budget.max_steps=40", "log.every_steps=1")
    process = one.start()
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(600) == 0 and one.result()["steps"] == 40
