"""Asymmetric numeral systems with frequency tables (rANS: Duda, arXiv 1311.2540), many lanes abreast in numpy.

What is coded is a row of steps. A step is a vector of symbols, at most as long as there are lanes, each symbol told by
its frequency and by the frequencies before it, out of 2**PRECISION. Only integers: every machine gives the same bytes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PRECISION = 15
LOW, WORD = 24, 16  # bits: a state stays in 2**LOW .. 2**(LOW + WORD), and moves by words
STATE_BYTES = (LOW + WORD) // 8

Ints = NDArray[np.integer]


def encode(steps: Sequence[tuple[Ints, Ints]], lanes: int) -> bytes:
    """Steps of (frequency_n, cumulated_n), n <= lanes -> the first states of the decoder, then its words in order."""
    state = np.full(lanes, 1 << LOW, dtype=np.uint64)
    words = []
    for frequency, before in reversed(steps):
        f, x = frequency.astype(np.uint64), state[: len(frequency)]
        full = x >= f << np.uint64(LOW + WORD - PRECISION)
        words.append((x[full] & np.uint64(0xFFFF)).astype("<u2"))
        x = np.where(full, x >> np.uint64(WORD), x)
        whole = x // f
        state[: len(f)] = (whole << np.uint64(PRECISION)) + (x - whole * f) + before.astype(np.uint64)
    head = state.astype("<u8").view(np.uint8).reshape(lanes, 8)[:, :STATE_BYTES]
    return head.tobytes() + b"".join(chunk.tobytes() for chunk in reversed(words))


class Decoder:
    """Takes back what encode() gave. Raises ValueError where it was given something else."""

    def __init__(self, coded: bytes, lanes: int):
        size = lanes * STATE_BYTES
        if len(coded) < size or (len(coded) - size) % 2:
            raise ValueError("entropy: the stream is cut")
        head = np.zeros((lanes, 8), dtype=np.uint8)
        head[:, :STATE_BYTES] = np.frombuffer(coded, np.uint8, size).reshape(lanes, STATE_BYTES)
        self._state = head.view("<u8")[:, 0].astype(np.uint64)
        self._words = np.frombuffer(coded, "<u2", offset=size).astype(np.uint64)
        self._read = 0

    def slots(self, count: int) -> Ints:
        """slot_n in 0 .. 2**PRECISION - 1: each lies in the span of the symbol that is next in its lane."""
        return (self._state[:count] & np.uint64((1 << PRECISION) - 1)).astype(np.int64)

    def advance(self, slots: Ints, frequency: Ints, before: Ints) -> None:
        """Go past the symbols whose spans were found."""
        x = self._state[: len(slots)]
        x = frequency.astype(np.uint64) * (x >> np.uint64(PRECISION)) + (slots - before).astype(np.uint64)
        empty = np.flatnonzero(x < 1 << LOW)
        stop = self._read + len(empty)
        if stop > len(self._words):
            raise ValueError("entropy: the stream ends too early")
        x[empty] = (x[empty] << np.uint64(WORD)) | self._words[self._read : stop]
        self._read = stop
        self._state[: len(slots)] = x

    def finish(self) -> None:
        """All that was encoded is read, and nothing else was there."""
        if self._read != len(self._words) or (self._state != 1 << LOW).any():
            raise ValueError("entropy: the stream does not end where its symbols do")
