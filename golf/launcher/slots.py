"""What a run may use of this machine. A lone run has all of it; the cells of a sweep get slots out of a pool."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from golf.config import Run
from golf.dist import pick_device
from golf.errors import UserError

# A process on a CPU keeps what a step frees, in huge pages: else each step has its tensors' pages made and zeroed anew.
KEEP_MEMORY = ":".join(
    f"glibc.malloc.{setting}" for setting in ("hugetlb=1", f"mmap_threshold={2**32}", f"trim_threshold={2**36}")
)


@dataclass(frozen=True, slots=True)
class Slot:
    """CPU cores to share among a run's processes; CUDA devices, where empty means as the environment says."""

    cores: int
    devices: tuple[str, ...] = ()

    def environment(self, run: Run) -> dict[str, str]:
        """The variables that hold a run to this slot."""
        on_cpu = pick_device(run.compute.device).type == "cpu"
        variables = variables_of(run, max(1, self.cores // run.launch.nproc), on_cpu=on_cpu)
        return variables | ({"CUDA_VISIBLE_DEVICES": ",".join(self.devices)} if self.devices else {})


def variables_of(run: Run, cores: int, *, on_cpu: bool) -> dict[str, str]:
    """The environment of a process that has so many cores. launch.threads, where given, stands as it is; so does what
    the user says to glibc's allocator."""
    variables = {
        "OMP_NUM_THREADS": str(run.launch.threads or cores),
        "OMP_WAIT_POLICY": run.launch.wait_policy.upper(),
    }
    return variables | ({"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", KEEP_MEMORY)} if on_cpu else {})


def whole_machine() -> Slot:
    """Every core that this process may run on, every device that it sees."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Slot(cores or 1)


def visible_devices() -> list[str]:
    """CUDA devices by the names that CUDA_VISIBLE_DEVICES takes: those it names already, else 0, 1 ..."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(index) for index in range(count)]


class Pool:
    """At most `slots` runs at once, no device given to two of them. Every slot has the same share of the cores."""

    def __init__(self, slots: int, cores: int, devices: Sequence[str]):
        self.slots, self.cores = slots, max(1, cores // slots)
        self.free_devices, self.taken = list(devices), 0

    def holds(self, devices: int) -> bool:
        """Whether a slot with so many devices is free."""
        return self.taken < self.slots and len(self.free_devices) >= devices

    def take(self, devices: int) -> Slot | None:
        """A slot with so many devices (0 on a CPU), or None until one is given back."""
        if not self.holds(devices):
            return None
        mine, self.free_devices = self.free_devices[:devices], self.free_devices[devices:]
        self.taken += 1
        return Slot(self.cores, tuple(mine))

    def give(self, slot: Slot) -> None:
        self.taken -= 1
        self.free_devices = sorted([*self.free_devices, *slot.devices])


def devices_needed(run: Run) -> int:
    """CUDA devices of one run: one for each process, none on a CPU."""
    return run.launch.nproc if pick_device(run.compute.device).type == "cuda" else 0


def pool_for(runs: Sequence[Run]) -> Pool:
    """The pool for all cells of a sweep, done ones included: so a sweep that goes on gives each the threads it had.

    launch.slots=null: on CUDA as many runs as the devices hold; on a CPU as many as there are cores for, but no more
    than there are cells. UserError where more slots are asked for than the devices hold.
    """
    asked, cores = runs[0].launch.slots, whole_machine().cores
    needs = [devices_needed(run) for run in runs]
    if any(needs):
        devices = visible_devices()
        smallest = min(need for need in needs if need)
        hold = len(devices) // smallest
        if asked is not None and asked > hold:
            raise UserError(
                f"launch.slots={asked}: {len(devices)} devices hold {hold} run(s) of launch.nproc={smallest}; "
                f"try launch.slots={hold}"
            )
        return Pool(asked or hold, cores, devices)
    each = min((run.launch.threads or 1) * run.launch.nproc for run in runs)
    return Pool(asked or max(1, min(cores // each, len(runs))), cores, [])
