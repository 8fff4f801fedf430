"""MuonEq-R: rows of one length before the update is made orthogonal. Shapes: golf/optim/update.py."""

from dataclasses import dataclass

from torch import Tensor

from golf.optim.update import UpdatePartConfig

SHORTEST = 1e-7  # a row of zeros stays one


@dataclass(kw_only=True, slots=True)
class RowsConfig(UpdatePartConfig):
    """Each row divided by its L2 norm (MuonEq-R, arXiv 2603.28254; record 1.0912)."""

    def apply(self, update_NOI: Tensor, state: dict[str, Tensor]) -> Tensor:
        norms_NO1 = update_NOI.float().norm(dim=-1, keepdim=True).clamp_min(SHORTEST)
        return update_NOI / norms_NO1.to(update_NOI.dtype)
