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

    @contextmanager
    def phase(self, name: str, *reads: str) -> Iterator[None]:
        """Time what happens within; reads: names of the splits that it may open."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started, reads)
