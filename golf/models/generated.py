"""Weight matrices that are made of something smaller. Shapes: golf/models/slots.py."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.models.slots import Frame

MadeOf = tuple[Tensor, int, torch.device]  # a tensor, how often it was changed, where it is


class Generated(nn.Module):
    """x_..I -> gain * W x, W made anew in every forward pass that trains; the artifact holds what it is made of.

    A subclass makes W in matrix_OI(). net: what several matrices are made by; the model owns it (Frame.share), this
    module only holds it, so that it has one name. gain: learned, or a constant: where a norm follows, as in attention,
    its gradient is rounding noise, which Adam makes into a random walk. `borrowed`: how many numbers W has, for the
    arithmetic of plans.
    """

    roles = {"gain": "scalar"}

    def __init__(self, inputs: int, outputs: int, *, gain: float, learned: bool, net: nn.Module | None = None):
        super().__init__()
        self.inputs, self.outputs, self.borrowed = inputs, outputs, inputs * outputs
        self.held = (net,)  # a tuple: modules in it are not this module's children
        self.gain = nn.Parameter(torch.tensor(gain)) if learned else gain
        self.last: tuple[list[MadeOf], Tensor] | None = None  # what was made without gradients, and of what

    def matrix_OI(self) -> Tensor:
        """W, fp32."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        training = torch.is_grad_enabled() or torch.compiler.is_compiling()
        w_OI = self.matrix_OI() if training else self._kept()
        return F.linear(x, (self.gain * w_OI).to(x.dtype))

    def _kept(self) -> Tensor:
        """W as last made, if nothing that it is made of has changed: scoring runs many passes with the same weights."""
        net = self.held[0]
        made_of = [(p, p._version, p.device) for p in [*self.parameters(), *(() if net is None else net.parameters())]]
        if self.last is None or not _same(self.last[0], made_of):
            self.last = (made_of, self.matrix_OI())
        return self.last[1]


def _same(before: list[MadeOf], now: list[MadeOf]) -> bool:
    """Whether these are the very same tensors, unchanged."""
    return len(before) == len(now) and all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(before, now, strict=True))


def kind_number(frame: Frame) -> int:
    """0, 1, ... for the kinds of matrices of a model (query, key, ...), in the order in which the first layer has
    them."""
    kinds: dict[str, int] = frame.memo.setdefault("kinds", {})
    return kinds.setdefault(frame.kind, len(kinds))


def standardised(w_OI: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1/sqrt(inputs) over the whole matrix."""
    centred_OI = w_OI - w_OI.mean()
    return centred_OI * ((w_OI.shape[1] ** -0.5) * torch.rsqrt(centred_OI.square().mean() + 1e-12))
