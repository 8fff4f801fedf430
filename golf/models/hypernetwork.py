"""Weight matrices from a network that reads codes (hypernetworks, arXiv 1609.09106). Shapes: golf/models/slots.py."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import between, positive
from golf.models.generated import standardised
from golf.models.norms import norm
from golf.models.siren import Affine, Codes, Matrix, MatrixNet, Net, from_net
from golf.models.slots import Frame, LinearConfig


@dataclass(kw_only=True, slots=True)
class HypernetworkConfig(LinearConfig):
    """W = gain * A B^T, standardised, the rows of A and B one by one from G(layer, kind and side, index), three learned
    codes (PR 1589, made row-wise so that rows share the generator).

    rank: R, what G gives; what all rows have in common is taken out, else W begins as a matrix of rank one, and rows
    are RMS-normed. hidden: width of G's two GELU layers; codes: of each code, N(0, 1). gain: as in
    golf/models/siren.py. dense: matrices outside of layers.
    """

    rank: int
    hidden: int
    codes: int
    dense: LinearConfig

    def __post_init__(self) -> None:
        between(1, 2**16, rank=self.rank, hidden=self.hidden, codes=self.codes)

    def build(self, frame: Frame, inputs: int, outputs: int, *, residual: bool, gain: float) -> nn.Module:
        if frame.layer is None:
            return self.dense.build(frame, inputs, outputs, residual=residual, gain=gain)
        gain = 0.0 if residual else gain
        return from_net(frame, lambda: Hypernetwork(self, frame.layers), inputs, outputs, gain=gain, learned=residual)


class Hypernetwork(MatrixNet):
    def __init__(self, config: HypernetworkConfig, layers: int):
        super().__init__()
        self.layers, self.sides, self.indices = Codes(config.codes, layers), Codes(config.codes), Codes(config.codes)
        self.net = Net((3 * config.codes, config.hidden, config.hidden, config.rank), F.gelu)

    def reserve(self, matrix: Matrix) -> None:
        self.sides.need(2 * matrix.kind + 2)
        self.indices.need(max(matrix.outputs, matrix.inputs))

    def forward(self, matrix: Matrix) -> Tensor:
        a_OR = self.rows(matrix.layer, 2 * matrix.kind, matrix.outputs)
        b_IR = self.rows(matrix.layer, 2 * matrix.kind + 1, matrix.inputs)
        return standardised(a_OR @ b_IR.T)

    def rows(self, layer: int, side: int, count: int) -> Tensor:
        """One factor."""
        code_C = torch.cat((self.layers(layer), self.sides(side)))
        rows_nR = self.net(torch.cat((code_C.expand(count, -1), self.indices.codes_nC[:count]), dim=1))
        return norm(rows_nR - rows_nR.mean(dim=0))


@dataclass(kw_only=True, slots=True)
class HypernetworkPRConfig(LinearConfig):
    """W = A B from a trunk on a layer's code and one large head for each kind of matrix, which emits both factors
    whole (PR 1589): more numbers than it makes.

    rank: R; hidden: width of the trunk's two GELU layers, N(0, 1/inputs); codes: width of a layer's code,
    N(0, code_std^2); head_std: of the heads' weights. W is near zero at first, in every matrix.
    """

    rank: int
    hidden: int
    codes: int
    code_std: float
    head_std: float
    dense: LinearConfig

    def __post_init__(self) -> None:
        between(1, 2**16, rank=self.rank, hidden=self.hidden, codes=self.codes)
        positive(code_std=self.code_std, head_std=self.head_std)

    def build(self, frame: Frame, inputs: int, outputs: int, *, residual: bool, gain: float) -> nn.Module:
        if frame.layer is None:
            return self.dense.build(frame, inputs, outputs, residual=residual, gain=gain)
        return from_net(frame, lambda: HypernetworkPR(self, frame.layers), inputs, outputs, gain=gain, learned=False)


class HypernetworkPR(MatrixNet):
    def __init__(self, config: HypernetworkPRConfig, layers: int):
        super().__init__()
        self.rank, self.head_std = config.rank, config.head_std
        self.layers = Codes(config.codes, layers, std=config.code_std)
        self.trunk = Net((config.codes, config.hidden, config.hidden), F.gelu)
        self.heads = nn.ModuleList()
        self.width = config.hidden

    def reserve(self, matrix: Matrix) -> None:
        if matrix.kind == len(self.heads):
            head = Affine(self.width, self.rank * (matrix.inputs + matrix.outputs))
            nn.init.normal_(head.w_OI, std=self.head_std)
            self.heads.append(head)

    def forward(self, matrix: Matrix) -> Tensor:
        both = self.heads[matrix.kind](F.gelu(self.trunk(self.layers(matrix.layer))))
        a_OR, b_RI = both.split((matrix.outputs * self.rank, self.rank * matrix.inputs))
        w_OI: Tensor = a_OR.view(-1, self.rank) @ b_RI.view(self.rank, -1)
        return w_OI
