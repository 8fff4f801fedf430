"""Which grid point each weight goes to, once the grid is fixed."""

from dataclasses import dataclass

from torch import Tensor

from golf.quant.grid import round_to_grid


@dataclass(kw_only=True, slots=True)
class RoundingConfig:
    """The slot."""

    @property
    def reads_hessians(self) -> bool:
        """Whether round() wants what a calibration measures."""
        return False

    def round(self, w_BOI: Tensor, step_BOI: Tensor, limit: int | Tensor, hessian_BII: Tensor | None) -> Tensor:
        """code_BOI, int8 within -limit .. limit. step_BOI, limit: broadcast over the weights; hessian_BII: mean of
        x x^T over the inputs x_I of each matrix, None where none was measured."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class NearestConfig(RoundingConfig):
    """Each to its nearest."""

    def round(self, w_BOI: Tensor, step_BOI: Tensor, limit: int | Tensor, hessian_BII: Tensor | None) -> Tensor:
        return round_to_grid(w_BOI, step_BOI, limit)


@dataclass(frozen=True, slots=True)
class How:
    """How a stack of B tensors is encoded.

    hessian_BII: mean of x x^T over each matrix's inputs, where it was measured; widen_B: what the steps of each tensor
    are multiplied by, in formats that have a dial; finer_BI: how many times finer the grid of a column is than its
    row's step, with as many times the codes (whole numbers; None: all alike). strict: what the types of the parts can't
    hold is refused, not made the largest that they can.
    """

    rounding: RoundingConfig
    hessian_BII: Tensor | None = None
    widen_B: Tensor | None = None
    finer_BI: Tensor | None = None
    strict: bool = False


PLAIN = How(NearestConfig())
