"""Changed artifacts; python tests/artifact/fuzz.py reads as many as one likes."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.artifact.fuzz import fuzz
from tests.helpers.forks import in_a_fork

FILES, SEED = 150, 3


def assert_all_kinds(counts: Counter, files: int) -> None:
    """Damage is always refused, lying headers nearly always, and some payloads under forged checksums are read."""
    assert counts["damage", "read"] == 0 and counts["damage", "refused"] > files / 8, counts
    assert counts["header", "refused"] > files / 4 and counts["forged", "read"] > 0, counts
    assert counts["payload", "refused"] > files / 8, counts


def test_changed_artifacts_are_read_right_or_refused(tmp_path: Path) -> None:
    """In a fork, whose memory is limited."""
    counts = in_a_fork(lambda: fuzz(FILES, SEED, tmp_path, limited=True))
    assert_all_kinds(counts, FILES)


@pytest.mark.timeout(3600)
@pytest.mark.wide
def test_twenty_thousand_changed_artifacts_are_read_right_or_refused() -> None:
    """By the script, in a process of its own."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("fuzz.py"), "20000", "--seed", str(SEED)],
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    counts = Counter({(kind, outcome): int(times.replace(",", "")) for kind, outcome, times in lines})
    assert_all_kinds(counts, 20_000)
