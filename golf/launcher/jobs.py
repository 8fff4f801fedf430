"""From a typed run to a run folder and the command that works in it; a lone run and a sweep's cell are the same."""

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from golf.code_record import ROOT
from golf.config import Run, fingerprint, identity
from golf.errors import RunError
from golf.launcher.processes import ATTEMPT, bound_to, signals_to_obey, without_torchrun
from golf.launcher.slots import Slot
from golf.nodes import plain
from golf.rundir import LONE, Made, RunDir, choose_folder, made_now, make_folder, read_json
from golf.tokens.prepare import Prepared

TAIL_LINES = 15
# torchrun's options where all ranks are on one machine: the name that it calls itself need not resolve to an address.
ONE_NODE = ("--standalone", "--local-addr=127.0.0.1")
# torchrun's account of a rank that failed: a log line, its own traceback, and a summary with the root cause last.
TORCHRUN_FAILED = re.compile(r"^E\d{4} .*torch/distributed/elastic.*failed \(exitcode", re.MULTILINE)
TORCHRUN_CAUSE = re.compile(r"rank +: (\d+) .*\n *exitcode +: (-?\d+)")


def group_of(run: Run) -> Path:
    """The folder that a run's folder is in: of its sweep, or of all lone runs."""
    return Path(run.outputs).resolve() / (run.sweep_label or LONE)


def folder_of(run: Run, digest: str, there: Mapping[str, list[int]] | None = None) -> RunDir:
    """Where the run of this fingerprint is, or will be; nothing is made. there: attempts_in(group_of(run))."""
    outputs = Path(run.outputs).resolve()
    return choose_folder(outputs, run.sweep_label, run.label, run.seed, digest, rerun=run.rerun, there=there)


def open_run(
    run: Run,
    prepared: Prepared,
    command: list[str],
    folder: RunDir | None = None,
    made: Callable[[], Made] = made_now,
) -> tuple[RunDir, dict[str, Any] | None]:
    """The run's folder, made or found, and its result where it is finished. BusyError where another process has it.

    folder: folder_of() the run, where it is known already; made: what it is made with, if it is new.
    """
    digest = fingerprint(run, prepared.digest)
    folder = folder or folder_of(run, digest)
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.lock():
        finished, before = folder.finished(), read_json(folder.config)
        if isinstance(before, dict) and before.get("fingerprint") != digest:
            raise RunError(f"{folder.path}: holds another run whose hash begins alike; give this one another label")
        if finished is None:
            node = plain(run)
            config = {
                "run": node,
                "prepared": {"folder": str(prepared.folder), "digest": prepared.digest},
                "fingerprint": digest,
                "config_hash": fingerprint(run, prepared.digest, with_seed=False),
                "identity": identity(run, prepared.digest),
            }
            make_folder(folder, config, as_yaml(node), command, made)
            folder.set_status("starting")  # so that what an earlier attempt said is not taken for this one's word
    return folder, finished


def as_yaml(node: dict[str, Any]) -> str:
    """For people; the dumper in C, where the package has it, since a sweep of thousands writes thousands."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(node, Dumper=dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def worker_line(folder: RunDir) -> list[str]:
    """The command line of one rank."""
    return [str(ROOT / "golf" / "worker.py"), str(folder.path)]


def worker_command(run: Run, folder: RunDir, slot: Slot) -> tuple[list[str], dict[str, str]]:
    """(command line, environment) of a run's process or processes on this machine."""
    environment = without_torchrun(os.environ) | slot.environment(run)
    if run.launch.nproc == 1:
        return [sys.executable, *worker_line(folder)], environment
    environment |= torchrun_variables(run)
    return [*torchrun_line(run.launch.nproc), *ONE_NODE, *worker_line(folder)], environment


def torchrun_line(nproc: int) -> list[str]:
    """The beginning of torchrun's command line, for so many ranks on a node; the rendezvous and the worker follow."""
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={nproc}"]


def torchrun_variables(run: Run) -> dict[str, str]:
    """Ranks have all of the grace to save; else it would be 30 seconds."""
    return {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(run.launch.grace_seconds))}


def supervise(command: list[str], environment: dict[str, str], folder: RunDir) -> int:
    """Run torchrun to its end and give the run's own exit code and message; torchrun's go to log/torchrun.txt.

    SIGTERM, SIGINT and SIGHUP are passed on as SIGTERM, which torchrun gives to every rank (killed, it would leave
    them). torchrun has a session of its own, as a terminal's signals would else come to it twice.
    """
    log = folder.path / "log" / "torchrun.txt"
    with open(log, "w") as errors:
        child = subprocess.Popen(
            command, env=environment, stderr=errors, preexec_fn=bound_to(os.getpid()), start_new_session=True
        )
        for number in signals_to_obey((signal.SIGTERM, signal.SIGINT, signal.SIGHUP)):
            signal.signal(number, lambda signum, frame: child.send_signal(signal.SIGTERM))
        code = child.wait()
    if code == 0:
        return 0
    status = folder.get_status()
    if killed := killed_rank(log, status):
        print(f"golf: {killed}; the same command goes on from what was saved", file=sys.stderr)
        with contextlib.suppress(OSError):  # a full disk: it is said above
            folder.set_status("failed", step=status.get("step"), code=1, message=killed)
        return 1
    if status.get("state") in ("stopped", "failed"):
        print(f"golf: {status['message']}", file=sys.stderr)
        return int(status["code"])
    print(f"golf: a rank died without a word; the end of {log}:\n{tail(log)}", file=sys.stderr)
    return 1


def last_attempt(log: Path) -> str:
    """What the processes of the last attempt printed; empty where there is no log."""
    try:
        return log.read_text(errors="replace").rsplit(ATTEMPT, 1)[-1]
    except OSError:
        return ""


def tail(log: Path) -> str:
    """The last lines that a run's ranks printed, without torchrun's account of their end."""
    text = last_attempt(log)
    failed = TORCHRUN_FAILED.search(text)
    return "\n".join((text[: failed.start()] if failed else text).splitlines()[-TAIL_LINES:])


def rank_that_died(log: Path) -> tuple[int, int] | None:
    """(rank, exit code) of the rank that failed first, from torchrun's summary; torchrun itself gives 1.

    A rank that was killed comes before all others: it cannot say when it died, and those that lost their connection to
    it then can. torchrun itself sends SIGTERM to those that are left.
    """
    causes = [(int(rank), int(code)) for rank, code in TORCHRUN_CAUSE.findall(last_attempt(log))]
    killed = [(rank, code) for rank, code in causes if code < 0 and code != -signal.SIGTERM]
    return [*causes, *killed[:1]][-1] if causes else None


def killed_rank(log: Path, status: Mapping[str, Any]) -> str:
    """Say which rank was killed, where another rank's status tells of nothing but its lost connection; else empty."""
    died = rank_that_died(log)
    if died is None or died[1] >= 0 or died[1] == -signal.SIGTERM or died[0] == status.get("rank"):
        return ""
    return f"rank {died[0]} {meaning(died[1])}"


def meaning(code: int) -> str:
    """Say in words how a process ended."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (by the kernel, when memory runs out)" if name == "SIGKILL" else "")
    return f"ended with exit code {code} and without a word; the end of its log may tell"
