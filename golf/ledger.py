"""The phase ledger: what each phase of a run took, which data it was to read, and which data files it opened."""

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PHASES = ("train", "calibrate", "quantise", "encode", "eval")
_watching: "list[Ledger]" = []


class Ledger:
    """seconds, reads and opened of each phase; a phase entered several times adds up.

    reads: splits that a phase says it reads. opened: splits whose files were opened meanwhile, seen by an audit hook of
    the interpreter; what happens outside of any other phase, and in other threads (loaders), belongs to training.
    """

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, Any]] = {name: {"seconds": 0.0, "reads": [], "opened": []} for name in PHASES}
        self.now = "train"
        self.homes: dict[str, str] = {}

    def add(self, name: str, seconds: float, reads: tuple[str, ...] = ()) -> None:
        phase = self.phases[name]
        phase["seconds"] += seconds
        phase["reads"] = sorted({*phase["reads"], *reads})

    def counted(self) -> float:
        """Seconds that count as training: the loop, and making the artifact where that reads the same text."""
        trained_on = set(self.phases["train"]["reads"])
        others = [phase for name, phase in self.phases.items() if name not in ("train", "eval")]
        read = sum(phase["seconds"] for phase in others if trained_on & set(phase["reads"]))
        return self.phases["train"]["seconds"] + read

    @contextmanager
    def phase(self, name: str, *reads: str) -> Iterator[None]:
        """Time what happens within; reads: names of the splits that it may open."""
        started, before, self.now = time.perf_counter(), self.now, name
        try:
            yield
        finally:
            self.now = before
            self.add(name, time.perf_counter() - started, reads)

    @contextmanager
    def watching(self, files: Mapping[str, list[Path]]) -> Iterator["Ledger"]:
        """Note which phase opens which split's files, from now on."""
        self.homes = {str(path.resolve()): split for split, paths in files.items() for path in paths}
        _install()
        _watching.append(self)
        try:
            yield self
        finally:
            _watching.remove(self)

    def note_open(self, path: str) -> None:
        split = self.homes.get(path)
        if split is not None:
            name = self.now if threading.current_thread() is threading.main_thread() else "train"
            phase = self.phases[name]
            phase["opened"] = sorted({*phase.get("opened", []), split})


_installed = False


def _install() -> None:
    """One hook a process: the interpreter lets none go."""
    global _installed
    if not _installed:
        sys.addaudithook(_seen)
        _installed = True


def _seen(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watching and isinstance(arguments[0], str | bytes | os.PathLike):
        path = str(Path(os.fsdecode(arguments[0])).resolve())
        for ledger in _watching:
            ledger.note_open(path)
