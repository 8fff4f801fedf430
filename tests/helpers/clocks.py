"""A clock on which tests wait without waiting, and lives on it that stand in for processes."""

import signal
import time
import traceback
from collections.abc import Callable, Generator
from typing import Any

import pytest

from tests.helpers.fake_workers import Signalled

LONGEST = 3_000.0  # seconds: who waits longer waits for what never comes
STEP = 1e-6

Acts = Generator[float, None, int]  # it yields the seconds that it sleeps, and returns an exit code


class FakeClock:
    """Stands in for the module `time`: a sleep returns at once, and all that happens until its end has happened."""

    strftime = staticmethod(time.strftime)

    def __init__(self) -> None:
        self.now = 1_000.0
        self.lives: list[Life] = []
        self.watches: list[tuple[Callable[[], object], Callable[[], object]]] = []

    def put_in(self, monkeypatch: pytest.MonkeyPatch, *modules: Any) -> None:
        """Have these modules wait on this clock."""
        for module in modules:
            monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        until = self.now + max(seconds, STEP)
        assert until < LONGEST, "it waits for what never comes"
        while (life := min(self.lives, key=lambda life: life.wakes, default=None)) and life.wakes <= until:
            self.now = max(self.now, life.wakes)
            self._watch()
            life.go_on()
        self.now = max(self.now, until)
        self._watch()

    def _watch(self) -> None:
        for watch in [watch for watch in self.watches if watch[0]()]:
            self.watches.remove(watch)
            watch[1]()

    def when(self, true: Callable[[], object], act: Callable[[], object]) -> None:
        """Act once it is true, while someone sleeps."""
        self.watches.append((true, act))

    def start(self, name: str, acts: Acts, say: Callable[[str], object] | None = None) -> "Life":
        """Begin a life. name: what a list of processes would show; say: takes the traceback of its exception, which
        else is the test's."""
        life = Life(self, name, acts, say)
        life.go_on()
        return life


class Life:
    """What a process would do, on a fake clock. code: its exit code (minus a signal's number), None while it lives."""

    def __init__(self, clock: FakeClock, name: str, acts: Acts, say: Callable[[str], object] | None):
        self.clock, self.name, self.acts, self.say = clock, name, acts, say
        self.wakes = clock.now
        self.code: int | None = None
        clock.lives.append(self)

    def go_on(self) -> None:
        """To its next sleep, or to its end."""
        self._advance(lambda: next(self.acts))

    def signal(self, number: int) -> None:
        if self.code is None and number == signal.SIGKILL:
            self._end(-number)
        elif self.code is None:
            self._advance(lambda: self.acts.throw(Signalled(number)))

    def _advance(self, step: Callable[[], float]) -> None:
        try:
            self.wakes = self.clock.now + step()
        except StopIteration as end:
            self._end(end.value)
        except Signalled as told:
            self._end(-told.number)
        except Exception:
            if self.say is None:
                raise
            self.say(traceback.format_exc())
            self._end(1)

    def _end(self, code: int) -> None:
        self.code = code
        self.clock.lives.remove(self)
