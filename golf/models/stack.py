"""How blocks are visited: once or in loops, with or without U-Net skips. Shapes: golf/models/slots.py; J: skips."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from golf.errors import UserError
from golf.models.loops import RevisitConfig, Visit
from golf.models.slots import (
    Context,
    Frame,
    ResidualConfig,
    ResidualModule,
    StackConfig,
    StackModule,
    first_reason,
)


@dataclass(kw_only=True, slots=True)
class SkipsConfig:
    """U-Net skips: the first half of the visits pushes its outputs, the second half takes them, last in, first out.

    gated: x <- g x + (1 - g) w skip with g a learned sigmoid, 0.5 at first (PR 462; records from 1.0979 on), instead
    of x + w skip (upstream baseline). each_pass: where a loop spans the whole stack, halves are those of one pass.
    """

    gated: bool
    each_pass: bool


@dataclass(kw_only=True, slots=True)
class BlocksConfig(StackConfig):
    """The blocks of the model in order; `loop` has some of them visited again, `skips` joins early to late visits."""

    skips: SkipsConfig | None
    loop: RevisitConfig | None

    def build(self, frame: Frame, make_block: Callable[[int], nn.Module], residual: ResidualConfig) -> "Blocks":
        self.check(frame.layers)
        return Blocks(self, frame, make_block, residual)

    def check(self, layers: int) -> None:
        """Raise UserError where the skips have nothing to join."""
        if self.skips is not None and self.loop is None and layers < 2:
            raise UserError(f"model.layers={layers} leaves U-Net skips nothing to join; try model/stack=plain")
        if self.skips is not None and self.skips.each_pass:
            self._check_passes(layers)

    def _check_passes(self, layers: int) -> None:
        """Raise UserError where there are no passes of the whole stack, or nothing to join in one."""
        if self.loop is None or self.loop.span_of(layers) != range(layers):
            raise UserError("model.stack.skips.each_pass=true needs a loop over the whole stack; set it to false")
        if layers < 2:
            raise UserError(f"model.layers={layers} leaves the skips of a pass nothing to join; try model.layers=2")


class Blocks(StackModule):
    """x_BTD -> x_BTD."""

    roles = {"skip_scale_JD": "scalar", "skip_gate_JD": "scalar", "position_LD": "scalar"}

    def __init__(
        self,
        config: BlocksConfig,
        frame: Frame,
        make_block: Callable[[int], nn.Module],
        residual: ResidualConfig,
    ):
        super().__init__()
        self.skips, self.loop = config.skips, config.loop
        self.blocks = nn.ModuleList(make_block(layer) for layer in range(frame.layers))
        self.starts = () if self.loop is None else self.loop.starts()
        self.plans = [self._plan(frame.layers, stage) for stage in range(len(self.starts) + 1)]
        self._check_kinds()
        joints = max(self.halves(plan) for plan in self.plans)
        shape = (joints, frame.dim)
        self.skip_scale_JD = nn.Parameter(torch.ones(shape)) if self.skips and joints else None
        self.skip_gate_JD = nn.Parameter(torch.zeros(shape)) if self.skips and self.skips.gated and joints else None
        self.position_LD = self.loop.position_vectors(frame.dim) if self.loop is not None else None
        again = [visit for visit in self.plans[-1] if visit.repeat and self.loop is not None and self.loop.own_scales]
        self.residuals = nn.ModuleDict({_name(v): residual.build(frame.at(v.block)) for v in again})

    def _plan(self, layers: int, stage: int) -> list[Visit]:
        return [Visit(layer) for layer in range(layers)] if self.loop is None else self.loop.visits(layers, stage)

    def _check_kinds(self) -> None:
        """Raise UserError where a loop goes back and forth between kinds of residual (one lane and two)."""
        again = [self.blocks[visit.block] for visit in self.plans[-1] if visit.repeat]
        if len({type(block.residual) for block in again}) > 1:
            raise UserError(
                "model.stack.loop crosses the layer from which on model.residual is another; let its blocks end before "
                "that layer or begin at it"
            )

    def halves(self, plan: list[Visit]) -> int:
        """How many visits of a plan push their output: half of them, or half of a pass."""
        if self.skips is None:
            return 0
        return (len(self.blocks) if self._in_passes() else len(plan)) // 2

    def _in_passes(self) -> bool:
        return self.skips is not None and self.skips.each_pass

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        return self.run(x_BTD, context, [])

    def plan(self, context: Context) -> list[Visit]:
        """The visits of the stage that runs."""
        return self.plans[-1 if context.stage is None else context.stage]

    def run(
        self, x_BTD: Tensor, context: Context, outputs: list[Tensor] | None, first: int = 0, last: int | None = None
    ) -> Tensor:
        """Visits first to last - 1 of the plan. outputs: what was pushed and none took yet, changed here; None: without
        skips."""
        plan = self.plan(context)
        encoders, length = self.halves(plan), len(self.blocks) if self._in_passes() else len(plan)
        for number, visit in enumerate(plan[first:last], first):
            place = number % length
            self.residual(visit).enter(x_BTD, context)
            if place >= encoders and outputs:
                x_BTD = self.join(x_BTD, outputs.pop(), place - encoders)
            if self.position_LD is not None and visit.enters is not None:
                x_BTD = x_BTD + self.position_LD[visit.enters].to(x_BTD.dtype)
            x_BTD = self.visit(visit, x_BTD, context)
            context.first_BND = x_BTD if context.first_BND is None else context.first_BND
            if place < encoders and outputs is not None:
                outputs.append(x_BTD)
        return x_BTD

    def visit(self, visit: Visit, x_BTD: Tensor, context: Context) -> Tensor:
        """One block; a repeated visit may have scales of its own."""
        block = self.blocks[visit.block]
        return self.residual(visit)(x_BTD, context, block.mixer, block.mlp)

    def residual(self, visit: Visit) -> ResidualModule:
        """What adds back in a visit."""
        block: Any = self.blocks[visit.block]
        own = _name(visit) in self.residuals
        return cast(ResidualModule, self.residuals[_name(visit)] if own else block.residual)

    def join(self, x_BTD: Tensor, skip_BTD: Tensor, number: int) -> Tensor:
        """The stream with a skip in it."""
        assert self.skip_scale_JD is not None
        scaled_BTD = self.skip_scale_JD[number].to(x_BTD.dtype) * skip_BTD
        if self.skip_gate_JD is None:
            return x_BTD + scaled_BTD
        return torch.lerp(scaled_BTD, x_BTD, self.skip_gate_JD[number].sigmoid().to(x_BTD.dtype))

    def why_whole(self, length: int) -> str:
        return first_reason(self.blocks, length)

    def stored_depth(self) -> int:
        return len(self.blocks)

    def effective_depth(self) -> int:
        return len(self.plans[-1])

    def repeated_params(self) -> int:
        again: list[Any] = [self.blocks[visit.block] for visit in self.plans[-1] if visit.repeat]
        shared: list[nn.Module] = [part for block in again for part in (block.mixer, block.mlp)]
        if self.loop is not None and not self.loop.own_scales:
            shared += [block.residual for block in again]
        held = sum(p.numel() for part in shared for p in part.parameters())
        return held + sum(getattr(module, "borrowed", 0) for part in shared for module in part.modules())


def _name(visit: Visit) -> str:
    return f"block{visit.block}_again{visit.repeat}"
