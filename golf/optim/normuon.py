"""NorMuon: rows of one strength after the update was made orthogonal. Shapes: golf/optim/update.py."""

from dataclasses import dataclass

from torch import Tensor

from golf.fields import between
from golf.optim.update import UpdatePartConfig

SMALLEST = 1e-10  # of a row's root mean square, and of a matrix's norm


@dataclass(kw_only=True, slots=True)
class NorMuonConfig(UpdatePartConfig):
    """Rows divided by the root of their running mean square, then the norm of each matrix restored (arXiv 2510.05491;
    PR 438). The mean square begins at 0: what that lacks at first is one factor for all rows, which the norm undoes."""

    beta: float

    def __post_init__(self) -> None:
        between(0, 0.999999, beta=self.beta)

    def start(self, like_NOI: Tensor) -> dict[str, Tensor]:
        return {"rows": like_NOI.new_zeros((*like_NOI.shape[:2], 1))}

    def apply(self, update_NOI: Tensor, state: dict[str, Tensor]) -> Tensor:
        rows_NO1 = state["rows"].lerp_(update_NOI.square().mean(dim=-1, keepdim=True), 1 - self.beta)
        even_NOI = update_NOI / rows_NO1.sqrt().clamp_min(SMALLEST)
        before_N11, after_N11 = (x_NOI.norm(dim=(-2, -1), keepdim=True) for x_NOI in (update_NOI, even_NOI))
        return even_NOI * (before_N11 / after_N11.clamp_min(SMALLEST))
