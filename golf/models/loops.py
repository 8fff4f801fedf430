"""Loops in a stack: which blocks are visited again, from when on, and what tells the passes apart."""

from dataclasses import dataclass, field

import torch
from torch import nn

from golf.fields import between, one_of
from golf.models.init import orthogonal_
from golf.models.layers import check_layer_text, layer_set, layer_span

POSITION_STD = 0.01
MOST_STARTS = 4
MOST_PASSES = 64  # far above what anyone has tried: a reader's bound on the depth that a file may ask for


@dataclass(frozen=True, slots=True)
class Visit:
    """A block in the order of visits. repeat: how often it was visited before; enters: the vector that is added before
    it, None for none."""

    block: int
    repeat: int = 0
    enters: int | None = None


@dataclass(kw_only=True, slots=True)
class RevisitConfig:
    """The slot: which blocks are visited again. own_scales: a repeated visit has a residual part of its own."""

    own_scales: bool

    def starts(self) -> tuple[float, ...]:
        """Where in training the stack changes."""
        return ()

    def span_of(self, layers: int) -> range | None:
        """The blocks that are passed through again as a whole, None where it is not one run of them."""
        return None

    def visits(self, layers: int, stage: int) -> list[Visit]:
        """The order of visits in a stage of training. Raises UserError where it names no blocks of the model."""
        raise NotImplementedError

    def position_vectors(self, dim: int) -> nn.Parameter | None:
        """position_LD: a row for each number in Visit.enters."""
        return None


@dataclass(kw_only=True, slots=True)
class RepeatConfig(RevisitConfig):
    """Each of `blocks` is visited `times` over at once: 3,4 becomes 3,3,4,4 (PR 1589's depth recurrence).

    positions: a learned vector, zero at first, is added before each repeat, one a repeat's number.
    """

    blocks: str
    times: int
    positions: bool

    def __post_init__(self) -> None:
        check_layer_text(blocks=self.blocks)
        between(1, MOST_PASSES, times=self.times)

    def visits(self, layers: int, stage: int) -> list[Visit]:
        chosen = layer_set(self.blocks, layers, "model.stack.loop.blocks")
        return [
            Visit(block, repeat, repeat - 1 if repeat else None)
            for block in range(layers)
            for repeat in range(self.times if block in chosen else 1)
        ]

    def position_vectors(self, dim: int) -> nn.Parameter | None:
        return nn.Parameter(torch.zeros(self.times - 1, dim)) if self.positions and self.times > 1 else None


@dataclass(kw_only=True, slots=True)
class LoopConfig(RevisitConfig):
    """A run of neighbouring blocks that is passed through again: 3,4,5 becomes 3,4,5,3,4,5.

    span: the blocks. again: one entry for each further pass, the part of training at which it joins, ascending; 0 is
    from the start (records: two at 0.35; PR 401's three loops: two at 0). Scores always take all passes. positions: a
    learned vector added before each pass, rows of a random orthogonal matrix or normal, both of about 0.01 (PR 401);
    null: none.
    """

    span: str
    again: list[float] = field(default_factory=list)
    positions: str | None

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
        return tuple(sorted({start for start in self.again if start > 0}))

    def span_of(self, layers: int) -> range:
        return layer_span(self.span, layers, "model.stack.loop.span")

    def visits(self, layers: int, stage: int) -> list[Visit]:
        span = self.span_of(layers)
        inner = [Visit(block, n, n if block == span[0] else None) for n in range(self.passes(stage)) for block in span]
        before = [Visit(layer) for layer in range(span[0])]
        return [*before, *inner, *(Visit(layer) for layer in range(span[-1] + 1, layers))]

    def passes(self, stage: int) -> int:
        """Passes through the span in a stage."""
        reached = (0.0, *self.starts())[stage]
        return 1 + sum(start <= reached for start in self.again)

    def position_vectors(self, dim: int) -> nn.Parameter | None:
        if self.positions is None:
            return None
        passes = 1 + len(self.again)
        if self.positions == "normal":
            return nn.Parameter(torch.empty(passes, dim).normal_(std=POSITION_STD))
        return nn.Parameter(orthogonal_(torch.empty(passes, dim), POSITION_STD))
