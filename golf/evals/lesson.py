"""What a round graded, in rows to learn from, dealt out to ranks so that their number changes nothing but rounding.

B rows of U = T + 1 tokens, this rank's; G: documents under way at once on all ranks (1 where all text is one stream),
of which rank r has r, r + world, ...
"""

from typing import NamedTuple

import numpy as np
import torch

from golf.dist import Ranks
from golf.evals.scorers import Graded


class Lesson(NamedTuple):
    """rows_BU, this rank's, and the rest as in Graded, as arrays."""

    rows_BU: np.ndarray
    mask_BT: np.ndarray
    slot_B: np.ndarray
    goes_on_B: np.ndarray
    place_B: np.ndarray
    rows: int
    new_G: list[np.ndarray]

    def graded(self, index: int, rounds: int, device: torch.device) -> Graded:
        """The same as a scorer gets it, of round `index` out of `rounds`."""
        rows_BU = tensor(self.rows_BU, device)
        return Graded(
            rows_BT=rows_BU[:, :-1],
            targets_BT=rows_BU[:, 1:],
            mask_BT=torch.from_numpy(self.mask_BT).to(device),
            goes_on_B=torch.from_numpy(self.goes_on_B).to(device),
            slot_B=tensor(self.slot_B, device),
            place_B=self.place_B,
            rows=self.rows,
            new_G=self.new_G,
            index=index,
            rounds=rounds,
        )


def tensor(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(device)


def in_rows(stream: np.ndarray, start: int, stop: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows_BU, mask_BT) of inputs start .. stop-1 and their next tokens, side by side; the last row is filled up."""
    index_BU = np.arange(start, stop, length)[:, None] + np.arange(length + 1)
    return stream[np.minimum(index_BU, stop)], index_BU[:, :-1] < stop


def lesson_of(stream: np.ndarray, start: int, stop: int, length: int, ranks: Ranks) -> Lesson:
    """Inputs start .. stop-1 and their next tokens: rank r has rows r, r + world, ... The new tokens are all."""
    rows_BU, mask_BT = in_rows(stream, start, stop, length)
    place_B = np.arange(ranks.rank, len(rows_BU), ranks.world)
    slot_B = np.zeros(len(place_B), dtype=np.int64)
    return Lesson(
        rows_BU=rows_BU[place_B],
        mask_BT=mask_BT[place_B],
        slot_B=slot_B,
        goes_on_B=slot_B == 0,
        place_B=place_B,
        rows=len(rows_BU),
        new_G=[stream[start + 1 : stop + 1]],
    )
