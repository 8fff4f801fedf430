"""Finished toy runs, and the scripts that are to do the same."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from golf.config import Run
from golf.requantise import open_source
from golf.rundir import RunDir
from golf.submission.logs import last_line
from golf.tokens.prepare import Prepared
from tests.submission.bare import run_script, run_script_here


@dataclass(frozen=True)
class Trained:
    """A finished toy run."""

    run: Run
    prepared: Prepared
    folder: RunDir

    @classmethod
    def of(cls, folder: Path) -> Self:
        source = open_source(folder, weights=False)
        return cls(source.run, source.prepared, source.folder)

    @property
    def result(self) -> dict[str, Any]:
        return json.loads(self.folder.result.read_text())

    def script(self, file: bytes | str, place: Path, *, bare: bool) -> tuple[bytes, dict[str, Any]]:
        """Run a script on this run's text, in an empty folder; return its artifact and its last line.

        bare: in a process that never had golf, else in this one.
        """
        place.mkdir()
        path = place / "train_gpt.py"
        path.write_bytes(file.encode() if isinstance(file, str) else file)
        told = {"DATA_PATH": str(self.prepared.folder), "OUT": str(place), "SEED": str(self.run.seed)}
        said = last_line((run_script if bare else run_script_here)(path, told, place / "log.txt"))
        assert said is not None
        return (place / "artifact.golf").read_bytes(), said


@pytest.fixture(scope="session")
def trained(finished: Callable[..., Path]) -> Callable[..., Trained]:
    """trained(*overrides) -> a run of them, made to its end once for all processes."""
    return lambda *overrides: Trained.of(finished(*overrides))
