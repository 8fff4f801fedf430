"""sbatch, squeue, scancel, scontrol and srun for tests without SLURM: jobs are processes of this machine.

State lies in the folder $FAKE_SLURM, a file for each job. Files there that a test makes: `held` (nothing is started),
`refuse` (sbatch does not submit), `mute` (it submits and says that it failed), `deaf` (squeue fails).
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

PLACE = Path(os.environ["FAKE_SLURM"])
OVER = ("COMPLETED", "FAILED", "CANCELLED")


def read() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(PLACE.glob("*_*.json"))]


def write(job: dict) -> None:
    path = PLACE / f"{job['array']}_{job['index']}.json"
    path.with_suffix(f".{os.getpid()}").write_text(json.dumps(job))
    path.with_suffix(f".{os.getpid()}").rename(path)


def change(job: dict, **facts: object) -> dict:
    """The job as it stands by now, with these facts."""
    now = json.loads((PLACE / f"{job['array']}_{job['index']}.json").read_text()) | facts
    write(now)
    return now


def meant(job: dict, names: list[str]) -> bool:
    """Whether a command's arguments name it: by its number, or the array's, or as an element of the array."""
    return bool({str(job["number"]), str(job["array"]), f"{job['array']}_{job['index']}"} & set(names))


def sbatch(arguments: list[str]) -> int:
    script = arguments[-1]
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", Path(script).read_text(), re.MULTILINE))
    with open(PLACE / "sbatch.txt", "a") as file:
        file.write(f"{script}\n")
    if (PLACE / "refuse").exists():
        print("sbatch: error: invalid partition specified: nowhere", file=sys.stderr)
        return 1
    first, last, _, at_once = re.fullmatch(r"(\d+)-(\d+)(%(\d+))?", options["array"]).groups()  # type: ignore[union-attr]
    array = 1 + max((job["array"] for job in read()), default=100)
    for index in range(int(first), int(last) + 1):
        number = array if index == int(last) else 1000 * array + index  # as SLURM has it: the last has the array's
        job = {"name": options["job-name"], "array": array, "index": index, "number": number}
        write(job | {"state": "PENDING", "code": 0, "restarts": 0})
    rest = [sys.executable, __file__, "run", script, str(array), at_once or "9999"]
    subprocess.Popen(rest, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if (PLACE / "mute").exists():
        print("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", file=sys.stderr)
        return 1
    print(array)
    return 0


def run(arguments: list[str]) -> int:
    """The cluster: starts what is pending of one array, to its end."""
    script, array, at_once = arguments[0], int(arguments[1]), int(arguments[2])
    going: dict[int, subprocess.Popen] = {}
    while jobs := [job for job in read() if job["array"] == array and job["state"] not in OVER]:
        for job in jobs:
            child = going.get(job["index"])
            if child is not None and child.poll() is not None:
                del going[job["index"]]
                if job["state"] == "RUNNING":
                    change(job, state="FAILED" if child.returncode else "COMPLETED", code=child.returncode)
            elif child is None and job["state"] == "PENDING" and len(going) < at_once and not (PLACE / "held").exists():
                own = {"SLURM_JOB_ID": str(job["number"]), "SLURM_ARRAY_JOB_ID": str(array)}
                own |= {"SLURM_ARRAY_TASK_ID": str(job["index"]), "SLURM_JOB_NODELIST": "localhost"}
                child = subprocess.Popen(["bash", script], env=os.environ | own, start_new_session=True)
                going[job["index"]] = child
                change(job, state="RUNNING", pid=child.pid)
        time.sleep(0.05)
    return 0


def squeue(arguments: list[str]) -> int:
    if (PLACE / "deaf").exists():
        print("squeue: error: Unable to contact slurm controller (connect failure)", file=sys.stderr)
        return 1
    if asked := [argument.split("=")[1] for argument in arguments if argument.startswith("--jobs=")]:
        print("\n".join(job["state"] for job in read() if meant(job, asked)))
        return 0
    assert {"--me", "--noheader", "--array", "--states=all", "--format=%j|%K|%F|%T"} == set(arguments)
    for job in read():
        print(f"{job['name']}|{job['index']}|{job['array']}|{job['state']}")
    return 0


def scancel(arguments: list[str]) -> int:
    with open(PLACE / "scancel.txt", "a") as file:
        file.write(" ".join(arguments) + "\n")
    names = [argument.split("=")[1] for argument in arguments if argument.startswith("--signal=")]
    for job in read():
        if not meant(job, arguments) or job["state"] in OVER:
            continue
        if names and job["state"] == "RUNNING":
            os.kill(job["pid"], getattr(signal, f"SIG{names[0]}"))
        elif not names:
            change(job, state="CANCELLED")
            if job["state"] == "RUNNING":
                os.killpg(job["pid"], signal.SIGTERM)  # to every process of the job
    return 0


def scontrol(arguments: list[str]) -> int:
    with open(PLACE / "scontrol.txt", "a") as file:
        file.write(" ".join(arguments) + "\n")
    if arguments[:2] == ["show", "hostnames"]:
        print("localhost")
    for job in read():
        if arguments[0] != "requeue" and meant(job, arguments):
            code = job["code"]
            print(f"JobId=1 ArrayJobId={job['array']} ExitCode={max(0, code)}:{max(0, -code)} RunTime=00:00:04")
        if arguments[0] == "requeue" and meant(job, arguments):
            change(job, state="PENDING", restarts=job["restarts"] + 1)
    return 0


def srun(arguments: list[str]) -> int:
    """As many copies of the command as nodes, all of them here."""
    nodes = int(arguments[0].removeprefix("--nodes="))
    command = [
        argument for argument in arguments if not argument.startswith(("--nodes", "--ntasks", "--cpus", "--kill"))
    ]
    children = [subprocess.Popen(command) for _ in range(nodes)]
    signal.signal(signal.SIGTERM, lambda signum, frame: [child.terminate() for child in children])
    return max(abs(child.wait()) for child in children)


if __name__ == "__main__":
    commands = {"sbatch": sbatch, "run": run, "squeue": squeue, "scancel": scancel, "scontrol": scontrol, "srun": srun}
    sys.exit(commands[sys.argv[1]](sys.argv[2:]))
