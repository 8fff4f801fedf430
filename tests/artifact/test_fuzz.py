"""A few hundred changed artifacts; python tests/artifact/fuzz.py reads twenty thousand."""

import subprocess
import sys
from pathlib import Path

import pytest

FILES = 400


@pytest.mark.wide
def test_changed_artifacts_are_read_right_or_refused() -> None:
    """In a process of its own, whose memory is limited."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("fuzz.py"), str(FILES), "--seed", "3"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {tuple(line.split()[:2]): int(line.split()[2]) for line in done.stdout.splitlines()}
    assert ("damage", "read") not in counts and counts["damage", "refused"] > FILES / 8
    assert counts["header", "refused"] > FILES / 4 and counts["forged", "read"] > 0, counts
    assert counts["payload", "refused"] > FILES / 8
