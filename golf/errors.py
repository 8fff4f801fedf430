"""The ways a run ends badly that are not bugs. Doors print them as one line, without a traceback."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from golf.terminal import lasting_streams


class UserError(ValueError):
    """Bad input: the message names the key, the value and the fix. Doors exit with code 2."""


class RunError(RuntimeError):
    """A run that cannot go on: the message says at which step, why, and what was saved. Doors exit with `code`."""

    code = 1


class ExportError(RunError):
    """A trained run of whose weights no artifact, or no score of one, could be made. The weights are kept."""


class BusyError(RunError):
    """Another process is at work there."""


class StoppedError(RunError):
    """A signal asked for the end, and all is saved."""

    code = 130


P = ParamSpec("P")


def in_one_line(door: Callable[P, int]) -> Callable[P, int]:
    """Make a door's main print such an end as one line and return its exit code: 2 for bad input, else 1 or `code`."""

    @wraps(door)
    def main(*args: P.args, **kwargs: P.kwargs) -> int:
        with lasting_streams():
            try:
                return door(*args, **kwargs)
            except (UserError, RunError, OSError) as error:
                print(f"golf: {error}", file=sys.stderr)
                return 2 if isinstance(error, UserError) else getattr(error, "code", 1)

    return main
