"""Keys and values of documents that are scored chunk by chunk, kept as long as they are what a whole pass would make.

They are of the weights that made them, and of positions counted from the first token. So they hold for a scorer whose
learning reaches none of them, while a document's window begins where the document does: from the chunk on that moves
it, windows are passed whole. What is kept changes the time that a score takes and not the score.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from golf.errors import UserError
from golf.models.lm import LM, declared_length
from golf.models.recall import Recall


@dataclass(frozen=True, slots=True)
class Begun:
    """A document's inputs so far, ids_T, and the keys and values of its positions, k_NKC and v_NKC of each call."""

    ids_T: Tensor
    past: list[tuple[Tensor, Tensor]]


class Whole:
    """Hidden states of windows, each passed from its first token to its last."""

    def __init__(self, model: LM):
        self.model = model

    def hidden(self, ids_BT: Tensor, scored: int, slot_B: Tensor) -> Tensor:
        """x_BSD of the last S = `scored` inputs, ready for the head. slot_B: each row's document."""
        return self.model.hidden(ids_BT)[:, -scored:]

    def begin(self) -> None:
        """Other documents, or other weights."""

    def keep(self, slots: Iterable[int]) -> None:
        """These go on, the others have ended."""


class Cache(Whole):
    """The same, of what is new in a window."""

    def __init__(self, model: LM):
        super().__init__(model)
        self.begun: dict[int, Begun] = {}

    def begin(self) -> None:
        self.begun = {}

    def keep(self, slots: Iterable[int]) -> None:
        self.begun = {slot: self.begun[slot] for slot in slots if slot in self.begun}

    def hidden(self, ids_BT: Tensor, scored: int, slot_B: Tensor) -> Tensor:
        slots, length = slot_B.tolist(), ids_BT.shape[1]
        known = length - scored
        if known and (self.model.stack.why_whole(length) or not self._goes_on(ids_BT[:, :known], slots)):
            self.keep(set(self.begun) - set(slots))  # their windows move from now on
            return super().hidden(ids_BT, scored, slot_B)
        recall = Recall(self.model.attend, self._past(slots, known))
        x_BSD = self.model.hidden(ids_BT, past=recall)
        for row, slot in enumerate(slots):
            made = [(keys[row].detach(), values[row].detach()) for keys, values in recall.past]
            self.begun[slot] = Begun(ids_BT[row], made)
        return x_BSD

    def _goes_on(self, ids_BT: Tensor, slots: list[int]) -> bool:
        """Whether these are the first inputs of what is kept, in every row."""
        known = ids_BT.shape[1]
        if not slots or not all(slot in self.begun and len(self.begun[slot].ids_T) >= known for slot in slots):
            return False
        return torch.equal(ids_BT, torch.stack([self.begun[slot].ids_T[:known] for slot in slots]))

    def _past(self, slots: list[int], known: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values, in rows, of the positions that the first `known` inputs have."""
        if not known:
            return []
        count = self.model.embed.places(known).count
        calls = zip(*(self.begun[slot].past for slot in slots), strict=True)
        return [
            (torch.stack([k_NKC[:count] for k_NKC, _ in rows]), torch.stack([v_NKC[:count] for _, v_NKC in rows]))
            for rows in calls
        ]


def check_model(model: LM, length: int) -> None:
    """Raise UserError where keys and values are not all that a model knows of earlier text, in windows of `length`."""
    if reason := model.stack.why_whole(length):
        raise UserError(f"scorer.cache=true: keys and values are kept, and {reason}, or scorer.cache=false")


def check_learning(model: LM) -> None:
    """Raise UserError where what learns (what wants a gradient, hooks on the model among it) has a say in keys and
    values, or where they are others while it learns."""
    ids_BT = torch.zeros(1, 2, dtype=torch.int64, device=model.embed.table_VD.device)

    def made(learning: bool) -> list[Tensor]:
        recall = Recall(model.attend)
        with torch.set_grad_enabled(learning), declared_length(model, 2):
            model.hidden(ids_BT, past=recall)
        return [tensor for pair in recall.past for tensor in pair]

    taught, graded = made(True), made(False)
    if any(tensor.requires_grad for tensor in taught):
        raise UserError(
            "scorer.cache=true: keys and values are kept, and what learns would change them; adapt what lies above all "
            "of them (the head; of the last block the MLP, the mixer's query and out), or scorer.cache=false"
        )
    if [tensor.shape for tensor in taught] != [tensor.shape for tensor in graded]:
        raise UserError(
            "scorer.cache=true: keys and values have another form while learning; try model.mixer.absorb=false, or "
            "scorer.cache=false"
        )
