"""GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded one after another, and those still free make up for it.

What it makes small is the error of a layer's outputs, tr((W - Q) H (W - Q)^T) with H the mean of x x^T over inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from golf.errors import RunError
from golf.fields import between, one_of, positive
from golf.quant.grid import round_to_grid
from golf.quant.rounding import RoundingConfig

ORDERS = ("descending", "ascending", "none")


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

    def round(self, w_BOI: Tensor, step_BOI: Tensor, limit: int, hessian_BII: Tensor | None) -> Tensor:
        if hessian_BII is None:
            return round_to_grid(w_BOI, step_BOI, limit)
        power_BI = hessian_BII.diagonal(dim1=1, dim2=2)
        order_BI = _order(power_BI, self.order)
        rows_BOI = order_BI[:, None, :].expand_as(w_BOI)
        hessian_BII = hessian_BII.gather(1, order_BI[:, :, None].expand_as(hessian_BII))
        hessian_BII = hessian_BII.gather(2, order_BI[:, None, :].expand_as(hessian_BII))
        upper_BII = inverse_factor(hessian_BII, self.damping)
        w_BIO = w_BOI.float().gather(2, rows_BOI).transpose(1, 2).contiguous()
        w_BIO.masked_fill_((power_BI.gather(1, order_BI) == 0)[:, :, None], 0.0)  # an input that is never there
        step_BIO = step_BOI.expand_as(w_BOI).gather(2, rows_BOI).transpose(1, 2)
        code_BIO = solve(w_BIO, step_BIO, limit, upper_BII, self.block)
        return torch.empty_like(w_BOI, dtype=torch.int8).scatter_(2, rows_BOI, code_BIO.transpose(1, 2))


def _order(power_BI: Tensor, order: str) -> Tensor:
    """The column that comes first, second ... of each matrix; equals in their own order."""
    if order == "none":
        return torch.arange(power_BI.shape[1], device=power_BI.device).expand_as(power_BI)
    return power_BI.argsort(dim=1, descending=order == "descending", stable=True)


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
    if failed_B.any():
        raise RunError(
            f"quant.rounding.damping={damping}: the inputs of a layer leave no positive definite matrix; raise it, or "
            "calibrate on more text (quant.calibration.tokens)"
        )
    identity = torch.eye(h_BII.shape[1], device=h_BII.device).expand_as(h_BII)
    return torch.linalg.solve_triangular(lower_BII.flip(1, 2), identity, upper=True)


def solve(w_BIO: Tensor, step_BIO: Tensor, limit: int, upper_BII: Tensor, block: int) -> Tensor:
    """code_BIO, row after row of the transposed matrices. w_BIO is used up.

    Within a block a row fetches what the earlier ones owe it (one small product); after it the rest gets the block's
    errors at once. Both are exact, so that the size of a block changes nothing but rounding.
    """
    code_BIO = torch.empty(w_BIO.shape, dtype=torch.int8, device=w_BIO.device)
    width = w_BIO.shape[1]
    for start in range(0, width, block):
        stop = min(start + block, width)
        error_BnO = torch.zeros_like(w_BIO[:, start:stop])
        for row in range(start, stop):
            done = row - start
            owed_B1O = upper_BII[:, start:row, row, None].transpose(1, 2) @ error_BnO[:, :done]
            w_BO = w_BIO[:, row] - owed_B1O[:, 0]
            step_BO = step_BIO[:, row]
            code_BO = round_to_grid(w_BO, step_BO, limit)
            code_BIO[:, row] = code_BO
            error_BnO[:, done] = (w_BO - code_BO * step_BO) / upper_BII[:, row, row, None]
        w_BIO[:, stop:].baddbmm_(upper_BII[:, start:stop, stop:].transpose(1, 2), error_BnO, alpha=-1)
    return code_BIO
