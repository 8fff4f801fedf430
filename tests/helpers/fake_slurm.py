"""sbatch, squeue, scancel, scontrol and srun for tests without SLURM.

State lies in one folder: NUMBER_INDEX.json for each job, and beside it, as .line, what squeue shows of it. Files there
that a test makes: `held` (nothing is started), `refuse` (sbatch does not submit), `mute` (it submits and says that it
failed), `deaf` (squeue fails). Jobs are processes of this machine (`python fake_slurm.py COMMAND ...`, with the folder
in $FAKE_SLURM), or live on a fake clock (tests/helpers/worlds.py).
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

OVER = ("COMPLETED", "FAILED", "CANCELLED")
LISTING = ["--me", "--noheader", "--array", "--states=all", "--format=%j|%K|%F|%T"]
ROUND_SECONDS = 0.05
MOST_RESTARTS = 3  # a job that is queued again for ever should fail a test soon

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "srun")
PROGRAM = """\
#!/bin/sh
exec {python} {file} {name} "$@"
"""
# The launcher asks often, and a shell begins sooner than Python.
SQUEUE = """\
#!/bin/sh
if [ ! -e {place}/deaf ] && [ "$*" = "{listing}" ]; then
    cat {place}/*.line 2>/dev/null
    exit 0
fi
exec {python} {file} squeue "$@"
"""

Job = dict[str, Any]


def write_programs(folder: Path, place: Path) -> None:
    """Write SLURM's commands into a folder for PATH. place: the state's folder."""
    for name in COMMANDS:
        words = {"python": sys.executable, "file": __file__, "place": place, "listing": " ".join(LISTING)}
        (folder / name).write_text((SQUEUE if name == "squeue" else PROGRAM).format(name=name, **words))
        (folder / name).chmod(0o755)


class Child(Protocol):
    """A job that runs."""

    def poll(self) -> int | None: ...


class Machine(Protocol):
    """Where jobs run."""

    def serve(self, script: str, array: int, at_once: int) -> None:
        """Bring the jobs of an array to their ends, by rounds."""

    def start(self, script: str, job: Job) -> Child: ...

    def signal(self, job: Job, number: int, *, whole: bool) -> None:
        """To job.sh alone, or to every process of the job."""


class Slurm:
    """The state of the queue, and the commands that read and change it."""

    def __init__(self, place: Path, machine: Machine):
        self.place, self.machine = place, machine

    def has(self, word: str) -> bool:
        return (self.place / word).exists()

    def read(self) -> list[Job]:
        return [json.loads(path.read_text()) for path in sorted(self.place.glob("*_*.json"))]

    def write(self, job: Job) -> None:
        line = f"{job['name']}|{job['index']}|{job['array']}|{job['state']}\n"
        for kind, text in (("json", json.dumps(job)), ("line", line)):
            path = self.place / f"{job['array']}_{job['index']}.{kind}"
            path.with_suffix(f".{os.getpid()}").write_text(text)
            path.with_suffix(f".{os.getpid()}").rename(path)

    def now(self, job: Job) -> Job:
        """The job as it stands by now."""
        return json.loads((self.place / f"{job['array']}_{job['index']}.json").read_text())

    def change(self, job: Job, **facts: object) -> None:
        self.write(self.now(job) | facts)

    def keep(self, name: str, arguments: list[str]) -> None:
        """Write down a command, for tests to see."""
        with open(self.place / f"{name}.txt", "a") as file:
            file.write(" ".join(arguments) + "\n")

    def call(self, name: str, arguments: list[str]) -> int:
        """Do as the command does; returns its exit code."""
        assert name in COMMANDS
        return getattr(self, name)(arguments)

    # ---------------------------------------------------------------- the cluster

    def round(self, script: str, array: int, at_once: int, going: dict[int, Child]) -> bool:
        """Start what may start, and note what has ended; False once all of an array has. going: its jobs that run."""
        jobs = [job for job in self.read() if job["array"] == array and job["state"] not in OVER]
        for job in jobs:
            child = going.get(job["index"])
            if child is None and job["state"] == "PENDING" and len(going) < at_once and not self.has("held"):
                going[job["index"]] = self.machine.start(script, job)
                self.change(job, state="RUNNING")
            elif child is not None and (code := child.poll()) is not None:
                del going[job["index"]]
                if self.now(job)["state"] == "RUNNING":
                    self.change(job, state="FAILED" if code else "COMPLETED", code=code)
        return bool(jobs)

    # ---------------------------------------------------------------- commands

    def sbatch(self, arguments: list[str]) -> int:
        script = arguments[-1]
        options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", Path(script).read_text(), re.MULTILINE))
        self.keep("sbatch", [script])
        if self.has("refuse"):
            print("sbatch: error: invalid partition specified: nowhere", file=sys.stderr)
            return 1
        found = re.fullmatch(r"(\d+)-(\d+)(%(\d+))?", options["array"])
        assert found is not None
        first, last, _, at_once = found.groups()
        array = 1 + max((job["array"] for job in self.read()), default=100)
        for index in range(int(first), int(last) + 1):
            number = array if index == int(last) else 1000 * array + index  # as SLURM has it: the last has the array's
            job = {"name": options["job-name"], "array": array, "index": index, "number": number}
            self.write(job | {"state": "PENDING", "code": 0, "restarts": 0})
        self.machine.serve(script, array, int(at_once or 9999))
        if self.has("mute"):
            said = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
            print(said, file=sys.stderr)
            return 1
        print(array)
        return 0

    def squeue(self, arguments: list[str]) -> int:
        if self.has("deaf"):
            print("squeue: error: Unable to contact slurm controller (connect failure)", file=sys.stderr)
            return 1
        if asked := [argument.split("=")[1] for argument in arguments if argument.startswith("--jobs=")]:
            print("\n".join(job["state"] for job in self.read() if meant(job, asked)))
            return 0
        assert arguments == LISTING
        print("".join(path.read_text() for path in sorted(self.place.glob("*.line"))), end="")
        return 0

    def scancel(self, arguments: list[str]) -> int:
        self.keep("scancel", arguments)
        names = [argument.split("=")[1] for argument in arguments if argument.startswith("--signal=")]
        for job in self.read():
            if not meant(job, arguments) or job["state"] in OVER:
                continue
            if names and job["state"] == "RUNNING":
                self.machine.signal(job, getattr(signal, f"SIG{names[0]}"), whole=False)
            elif not names:
                self.change(job, state="CANCELLED")
                if job["state"] == "RUNNING":
                    self.machine.signal(job, signal.SIGTERM, whole=True)
        return 0

    def scontrol(self, arguments: list[str]) -> int:
        self.keep("scontrol", arguments)
        if arguments[:2] == ["show", "hostnames"]:
            print("localhost")
        for job in self.read():
            if arguments[0] != "requeue" and meant(job, arguments):
                code = job["code"]
                print(f"JobId=1 ArrayJobId={job['array']} ExitCode={max(0, code)}:{max(0, -code)} RunTime=00:00:04")
            if arguments[0] == "requeue" and meant(job, arguments) and job["restarts"] < MOST_RESTARTS:
                self.change(job, state="PENDING", restarts=job["restarts"] + 1)
        return 0

    def srun(self, arguments: list[str]) -> int:
        """As many copies of the command as nodes, all of them here."""
        nodes = int(arguments[0].removeprefix("--nodes="))
        command = [
            argument for argument in arguments if not argument.startswith(("--nodes", "--ntasks", "--cpus", "--kill"))
        ]
        children = [subprocess.Popen(command) for _ in range(nodes)]
        signal.signal(signal.SIGTERM, lambda signum, frame: [child.terminate() for child in children])
        return max(abs(child.wait()) for child in children)


def meant(job: Job, names: list[str]) -> bool:
    """Whether a command's arguments name it: by its number, or the array's, or as an element of the array."""
    return bool({str(job["number"]), str(job["array"]), f"{job['array']}_{job['index']}"} & set(names))


def variables_of(job: Job) -> dict[str, str]:
    """What SLURM tells a job."""
    own = {"SLURM_JOB_ID": str(job["number"]), "SLURM_ARRAY_JOB_ID": str(job["array"])}
    return own | {"SLURM_ARRAY_TASK_ID": str(job["index"]), "SLURM_JOB_NODELIST": "localhost"}


class Processes:
    """Jobs as processes of this machine; an array is served by one more."""

    def __init__(self, place: Path):
        self.place = place

    def serve(self, script: str, array: int, at_once: int) -> None:
        line = [sys.executable, __file__, "serve", script, str(array), str(at_once)]
        subprocess.Popen(line, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start(self, script: str, job: Job) -> Child:
        child = subprocess.Popen(["bash", script], env=os.environ | variables_of(job), start_new_session=True)
        self._pid(job).write_text(str(child.pid))
        return child

    def signal(self, job: Job, number: int, *, whole: bool) -> None:
        (os.killpg if whole else os.kill)(int(self._pid(job).read_text()), number)

    def _pid(self, job: Job) -> Path:
        return self.place / f"{job['array']}_{job['index']}.pid"


def main(name: str, arguments: list[str]) -> int:
    place = Path(os.environ["FAKE_SLURM"])
    slurm = Slurm(place, Processes(place))
    if name != "serve":
        return slurm.call(name, arguments)
    going: dict[int, Child] = {}
    while slurm.round(arguments[0], int(arguments[1]), int(arguments[2]), going):
        time.sleep(ROUND_SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
