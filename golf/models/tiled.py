"""Causal attention by tiles of queries, for CPUs: plain matrix products, which oneDNN runs in bf16 near the peak and
torch.compile joins to what stands around them. torch's own CPU kernel reaches a sixth of that (LOG.md). Shapes:
golf/models/slots.py; t: queries of a tile, u: the keys that some query of it sees, G: query heads of a key
head, r: rows of t times G.
"""

import math

import torch
from torch import Tensor

TILE, MOST_TILES = 128, 8  # queries: smaller tiles skip more of the hidden half, larger ones multiply faster


def tiled(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, window: int | None = None) -> Tensor:
    """Scores in the inputs' type, their softmax in fp32. Keys that no query of a tile sees are not looked at."""
    B, T, H, C = q_BTHC.shape
    K = k_BTKC.shape[2]
    q_BKTGC = (q_BTHC * C**-0.5).view(B, T, K, H // K, C).transpose(1, 2)
    k_BKCT, v_BKTC = k_BTKC.permute(0, 2, 3, 1), v_BTKC.transpose(1, 2)
    size = max(TILE, math.ceil(T / MOST_TILES))
    tiles = []
    for start in range(0, T, size):
        stop = min(start + size, T)
        begin = 0 if window is None else max(0, start - window)
        hidden_tu = hidden(start, stop, begin, window, q_BTHC.dtype, q_BTHC.device)
        s_BKru = q_BKTGC[:, :, start:stop].flatten(2, 3) @ k_BKCT[..., begin:stop]
        s_BKru += hidden_tu.repeat_interleave(H // K, dim=0)
        y_BKrC = s_BKru.softmax(dim=-1) @ v_BKTC[:, :, begin:stop]
        tiles.append(y_BKrC.view(B, K, stop - start, H // K, C))
    return torch.cat(tiles, dim=2).transpose(1, 2).reshape(B, T, H, C)


# An operator: left open to torch.compile, positions would be compared at each score.
@torch.library.custom_op("golf::hidden", mutates_args=())
def hidden(start: int, stop: int, begin: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """hidden_tu, to add to the scores of queries start .. stop for keys begin .. stop: -inf where one isn't seen."""
    query_t1 = torch.arange(start, stop, device=device)[:, None]
    key_u = torch.arange(begin, stop, device=device)
    unseen_tu = key_u > query_t1
    if window is not None:
        unseen_tu |= key_u < query_t1 - window
    return torch.zeros(unseen_tu.shape, dtype=dtype, device=device).masked_fill_(unseen_tu, -math.inf)


@hidden.register_fake
def _(start: int, stop: int, begin: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(stop - start, stop - begin, dtype=dtype, device=device)
