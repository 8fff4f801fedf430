"""Texts in pieces: keys and values of the positions before, and the context of a piece. Shapes: golf/models/slots.py;
n: positions of a piece, m: those up to its end.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from golf.models.kernels import masked
from golf.models.slots import Attend, Context, Places, picked


class Recall:
    """Attention in chunks: queries of one see its keys and all earlier ones, each call of a chunk those of its own
    number. On its first chunk it is the kernel that it stands for.

    past: k_BmKC and v_BmKC of each call, what it begins with (nothing: at the start of the text).
    """

    def __init__(self, attend: Attend, past: Sequence[tuple[Tensor, Tensor]] = ()):
        self.attend, self.number, self.past = attend, 0, list(past)

    @property
    def positions(self) -> int:
        """How many positions have been passed."""
        return self.past[0][0].shape[1] if self.past else 0

    def next_chunk(self) -> "Recall":
        self.number = 0
        return self

    def __call__(self, q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, window: int | None = None) -> Tensor:
        number, self.number = self.number, self.number + 1
        if number == len(self.past):
            self.past.append((k_BTKC, v_BTKC))
            return self.attend(q_BTHC, k_BTKC, v_BTKC, window)
        k_BmKC, v_BmKC = (torch.cat(pair, dim=1) for pair in zip(self.past[number], (k_BTKC, v_BTKC), strict=True))
        self.past[number] = k_BmKC, v_BmKC
        return masked(q_BTHC, k_BmKC, v_BmKC, seen_by_last(q_BTHC.shape[1], k_BmKC.shape[1], window, q_BTHC.device))


def seen_by_last(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """seen_nm: which keys the last positions see: their own, and all or `window` before it."""
    before_nm = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    seen_nm = before_nm >= 0
    return seen_nm if window is None else seen_nm & (before_nm <= window)


def piece_of(context: Context, start: int, stop: int, attend: Attend) -> Context:
    """The context of positions start to stop - 1 of a pass."""
    chosen = numbers_within(context.places.tokens, start, stop)
    kept = (
        picked(places, numbers_within(places, start, stop)) for places in (context.places.tokens, context.places.reads)
    )
    return replace(
        context,
        ids_BT=context.ids_BT[:, chosen.start : chosen.stop],
        x0_BND=context.x0_BND[:, start:stop],
        places=Places(stop - start, *([place - start for place in places] for places in kept)),
        start=context.start + start,
        attend=attend,
        first_BND=None,
        losses={},
        memo={},
    )


def numbers_within(places: Sequence[int], start: int, stop: int) -> range:
    """Which of these ascending places lie in start .. stop - 1."""
    if isinstance(places, range):
        low, high = (min(max(edge - places.start, 0), len(places)) for edge in (start, stop))
        return range(low, high)
    return range(sum(place < start for place in places), sum(place < stop for place in places))
