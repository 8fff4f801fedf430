"""Adaptive frequency tables for the entropy coder: one for each context, learnt from what was coded before.

Encoder and decoder run the same integer arithmetic on the same past, so that nothing of a table is stored.
"""

from decimal import Decimal, localcontext
from functools import cache

import numpy as np
from numpy.typing import NDArray

from golf.artifact.rans import PRECISION, Ints

UNIT = 64  # magnitudes are told in 64ths of a code
CONTEXTS = 48  # of a weight: the magnitude to expect, in quarters of an octave from 1/16 of a code up
SIZE_CONTEXTS = NEAR_CONTEXTS = 64  # of a number's last byte, by size; where the others begin, for what most had
UNDER_CONTEXTS = 2  # of any other byte: whether the one above is 0
BELIEF = 128  # symbols' worth that a context of bytes takes from all the others
COUNT = 32  # what one symbol seen adds to its count
PRIOR = 48 * COUNT  # what a table begins with
FIRST_REBUILD, MOST_BETWEEN = 128, 2**18  # symbols until the tables are made anew


class Tables:
    """Frequencies of `symbols` symbols in each of some contexts. counts_KA: what each begins with; all_A: what all of
    them together begin with, where each is to believe in the others until it has seen enough."""

    def __init__(self, counts_KA: NDArray[np.int64], all_A: NDArray[np.int64] | None = None):
        self.counts_KA = counts_KA.copy()
        self.all_A = None if all_A is None else all_A.copy()
        contexts, symbols = counts_KA.shape
        self.frequency_KA = np.zeros((contexts, symbols), dtype=np.int64)
        self.before_KA = np.zeros((contexts, symbols), dtype=np.int64)
        self._symbol_KS: NDArray[np.uint8] | None = None
        self._changed_K = np.ones(contexts, dtype=bool)
        self._seen, self._fresh = 0, 0
        self._rebuild()

    @property
    def symbols(self) -> int:
        return self.counts_KA.shape[1]

    def spans(self, context_n: Ints, symbol_n: Ints) -> tuple[Ints, Ints]:
        """(frequency, cumulated frequency before it) of each symbol in its context."""
        return self.frequency_KA[context_n, symbol_n], self.before_KA[context_n, symbol_n]

    def find(self, context_n: Ints, slot_n: Ints) -> Ints:
        """The symbol whose span each slot lies in."""
        if self._symbol_KS is None:
            self._symbol_KS = np.zeros((len(self.counts_KA), 1 << PRECISION), dtype=np.uint8)
            self._invert(np.arange(len(self.counts_KA)))
        return self._symbol_KS[context_n, slot_n].astype(np.int64)

    def learn(self, context_n: Ints, symbol_n: Ints) -> None:
        """Count what was coded; every so often the tables follow."""
        flat = np.bincount(context_n * self.symbols + symbol_n, minlength=self.counts_KA.size)
        counts_KA = COUNT * flat.reshape(self.counts_KA.shape)
        self.counts_KA += counts_KA
        self._changed_K[context_n] = True
        if self.all_A is not None:
            self.all_A += counts_KA.sum(axis=0)
            self._changed_K[:] = True
        self._fresh += len(symbol_n)
        if self._fresh >= min(FIRST_REBUILD + self._seen // 8, MOST_BETWEEN):
            self._rebuild()

    def _rebuild(self) -> None:
        rows = np.flatnonzero(self._changed_K)
        counts = self.counts_KA[rows]
        if self.all_A is not None:
            counts = counts + BELIEF * COUNT * self.all_A // self.all_A.sum()
        frequency = 1 + counts * ((1 << PRECISION) - counts.shape[1]) // counts.sum(axis=1, keepdims=True)
        rest = (1 << PRECISION) - frequency.sum(axis=1)
        frequency[np.arange(len(rows)), frequency.argmax(axis=1)] += rest
        self.frequency_KA[rows] = frequency
        self.before_KA[rows] = frequency.cumsum(axis=1) - frequency
        if self._symbol_KS is not None:
            self._invert(rows)
        self._seen, self._fresh = self._seen + self._fresh, 0
        self._changed_K[:] = False

    def _invert(self, rows: Ints) -> None:
        assert self._symbol_KS is not None
        symbols = np.arange(self.symbols, dtype=np.uint8)
        for row in rows:
            self._symbol_KS[row] = np.repeat(symbols, self.frequency_KA[row])


def code_tables(bits: int) -> Tables:
    """For codes of so many bits, one context for each magnitude to expect; they begin as Gaussians."""
    return Tables(_gaussians(bits))


def byte_tables(width: int) -> list[Tables]:
    """For each byte of numbers of so many; they begin level."""
    level = np.full(256, COUNT, dtype=np.int64)
    contexts = [UNDER_CONTEXTS] * (width - 1) + [NEAR_CONTEXTS + 8]
    return [Tables(np.zeros((count, 256), dtype=np.int64), level) for count in contexts]


def context_of(magnitude_n: Ints) -> Ints:
    """The context for a weight whose magnitude is expected to be so many 64ths of a code."""
    table = _context_table()
    return table[np.minimum(magnitude_n, len(table) - 1)]


@cache
def _context_table() -> NDArray[np.int64]:
    """Magnitude -> context: all up to 1/16 of a code share the first."""
    with localcontext(prec=30):
        bounds = [int(UNIT * Decimal(2) ** (Decimal(k) / 4 - 4)) for k in range(1, CONTEXTS)]
    return np.searchsorted(np.array(bounds), np.arange(bounds[-1] + 2), side="right")


@cache
def _gaussians(bits: int) -> NDArray[np.int64]:
    """counts_KA of a normal distribution with each context's mean magnitude. Decimals: the same on every machine."""
    zero = 1 << (bits - 1)
    counts = np.ones((CONTEXTS, 2 * zero), dtype=np.int64)
    with localcontext(prec=30):
        for context in range(CONTEXTS):
            magnitude = Decimal(2) ** ((Decimal(context) + Decimal("0.5")) / 4 - 4)
            spread = magnitude**2 * Decimal("3.14159265")  # twice the variance: E|x| = sigma sqrt(2 / pi)
            weights = [(-Decimal(q * q) / spread).exp() for q in range(zero + 1)]
            total = 2 * sum(weights) - weights[0]
            shares = [int(PRIOR * weight / total) for weight in weights]
            counts[context, zero:] += shares[:zero]
            counts[context, :zero] += shares[:0:-1]
    return counts
