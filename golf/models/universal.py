"""A block that is visited until each token has had enough of it. Shapes: golf/models/slots.py."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import between, one_of
from golf.models.slots import Context, Frame, ResidualConfig, StackConfig, StackModule, first_reason

START = 0.01  # standard deviation of the halting weights at first


@dataclass(kw_only=True, slots=True)
class UniversalConfig(StackConfig):
    """Universal transformer (arXiv 1807.03819) with adaptive computation time (arXiv 1603.08983; PR 1293, PR 1589).

    All the model's blocks are one step, taken `most` times at most. After a step a token halts with probability
    p = sigmoid(w x + b), b at first `bias`; it stops where the sum of p reaches `threshold`, and keeps the state of the
    step before for others to attend to. What goes on is the mean of its states by p, the last one by what is left to 1.
    steps: a learned vector for each step, zero at first. ponder: weight of the loss on thinking long, which only
    training has; form: `graves` is the number of steps and what was left, with a gradient for every token, `last`
    has one only for tokens that took all steps (PR 1589).
    """

    most: int
    threshold: float
    bias: float
    steps: bool
    ponder: float
    form: str

    def __post_init__(self) -> None:
        between(1, 64, most=self.most)
        between(0, 1, threshold=self.threshold)
        between(-20, 20, bias=self.bias)
        between(0, 10, ponder=self.ponder)
        one_of("form", self.form, ("graves", "last"))

    def build(self, frame: Frame, make_block: Callable[[int], nn.Module], residual: ResidualConfig) -> "Universal":
        return Universal(self, frame, make_block)


class Universal(StackModule):
    """x_BND -> x_BND; halting is worked out in fp32."""

    roles = {"halt_D": "scalar", "halt_bias": "scalar", "step_LD": "scalar"}

    def __init__(self, config: UniversalConfig, frame: Frame, make_block: Callable[[int], nn.Module]):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(make_block(layer) for layer in range(frame.layers))
        # with one step nothing halts before it: there would be nothing to learn
        self.halt_D = nn.Parameter(torch.empty(frame.dim).normal_(std=START)) if config.most > 1 else None
        self.halt_bias = nn.Parameter(torch.tensor(config.bias)) if config.most > 1 else None
        self.step_LD = nn.Parameter(torch.zeros(config.most, frame.dim)) if config.steps else None

    def forward(self, x_BND: Tensor, context: Context) -> Tensor:
        config = self.config
        state_BND, out_BND = x_BND, torch.zeros_like(x_BND, dtype=torch.float32)
        sum_BN = out_BND[..., 0]
        running_BN = torch.ones_like(sum_BN, dtype=torch.bool)
        steps_BN, left_BN = torch.zeros_like(sum_BN), torch.zeros_like(sum_BN)
        for step in range(config.most):
            new_BND = self._step(step, state_BND, context)
            last = step == config.most - 1
            p_BN = torch.zeros_like(sum_BN) if self.halt_D is None else self._halting(new_BND)
            stops_BN = running_BN if last else running_BN & (sum_BN + p_BN >= config.threshold)
            weight_BN = torch.where(stops_BN, 1 - sum_BN, p_BN) * running_BN
            out_BND = out_BND + weight_BN[..., None] * new_BND.float()
            steps_BN = steps_BN + running_BN
            if last or config.form == "graves":
                left_BN = left_BN + weight_BN * stops_BN
            running_BN = running_BN & ~stops_BN
            sum_BN = sum_BN + p_BN * running_BN
            state_BND = torch.where(running_BN[..., None], new_BND, state_BND)
        if config.ponder and config.most > 1:
            context.losses["ponder"] = config.ponder * (steps_BN + left_BN).mean()
        return out_BND.to(x_BND.dtype)

    def _step(self, step: int, state_BND: Tensor, context: Context) -> Tensor:
        if self.step_LD is not None:
            state_BND = state_BND + self.step_LD[step].to(state_BND.dtype)
        for block in self.blocks:
            state_BND = block(state_BND, context)
            context.first_BND = state_BND if context.first_BND is None else context.first_BND
        return state_BND

    def _halting(self, x_BND: Tensor) -> Tensor:
        assert self.halt_D is not None
        assert self.halt_bias is not None
        return torch.sigmoid(F.linear(x_BND.float(), self.halt_D[None])[..., 0] + self.halt_bias)

    def why_whole(self, length: int) -> str:
        return first_reason(self.blocks, length)

    def stored_depth(self) -> int:
        return len(self.blocks)

    def effective_depth(self) -> int:
        return len(self.blocks) * self.config.most

    def repeated_params(self) -> int:
        held = sum(p.numel() for block in self.blocks for p in block.parameters())
        borrowed = sum(getattr(module, "borrowed", 0) for module in self.blocks.modules())
        return (self.config.most - 1) * (held + borrowed)
