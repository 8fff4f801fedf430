"""A low-rank correction of what rounding changed: W = Q + A B in few bits (LQER, arXiv 2402.02446; record 1.0614)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from golf.fields import positive
from golf.nodes import configs
from golf.quant.formats import FormatConfig, Parts
from golf.quant.grid import to_float
from golf.quant.rounding import PLAIN, How

LEVELS_A, LEVELS_B = (-2, 1), (-8, 7)  # two bits, with one step; four bits, a step for each group


@dataclass(kw_only=True, slots=True)
class LQERConfig(FormatConfig):
    """Another format, and of its error the `rank` largest singular values: A, their left vectors times the values, in
    int2; B, the right vectors, in int4 by groups of `group` columns. Vectors get none."""

    inner: FormatConfig
    rank: int
    group: int

    def __post_init__(self) -> None:
        positive(rank=self.rank, group=self.group)
        if any(isinstance(config, LQERConfig) for _, config in configs(self.inner)):
            raise ValueError("inner: has a correction of its own, and a tensor keeps one; raise rank instead")

    @property
    def reads_hessians(self) -> bool:
        return self.inner.reads_hessians

    def encode(self, w_B: Tensor, how: How = PLAIN) -> Parts:
        parts = self.inner.encode(w_B, how)
        shape = tuple(w_B.shape[1:])
        if not self._corrects(shape):
            return parts
        error_BOI = (w_B.float() - self.inner.decode(parts, shape)).flatten(2)
        u_BOK, s_BK, v_BKI = torch.linalg.svd(error_BOI, full_matrices=False)
        rank = self._rank(shape)
        a_BOr, b_BrI = u_BOK[:, :, :rank] * s_BK[:, None, :rank], v_BKI[:, :rank]
        step_B = to_float(a_BOr.abs().amax(dim=(1, 2)) / 1.5, torch.float16, how.strict)
        groups_BGg = self._grouped(b_BrI)
        step_BG = to_float(groups_BGg.abs().amax(dim=2) / 7.5, torch.float16, how.strict)
        return parts | {
            "a": _rounded(a_BOr, step_B.float()[:, None, None], LEVELS_A),
            "a_scale": step_B[:, None],
            "b": _rounded(groups_BGg, step_BG.float()[:, :, None], LEVELS_B).flatten(1)[:, : b_BrI[0].numel()],
            "b_scale": step_BG,
        }

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        w_B = self.inner.decode(
            {part: value for part, value in parts.items() if not part.startswith(("a", "b"))}, shape
        )
        if "a" not in parts:
            return w_B
        a_BOr = parts["a"].float() * parts["a_scale"].float()[:, :, None]
        groups_BGg = self._grouped(parts["b"].float()) * parts["b_scale"].float()[:, :, None]
        b_BrI = groups_BGg.flatten(1)[:, : parts["b"].shape[1]].view(len(w_B), a_BOr.shape[2], -1)
        return w_B + (a_BOr @ b_BrI).view(w_B.shape)

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        parts = self.inner.layout(shape)
        if not self._corrects(shape):
            return parts
        rank, columns = self._rank(shape), torch.Size(shape[1:]).numel()
        groups = -(-rank * columns // self.group)
        return parts | {
            "a": (torch.int8, (shape[0], rank)),
            "a_scale": (torch.float16, (1,)),
            "b": (torch.int8, (rank * columns,)),
            "b_scale": (torch.float16, (groups,)),
        }

    def predict_bits(self, shape: tuple[int, ...]) -> float:
        extra = sum(
            torch.Size(size).numel() * {"a": 1.5, "b": 3.3}.get(part, 16)
            for part, (_, size) in self.layout(shape).items()
            if part in ("a", "a_scale", "b", "b_scale")
        )
        return self.inner.predict_bits(shape) + extra

    def rounds(self, shape: tuple[int, ...]) -> bool:
        return self.inner.rounds(shape)

    def dials(self, shape: tuple[int, ...]) -> bool:
        return self.inner.dials(shape)

    def _corrects(self, shape: tuple[int, ...]) -> bool:
        return self.inner.rounds(shape)

    def _rank(self, shape: tuple[int, ...]) -> int:
        return min(self.rank, shape[0], torch.Size(shape[1:]).numel())

    def _grouped(self, b: Tensor) -> Tensor:
        """b_BGg: all numbers of each B in groups, the last filled with zeros."""
        flat = b.flatten(1)
        return torch.nn.functional.pad(flat, (0, -flat.shape[1] % self.group)).unflatten(1, (-1, self.group))


def _rounded(x: Tensor, step: Tensor, levels: tuple[int, int]) -> Tensor:
    """Nearest of the levels, which are not symmetric."""
    return (x / torch.where(step > 0, step, 1.0)).round().clamp(*levels).to(torch.int8)
