"""Runs a function in a forked copy of the test process: what it does to modules and limits stays there."""

import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any


def in_a_fork(work: Callable[[], Any]) -> Any:
    """Return what work() returns in a process of its own, which has all modules of this one already imported."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def run() -> None:
        try:
            found = (work(), "")
        except BaseException:
            found = (None, traceback.format_exc())
        send.send(found)

    child = context.Process(target=run)
    child.start()
    send.close()
    try:
        result, error = receive.recv()
    except EOFError:
        result, error = None, "the process died"
    child.join()
    assert not error, error
    return result
