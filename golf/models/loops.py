"""Loops in a stack: which blocks are visited again, from when on, and what tells the passes apart."""

from dataclasses import dataclass, field

import torch
from torch import nn

from golf.fields import between, one_of
from golf.models.init import orthogonal_
from golf.models.layers import check_layer_text, layer_span

POSITION_STD = 0.01
MOST_STARTS = 4
MOST_PASSES = 64  # far above what anyone has tried: a reader's bound on the depth that a file may ask for


@dataclass(kw_only=True, slots=True)
class LoopConfig:
    """A run of neighbouring blocks that is passed through again: 3,4,5 becomes 3,4,5,3,4,5.

    span: the blocks. again: one entry for each further pass, the part of training at which it joins, ascending; 0 is
    from the start (records: two at 0.35; PR 401's three loops: two at 0). Scores always take all passes. positions: a
    learned vector added before each pass, rows of a random orthogonal matrix or normal, both of about 0.01 (PR 401);
    null: none. own_scales: a repeated visit has a residual part (scales, mix) of its own.
    """

    span: str
    again: list[float] = field(default_factory=list)
    positions: str | None
    own_scales: bool

    def __post_init__(self) -> None:
        check_layer_text(span=self.span)
        if self.positions is not None:
            one_of("positions", self.positions, ("orthogonal", "normal"))
        if not 0 < len(self.again) <= MOST_PASSES or sorted(self.again) != self.again:
            raise ValueError(
                f"again={str(self.again)[:60]} must hold the start of each further pass, ascending, at most "
                f"{MOST_PASSES}; try [0.0]"
            )
        if len(self.starts()) > MOST_STARTS:
            raise ValueError(
                f"again={str(self.again)[:60]} has {len(self.starts())} different starts, each a graph to compile; "
                f"at most {MOST_STARTS}"
            )
        for start in self.again:
            between(0, 0.99, again=start)

    def starts(self) -> tuple[float, ...]:
        """Where in training the stack changes."""
        return tuple(sorted({start for start in self.again if start > 0}))

    def passes(self, stage: int) -> int:
        """Passes through the span in a stage."""
        reached = (0.0, *self.starts())[stage]
        return 1 + sum(start <= reached for start in self.again)

    def position_vectors(self, dim: int) -> nn.Parameter | None:
        """position_LD: a row a pass."""
        if self.positions is None:
            return None
        passes = 1 + len(self.again)
        if self.positions == "normal":
            return nn.Parameter(torch.empty(passes, dim).normal_(std=POSITION_STD))
        return nn.Parameter(orthogonal_(torch.empty(passes, dim), POSITION_STD))


@dataclass(frozen=True, slots=True)
class Visit:
    """A block in the order of visits. repeat: how often it was visited before; enters: the pass that begins here."""

    block: int
    repeat: int = 0
    enters: int | None = None


def visits_of(loop: LoopConfig | None, layers: int, stage: int) -> list[Visit]:
    """The order of visits in a stage of training. Raises UserError where the span names no neighbouring blocks."""
    if loop is None:
        return [Visit(layer) for layer in range(layers)]
    span = layer_span(loop.span, layers, "model.stack.loop.span")
    inner = [Visit(block, n, n if block == span[0] else None) for n in range(loop.passes(stage)) for block in span]
    before = [Visit(layer) for layer in range(span[0])]
    return [*before, *inner, *(Visit(layer) for layer in range(span[-1] + 1, layers))]
