"""What the tests of models share."""

import torch
from torch import Tensor, nn

from golf.models.kernels import sdpa
from golf.models.slots import Context, Places


def context_of(x_BND: Tensor, ids_BT: Tensor | None = None) -> Context:
    ids_BT = torch.zeros(x_BND.shape[:2], dtype=torch.long) if ids_BT is None else ids_BT
    places = Places.shifted(ids_BT.shape[1], by=x_BND.shape[1] - ids_BT.shape[1])
    return Context(ids_BT, x_BND, places, sdpa, nn.ModuleDict())


def qkv(T: int = 9, H: int = 4, K: int = 2, C: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, T, H, C), torch.randn(2, T, K, C), torch.randn(2, T, K, C)
