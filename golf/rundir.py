"""A run is a folder. Every file is written to a temporary name and renamed; a finished folder is never rewritten."""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from golf import alive, code_record
from golf.errors import BusyError, UserError
from golf.files import MOST_TEXT, parse_json, read_bytes, read_text
from golf.records import Result, Status, read_record

# Variables that choose how sums are taken, and so change the last digits of a score.
DIGITS = re.compile(
    r"(MKL|DNNL|ONEDNN|OPENBLAS|KMP)_\w+|ATEN_CPU_CAPABILITY|OMP_(DYNAMIC|THREAD_LIMIT)|CUBLAS_WORKSPACE_CONFIG"
    r"|NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32\w*|NCCL_(ALGO|PROTO)"
)
ATTEMPT_NAME = re.compile(r"(.+-s\d+-[0-9a-f]{8})(?:-r(\d+))?")  # of a run's folder
LONE = "single"  # the folder of runs that are in no sweep
PACKAGES = (
    "torch",
    "numpy",
    "hydra-core",
    "omegaconf",
    "sentencepiece",
    "safetensors",
    "zstandard",
    "wandb",
    "flash-attn",
)


def write_bytes(path: Path, data: bytes) -> None:
    """Write beside, flush to disk, rename."""
    with alive.written_beside(path) as temporary, open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, text: str) -> None:
    """Write a text as write_bytes() does; what is no UTF-8 in it comes out as it came in."""
    write_bytes(path, text.encode(errors="surrogateescape"))


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any | None:
    """Return the JSON in a file; None where the file is absent, not whole, or none that golf would write."""
    try:
        return parse_json(read_bytes(path, MOST_TEXT))
    except (OSError, ValueError):
        return None


def illegal(result: dict[str, Any]) -> bool:
    """Whether the run, or the evaluator of its score, breaks a rule: such a score is marked wherever it is shown."""
    main = result.get("evals", {}).get(result.get("eval_main"), {})
    return result.get("legal") is False or main.get("legal") is False


def marks(result: dict[str, Any]) -> list[str]:
    """Return what stands beside a score wherever it is shown: words for what a reader must not overlook."""
    codes = result.get("codes")
    found = ["ILLEGAL"] if illegal(result) else []
    if isinstance(codes, list) and len(codes) > 1:
        found.append(f"MADE BY {len(codes)} CODES")
    if missed := result.get("never_begun"):
        found.append(f"NEVER BEGUN: {', '.join(missed)}")
    return found


@dataclass(frozen=True, slots=True)
class RunDir:
    """Names of the files of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log" / "rank0.txt"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint" / "latest.safetensors"

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def trained(self) -> Path:
        """What was measured in training, written once the weights are kept and before they are quantised."""
        return self.path / "trained.json"

    @property
    def artifact(self) -> Path:
        return self.path / "artifact.golf"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def command(self) -> list[str]:
        """Return the words that the run was started with, its script first. UserError where they cannot be read."""
        path = self.path / "command.txt"
        try:
            return shlex.split(read_text(path))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UserError(f"{path}: is no command line ({reason}); train the run again") from None

    def finished(self) -> dict[str, Any] | None:
        """The result of a run that ended well; None where there is none, or what stands there is no result of it."""
        result = read_record(self.result, Result)
        if result is None or result.get("status") != "done":
            return None
        config = read_json(self.config)
        mine = not isinstance(config, dict) or result["fingerprint"] == config.get("fingerprint")
        return result if mine else None

    def set_status(self, state: str, **facts: Any) -> None:
        """state: starting, running, stopped, failed or done."""
        who = {"host": socket.gethostname(), "machine": alive.machine(), "pid": os.getpid()}
        who["process_began"] = alive.began(os.getpid())
        status = json.dumps({"state": state, **who, "time": time.time(), **facts}, indent=2) + "\n"
        try:
            write_atomic(self.status, status)
        except OSError:
            if not self.status.is_file():
                raise
            _overwrite(self.status, status)

    def get_status(self) -> dict[str, Any]:
        """What set_status last wrote; empty where nothing readable stands."""
        return read_record(self.status, Status) or {}

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the folder, or raise BusyError: a second process on a run is refused."""

        def busy() -> str:
            pid = self.get_status().get("pid", "unknown")
            return f"another process (pid {pid}) is at work here; wait for it or stop it"

        alive.sweep(self.path)
        alive.sweep(self.checkpoint.parent)
        return hold(self.path, busy)


@contextlib.contextmanager
def hold(folder: Path, busy: Callable[[], str]) -> Iterator[None]:
    """Hold a folder, or raise BusyError in the words of `busy`. The lock dies with its holder."""
    with open(folder / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{folder}: {busy()}") from None
        yield


def _overwrite(path: Path, text: str) -> None:
    """Write over a small file in its place: on a full disk there is room for that where there is none for a new one."""
    with open(path, "r+") as file:
        file.write(text)
        file.truncate()


def attempts_in(group: Path) -> dict[str, list[int]]:
    """name of a run -> numbers of its folders (1, then 2, 3 ... for re-runs) in `group`, by one look at it."""
    found: dict[str, list[int]] = {}
    for name in os.listdir(group) if group.is_dir() else ():
        if match := ATTEMPT_NAME.fullmatch(name):
            found.setdefault(match[1], []).append(int(match[2] or 1))
    return found


def choose_folder(
    outputs: Path,
    sweep: str | None,
    label: str,
    seed: int,
    digest: str,
    *,
    rerun: bool,
    there: Mapping[str, list[int]] | None = None,
) -> RunDir:
    """outputs/<sweep or single>/<label>-s<seed>-<hash8>, or its newest re-run (-r2, -r3 ...); rerun=True begins one.

    A lone run that was started under another label, which is no part of what it is, keeps its folder.
    there: attempts_in() of that folder, where many are chosen: a look for each would be as long as all of them.
    """
    end = f"-s{seed}-{digest[:8]}"
    base, group = f"{label}{end}", outputs / (sweep or LONE)
    there = attempts_in(group) if there is None else there
    if sweep is None and base not in there:
        base = next((name for name in sorted(there) if name.endswith(end) and _is_of(group / name, digest)), base)
    taken = there.get(base, [])
    newest = max(taken, default=1)
    if rerun and taken and RunDir(_attempt(group, base, newest)).finished():
        newest += 1
    return RunDir(_attempt(group, base, newest))


def _is_of(folder: Path, digest: str) -> bool:
    """Whether a folder is of the run with this fingerprint."""
    config = read_json(RunDir(folder).config)
    return isinstance(config, dict) and config.get("fingerprint") == digest


def _attempt(group: Path, base: str, number: int) -> Path:
    return group / (base if number == 1 else f"{base}-r{number}")


@dataclass(frozen=True, slots=True)
class Made:
    """What an attempt is made with: the code's changes beyond the commit, as a patch, and environment()."""

    changes: bytes
    environment: dict[str, Any]


def made_now() -> Made:
    """Return that of this moment. It asks git and the driver: some tenths of a second."""
    patch = b""
    with contextlib.suppress(code_record.GitError):
        patch = code_record.changes()
    return Made(patch, environment(patch))


ATTEMPTS = "attempts.jsonl"


def make_folder(
    folder: RunDir, config: dict[str, Any], config_yaml: str, command: list[str], made: Callable[[], Made] = made_now
) -> None:
    """Write the folder's description, and a record of this attempt.

    environment.json and diff.patch are the first attempt's; attempts.jsonl has a line for each, whose `patch` names the
    file with its changes: a run that goes on under other code has been made by both.
    """
    (folder.path / "log").mkdir(parents=True, exist_ok=True)
    write_json(folder.config, config)
    write_atomic(folder.path / "config.yaml", config_yaml)
    write_atomic(folder.path / "command.txt", shlex.join(command) + "\n")
    now, patch = made(), folder.path / "diff.patch"
    if not (folder.path / "environment.json").exists():
        write_bytes(patch, now.changes)
        write_json(folder.path / "environment.json", now.environment)
    elif not patch.exists() or patch.read_bytes() != now.changes:
        patch = folder.path / f"diff-{hashlib.sha256(now.changes).hexdigest()[:8]}.patch"
        write_bytes(patch, now.changes)
    attempt = {"time": time.time(), "host": socket.gethostname(), "command": command, "patch": patch.name}
    with open(folder.path / ATTEMPTS, "a") as file:
        file.write(json.dumps(attempt | {"environment": now.environment}) + "\n")


def environment(patch: bytes | None = None) -> dict[str, Any]:
    """Versions, code and hardware, as result.json and the run folder keep them. patch: the code's, if it is known."""
    return {
        "python": platform.python_version(),
        "golf": version("golf"),
        **{name.replace("-core", ""): _version(name) for name in PACKAGES},
        **code_record.record(patch),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpus": _gpu_names(),
        "cuda": torch.version.cuda,
        "variables": {name: value for name, value in sorted(os.environ.items()) if DIGITS.fullmatch(name)},
    }


def _version(package: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return None


def _gpu_names() -> list[str]:
    """Of this process's devices; where it has touched none (a launcher never does), of the machine's."""
    if torch.cuda.is_initialized():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def cpu_name() -> str:
    """Return how this machine calls its processor."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def require_writable(folder: Path, key: str) -> None:
    """Raise UserError where a folder cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alive.temporary_folder("probe", folder):  # a name of its own: threads try at once
            pass
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be written ({error.strerror}); choose another folder") from None
