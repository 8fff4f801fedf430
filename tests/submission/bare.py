"""Runs a script where nothing of golf can be imported. This file imports nothing of golf either."""

import contextlib
import multiprocessing
import os
import runpy
import sys
import traceback
from pathlib import Path

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["torch", "numpy", "sentencepiece"])


def run_script(script: Path, environment: dict[str, str], log: Path) -> str:
    """What it printed; AssertionError with its end where it fails. Torch is imported once for all scripts."""
    child = _server.Process(target=_run, args=(str(script), environment, str(log)))
    child.start()
    child.join(800)
    text = log.read_text()
    assert child.exitcode == 0, text[-3000:]
    return text


def _run(script: str, environment: dict[str, str], log: str) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(environment)
    for name in [name for name in sys.modules if name.split(".")[0] == "golf"]:
        del sys.modules[name]
    sys.modules["golf"] = None  # type: ignore[assignment]
    with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            runpy.run_path(script, run_name="__main__")
        except BaseException:
            traceback.print_exc(file=file)
            file.flush()
            os._exit(1)
