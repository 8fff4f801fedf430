"""Weight matrices as functions of their coordinates (SIREN, arXiv 2006.09661). Shapes: golf/models/slots.py; F:
frequencies, P: entries of a matrix."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from golf.fields import between, positive
from golf.models.generated import Generated, kind_number
from golf.models.norms import norm
from golf.models.seeded import Drawn
from golf.models.slots import Frame, LinearConfig

Between = Callable[[Tensor], Tensor]


class Affine(nn.Module):
    """Weights ~ N(0, 1/inputs) and a bias of 0, if any: a layer of what makes weights."""

    roles = {"w_OI": "generator", "b_O": "generator"}

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True):
        super().__init__()
        self.w_OI = nn.Parameter(torch.empty(outputs, inputs).normal_(std=inputs**-0.5))
        self.b_O = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w_OI, self.b_O)


class Net(nn.Module):
    """x_..I -> y_..O through affine layers of these widths with a function between them, fp32."""

    def __init__(self, widths: tuple[int, ...], between: Between, *, last_bias: bool = True):
        super().__init__()
        last = len(widths) - 2
        sizes = enumerate(pairwise(widths))
        self.layers = nn.ModuleList(Affine(*size, bias=last_bias or n < last) for n, size in sizes)
        self.between = between

    def affine(self) -> list[Affine]:
        """The layers, first to last."""
        return [cast(Affine, layer) for layer in self.layers]

    def weights(self) -> list[Tensor | None]:
        """Weight and bias of one layer after the other, for `through`."""
        return [tensor for layer in self.affine() for tensor in (layer.w_OI, layer.b_O)]

    def forward(self, x: Tensor) -> Tensor:
        return through(x, self.between, *self.weights())


def through(x: Tensor, between: Between, *weights: Tensor | None) -> Tensor:
    """What a Net does. A checkpoint must be given the weights: by the time that it runs a second time, the module may
    hold others (functional_call)."""
    for number in range(0, len(weights), 2):
        w_OI, b_O = weights[number : number + 2]
        assert w_OI is not None
        x = F.linear(x if number == 0 else between(x), w_OI, b_O)
    return x


class Codes(nn.Module):
    """Learned codes c_nC ~ N(0, std^2) of layers, kinds of matrices or indices."""

    roles = {"codes_nC": "generator"}

    def __init__(self, width: int, count: int = 0, std: float = 1.0):
        super().__init__()
        self.std = std
        self.codes_nC = nn.Parameter(torch.empty(count, width).normal_(std=std))

    def need(self, count: int) -> None:
        """Make room for so many, while the model is built."""
        have, width = self.codes_nC.shape
        if count > have:
            more_nC = torch.empty(count - have, width).normal_(std=self.std)
            self.codes_nC = nn.Parameter(torch.cat((self.codes_nC.detach(), more_nC)))

    def forward(self, number: int) -> Tensor:
        code_C: Tensor = self.codes_nC[number]
        return code_C


@dataclass(frozen=True, slots=True)
class Matrix:
    """Which matrix of a model: its layer, the number of its kind, its shape."""

    layer: int
    kind: int
    outputs: int
    inputs: int


class MatrixNet(nn.Module):
    """module(matrix) -> W_OI, fp32: makes the matrices of all layers."""

    def reserve(self, matrix: Matrix) -> None:
        """Make room for what is a kind's or an index's own, while the model is built."""
        raise NotImplementedError


class FromNet(Generated):
    """x_..I -> gain * W x, W from a MatrixNet. learned: the gain is, else it is a constant."""

    def __init__(self, net: MatrixNet, matrix: Matrix, *, gain: float, learned: bool):
        super().__init__(matrix.inputs, matrix.outputs, gain=gain, learned=learned, net=net)
        self.matrix = matrix

    def matrix_OI(self) -> Tensor:
        (net,) = self.held
        assert net is not None
        w_OI: Tensor = net(self.matrix)
        return w_OI


def from_net(
    frame: Frame, make: Callable[[], MatrixNet], inputs: int, outputs: int, *, gain: float, learned: bool
) -> FromNet:
    """A matrix of a layer from the one net of a model."""
    assert frame.layer is not None
    net = frame.shared[frame.share("generator", "matrices", make)]
    assert isinstance(net, MatrixNet)
    matrix = Matrix(frame.layer, kind_number(frame), outputs, inputs)
    net.reserve(matrix)
    return FromNet(net, matrix, gain=gain, learned=learned)


@dataclass(kw_only=True, slots=True)
class SirenConfig(LinearConfig):
    """W = gain * row(o) column(i)^T / sqrt(K inputs) from two sine networks (PR 1589, made
    separable): each sees sines and cosines of the index and learned codes of the layer and the kind of matrix.

    rank: K, what they give, RMS-normed; hidden: width of their two hidden layers; codes: of a code; frequencies:
    N(0, cycles^2) over the whole axis, from `seed`. gain: learned from 0 on in the residual stream, else a constant.
    dense: matrices outside of layers.
    """

    rank: int
    hidden: int
    codes: int
    frequencies: int
    cycles: float
    seed: int
    dense: LinearConfig

    def __post_init__(self) -> None:
        between(1, 2**16, rank=self.rank, hidden=self.hidden, codes=self.codes, frequencies=self.frequencies)
        positive(cycles=self.cycles)
        between(0, 2**31 - 1, seed=self.seed)

    def build(self, frame: Frame, inputs: int, outputs: int, *, residual: bool, gain: float) -> nn.Module:
        if frame.layer is None:
            return self.dense.build(frame, inputs, outputs, residual=residual, gain=gain)
        gain = 0.0 if residual else gain
        return from_net(frame, lambda: Siren(self, frame.layers), inputs, outputs, gain=gain, learned=residual)


class Siren(MatrixNet):
    def __init__(self, config: SirenConfig, layers: int):
        super().__init__()
        self.layers, self.kinds = Codes(config.codes, layers), Codes(config.codes)
        widths = (2 * (config.frequencies + config.codes), config.hidden, config.hidden, config.rank)
        self.row, self.column = Net(widths, torch.sin), Net(widths, torch.sin)
        for net in (self.row, self.column):
            _spread(net)
        self.frequencies_F = Drawn(f"{config.seed} frequencies", config.frequencies, std=config.cycles)

    def reserve(self, matrix: Matrix) -> None:
        self.kinds.need(matrix.kind + 1)

    def forward(self, matrix: Matrix) -> Tensor:
        code_C = torch.cat((self.layers(matrix.layer), self.kinds(matrix.kind)))
        row_OK = norm(self.row(self.features(matrix.outputs, code_C)))
        column_IK = norm(self.column(self.features(matrix.inputs, code_C)))
        return row_OK @ column_IK.T * (row_OK.shape[1] * matrix.inputs) ** -0.5

    def features(self, count: int, code_C: Tensor) -> Tensor:
        """What a network sees of each index."""
        at_n = torch.linspace(-math.pi, math.pi, count, device=code_C.device)
        turns_nF = at_n[:, None] * self.frequencies_F.values
        return torch.cat((turns_nF.sin(), turns_nF.cos(), code_C.expand(count, -1)), dim=1)


def _spread(net: Net) -> None:
    """Phases of whole turns and more, so that little is common to the outputs for all indices."""
    for layer in net.affine()[:-1]:
        assert layer.b_O is not None
        nn.init.normal_(layer.w_OI, std=math.sqrt(8 / layer.w_OI.shape[1]))
        nn.init.uniform_(layer.b_O, -math.pi, math.pi)


@dataclass(kw_only=True, slots=True)
class SirenPRConfig(LinearConfig):
    """W[o, i] = f(o/(outputs-1), i/(inputs-1), layer/(layers-1), code of the kind), one number at a time (PR 1589).

    f: three layers sin(omega (A x + b)) of width `hidden` and a linear one. W is as f gives it: neither standardised
    nor zero in the residual stream, nearly of rank one at first.
    """

    hidden: int
    omega: float
    dense: LinearConfig

    def __post_init__(self) -> None:
        between(1, 2**16, hidden=self.hidden)
        positive(omega=self.omega)

    def build(self, frame: Frame, inputs: int, outputs: int, *, residual: bool, gain: float) -> nn.Module:
        if frame.layer is None:
            return self.dense.build(frame, inputs, outputs, residual=residual, gain=gain)
        return from_net(frame, lambda: SirenPR(self, frame.layers), inputs, outputs, gain=gain, learned=False)


class SirenPR(MatrixNet):
    def __init__(self, config: SirenPRConfig, layers: int):
        super().__init__()
        self.last = max(layers - 1, 1)
        self.kinds = Codes(8, 16)
        hidden = config.hidden
        self.net = Net((11, hidden, hidden, hidden, 1), partial(_sine, config.omega))
        for number, layer in enumerate(self.net.affine()):
            assert layer.b_O is not None
            width = layer.w_OI.shape[1]
            bound = math.sqrt(6 / width) / config.omega if number else 1 / width
            nn.init.uniform_(layer.w_OI, -bound, bound)
            nn.init.uniform_(layer.b_O, -(width**-0.5), width**-0.5)

    def reserve(self, matrix: Matrix) -> None:
        self.kinds.need(matrix.kind + 1)

    def forward(self, matrix: Matrix) -> Tensor:
        code_C, weights = self.kinds(matrix.kind), self.net.weights()
        w_OI: Tensor = checkpoint(
            _entries, matrix, matrix.layer / self.last, self.net.between, code_C, *weights,
            use_reentrant=False, preserve_rng_state=False,
        )  # fmt: skip
        return w_OI


def _sine(omega: float, x: Tensor) -> Tensor:
    return torch.sin(omega * x)


def _entries(matrix: Matrix, depth: float, between: Between, code_C: Tensor, *weights: Tensor | None) -> Tensor:
    """W_OI, at some thousand numbers an entry for a backward pass: run in a checkpoint."""
    o, i = (torch.linspace(0, 1, count, device=code_C.device) for count in (matrix.outputs, matrix.inputs))
    place_P2 = torch.cartesian_prod(o, i)
    constant_P9 = torch.cat((code_C.new_full((1,), depth), code_C)).expand(len(place_P2), -1)
    entries_P1 = through(torch.cat((place_P2, constant_P9), dim=1), between, *weights)
    return entries_P1.view(matrix.outputs, matrix.inputs)
