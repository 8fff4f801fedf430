"""Copies of a checkout, in which tests run while a line is another."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

MARK = "GOLF_MUTANTS_IN"  # an environment variable of all processes of a copy


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
        """Write a source file and delete the bytecode of what it was."""
        (self.folder / file).write_text(text)
        for bytecode in (self.folder / file).parent.glob(f"__pycache__/{Path(file).stem}.*"):
            bytecode.unlink()

    def test(self, tests: Iterable[str], timeout: float, *options: str) -> tuple[int, list[str]]:
        """Run these tests; return pytest's exit code (-1 where it hangs) and what it printed."""
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
