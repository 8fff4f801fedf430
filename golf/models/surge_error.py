"""What SURGE-M's networks are made of: the error that they read, their memory, and the change that they make (PR 1589).

Shapes: golf/models/slots.py; E: the width of an error, F: of what a memory reads, S: of its state, c: the changes so
far. All of it runs in fp32.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def uniform(*shape: int, inputs: int) -> nn.Parameter:
    """Values within +-1/sqrt(inputs)."""
    bound = 1 / math.sqrt(inputs)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class ErrorSignal(nn.Module):
    """e_t = LN(W (onehot(x_t) - p_t)), p_t the distribution that was predicted for token t; no one-hot is made.

    LN has a gain and a bias. surprisal: a further channel, -log p_t(x_t) in nats, since LN keeps no size of an error.
    """

    roles = {"weight_VE": "generator", "gain_E": "generator", "bias_E": "generator"}

    def __init__(self, vocab_size: int, width: int, surprisal: bool):
        super().__init__()
        self.surprisal, self.width = surprisal, width + surprisal
        self.weight_VE = uniform(vocab_size, width, inputs=vocab_size)
        self.gain_E = nn.Parameter(torch.ones(width))
        self.bias_E = nn.Parameter(torch.zeros(width))

    def forward(self, ids_BN: Tensor, logp_BNV: Tensor) -> Tensor:
        """e_BNF; logp_BNV: of the position before each."""
        e_BNE = F.embedding(ids_BN, self.weight_VE) - logp_BNV.exp() @ self.weight_VE
        e_BNE = F.layer_norm(e_BNE, self.gain_E.shape, self.gain_E, self.bias_E)
        if not self.surprisal:
            return e_BNE
        return torch.cat((e_BNE, -logp_BNV.gather(-1, ids_BN[..., None])), dim=-1)


def no_prediction(rows: int, vocab_size: int, device: torch.device) -> Tensor:
    """logp_B1V before the first token: all logits 0."""
    return torch.full((rows, 1, vocab_size), -math.log(vocab_size), device=device)


class GRU(nn.Module):
    """The gated recurrent unit (arXiv 1406.1078). vectorised: one call for all positions; else one for each."""

    roles = {"input_3SF": "generator", "state_3SS": "generator", "input_3S": "generator", "state_3S": "generator"}

    def __init__(self, inputs: int, width: int, vectorised: bool):
        super().__init__()
        self.width, self.vectorised = width, vectorised
        self.input_3SF = uniform(3 * width, inputs, inputs=width)
        self.state_3SS = uniform(3 * width, width, inputs=width)
        self.input_3S = uniform(3 * width, inputs=width)
        self.state_3S = uniform(3 * width, inputs=width)

    def forward(self, x_BNF: Tensor, s_BS: Tensor) -> Tensor:
        """The state after all positions; s_BS: before them."""
        weights = (self.input_3SF, self.state_3SS, self.input_3S, self.state_3S)
        if self.vectorised:
            x_NBF = x_BNF.transpose(0, 1).contiguous()  # else the product's rounding depends on who needs a gradient
            last_1BS: Tensor = torch.gru(x_NBF, s_BS[None], weights, True, 1, 0.0, False, False, False)[1]
            return last_1BS[0]
        for x_BF in x_BNF.unbind(1):
            s_BS = torch.gru_cell(x_BF, s_BS, *weights)
        return s_BS


class MinGRU(nn.Module):
    """s_t = (1 - z_t) s_{t-1} + z_t h_t, [z; h] = sigmoid(W x_t + b), s_0 = 0 (after arXiv 2410.01201, whose h has no
    sigmoid). No gate reads the state, so that a prefix scan gives all states at once."""

    roles = {"weight_2SF": "generator", "bias_2S": "generator"}

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.weight_2SF = uniform(2 * width, inputs, inputs=inputs)
        self.bias_2S = uniform(2 * width, inputs=inputs)

    def forward(self, x_BNF: Tensor) -> Tensor:
        """s_BNS, the state after each position."""
        z_BNS, h_BNS = F.linear(x_BNF, self.weight_2SF, self.bias_2S).sigmoid().chunk(2, dim=-1)
        return prefix_scan(1 - z_BNS, z_BNS * h_BNS)


def prefix_scan(a_BNS: Tensor, b_BNS: Tensor) -> Tensor:
    """s_t = a_t s_{t-1} + b_t from s = 0, in log2(N) steps: each doubles the reach of a position (Hillis, Steele)."""
    reach, length = 1, a_BNS.shape[1]
    while reach < length:
        near_a, near_b = a_BNS[:, reach:], b_BNS[:, reach:]
        b_BNS = torch.cat((b_BNS[:, :reach], near_a * b_BNS[:, :-reach] + near_b), dim=1)
        a_BNS = torch.cat((a_BNS[:, :reach], near_a * a_BNS[:, :-reach]), dim=1)
        reach *= 2
    return b_BNS


class Change(NamedTuple):
    """A = U Y^T, a D x D matrix for each sequence, as its factors (the WY form): W becomes (I + A) W."""

    u_BDc: Tensor
    y_BDc: Tensor

    @classmethod
    def none(cls, rows: int, dim: int, device: torch.device) -> "Change":
        empty_BD0 = torch.zeros(rows, dim, 0, device=device)
        return cls(empty_BD0, empty_BD0)

    def of(self, z_BND: Tensor) -> Tensor:
        """A z."""
        return (z_BND @ self.y_BDc.to(z_BND.dtype)) @ self.u_BDc.mT.to(z_BND.dtype)

    def followed_by(self, gate_B: Tensor, u_BD: Tensor, v_BD: Tensor) -> "Change":
        """I + A becomes (I + g u v^T) (I + A): A + g u (v + A^T v)^T."""
        y_BD1 = v_BD[..., None] + self.y_BDc @ (self.u_BDc.mT @ v_BD[..., None])
        u_BD1 = gate_B[:, None, None] * u_BD[..., None]
        return Change(torch.cat((self.u_BDc, u_BD1), dim=-1), torch.cat((self.y_BDc, y_BD1), dim=-1))

    def scaled(self, by_B: Tensor) -> "Change":
        """A times a number for each sequence."""
        return Change(by_B[:, None, None] * self.u_BDc, self.y_BDc)

    def detached(self) -> "Change":
        return Change(self.u_BDc.detach(), self.y_BDc.detach())

    def anchored(self, w_OI: Tensor, most: float) -> "Change":
        """Pulled back where |A W| is more than `most` |W| (Frobenius). The factor by which has no gradient."""
        with torch.no_grad():
            r_BcI = self.y_BDc.mT @ w_OI
            square_B = ((self.u_BDc.mT @ self.u_BDc) * (r_BcI @ r_BcI.mT)).sum(dim=(1, 2))
            by_B = (most * w_OI.norm() * square_B.clamp_min(1e-24).rsqrt()).clamp_max(1.0)
        return self.scaled(by_B)


class Directions(nn.Module):
    """s_..S -> u_..D, v_..D, at first N(0, std^2) matrices; bias: with biases, zero at first."""

    roles = {"u_DS": "generator", "v_DS": "generator", "u_D": "generator", "v_D": "generator"}

    def __init__(self, dim: int, width: int, std: float, bias: bool):
        super().__init__()
        self.u_DS = nn.Parameter(torch.empty(dim, width).normal_(std=std))
        self.v_DS = nn.Parameter(torch.empty(dim, width).normal_(std=std))
        self.u_D = nn.Parameter(torch.zeros(dim)) if bias else None
        self.v_D = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, s: Tensor) -> tuple[Tensor, Tensor]:
        return F.linear(s, self.u_DS, self.u_D), F.linear(s, self.v_DS, self.v_D)


class Gate(nn.Module):
    """s_..S -> sigmoid(w s + b), w = 0 at first."""

    roles = {"weight_S": "generator", "bias": "generator"}

    def __init__(self, width: int, bias: float):
        super().__init__()
        self.weight_S = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, s: Tensor) -> Tensor:
        return torch.sigmoid((s * self.weight_S).sum(dim=-1) + self.bias)
