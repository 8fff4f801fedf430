"""Why a run of several ranks ended, from torchrun's summary and what a rank said last."""

from pathlib import Path

import pytest

from golf.launcher import jobs

FAILURE = "[{place}]:\n  host      : h\n  rank      : {rank} (local_rank: {rank})\n  exitcode  : {code} (pid: 7)\n"
CASES = {  # (rank, exit code) of each failure, the root cause last; rank that spoke last -> rank that was killed
    "the survivor is the root cause": ([(1, -9), (0, -15)], 0, "rank 1 killed by SIGKILL (by the kernel, "),
    "the survivor has a code": ([(1, -9), (0, 1)], 0, "rank 1 killed by SIGKILL (by the kernel, "),
    "the first of three": ([(2, -11), (1, 1), (0, 1)], 1, "rank 2 killed by SIGSEGV"),
    "the killed one is the root cause": ([(0, 1), (1, -9)], 0, "rank 1 killed by SIGKILL (by the kernel, "),
    "nobody spoke": ([(1, -9)], None, "rank 1 killed by SIGKILL (by the kernel, "),
    "a rank that spoke and then crashed": ([(0, -6)], 0, ""),
    "stopped by torchrun alone": ([(1, -15), (0, 1)], 0, ""),
    "an error": ([(0, 1)], 0, ""),
    "no summary": ([], 0, ""),
}


@pytest.mark.parametrize("name", CASES)
def test_a_killed_rank_is_named_before_those_that_lost_it(name: str, tmp_path: Path) -> None:
    failures, spoke, expected = CASES[name]
    log = tmp_path / "log"
    summary = "".join(FAILURE.format(place=i, rank=rank, code=code) for i, (rank, code) in enumerate(failures))
    log.write_text(
        f"=== an earlier attempt\n{FAILURE.format(place=0, rank=5, code=-9)}=== now: x\nRuntimeError\n{summary}"
    )
    said = jobs.killed_rank(log, {} if spoke is None else {"state": "failed", "rank": spoke})
    assert said.startswith(expected) and bool(said) == bool(expected)
