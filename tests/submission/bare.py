"""Runs a script where nothing of golf can be imported: in a process that never had it, or in this one."""

import contextlib
import importlib
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["torch", "numpy", "sentencepiece"])


def run_script(script: Path, environment: dict[str, str], log: Path) -> str:
    """Return what it printed; raise AssertionError with its end where it fails. Torch is imported once for all."""
    child = _server.Process(target=_run, args=(str(script), environment, str(log)))
    child.start()
    child.join(800)
    text = log.read_text()
    assert child.exitcode == 0, text[-3000:]
    return text


def run_script_here(script: Path, environment: dict[str, str], log: Path) -> str:
    """Do the same in this process, which has torch; the script's operators stay plain functions."""
    importlib.import_module("torch._dynamo")  # torch imports it late, and registers operators of its own in it

    handler = signal.getsignal(signal.SIGTERM)
    golf = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "golf"}
    try:
        with mock.patch.dict(os.environ, environment), mock.patch("torch.library.custom_op", _plain_operator):
            _without_golf(script, log)
    finally:
        signal.signal(signal.SIGTERM, handler)
        sys.modules.pop("golf", None)
        sys.modules.update(golf)
    return log.read_text()


def _run(script: str, environment: dict[str, str], log: str) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(environment)
    try:
        _without_golf(Path(script), Path(log))
    except BaseException:
        with open(log, "a") as file:
            traceback.print_exc(file=file)
        os._exit(1)


def _without_golf(script: Path, log: Path) -> None:
    """Run the script; what it prints goes to the log."""
    for name in [name for name in sys.modules if name.split(".")[0] == "golf"]:
        del sys.modules[name]
    sys.modules["golf"] = None  # type: ignore[assignment]
    with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        runpy.run_path(str(script), run_name="__main__")


def _plain_operator(name: str, **_: Any) -> Callable[[Callable], Callable]:
    """Stand in for torch.library.custom_op: golf has registered operators of these names in this process."""

    def decorate(function: Callable) -> Callable:
        function.register_fake = lambda fake: fake  # type: ignore[attr-defined]
        return function

    return decorate
