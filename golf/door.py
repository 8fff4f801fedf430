"""What every door shares: the state of its process before it begins, and the one line of an end that is no bug."""

import codecs
import locale
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from golf.errors import RunError, UserError
from golf.launcher.processes import is_rank
from golf.terminal import lasting_streams

SCRIPTS = Path(__file__).resolve().parent
P = ParamSpec("P")


def in_one_line(door: Callable[P, int]) -> Callable[P, int]:
    """Make a door's main print such an end as one line and return its exit code: 2 for bad input, else 1 or `code`.

    What is printed outlives its readers. The process of another program that calls a door stays as it is.
    """

    @wraps(door)
    def main(*args: P.args, **kwargs: P.kwargs) -> int:
        own = is_own_process()
        if own:
            read_utf8()
        with lasting_streams():
            try:
                if own and ranks_asked() is not None and os.environ["RANK"] != "0":
                    return 0  # one process does what a door does; it starts ranks of its own
                return door(*args, **kwargs)
            except (UserError, RunError, OSError) as error:
                print(f"golf: {error}", file=sys.stderr)
                return 2 if isinstance(error, UserError) else getattr(error, "code", 1)

    return main


def is_own_process() -> bool:
    """Return whether the program of this process is one of golf's scripts."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    return program is not None and Path(program).resolve().parent == SCRIPTS


def read_utf8() -> None:
    """Take file names and files as UTF-8, whatever the locale says.

    Python chooses at its start how it reads, so where the locale has another encoding this process starts anew.
    """
    if not sys.flags.utf8_mode and codecs.lookup(locale.getpreferredencoding(False)).name != "utf-8":
        environment = os.environ | {"PYTHONUTF8": "1"}
        if sys.stdout is not None:  # the terminal's encoding stays
            environment.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def ranks_asked() -> int | None:
    """Return how many ranks torchrun has started of this door; None where it has not.

    Raises UserError where they are on several machines, which golf reaches through SLURM alone.
    """
    if not is_rank(sys.argv):
        return None
    if int(os.environ["GROUP_WORLD_SIZE"]) > 1:
        raise UserError("torchrun --nnodes: golf starts ranks on several machines with launch=slurm launch.nodes=N")
    return int(os.environ["WORLD_SIZE"])
