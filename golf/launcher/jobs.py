"""From a typed run to a run folder and the command that works in it; a lone run and a sweep's cell are the same."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from golf.checks import threads
from golf.config import Run, fingerprint
from golf.errors import RunError
from golf.nodes import plain
from golf.rundir import ROOT, RunDir, choose_folder, make_folder
from golf.tokens.prepare import Prepared

TAIL_LINES = 15


def open_run(run: Run, prepared: Prepared, outputs: Path, command: list[str]) -> tuple[RunDir, dict[str, Any] | None]:
    """The run's folder, made or found, and its result where it is finished already. RunError where it is at work."""
    digest = fingerprint(run, prepared.digest)
    folder = choose_folder(outputs, run.sweep, run.label, run.seed, digest, rerun=run.rerun)
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.lock():
        finished = folder.finished()
        if finished is not None and finished["fingerprint"] != digest:
            raise RunError(f"{folder.path}: holds another run whose hash begins alike; give this one another label")
        if finished is None:
            node = plain(run)
            config = {
                "run": node,
                "prepared": {"folder": str(prepared.folder), "digest": prepared.digest},
                "fingerprint": digest,
                "config_hash": fingerprint(run, prepared.digest, with_seed=False),
            }
            make_folder(folder, config, OmegaConf.to_yaml(OmegaConf.create(node)), command)
    return folder, finished


def worker_command(run: Run, folder: RunDir) -> tuple[list[str], dict[str, str]]:
    """(command line, environment) of a run's process or processes."""
    worker = [str(ROOT / "golf" / "worker.py"), str(folder.path)]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads(run)),
        "OMP_WAIT_POLICY": run.launch.wait_policy.upper(),
    }
    if run.launch.nproc == 1:
        return [sys.executable, *worker], environment
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={run.launch.nproc}"]
    return [sys.executable, *torchrun, *worker], environment


def supervise(command: list[str], environment: dict[str, str], folder: RunDir) -> int:
    """Run torchrun to its end and give the run's own exit code and message; torchrun's go to log/torchrun.txt.

    SIGTERM and SIGINT are passed on as SIGTERM, which torchrun gives to every rank (killed, it would leave them).
    """
    log = folder.path / "log" / "torchrun.txt"
    with open(log, "w") as errors:
        child = subprocess.Popen(command, env=environment, stderr=errors)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda signum, frame: child.send_signal(signal.SIGTERM))
        code = child.wait()
    if code == 0:
        return 0
    status = folder.get_status()
    if status.get("state") in ("stopped", "failed"):
        print(f"golf: {status['message']}", file=sys.stderr)
        return int(status["code"])
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
    print(f"golf: a rank died without a word; the end of {log}:\n{tail}", file=sys.stderr)
    return 1
