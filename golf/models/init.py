"""Initial values that torch has no one-line function for. They do nothing on the meta device."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def orthogonal_(w_OI: Tensor, gain: float = 1.0) -> Tensor:
    """A random (semi-)orthogonal matrix times gain (arXiv 1312.6120)."""
    return w_OI if w_OI.is_meta else nn.init.orthogonal_(w_OI, gain)


@torch.no_grad()
def power_law_spectrum_(w_OI: Tensor, power: float) -> Tensor:
    """Singular vectors and Frobenius norm kept; singular value k (from 1) becomes proportional to k**-power."""
    if w_OI.is_meta or power == 0:
        return w_OI
    u_OR, s_R, vh_RI = torch.linalg.svd(w_OI.float(), full_matrices=False)
    law_R = torch.arange(1, len(s_R) + 1, device=w_OI.device, dtype=s_R.dtype) ** -power
    return w_OI.copy_((u_OR * (law_R * s_R.norm() / law_R.norm())) @ vh_RI)
