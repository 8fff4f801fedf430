"""The loss of a softcapped softmax over a table, a chunk of tokens at a time. Shapes: golf/models/slots.py; N: all
tokens of a batch, n: those of a chunk.

Logits are the largest tensors of a small model with a large vocabulary. Here those of one chunk are all that there is
at a time, and their gradient is used up while they are there, so that the backward pass has only to scale.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from golf.losses import CROSS_ENTROPY, Loss

# Logits of a chunk: on a CPU those in work stay in its last cache, on a GPU matrix products fill it.
CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}


class Statistics(NamedTuple):
    """Of each prediction, in nats: its loss, the log of the softmax's denominator, the entropy. No gradients."""

    nll_N: Tensor
    lse_N: Tensor
    entropy_N: Tensor


def softcapped(z: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(z / cap), or z."""
    return z if cap is None else cap * torch.tanh(z / cap)


def chunk_rows(width: int, device: torch.device) -> int:
    """How many tokens a chunk has where each has `width` logits."""
    return max(1, CHUNK_ELEMENTS[device.type] // width)


def softmax_loss(
    x_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    *,
    softcap: float | None,
    log_gain: Tensor | None = None,
    loss: Loss = CROSS_ENTROPY,
) -> tuple[Tensor, Tensor]:
    """(objective, mean nats per token) of logits softcapped(x table^T exp(log_gain)), both fp32 scalars.

    The product runs in x's type, all that follows in fp32. The nats carry no gradient. (Fused in the sense of the
    records' softcapped cross entropy and of linear cross entropies: no full logits, no recomputation.)
    """
    inputs = (x_ND, table_VD, log_gain, targets_N, softcap)
    if not torch.is_grad_enabled():
        found = statistics(*inputs)
        weight_N = loss.weights(found.entropy_N)
        return (weight_N * found.nll_N + loss.penalty(found.lse_N)[0]).mean(), found.nll_N.mean()
    weight_N = torch.ones_like(targets_N, dtype=torch.float32)
    if loss.weighs:
        weight_N = loss.weights(statistics(*inputs).entropy_N)
    objective, nll = FusedSoftmaxLoss.apply(*inputs, weight_N, loss)
    return objective, nll.detach()


def chunks_of(x_ND: Tensor, table_VD: Tensor, *others_N: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """x_nD and the same rows of the others, chunk after chunk."""
    rows = chunk_rows(len(table_VD), x_ND.device)
    return zip(*(tensor.split(rows) for tensor in (x_ND, *others_N)), strict=True)


def scaled_logits(x_nD: Tensor, w_VD: Tensor, log_gain: Tensor | None) -> Tensor:
    """z_nV in fp32, before the cap."""
    z_nV = F.linear(x_nD, w_VD).float()
    return z_nV if log_gain is None else z_nV * log_gain.exp()


def nll_and_lse(c_nV: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
    """nll_n and the log of the denominator, lse_n, of capped logits."""
    lse_n = c_nV.logsumexp(dim=-1)
    return lse_n - c_nV.gather(-1, targets_n[:, None])[:, 0], lse_n


@torch.no_grad()
def statistics(
    x_ND: Tensor, table_VD: Tensor, log_gain: Tensor | None, targets_N: Tensor, softcap: float | None
) -> Statistics:
    """What a first pass tells about each token."""
    w_VD = table_VD.to(x_ND.dtype)
    found = []
    for x_nD, targets_n in chunks_of(x_ND, w_VD, targets_N):
        c_nV = softcapped(scaled_logits(x_nD, w_VD, log_gain), softcap)
        nll_n, lse_n = nll_and_lse(c_nV, targets_n)
        p_nV = torch.exp(c_nV - lse_n[:, None])
        found.append((nll_n, lse_n, lse_n - (p_nV * c_nV).sum(dim=-1)))
    return Statistics(*(torch.cat(parts) for parts in zip(*found, strict=True)))


class FusedSoftmaxLoss(torch.autograd.Function):
    """(objective, mean nll) with the gradients for x, table and log_gain taken on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        table_VD: Tensor,
        log_gain: Tensor | None,
        targets_N: Tensor,
        softcap: float | None,
        weight_N: Tensor,
        loss: Loss,
    ) -> tuple[Tensor, Tensor]:
        w_VD, tokens = table_VD.to(x_ND.dtype), len(x_ND)
        values, nlls, grads_x = [], [], []
        grad_w_VD = torch.zeros_like(table_VD, dtype=torch.float32)
        grad_gain = torch.zeros((), device=x_ND.device)
        for x_nD, targets_n, weight_n in chunks_of(x_ND, w_VD, targets_N, weight_N):
            z_nV = scaled_logits(x_nD, w_VD, log_gain)
            c_nV = softcapped(z_nV, softcap)
            nll_n, lse_n = nll_and_lse(c_nV, targets_n)
            penalty_n, slope_n = loss.penalty(lse_n)
            values.append(weight_n * nll_n + penalty_n)
            nlls.append(nll_n)

            d_nV = torch.exp(c_nV - lse_n[:, None]) * ((weight_n + slope_n) / tokens)[:, None]
            d_nV.scatter_add_(-1, targets_n[:, None], -(weight_n / tokens)[:, None])
            if softcap is not None:
                d_nV *= 1 - (c_nV / softcap).square()
            if log_gain is not None:
                grad_gain += (d_nV * z_nV).sum()
                d_nV *= log_gain.exp()
            d_nV = d_nV.to(x_ND.dtype)
            grads_x.append(d_nV @ w_VD)
            grad_w_VD += (d_nV.T @ x_nD).float()
        ctx.table_type, ctx.gained = table_VD.dtype, log_gain is not None
        ctx.save_for_backward(torch.cat(grads_x), grad_w_VD, grad_gain)
        return torch.cat(values).mean(), torch.cat(nlls).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_objective: Tensor, by_nll: Tensor) -> tuple[Tensor | None, ...]:
        """Each gradient times by_objective, in fp32: a share such as 1/3 in bf16 would be off for all alike."""
        grad_x_ND, grad_w_VD, grad_gain = ctx.saved_tensors
        grad_x_ND = (grad_x_ND.float() * by_objective).to(grad_x_ND.dtype)
        grad_w_VD = (grad_w_VD * by_objective).to(ctx.table_type)
        return grad_x_ND, grad_w_VD, grad_gain * by_objective if ctx.gained else None, None, None, None, None
