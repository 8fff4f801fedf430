"""SURGE-M, first form: matrices that change within a text, chunk by chunk, as a recurrent network reads the errors.

Shapes: golf/models/slots.py; S: the network's state, n: the positions of a chunk, m: those up to its end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from golf.errors import UserError
from golf.fields import between, positive
from golf.models.layers import check_layer_text, layer_set
from golf.models.linear import Dense
from golf.models.loops import Visit
from golf.models.recall import Recall, piece_of
from golf.models.slots import Context, Frame, ResidualConfig, StackModule, first_reason
from golf.models.stack import Blocks, BlocksConfig
from golf.models.surge_error import GRU, Change, Directions, ErrorSignal, Gate, no_prediction

CHANGES, ENTERED = "changes of this chunk", "stream into the first changing block"


@dataclass(kw_only=True, slots=True)
class MetaConfig:
    """The network that changes matrices. error_dim: of the error that it reads, surprisal: with the surprisal beside;
    uv_std: of u and v at first (0 is a saddle that they never leave); gate_bias: of the logit of their gate; anchor:
    the most that a matrix may change, in its own norm; vectorised: the GRU reads a chunk at once, not token by token.
    """

    error_dim: int
    state_dim: int
    uv_std: float
    gate_bias: float
    anchor: float
    surprisal: bool
    vectorised: bool

    def __post_init__(self) -> None:
        between(1, 2**16, error_dim=self.error_dim, state_dim=self.state_dim)
        between(0, 10, uv_std=self.uv_std)
        between(-20, 20, gate_bias=self.gate_bias)
        positive(anchor=self.anchor)


@dataclass(kw_only=True, slots=True)
class SurgeConfig(BlocksConfig):
    """The blocks, run in chunks of `chunk` positions that see the keys and values of those before (PR 1589, SURGE-M v1,
    mended). In `layers` W of attention's output becomes (I + g u v^T) W after each chunk, for each sequence by itself.

    out_std: these W begin as N(0, out_std^2), since (I + A) 0 is 0; null: as `linear` has it. meta: null is the
    control, chunks without changes.
    """

    chunk: int
    layers: str
    out_std: float | None
    meta: MetaConfig | None

    def __post_init__(self) -> None:
        positive(chunk=self.chunk, out_std=self.out_std)
        check_layer_text(layers=self.layers)

    def build(self, frame: Frame, make_block: Callable[[int], nn.Module], residual: ResidualConfig) -> "Surge":
        self.check(frame.layers)
        return Surge(self, frame, make_block, residual)


class Surge(Blocks):
    """x_BND -> x_BND."""

    def __init__(
        self, config: SurgeConfig, frame: Frame, make_block: Callable[[int], nn.Module], residual: ResidualConfig
    ):
        super().__init__(config, frame, make_block, residual)
        self.chunk = config.chunk
        self.layers = sorted(layer_set(config.layers, frame.layers, "model.stack.layers"))
        if reason := first_reason(self.blocks, 0):
            raise UserError(f"model.stack: chunks see each other by keys and values alone, and {reason}")
        for layer in self.layers:
            if config.out_std is not None:
                nn.init.normal_(self.matrix(layer), std=config.out_std)
        self.meta = Meta(config.meta, frame, len(self.layers)) if config.meta is not None and self.layers else None

    def why_whole(self, length: int) -> str:
        return StackModule.why_whole(self, length)

    def matrix(self, layer: int) -> Tensor:
        """W_OI of a changing layer before any change."""
        block: Any = self.blocks[layer]
        out = block.mixer.out
        if not isinstance(out, Dense):
            raise UserError(
                f"model.stack.layers: layer {layer} has {type(out).__name__} where a dense matrix is changed; "
                "try model/linear=dense"
            )
        return out.weight

    def forward(self, x_BND: Tensor, context: Context) -> Tensor:
        length, recall = x_BND.shape[1], Recall(context.attend)
        running = None if self.meta is None else self.meta.begin(x_BND)
        ids_BN, outputs = context.padded_ids(), []
        for start in range(0, length, self.chunk):
            stop = min(start + self.chunk, length)
            piece = piece_of(context, start, stop, recall.next_chunk())
            if running is not None:
                piece.memo[CHANGES] = dict(zip(self.layers, running.changes, strict=True))
            outputs.append(super().forward(x_BND[:, start:stop], piece))
            for name, loss in piece.losses.items():
                context.losses[name] = context.losses.get(name, 0.0) + loss * ((stop - start) / length)
            if self.meta is not None and running is not None and stop < length:
                weights = [self.matrix(layer) for layer in self.layers]
                running = self.meta(running, piece, ids_BN[:, start:stop], outputs[-1], weights)
        return torch.cat(outputs, dim=1)

    def visit(self, visit: Visit, x_BTD: Tensor, context: Context) -> Tensor:
        if visit.block not in context.memo.get(CHANGES, ()):
            return super().visit(visit, x_BTD, context)
        context.once(ENTERED, lambda: x_BTD.detach())
        block: Any = self.blocks[visit.block]
        change: Change = context.memo[CHANGES][visit.block]

        def changed(h_BTD: Tensor, context: Context) -> Tensor:
            z_BTD: Tensor = block.mixer(h_BTD, context)
            return z_BTD + change.of(z_BTD)

        return self.residual(visit)(x_BTD, context, changed, block.mlp)


@dataclass(frozen=True, slots=True)
class Running:
    """What the network hands from chunk to chunk: its state, the last prediction, the changes of each layer."""

    state_BS: Tensor
    logp_B1V: Tensor
    changes: list[Change]


class Meta(nn.Module):
    """The network: errors and the stream into the first changing block -> GRU -> u, v and gate of each layer.

    First order: no gradient leaves what it reads, and none reaches it through a change of an earlier chunk.
    """

    def __init__(self, config: MetaConfig, frame: Frame, layers: int):
        super().__init__()
        self.anchor, self.vocab_size, width = config.anchor, frame.vocab_size, config.state_dim
        self.error = ErrorSignal(frame.vocab_size, config.error_dim, config.surprisal)
        self.memory = GRU(frame.dim + self.error.width, width, config.vectorised)
        self.directions = nn.ModuleList(Directions(frame.dim, width, config.uv_std, False) for _ in range(layers))
        self.gates = nn.ModuleList(Gate(width, config.gate_bias) for _ in range(layers))

    def begin(self, x_BND: Tensor) -> Running:
        """Before the first chunk."""
        rows, dim, device = len(x_BND), x_BND.shape[2], x_BND.device
        changes = [Change.none(rows, dim, device) for _ in self.gates]
        state_BS = torch.zeros(rows, self.memory.width, device=device)
        return Running(state_BS, no_prediction(rows, self.vocab_size, device), changes)

    def forward(
        self, running: Running, piece: Context, ids_Bn: Tensor, x_BnD: Tensor, weights: list[Tensor]
    ) -> Running:
        """After a chunk. x_BnD: what the stack gave; weights: W_OI of the changing layers."""
        assert piece.read is not None
        with torch.no_grad():
            logp_BnV = piece.read(x_BnD)
            before_BnV = torch.cat((running.logp_B1V, logp_BnV[:, :-1]), dim=1)
        e_BnF = self.error(ids_Bn, before_BnV)
        state_BS = self.memory(torch.cat((piece.memo[ENTERED].float(), e_BnF), dim=-1), running.state_BS)
        changes = [
            change.detached().followed_by(gate(state_BS), *directions(state_BS)).anchored(w_OI.detach(), self.anchor)
            for change, gate, directions, w_OI in zip(
                running.changes, self.gates, self.directions, weights, strict=True
            )
        ]
        return Running(state_BS, logp_BnV[:, -1:], changes)
