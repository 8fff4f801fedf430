"""What SLURM runs, as text: batch.sh submits an array of runs, job.sh in each run's folder is one attempt at it."""

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from golf.config import Run
from golf.launcher import jobs
from golf.launcher.processes import ATTEMPT, TORCHRUN_NAMES, TORCHRUN_PREFIXES
from golf.launcher.slots import variables_of
from golf.rundir import RunDir

if TYPE_CHECKING:
    from golf.launcher.slurm.config import SlurmLaunch

BATCH, FOLDERS, JOB = "batch.sh", "folders.txt", "job.sh"

_BATCH = """\
#!/usr/bin/env bash
# An array of runs, one for each line of {folders}.
{options}
run=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {folders})
exec bash "$run/{job}"
"""

_JOB = """\
#!/usr/bin/env bash
# One attempt at this run, as a SLURM job; batch.sh of its array starts it.
# SIGUSR2 (the time limit is near) and SIGTERM (preemption): the run saves, and the job is queued again to go on.
# SIGINT (its launcher's Ctrl-C): it saves and ends. A job that SLURM itself cancels or requeues is left to SLURM.
exec >> {console} 2>&1
unset {left_over}  # of whoever submitted this
echo "{attempt}$(date '+%F %T'): SLURM job ${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID on $SLURM_JOB_NODELIST"
job=$SLURM_JOB_ID  # but the last of an array has the array's number, which means all of it
[ "$job" != "$SLURM_ARRAY_JOB_ID" ] || job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
told='' again='' worker=''
ask() {{  # a command of SLURM that may fail once: what it prints
    for pause in 1 2 4; do
        said=$(timeout 30 "$@") && [ "$said" ] && break
        sleep "$pause"
    done
    printf '%s\n' "$said"
}}
state() {{ ask squeue --noheader --jobs="$job" --format=%T; }}
status() {{ stat -c '%y %s' {status}; }}
pass_on() {{ {pass_on}; }}
stop() {{
    told=yes
    [ "$again" = no ] || again=$1
    [ -z "$worker" ] || pass_on
}}
trap 'stop yes' TERM USR2
trap 'stop no' INT
{before}
{tries}
    before=$(status)
    {command} &
    worker=$!
    [ -z "$told" ] || pass_on
    told=yes
    while [ "$told" ]; do  # a signal cuts a wait short
        told=''
        wait "$worker"
        code=$?
    done
    [ "$code" -ne 0 ] && [ -z "$again" ] && [ "$(status)" = "$before" ] || break  # no worker began: srun failed
    sleep "$pause"
done
if [ "$again" = yes ] && [ "$code" -ne 0 ] && [ "$(state)" = RUNNING ]; then
    for pause in 1 2 4; do
        timeout 30 scontrol requeue "$job" && break
        sleep "$pause"
        [ "$(state)" = RUNNING ] || break  # it did, and could not say so
    done
fi
exit "$code"
"""


def batch(launch: "SlurmLaunch", options: Sequence[str], *, name: str, count: int, place: Path) -> str:
    """batch.sh of `count` runs in the folder `place`; launch.slots of them run at once."""
    at_once = f"%{launch.slots}" if launch.slots else ""
    own = (f"--job-name={name}", f"--array=0-{count - 1}{at_once}", f"--output={place}/%a.txt")
    lines = "\n".join(f"#SBATCH {_quoted(option)}" for option in (*own, *options))
    return _BATCH.format(options=lines, folders=shlex.quote(str(place / FOLDERS)), job=JOB)


def options_of(launch: "SlurmLaunch", run: Run) -> tuple[str, ...]:
    """What a run asks for. Runs that ask for the same go in one array."""
    here = launch.nproc // launch.nodes
    gpus = launch.gpus_of(run) // launch.nodes
    asked = {
        "nodes": launch.nodes,
        "ntasks-per-node": 1,  # torchrun, which starts the processes
        "cpus-per-task": launch.cpus * here,
        "gres": f"gpu:{gpus}" if gpus else None,
        "mem": launch.mem,
        "time": launch.time,
        "partition": launch.partition,
        "account": launch.account,
        "signal": f"B:USR2@{math.ceil(launch.grace_seconds)}",  # so long before the time limit, to job.sh alone
        "open-mode": "append",  # what a requeued job said before stays
    }
    given = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    return (*given, "--requeue", *launch.options)


def job(launch: "SlurmLaunch", run: Run, folder: RunDir) -> str:
    """job.sh of a run."""
    variables = variables_of(run, launch.cpus, on_cpu=run.compute.device == "cpu")
    if launch.nproc > 1:
        variables |= jobs.torchrun_variables(run)
    return _JOB.format(
        console=shlex.quote(str(folder.path / "log" / "console.txt")),
        attempt=ATTEMPT,
        left_over=" ".join([*TORCHRUN_NAMES, *(f"${{!{prefix}@}}" for prefix in TORCHRUN_PREFIXES)]),
        before="\n".join(
            [*launch.setup, *(f"export {name}={shlex.quote(value)}" for name, value in variables.items())]
        ),
        status=shlex.quote(str(folder.status)),
        tries="for pause in 1 4 0; do" if launch.nodes > 1 else "for pause in 0; do",
        command=_command(launch, folder),
        pass_on=_pass_on(launch),
    )


def _pass_on(launch: "SlurmLaunch") -> str:
    """Shell that has the run save and end. A run bears signals that come twice (here and from SLURM); torchrun does
    not: past it to its ranks, or where these are on other nodes only if SLURM does not signal them itself."""
    if launch.nproc == 1:
        return 'kill -TERM "$worker"'
    if launch.nodes == 1:
        return 'kill -TERM $(cat "/proc/$worker/task/$worker/children") || kill -TERM "$worker"'
    return '[ "$(state)" != RUNNING ] || kill -TERM "$worker"'


def _command(launch: "SlurmLaunch", folder: RunDir) -> str:
    """The same worker as anywhere: alone, under torchrun, or under a torchrun on each node that meet on the first."""
    here = launch.nproc // launch.nodes
    worker = jobs.worker_line(folder)
    if launch.nproc == 1:
        return shlex.join([sys.executable, *worker])
    if launch.nodes == 1:
        return shlex.join([*jobs.torchrun_line(here), *jobs.ONE_NODE, *worker])
    step = ["srun", f"--nodes={launch.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={launch.cpus * here}"]
    first = '$(ask scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
    port = "$((20000 + SLURM_JOB_ID % 20000))"  # jobs that share a node differ in it
    meeting = [f"--nnodes={launch.nodes}", "--rdzv-backend=c10d"]
    where = f'--rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="{first}:{port}"'
    torchrun = shlex.join([*step, "--kill-on-bad-exit=1", *jobs.torchrun_line(here), *meeting])
    return f"{torchrun} \\\n    {where} \\\n    {shlex.join(worker)}"


def _quoted(option: str) -> str:
    """As sbatch reads a line of options: it cuts at blanks."""
    name, _, value = option.partition("=")
    return f'{name}="{value}"' if " " in value else option
