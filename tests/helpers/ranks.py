"""Several ranks: as threads of this process, which cost no import of torch, or as processes of their own."""

import contextlib
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from golf.config import Run
from golf.dist import Ranks, can_scatter
from golf.keeping import Kept, LoopState
from golf.loop import StopRequest
from golf.rundir import read_json
from golf.typed import typed
from golf.worker import work
from tests.helpers.runs import Job

CPU = torch.device("cpu")


@dataclass
class Meeting:
    """One collective: what each rank came with, and what comes of it once all are there."""

    kind: str
    given: dict[int, Tensor] = field(default_factory=dict)
    found: Tensor | None = None


class Deserted(RuntimeError):
    """Other ranks never came."""


class Work:
    """A collective that was begun: the rank's output is written when it waits, and not before."""

    def __init__(self, group: "Group", rank: int, meeting: Meeting, out: Tensor):
        self.group, self.rank, self.meeting, self.out = group, rank, meeting, out

    def wait(self) -> None:
        found = self.group.result_of(self.meeting)
        if self.meeting.kind == "reduce_scatter":
            found = found.chunk(self.group.world)[self.rank]
        with torch.no_grad():
            self.out.copy_(found)


class Group:
    """Stands in for torch.distributed in golf.dist, for ranks that are threads.

    One rank runs at a time, up to its next collective, so that what ranks share (torch's generator, modules) is theirs
    alone meanwhile. A rank that fails, or ends while others wait for it, ends them all.
    """

    def __init__(self, world: int):
        self.world, self.turn = world, threading.Condition()
        self.meetings: list[Meeting] = []
        self.begun = [0] * world  # collectives of each rank
        self.over = [False] * world
        self.own = threading.local()

    def run(self, rank: int, task: Callable[[int], Any], found: list[Any]) -> None:
        """Keep in `found` what task(rank) returns or raises."""
        with self.turn:
            self.own.rank = rank
            try:
                found[rank] = task(rank)
            except BaseException as error:
                found[rank] = error
            finally:
                self.over[rank] = True
                self.turn.notify_all()

    def begin(self, kind: str, given: Tensor, out: Tensor, async_op: bool) -> Work | None:
        rank = self.own.rank
        number = self.begun[rank]
        self.begun[rank] += 1
        if number == len(self.meetings):
            self.meetings.append(Meeting(kind))
        meeting = self.meetings[number]
        assert meeting.kind == kind, f"rank {rank} came to a {meeting.kind} with a {kind}"
        meeting.given[rank] = given
        self.turn.notify_all()
        work = Work(self, rank, meeting, out)
        if async_op:
            return work
        work.wait()
        return None

    def result_of(self, meeting: Meeting) -> Tensor:
        """Wait until all ranks are there; returns the sum, or all that was given."""
        generator = torch.get_rng_state()
        self.turn.wait_for(lambda: len(meeting.given) == self.world or any(self.over))
        torch.set_rng_state(generator)
        if len(meeting.given) < self.world:
            raise Deserted(f"no more than ranks {sorted(meeting.given)} came to a {meeting.kind}")
        if meeting.found is None:
            given = [meeting.given[rank].detach() for rank in range(self.world)]
            together = torch.cat if meeting.kind == "all_gather" else lambda all_: torch.stack(all_).sum(0)
            meeting.found = together(given)
        return meeting.found

    # What golf.dist calls.

    def all_reduce(self, tensor: Tensor, async_op: bool = False) -> Work | None:
        return self.begin("all_reduce", tensor, tensor, async_op)

    def reduce_scatter(self, out: Tensor, tensor: Tensor, async_op: bool = False) -> Work | None:
        return self.begin("reduce_scatter", tensor, out, async_op)

    def all_gather(self, out: Tensor, tensor: Tensor, async_op: bool = False) -> Work | None:
        return self.begin("all_gather", tensor, out, async_op)

    def barrier(self) -> None:
        self.all_reduce(torch.zeros(1))

    def is_initialized(self) -> bool:
        return True

    def destroy_process_group(self) -> None:
        self.barrier()


def on_threads(world: int, task: Callable[[Ranks], Any], *, scatters: bool = True) -> list[Any]:
    """Return task(ranks) of so many ranks in threads of this process; rank 0 is the thread that calls this.

    scatters: whether their backend can reduce and scatter in one collective. Raises what the first rank to fail raised.
    """
    group = Group(world)
    found: list[Any] = [None] * world
    patches: dict[str, Any] = {"_reduce_scatter": group.reduce_scatter, "_all_gather": group.all_gather}
    with mock.patch.multiple("golf.dist", dist=group, gc=mock.Mock(), **patches):  # no garbage holds a group of threads
        one = lambda rank: task(Ranks(rank, world, CPU, scatters))  # noqa: E731
        others = [threading.Thread(target=group.run, args=(rank, one, found)) for rank in range(1, world)]
        for thread in others:
            thread.start()
        group.run(0, one, found)
        for thread in others:
            thread.join()
    failed = [one for one in found if isinstance(one, BaseException)]
    for error in sorted(failed, key=lambda error: isinstance(error, Deserted)):
        raise error
    return found


def on_processes(world: int, folder: Path, task: Callable[[Ranks], Any]) -> list[Any]:
    """Return task(ranks) of so many gloo processes."""
    folder.mkdir()
    multiprocessing.spawn(_child, (world, str(folder), task), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _child(rank: int, world: int, folder: str, task: Callable[[Ranks], Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = task(Ranks(rank, world, CPU, can_scatter(world, CPU)))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


class Broken(BaseException):
    """A run ends here, as if it were killed."""


def run_on_threads(job: Job, *, last_step: int | None = None, trains_only: bool = False) -> str:
    """Do what a job's worker does, on as many ranks as it asks for, as threads and without signals; returns what was
    printed.

    last_step: the step at whose end all ranks break off. trains_only: whether they break off where the training is
    over and saved.
    """
    config = read_json(job.folder.config)
    assert config is not None

    def rank_of_run(ranks: Ranks) -> None:
        run: Run = typed(config["run"], "", Run)
        with contextlib.suppress(Broken):
            work(run, job.prepared, job.folder, ranks, LoopState(), config)

    def due(kept: Kept, state: LoopState) -> bool:
        if state.step == last_step:
            raise Broken
        return whether_due(kept, state)

    printed, whether_due = io.StringIO(), Kept.due
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(printed))
        stack.enter_context(mock.patch.object(StopRequest, "listening", lambda self: contextlib.nullcontext(self)))
        stack.enter_context(mock.patch.object(Kept, "due", due))
        if trains_only:
            stack.enter_context(mock.patch("golf.worker.export", side_effect=Broken))
        if trains_only or last_step is not None:  # no result will name the machine, nor is git to be asked
            stack.enter_context(mock.patch("golf.worker.environment", dict))
        on_threads(job.run.launch.nproc, rank_of_run)
    return printed.getvalue()
