"""GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded one after another, and those still free make up for it.

What it makes small is the error of a layer's outputs, tr((W - Q) H (W - Q)^T) with H the mean of x x^T over inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from golf.errors import RunError
from golf.fields import between, one_of, positive
from golf.quant.grid import nearest_, round_to_grid
from golf.quant.rounding import RoundingConfig

ORDERS = ("descending", "ascending", "none")
FEW = 16  # rows whose updates stay in the caches


@dataclass(kw_only=True, slots=True)
class GPTQConfig(RoundingConfig):
    """damping: added to H's diagonal, as a share of its mean. block: columns between two updates of the rest; a matter
    of speed alone. order: columns by their input's power, strongest first in every good run ("act-order")."""

    damping: float
    block: int
    order: str

    def __post_init__(self) -> None:
        between(1e-8, 10, damping=self.damping)
        positive(block=self.block)
        one_of("order", self.order, ORDERS)

    @property
    def reads_hessians(self) -> bool:
        return True

    def round(self, w_BOI: Tensor, step_BOI: Tensor, limit: int | Tensor, hessian_BII: Tensor | None) -> Tensor:
        if hessian_BII is None:
            return round_to_grid(w_BOI, step_BOI, limit)
        power_BI = hessian_BII.diagonal(dim1=1, dim2=2)
        order_BI = _order(power_BI, self.order)
        hessian_BII = hessian_BII.gather(1, order_BI[:, :, None].expand_as(hessian_BII))
        hessian_BII = hessian_BII.gather(2, order_BI[:, None, :].expand_as(hessian_BII))
        upper_BII = inverse_factor(hessian_BII, self.damping)
        w_BIO = _ordered(w_BOI.float(), order_BI)
        w_BIO = w_BIO.masked_fill((power_BI.gather(1, order_BI) == 0)[:, :, None], 0.0)  # an input that is never there
        top = _ordered(limit, order_BI) if isinstance(limit, Tensor) else limit
        code_BIO = solve(w_BIO, _ordered(step_BOI, order_BI), top, upper_BII, self.block)
        return _ordered(code_BIO.transpose(1, 2), order_BI.argsort(dim=1)).transpose(1, 2).contiguous()


def _order(power_BI: Tensor, order: str) -> Tensor:
    """The column that comes first, second ... of each matrix; equals in their own order."""
    if order == "none":
        return torch.arange(power_BI.shape[1], device=power_BI.device).expand_as(power_BI)
    return power_BI.argsort(dim=1, descending=order == "descending", stable=True)


def _ordered(x_BOI: Tensor, order_BI: Tensor) -> Tensor:
    """x_BIO: the columns in this order, as rows. One that stands for all columns is not copied."""
    x_BIO = x_BOI.transpose(1, 2)
    if x_BIO.shape[1] == 1:
        return x_BIO.expand(-1, order_BI.shape[1], -1)
    x_BIO = x_BIO.expand(len(order_BI), -1, -1).contiguous()
    return torch.stack([x_IO.index_select(0, order_I) for x_IO, order_I in zip(x_BIO, order_BI, strict=True)])


def inverse_factor(hessian_BII: Tensor, damping: float) -> Tensor:
    """upper_BII with upper^T upper = (H + damping mean(diag H))^-1, without an inverse of H.

    H = R R^T with R upper triangular is the Cholesky factor of H with both axes reversed, reversed back; R^-1 is it.
    Raises RunError where H is not positive definite even so.
    """
    h_BII = hessian_BII.float()
    power_BI = h_BII.diagonal(dim1=1, dim2=2)
    alive_B1 = (power_BI > 0).sum(dim=1, keepdim=True).clamp_min(1)
    extra_BI = torch.where(power_BI > 0, damping * power_BI.sum(dim=1, keepdim=True) / alive_B1, 1.0)
    h_BII = h_BII + torch.diag_embed(extra_BI)
    lower_BII, failed_B = torch.linalg.cholesky_ex(h_BII.flip(1, 2))
    if not h_BII.isfinite().all():
        raise RunError("calibration: the inputs of a layer are no numbers; lower the learning rates")
    if failed_B.any():
        raise RunError(
            f"quant.rounding.damping={damping}: the inputs of a layer leave no positive definite matrix; raise it, or "
            "calibrate on more text (quant.calibration.tokens)"
        )
    return _inverse(lower_BII.flip(1, 2))


def _inverse(upper_BII: Tensor) -> Tensor:
    """Of upper triangular matrices, by halves: [[a, b], [0, c]]^-1 = [[a^-1, -a^-1 b c^-1], [0, c^-1]]."""
    width = upper_BII.shape[1]
    if width <= 64:
        identity = torch.eye(width, device=upper_BII.device).expand_as(upper_BII)
        return torch.linalg.solve_triangular(upper_BII, identity, upper=True)
    half = width // 2
    inverse_BII = torch.zeros_like(upper_BII)
    inverse_BII[:, :half, :half] = first = _inverse(upper_BII[:, :half, :half])
    inverse_BII[:, half:, half:] = second = _inverse(upper_BII[:, half:, half:])
    inverse_BII[:, :half, half:] = -(first @ upper_BII[:, :half, half:] @ second)
    return inverse_BII


def solve(w_BIO: Tensor, step_BIO: Tensor, limit: int | Tensor, upper_BII: Tensor, block: int) -> Tensor:
    """code_BIO, row after row of the transposed matrices. w_BIO is used up. limit: for all, or limit_BIO.

    What a row's error means for later rows is taken from the next few at once, from the rest of the block after those
    few, and from all the others after the block: the same sums, by ever larger products.
    """
    code_BIO = torch.empty(w_BIO.shape, dtype=torch.int8, device=w_BIO.device)
    width = w_BIO.shape[1]
    for start in range(0, width, block):
        stop = min(start + block, width)
        error_BnO = torch.empty_like(w_BIO[:, start:stop])
        code_BnO = torch.empty_like(error_BnO)
        for few in range(start, stop, FEW):
            end = min(few + FEW, stop)
            for row in range(few, end):
                w_B1O, step_B1O = w_BIO[:, row, None], step_BIO[:, row, None]
                error_B1O, code_B1O = error_BnO[:, row - start, None], code_BnO[:, row - start, None]
                nearest_(torch.div(w_B1O, step_B1O, out=code_B1O), _row(limit, row))
                torch.addcmul(w_B1O, code_B1O, step_B1O, value=-1, out=error_B1O).div_(
                    upper_BII[:, row, row, None, None]
                )
                w_BIO[:, row + 1 : end].addcmul_(upper_BII[:, row, row + 1 : end, None], error_B1O, value=-1)
            _pay(w_BIO[:, end:stop], upper_BII[:, few:end, end:stop], error_BnO[:, few - start : end - start])
        code_BIO[:, start:stop] = code_BnO
        _pay(w_BIO[:, stop:], upper_BII[:, start:stop, stop:], error_BnO)
    return code_BIO


def _row(limit: int | Tensor, row: int) -> int | Tensor:
    return limit[:, row, None] if isinstance(limit, Tensor) else limit


def _pay(later_BmO: Tensor, upper_Bnm: Tensor, error_BnO: Tensor) -> None:
    """Take from later rows what the errors of n rows before them mean."""
    if later_BmO.shape[1]:
        later_BmO.baddbmm_(upper_Bnm.transpose(1, 2), error_BnO, alpha=-1)
