"""Toy runs made in this process, and the scripts that are to do the same."""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from golf import worker
from golf.compose import compose
from golf.config import Run
from golf.launcher import jobs
from golf.rundir import RunDir
from golf.submission.logs import last_line
from golf.tokens.prepare import Prepared
from tests.helpers.runs import toy_overrides
from tests.submission.bare import run_script


@dataclass(frozen=True)
class Trained:
    """A finished toy run."""

    run: Run
    prepared: Prepared
    folder: RunDir

    @property
    def result(self) -> dict[str, Any]:
        return json.loads(self.folder.result.read_text())

    def script(self, file: bytes | str, place: Path) -> tuple[bytes, dict[str, Any]]:
        """Run a script on this run's text, in an empty folder; its artifact and its last line."""
        place.mkdir()
        path = place / "train_gpt.py"
        path.write_bytes(file.encode() if isinstance(file, str) else file)
        told = {"DATA_PATH": str(self.prepared.folder), "OUT": str(place), "SEED": str(self.run.seed)}
        said = last_line(run_script(path, told, place / "log.txt"))
        assert said is not None
        return (place / "artifact.golf").read_bytes(), said


@pytest.fixture(scope="session")
def trained(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """trained(*overrides) -> a run of them, to its end."""
    outputs = tmp_path_factory.mktemp("submitted") / "outputs"

    def make(*extra: str) -> Trained:
        overrides = toy_overrides(toy_folder, [f"outputs={outputs}", *extra])
        run = compose(overrides)
        prepared = run.data.prepare(Path(run.data_dir), log=lambda line: None)
        folder, _ = jobs.open_run(run, prepared, ["golf/train.py", *overrides])
        before = signal.getsignal(signal.SIGTERM)
        try:
            assert worker.main(str(folder.path)) == 0
        finally:
            signal.signal(signal.SIGTERM, before)
        return Trained(run, prepared, folder)

    return make
