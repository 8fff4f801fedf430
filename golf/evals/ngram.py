"""Exact counts of n-grams in graded text, mixed into another scorer as whole distributions.

Hashed caches that look up the realised token only give ratios that are no probabilities (PR 779 and some thirty more
were closed for it). Here every distribution sums to one, and its weights know the prefix only.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from golf.checkpoint import pack, unpack
from golf.dist import Ranks
from golf.errors import UserError
from golf.evals.scorers import BESIDE, ORDER, Around, Graded, Scorer, ScorerConfig, Window
from golf.fields import between, positive
from golf.models.lm import LM

KEY_BITS = 62  # the number after the last key is an int64 too


@dataclass(kw_only=True, slots=True)
class NGramConfig(ScorerConfig):
    """From the shortest context to the longest: p <- (c + strength p) / (C + strength), where c are the counts of the
    tokens that followed this context in graded text, C their sum, and p is at first what `scorer` gives (Dirichlet
    smoothing, MacKay and Peto 1995). A context that was never seen changes nothing.

    shortest, longest: tokens of context. What is counted becomes known after each round.
    """

    shortest: int
    longest: int
    strength: float
    scorer: ScorerConfig

    def __post_init__(self) -> None:
        between(1, 8, longest=self.longest)
        between(1, self.longest, shortest=self.shortest)
        positive(strength=self.strength)
        if self.scorer.documents:
            raise ValueError("scorer: learns for each document; counts go with a scorer of one stream")

    @property
    def depends_on(self) -> dict[str, str]:
        reason = "all text that was graded is counted"
        return {ORDER: reason, BESIDE: reason}

    def open(self, model: LM, ranks: Ranks) -> "NGram":
        V = model.embed.table_VD.shape[0]
        bits = int(V - 1).bit_length()
        if (self.longest + 1) * bits > KEY_BITS:
            raise UserError(
                f"scorer.longest={self.longest}: contexts of so many tokens out of {V} have no exact keys of "
                f"{KEY_BITS} bits; try scorer.longest={KEY_BITS // bits - 1}"
            )
        return NGram(self, self.scorer.open(model, ranks), V)

    def describe(self) -> str:
        return f"{self.scorer.describe()}, with exact counts of up to {self.longest + 1} graded tokens"


class Counts:
    """Numbers of keys, in sorted parts. A part holds at least twice the keys of the next one, so there are few, and a
    key is moved to another part no more often than there are parts."""

    def __init__(self) -> None:
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, keys: np.ndarray) -> None:
        """Count these keys, which may repeat."""
        self.parts.append(np.unique(keys, return_counts=True))
        while len(self.parts) > 1 and len(self.parts[-2][0]) < 2 * len(self.parts[-1][0]):
            self.parts[-2:] = [merged(*self.parts[-2:])]

    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all keys, sorted, and their counts."""
        empty = np.empty(0, dtype=np.int64)
        return functools.reduce(merged, reversed(self.parts), (empty, empty))

    def between(self, low_P: np.ndarray, high_P: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(which of the queries, key, count) of all keys that lie in low .. high - 1, part by part."""
        for keys, counts in self.parts:
            first_P = np.searchsorted(keys, low_P)
            number_P = np.searchsorted(keys, high_P) - first_P
            query = np.repeat(np.arange(len(low_P)), number_P)
            before = np.repeat(number_P.cumsum() - number_P, number_P)
            place = np.repeat(first_P, number_P) + np.arange(len(query)) - before
            yield query, keys[place], counts[place]


def merged(one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    keys, where = np.unique(np.concatenate([one[0], two[0]]), return_inverse=True)
    counts = np.zeros(len(keys), dtype=np.int64)
    np.add.at(counts, where, np.concatenate([one[1], two[1]]))
    return keys, counts


class NGram(Around):
    """A table for each length of context; a key is the context and the token after it, `bits` bits a token."""

    def __init__(self, config: NGramConfig, inner: Scorer, vocab_size: int):
        super().__init__(inner)
        self.config = config
        self.bits = int(vocab_size - 1).bit_length()
        self.tables = {n: Counts() for n in range(config.shortest, config.longest + 1)}
        self.tail_G: list[np.ndarray] = []

    def begin(self, first_G: np.ndarray) -> None:
        super().begin(first_G)
        self.tail_G = [first_G[slot : slot + 1].astype(np.int64) for slot in range(len(first_G))]

    def log_probs(self, window: Window) -> Tensor:
        """In log space: what the inner scorer holds for next to impossible has no probability in fp32."""
        logp_BSV = self.inner.log_probs(window)
        B, S, V = logp_BSV.shape
        logp_PV = logp_BSV.reshape(B * S, V).clone()
        ids_BT = window.ids_BT.cpu().numpy()
        for n, table in self.tables.items():
            context_P, there_P = self._contexts(ids_BT, S, n)
            low_P = np.where(there_P, context_P << self.bits, 0)
            high_P = np.where(there_P, (context_P + 1) << self.bits, 0)
            c_PV = torch.zeros_like(logp_PV)
            for query, key, count in table.between(low_P, high_P):
                token = torch.from_numpy(key & ((1 << self.bits) - 1))
                at = (torch.from_numpy(query).to(c_PV.device), token.to(c_PV.device))
                c_PV.index_put_(at, torch.from_numpy(count).to(c_PV), accumulate=True)
            total_P = c_PV.sum(1)
            seen = total_P.nonzero()[:, 0]
            smoothed_QV = torch.logaddexp(c_PV[seen].log(), logp_PV[seen] + math.log(self.config.strength))
            logp_PV[seen] = smoothed_QV - (total_P[seen] + self.config.strength).log()[:, None]
        return logp_PV.view(B, S, V)

    def _contexts(self, ids_BT: np.ndarray, scored: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys of the last n inputs at each of the graded positions, and whether there are so many."""
        B, T = ids_BT.shape
        padded = np.concatenate([np.zeros((B, n - 1), dtype=np.int64), ids_BT], axis=1)
        key_BT = np.zeros((B, T), dtype=np.int64)
        for back in range(n):
            key_BT = (key_BT << self.bits) | padded[:, back : back + T]
        there_BT = np.broadcast_to(np.arange(T) >= n - 1, (B, T))
        return key_BT[:, T - scored :].ravel(), there_BT[:, T - scored :].ravel()

    def update(self, graded: Graded) -> float | None:
        """Count what is new; its first contexts reach back into what was graded before."""
        loss = super().update(graded)
        for slot, new in enumerate(graded.new_G):
            text = np.concatenate([self.tail_G[slot], new.astype(np.int64)])
            fresh = len(self.tail_G[slot])
            for n, table in self.tables.items():
                ends = np.arange(max(fresh, n), len(text))  # places of tokens that end a new n-gram
                key = np.zeros(len(ends), dtype=np.int64)
                for back in range(n, -1, -1):
                    key = (key << self.bits) | text[ends - back]
                if len(key):
                    table.add(key)
            self.tail_G[slot] = text[-self.config.longest :]
        return loss

    def state(self) -> dict[str, Tensor]:
        tails = {str(slot): tail.copy() for slot, tail in enumerate(self.tail_G)}
        tables = {n: table.whole() for n, table in self.tables.items()}
        found = {
            "tail": tails,
            "keys": {str(n): keys for n, (keys, _) in tables.items()},
            "counts": {str(n): counts for n, (_, counts) in tables.items()},
        }
        own = {part: {name: torch.from_numpy(v) for name, v in values.items()} for part, values in found.items()}
        return super().state() | pack(own)

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        tails = unpack(state, "tail")
        self.tail_G = [tails[str(slot)].numpy() for slot in range(len(tails))]
        keys, counts = unpack(state, "keys"), unpack(state, "counts")
        for n, table in self.tables.items():
            table.parts = [(keys[str(n)].numpy(), counts[str(n)].numpy())]
