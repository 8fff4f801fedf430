"""Parts of Muon's update: what is done to a stack of updates before and after it is made orthogonal.

O, I: rows and columns of a matrix; N: matrices of one shape. A part's state is tensors with a leading axis N, one entry
a matrix, so that a rank can hold the state of its own matrices only and step some of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(kw_only=True, slots=True)
class UpdatePartConfig:
    """One part. It has no state but what start() gives."""

    def start(self, like_NOI: Tensor) -> dict[str, Tensor]:
        """The state before the first step, for matrices such as these."""
        return {}

    def apply(self, update_NOI: Tensor, state: dict[str, Tensor]) -> Tensor:
        """The changed update, in a tensor of its own; `state`, of the same matrices, is changed in place."""
        raise NotImplementedError


class Chain:
    """Parts one after another; their states share one dict, under `<place>.<name>.<key>`."""

    def __init__(self, place: str, parts: Mapping[str, UpdatePartConfig | None]):
        self.parts = {f"{place}.{name}.": part for name, part in parts.items() if part is not None}

    def start(self, like_NOI: Tensor) -> dict[str, Tensor]:
        """The states of all parts."""
        return {head + key: t for head, part in self.parts.items() for key, t in part.start(like_NOI).items()}

    def __call__(self, update_NOI: Tensor, state: dict[str, Tensor]) -> Tensor:
        for head, part in self.parts.items():
            own = {key.removeprefix(head): tensor for key, tensor in state.items() if key.startswith(head)}
            update_NOI = part.apply(update_NOI, own)
        return update_NOI
