"""Ranks: one process each, started by torchrun or alone. All collectives that golf needs, and one clean way out."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from golf.errors import UserError

# Their names from torch 2.13 on, which warns where the older ones are called.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the others. With world 1 every collective is the identity and no group exists.

    scatters: whether the backend can reduce and scatter in one collective.
    """

    rank: int
    world: int
    device: torch.device
    scatters: bool = False

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Mean over ranks, in place, as one flat collective for each dtype."""
        if self.world == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for alike in by_dtype.values():
            flat = torch.cat([tensor.flatten() for tensor in alike])
            dist.all_reduce(flat)
            flat /= self.world
            sizes = [tensor.numel() for tensor in alike]
            for tensor, mean in zip(alike, flat.split(sizes), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def mean_share(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start to average over ranks; the function that comes back waits, and returns this rank's share.

        tensor: its first axis is cut into one share a rank, in order; it is not to be touched until then.
        """
        if self.world == 1:
            return lambda: tensor
        own = tensor.chunk(self.world)[self.rank]
        if self.scatters:
            own = torch.empty_like(own)
            work = _reduce_scatter(own, tensor, async_op=True)
        else:
            work = dist.all_reduce(tensor, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return own.div_(self.world)

        return wait

    def gather(self, share: Tensor) -> Callable[[], Tensor]:
        """Start to collect every rank's share, all of one shape; the function that comes back waits, and returns them
        in the order of ranks, joined along the first axis."""
        if self.world == 1:
            return lambda: share
        joined = share.new_empty((self.world * share.shape[0], *share.shape[1:]))
        work = _all_gather(joined, share, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return joined

        return wait

    def any_of(self, *flags: bool) -> list[bool]:
        """Each flag, raised on any rank: what all ranks then do together."""
        return [count > 0 for count in self.sum_(torch.tensor(flags, dtype=torch.int32, device=self.device)).tolist()]

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


ALONE = Ranks(0, 1, torch.device("cpu"))


def pick_device(asked: str, local_rank: int = 0) -> torch.device:
    """The device of a rank. Raises UserError where a device asked for by name is absent."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("compute.device=cuda: no CUDA device is visible; take compute.device=cpu (or track=laptop)")
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def pick_precision(asked: str, device: torch.device) -> torch.dtype:
    """auto: bf16 where the hardware multiplies it (CUDA from Ampere on, CPUs with AVX512-BF16 or AMX), else fp32."""
    if asked != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[asked]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device)[0] >= 8
    else:
        native = bool({"avx512_bf16", "amx_bf16"} & _cpu_flags())
    return torch.bfloat16 if native else torch.float32


def _cpu_flags() -> set[str]:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("flags"):
                return set(line.split(":", 1)[1].split())
    return set()


def start(device: str) -> Ranks:
    """Join the group that torchrun's environment describes, or be alone: others set RANK and WORLD_SIZE, too."""
    told = os.environ if "TORCHELASTIC_RUN_ID" in os.environ else {}
    world, rank = int(told.get("WORLD_SIZE", "1")), int(told.get("RANK", "0"))
    chosen = pick_device(device, int(told.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world == 1:
        return Ranks(rank, world, chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Ranks(rank, world, chosen, can_scatter(world, chosen))


def can_scatter(world: int, device: torch.device) -> bool:
    """Whether the group's backend has reduce-scatter: gloo has it in some versions of torch only. All ranks call it."""
    try:
        _reduce_scatter(torch.zeros(1, device=device), torch.zeros(world, device=device))
    except (RuntimeError, NotImplementedError):
        return False
    return True


def finish(ranks: Ranks) -> None:
    """Leave the group together: with ranks apart, destroying it aborts now and then (pytorch 190489)."""
    if ranks.world > 1 and dist.is_initialized():
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()
