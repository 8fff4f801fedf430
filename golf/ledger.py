"""The phase ledger: what each phase of a run took, and which data it read."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PHASES = ("train", "calibrate", "quantise", "encode", "eval")


class Ledger:
    """seconds and reads of each phase; a phase entered several times adds up."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, Any]] = {name: {"seconds": 0.0, "reads": []} for name in PHASES}

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
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started, reads)
