"""Weight matrices as tensor trains. Shapes: golf/models/slots.py; r: bonds between cores; i, o: modes of a core."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from golf.fields import between
from golf.models.generated import Generated
from golf.models.slots import Frame, LinearConfig

CORES = 3


@dataclass(kw_only=True, slots=True)
class TensorTrainConfig(LinearConfig):
    """W as three cores with a bond of `bond` numbers between neighbours (arXiv 1509.06569; PR 1888: 512 x 512 in modes
    of 8, bond 8, 5,120 numbers instead of 262,144). dense: matrices outside of layers."""

    bond: int
    dense: LinearConfig

    def __post_init__(self) -> None:
        between(1, 1024, bond=self.bond)

    def build(self, frame: Frame, inputs: int, outputs: int, *, residual: bool, gain: float) -> nn.Module:
        if frame.layer is None:
            return self.dense.build(frame, inputs, outputs, residual=residual, gain=gain)
        return TensorTrain(inputs, outputs, self.bond, 0.0 if residual else gain)


def modes(size: int) -> tuple[int, int, int]:
    """Three factors of a size, as near to one another as there are, ascending."""
    choices = [
        (a, b, size // (a * b))
        for a in range(1, round(size ** (1 / CORES)) + 2)
        if size % a == 0
        for b in range(a, math.isqrt(size // a) + 1)
        if size % (a * b) == 0
    ]
    return min(choices, key=lambda found: found[2] - found[0])


class Cores(nn.ParameterList):
    roles = {str(k): "factor" for k in range(CORES)}


class TensorTrain(Generated):
    """Cores of N(0, s^2), s such that entries of W have variance 1/inputs."""

    def __init__(self, inputs: int, outputs: int, bond: int, gain: float):
        super().__init__(inputs, outputs, gain=gain, learned=gain == 0)
        bonds = [1, *[bond] * (CORES - 1), 1]
        self.shapes = list(zip(bonds[:-1], modes(outputs), modes(inputs), bonds[1:], strict=True))
        std = (1 / (inputs * bond ** (CORES - 1))) ** (1 / (2 * CORES))
        # core k as a matrix of (bond before, outputs) x (inputs, bond after): what Muon and formats know
        self.cores = Cores(nn.Parameter(torch.empty(r * o, i * s).normal_(std=std)) for r, o, i, s in self.shapes)

    def matrix_OI(self) -> Tensor:
        first, second, third = (core.view(shape) for core, shape in zip(self.cores, self.shapes, strict=True))
        w_OI = torch.einsum("zabr,rcds,sefy->acebdf", first, second, third)
        return w_OI.reshape(self.outputs, self.inputs)
