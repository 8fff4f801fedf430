"""A cluster of one node with two GPUs that are none (device files of nothing), for as long as a test needs it.

Everything lies in one folder; root starts it by hand (munged, slurmctld, slurmd), without systemd or cgroups.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
SBIN = "/usr/sbin:/sbin"
CONF = """\
ClusterName=golf
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=2,sched_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
KillWait=60
MinJobAge=300
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 Gres=gpu:2 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why no cluster can be started here; empty where one can."""
    if os.geteuid() != 0:
        return "only root can start a SLURM cluster here"
    missing = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:{SBIN}") is None]
    return f"{', '.join(missing)}: not installed (make slurm-packages)" if missing else ""


@contextmanager
def cluster(place: Path) -> Iterator[None]:
    """Started in the folder `place`, with SLURM_CONF set; ended with all that runs on it."""
    place.mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (place / name).mkdir()
    for index in range(2):
        os.mknod(place / f"gpu{index}", 0o20666, os.makedev(1, 3))  # /dev/null by another name
    gpus = "".join(f"NodeName={host} Name=gpu File={place}/gpu{index}\n" for index in range(2))
    (place / "gres.conf").write_text(gpus)
    (place / "slurm.conf").write_text(CONF.format(host=host, place=place, ports=_free_ports()))
    (place / "munge.key").write_bytes(os.urandom(128))
    (place / "munge.key").chmod(0o400)
    before = dict(os.environ)
    os.environ |= {"SLURM_CONF": str(place / "slurm.conf"), "PATH": f"{before['PATH']}:{SBIN}"}
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
    files |= {"log-file": "munged.log", "seed-file": "munged.seed"}
    daemons = [
        ["munged", "--foreground", "--force", *(f"--{name}={place / file}" for name, file in files.items())],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    ]
    started: list[subprocess.Popen] = []
    try:
        for command in daemons:
            out = open(place / f"{command[0]}.out", "w")  # noqa: SIM115
            started.append(subprocess.Popen(command, stdout=out, stderr=out))
            out.close()
            time.sleep(1)
        _wait_until_idle(place)
        yield
    finally:
        subprocess.run(["scancel", "--me", "--signal=KILL", "--full"], check=False)
        for daemon in reversed(started):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        os.environ.clear()
        os.environ |= before


def _free_ports() -> list[int]:
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_until_idle(place: Path) -> None:
    until = time.monotonic() + 300
    said = ""
    while time.monotonic() < until:
        done = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True)
        said = done.stdout + done.stderr
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    logs = "".join(path.read_text()[-1000:] for path in (*place.glob("*.log"), *place.glob("*.out")))
    raise RuntimeError(f"the node does not become idle: {said}\n{logs}")
