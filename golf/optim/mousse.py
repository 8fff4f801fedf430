"""Mousse as PR 401 has it: rows and columns scaled before Newton-Schulz. Shapes: golf/optim/update.py."""

from dataclasses import dataclass

from torch import Tensor

from golf.fields import between
from golf.optim.update import UpdatePartConfig

SMALLEST = 1e-8  # of a mean square


@dataclass(kw_only=True, slots=True)
class MousseConfig(UpdatePartConfig):
    """Divided by the roots of running mean squares of its rows and of its columns, which begin at 1 (PR 401).

    A diagonal simplification of arXiv 2603.09697, whose preconditioners are whole matrices.
    """

    beta: float

    def __post_init__(self) -> None:
        between(0, 0.999999, beta=self.beta)

    def start(self, like_NOI: Tensor) -> dict[str, Tensor]:
        matrices, rows, cols = like_NOI.shape
        return {"rows": like_NOI.new_ones((matrices, rows, 1)), "cols": like_NOI.new_ones((matrices, 1, cols))}

    def apply(self, update_NOI: Tensor, state: dict[str, Tensor]) -> Tensor:
        square_NOI = update_NOI.square()
        rows_NO1 = state["rows"].lerp_(square_NOI.mean(dim=-1, keepdim=True), 1 - self.beta)
        cols_N1I = state["cols"].lerp_(square_NOI.mean(dim=-2, keepdim=True), 1 - self.beta)
        return update_NOI * rows_NO1.clamp_min(SMALLEST).rsqrt() * cols_N1I.clamp_min(SMALLEST).rsqrt()
