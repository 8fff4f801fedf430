"""From a typed run to a run folder and the command that works in it; a lone run and a sweep's cell are the same."""

import os
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from golf.checks import threads
from golf.config import Run, fingerprint
from golf.nodes import plain
from golf.rundir import ROOT, RunDir, choose_folder, make_folder
from golf.tokens.prepare import Prepared


def open_run(run: Run, prepared: Prepared, outputs: Path, command: list[str]) -> tuple[RunDir, dict[str, Any] | None]:
    """The run's folder, made or found, and its result where it is finished already."""
    digest = fingerprint(run, prepared.digest)
    folder = choose_folder(outputs, run.sweep, run.label, run.seed, digest, rerun=run.rerun)
    finished = folder.finished()
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
