"""Weight matrices grown by a neural cellular automaton (distill.pub/2020/growing-ca). Shapes: golf/models/slots.py;
S: channels of a cell, h: hidden width of the rule, n: width of a code, Z: cells of a ring."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from golf.fields import between, positive
from golf.models.generated import Generated, kind_number, standardised
from golf.models.seeded import Drawn, key_of
from golf.models.siren import Affine, Codes, Net, through
from golf.models.slots import Frame, LinearConfig

once_more = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # kept: the states between steps


@dataclass(kw_only=True, slots=True)
class AutomatonConfig(LinearConfig):
    """W = gain * the first channel of a grid of outputs x inputs cells after `steps` steps of one learned rule for
    all matrices, standardised (PR 1589, with codes that tell cells where they are).

    channels: of a cell; the first begins as N(0, 1) from `seed`, the others at 0. hidden: width of the rule, which
    begins at 0; rate: what a step adds of it. codes: width of the learned codes of a matrix's rows and columns, of
    layers and of kinds of matrices. gain: as in golf/models/siren.py. dense: matrices outside of layers.
    """

    channels: int
    hidden: int
    codes: int
    steps: int
    rate: float
    seed: int
    dense: LinearConfig

    def __post_init__(self) -> None:
        between(1, 2**10, channels=self.channels, hidden=self.hidden, codes=self.codes, steps=self.steps)
        positive(rate=self.rate)
        between(0, 2**31 - 1, seed=self.seed)

    def build(self, frame: Frame, inputs: int, outputs: int, *, residual: bool, gain: float) -> nn.Module:
        if frame.layer is None:
            return self.dense.build(frame, inputs, outputs, residual=residual, gain=gain)
        rule = frame.shared[frame.share("generator", "rule", lambda: Rule(self, frame.layers))]
        assert isinstance(rule, Rule)
        return Automaton(rule, self, frame, inputs, outputs, gain=0.0 if residual else gain, learned=residual)


class Rule(nn.Module):
    """What every cell does: state, differences and codes -> change of its state, 0 at first."""

    def __init__(self, config: AutomatonConfig, layers: int):
        super().__init__()
        self.layers, self.kinds = Codes(config.codes, layers), Codes(config.codes)
        self.net = Net((3 * config.channels, config.hidden, config.channels), F.relu)
        nn.init.zeros_(self.net.affine()[-1].w_OI)
        self.row = Affine(3 * config.codes, config.hidden, bias=False)
        self.column = Affine(config.codes, config.hidden, bias=False)


class Automaton(Generated):
    """x_..I -> gain * W x."""

    roles = {"gain": "scalar", "row_On": "generator", "column_In": "generator"}

    def __init__(
        self,
        rule: Rule,
        config: AutomatonConfig,
        frame: Frame,
        inputs: int,
        outputs: int,
        *,
        gain: float,
        learned: bool,
    ):
        super().__init__(inputs, outputs, gain=gain, learned=learned, net=rule)
        assert frame.layer is not None
        self.layer, self.kind = frame.layer, kind_number(frame)
        rule.kinds.need(self.kind + 1)
        self.steps, self.rate, self.channels = config.steps, config.rate, config.channels
        self.row_On = nn.Parameter(torch.empty(outputs, config.codes).normal_())
        self.column_In = nn.Parameter(torch.empty(inputs, config.codes).normal_())
        self.seed = Drawn(key_of(config.seed, frame), outputs, inputs, std=1.0)

    def matrix_OI(self) -> Tensor:
        state_OIS = F.pad(self.seed.values[..., None], (0, self.channels - 1))
        row_Oh, column_Ih, weights = self.places()
        for _ in range(self.steps):
            state_OIS = once_more(_grid_step, state_OIS, self.rate, row_Oh, column_Ih, *weights)
        return standardised(state_OIS[..., 0])

    def places(self) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """What the rule's hidden layer gets from the row and from the column, and its weights."""
        (rule,) = self.held
        assert isinstance(rule, Rule)
        code_n = torch.cat((rule.layers(self.layer), rule.kinds(self.kind)))
        row_On = torch.cat((self.row_On, code_n.expand(self.outputs, -1)), dim=1)
        return rule.row(row_On), rule.column(self.column_In), rule.net.weights()


def _grid_step(
    state_OIS: Tensor, rate: float, row_Oh: Tensor, column_Ih: Tensor, first: Tensor, bias: Tensor, *last: Tensor
) -> Tensor:
    """The next state; the grid's edges meet, and a cell sees half the difference of its neighbours on each axis."""
    differences = [(state_OIS.roll(-1, axis) - state_OIS.roll(1, axis)) / 2 for axis in (0, 1)]
    seen_OIh = F.linear(torch.cat((state_OIS, *differences), dim=-1), first, bias)
    hidden_OIh = F.relu(seen_OIh + row_Oh[:, None] + column_Ih)
    return state_OIS + rate * F.linear(hidden_OIh, *last)


@dataclass(kw_only=True, slots=True)
class AutomatonPRConfig(LinearConfig):
    """W = the cells of a ring after `steps` steps of a rule without codes, as they stand (PR 1589).

    channels: of a cell, N(0, std^2) from `seed`; hidden: width of the rule's two ReLU layers; its last weights begin
    at 0. rate: what a step adds; the PR's random mask keeps half of the changes in training, all in evaluation: here
    it is its mean in both. A ring is a matrix, not the model: no embedding, no vector of scales is grown.
    """

    channels: int
    hidden: int
    steps: int
    rate: float
    std: float
    seed: int
    dense: LinearConfig

    def __post_init__(self) -> None:
        between(1, 2**10, channels=self.channels, hidden=self.hidden, steps=self.steps)
        positive(rate=self.rate, std=self.std)
        between(0, 2**31 - 1, seed=self.seed)

    def build(self, frame: Frame, inputs: int, outputs: int, *, residual: bool, gain: float) -> nn.Module:
        if frame.layer is None:
            return self.dense.build(frame, inputs, outputs, residual=residual, gain=gain)
        net = frame.shared[frame.share("generator", "rule", self.rule)]
        assert isinstance(net, Net)
        return AutomatonPR(net, self, key_of(self.seed, frame), inputs, outputs, gain)

    def rule(self) -> Net:
        widths = (3 * self.channels, self.hidden, self.hidden, self.channels)
        net = Net(widths, F.relu, last_bias=False)
        nn.init.zeros_(net.affine()[-1].w_OI)
        return net


class AutomatonPR(Generated):
    """x_..I -> gain * W x; the gain is a constant."""

    def __init__(self, rule: Net, config: AutomatonPRConfig, key: str, inputs: int, outputs: int, gain: float):
        super().__init__(inputs, outputs, gain=gain, learned=False, net=rule)
        self.steps, self.rate = config.steps, config.rate
        cells = math.ceil(inputs * outputs / config.channels)
        self.seed = Drawn(key, cells, config.channels, std=config.std)

    def matrix_OI(self) -> Tensor:
        (rule,) = self.held
        assert isinstance(rule, Net)
        state_ZS, weights = self.seed.values, rule.weights()
        for _ in range(self.steps):
            state_ZS = once_more(_ring_step, state_ZS, self.rate, *weights)
        return state_ZS.flatten()[: self.borrowed].view(self.outputs, self.inputs)


def _ring_step(state_ZS: Tensor, rate: float, *weights: Tensor | None) -> Tensor:
    """The next state: a cell sees itself and its differences from its two neighbours."""
    seen = torch.cat((state_ZS, state_ZS - state_ZS.roll(1, 0), state_ZS - state_ZS.roll(-1, 0)), dim=-1)
    return state_ZS + rate * through(seen, F.relu, *weights)
