"""SURGE-M, second form: a first pass finds the errors, a second one is corrected by them. Shapes: golf/models/slots.py;
S: the network's state, F: what it reads, n: the positions of a chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from golf.errors import UserError
from golf.fields import between, one_of, positive
from golf.models.layers import check_layer_text, layer_set
from golf.models.loops import Visit
from golf.models.residual import ResidMix
from golf.models.slots import Context, Frame, ResidualConfig, StackModule
from golf.models.stack import Blocks, BlocksConfig
from golf.models.surge_error import Change, Directions, ErrorSignal, Gate, MinGRU, no_prediction

SEEN = "stream into the changed block, output of its mixer"


@dataclass(kw_only=True, slots=True)
class SurgeTwoPassConfig(BlocksConfig):
    """SURGE-M v2 (PR 1589, with the order of products and the forgetting as they were meant): after each chunk
    A <- a A, then I + A <- (I + g u v^T) (I + A), for each sequence by itself; it holds from the next chunk on.

    routing: `replay` adds s A z to what `layer` gave, z what its mixer gave and s its scale, and runs the later blocks
    again, with their skips; `drop` runs them without skips (the PR); `single` runs no block twice and adds norm(A z)
    to the normed output of the stack; their sum is normed, as all that a head reads. layer: one block. uv_std,
    gate_bias, keep_bias: where u and v, the logit of g and that of a begin. error_dim, surprisal: the error that the
    network reads, with the surprisal beside or not.
    """

    chunk: int
    layer: str
    routing: str
    error_dim: int
    state_dim: int
    uv_std: float
    gate_bias: float
    keep_bias: float
    surprisal: bool

    def __post_init__(self) -> None:
        positive(chunk=self.chunk)
        check_layer_text(layer=self.layer)
        one_of("routing", self.routing, ("replay", "drop", "single"))
        between(1, 2**16, error_dim=self.error_dim, state_dim=self.state_dim)
        between(0, 10, uv_std=self.uv_std)
        between(-20, 20, gate_bias=self.gate_bias, keep_bias=self.keep_bias)

    def build(self, frame: Frame, make_block: Callable[[int], nn.Module], residual: ResidualConfig) -> "SurgeTwoPass":
        self.check(frame.layers)
        chosen = layer_set(self.layer, frame.layers, "model.stack.layer")
        if len(chosen) != 1:
            raise UserError(f"model.stack.layer={self.layer!r} must name one block; try '4 of 9'")
        return SurgeTwoPass(self, frame, make_block, residual, *chosen)


class SurgeTwoPass(Blocks):
    """x_BND -> x_BND."""

    def __init__(
        self,
        config: SurgeTwoPassConfig,
        frame: Frame,
        make_block: Callable[[int], nn.Module],
        residual: ResidualConfig,
        layer: int,
    ):
        super().__init__(config, frame, make_block, residual)
        self.layer, self.routing, self.norm = layer, config.routing, frame.norm
        adds = self.blocks[layer].residual
        if type(adds) is not ResidMix:
            raise UserError(
                f"model.stack.layer={config.layer!r}: its block adds back as {type(adds).__name__}, which has no one "
                "scale for a correction; try model/residual=resid_mix"
            )
        self.meta = Corrector(config, frame)

    def forward(self, x_BND: Tensor, context: Context) -> Tensor:
        outputs: list[Tensor] = []
        after, plan = self.first_later(context), self.plan(context)
        x_BND = self.run(x_BND, context, outputs, last=after)
        if self.routing == "single":
            x_BND = self.run(x_BND, context, outputs, after)
            return self.norm(x_BND) + self.norm(self.correction(x_BND, context))
        aside = replace(
            context, losses={}, memo=dict(context.memo)
        )  # later blocks leave their marks in the second pass
        with torch.no_grad():
            guess_BND = self.run(x_BND, aside, list(outputs), after)
        adds: Any = self.residual(plan[after - 1])
        scale_D = adds.mixer_scale_D.to(x_BND.dtype)
        x_BND = x_BND + scale_D * self.correction(guess_BND, context)
        return self.run(x_BND, context, outputs if self.routing == "replay" else None, after)

    def why_whole(self, length: int) -> str:
        return StackModule.why_whole(self, length)

    def first_later(self, context: Context) -> int:
        """The number of the first visit after the last one of the changed block."""
        return 1 + max(number for number, visit in enumerate(self.plan(context)) if visit.block == self.layer)

    def visit(self, visit: Visit, x_BTD: Tensor, context: Context) -> Tensor:
        if visit.block != self.layer:
            return super().visit(visit, x_BTD, context)
        block: Any = self.blocks[visit.block]

        def watched(h_BTD: Tensor, context: Context) -> Tensor:
            z_BTD: Tensor = block.mixer(h_BTD, context)
            context.memo[SEEN] = x_BTD.detach(), z_BTD
            return z_BTD

        return self.residual(visit)(x_BTD, context, watched, block.mlp)

    def correction(self, guess_BND: Tensor, context: Context) -> Tensor:
        """A z. guess_BND: what the first pass gave, read without gradients."""
        assert context.read is not None
        with torch.no_grad():
            logp_BNV = context.read(guess_BND)
        entered_BND, z_BND = context.memo[SEEN]
        corrected_BND: Tensor = self.meta(context.padded_ids(), logp_BNV, entered_BND, z_BND)
        return corrected_BND

    def effective_depth(self) -> int:
        return super().effective_depth() + len(self.again())

    def repeated_params(self) -> int:
        again = [self.blocks[visit.block] for visit in self.again()]
        borrowed = sum(getattr(module, "borrowed", 0) for block in again for module in block.modules())
        return super().repeated_params() + borrowed + sum(p.numel() for block in again for p in block.parameters())

    def again(self) -> list[Visit]:
        """The visits that the second pass repeats."""
        plan = self.plans[-1]
        last = max(number for number, visit in enumerate(plan) if visit.block == self.layer)
        return [] if self.routing == "single" else plan[last + 1 :]


class Corrector(nn.Module):
    """Errors and the stream into the changed block -> minGRU -> u, v, gate and keep at the ends of chunks -> A z."""

    def __init__(self, config: SurgeTwoPassConfig, frame: Frame):
        super().__init__()
        self.chunk = config.chunk
        self.error = ErrorSignal(frame.vocab_size, config.error_dim, config.surprisal)
        self.memory = MinGRU(frame.dim + self.error.width, config.state_dim)
        self.directions = Directions(frame.dim, config.state_dim, config.uv_std, True)
        self.gate = Gate(config.state_dim, config.gate_bias)
        self.keep = Gate(config.state_dim, config.keep_bias)

    def forward(self, ids_BN: Tensor, logp_BNV: Tensor, entered_BND: Tensor, z_BND: Tensor) -> Tensor:
        before_BNV = torch.cat((no_prediction(len(ids_BN), logp_BNV.shape[-1], ids_BN.device), logp_BNV[:, :-1]), dim=1)
        e_BNF = self.error(ids_BN, before_BNV)
        s_BNS = self.memory(torch.cat((entered_BND.float(), e_BNF), dim=-1))
        change = Change.none(len(z_BND), z_BND.shape[2], z_BND.device)
        corrections = []
        for start in range(0, z_BND.shape[1], self.chunk):
            if start:
                s_BS = s_BNS[:, start - 1]
                change = change.scaled(self.keep(s_BS)).followed_by(self.gate(s_BS), *self.directions(s_BS))
            corrections.append(change.of(z_BND[:, start : start + self.chunk]))
        return torch.cat(corrections, dim=1)
