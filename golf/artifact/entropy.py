"""Golf's own coder of an artifact's tensors: adaptive context models over rows, columns and layers, then rANS.

Integer codes are coded column by column, many rows at a time, those of all layers' like tensors one after another. What
is coded of a weight is its distance from the mean of the column in earlier rows of the same tensor and of a like step,
where that mean is clearly not 0 (embeddings of tokens that are hardly seen are copies of one vector). Its context is
the magnitude to expect there: what the row had so far, times how much larger than the average the column was in the
rows before (outlier channels run through all layers). Nothing but the widest code of a kind is stored as side
information. Other types are coded first, a byte at a time: sign and exponent after those of the numbers before and of
most rows in the column, any other byte by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from golf.artifact import rans
from golf.artifact.codecs import CodecConfig
from golf.artifact.contexts import byte_tables, code_tables
from golf.artifact.groups import Group, groups_of, kinds_of, symbols_of, values_of
from golf.artifact.rans import Ints
from golf.artifact.sections import Section
from golf.artifact.walks import Walk, walk_codes, walk_rows, walk_strips

LANES_SHIFT, FEWEST_LANES, MOST_LANES = 14, 16, 2048  # a lane for so many symbols: its state costs five bytes


@dataclass(kw_only=True, slots=True)
class EntropyConfig(CodecConfig):
    """It has nothing to set: what there is to know about the weights it learns on the way."""

    def encode(self, values: Sequence[Tensor], sections: Sequence[Section]) -> bytes:
        return _encode(values, sections)

    def decode(self, coded: bytes, sections: Sequence[Section]) -> list[Tensor]:
        return _decode(coded, sections)

    @property
    def overhead(self) -> float:
        return 1.002


def walks(
    groups: Sequence[Group], bits: Sequence[int], sections: Sequence[Section], values: Mapping[int, Tensor]
) -> list[Walk]:
    """A walk for each group; codes of one width share their tables. bits: of each group of codes, in order; values: by
    section, which a decoder fills on the way."""
    lanes = lanes_for(groups)
    shared = {width: code_tables(width) for width in set(bits)}
    widths = iter(bits)
    found = []
    for group in groups:
        if group.codes:
            width = next(widths)
            kinds = partial(kinds_of, group, sections, values)
            found.append(walk_codes(group, shared[width], 1 << (width - 1), lanes, kinds))
        else:
            walk = walk_rows if group.columns > 1 else walk_strips
            found.append(walk(group, byte_tables(group.width), lanes))
    return found


def lanes_for(groups: Sequence[Group]) -> int:
    symbols = sum(group.rows * group.columns * group.width for group in groups)
    return min(max(symbols >> LANES_SHIFT, FEWEST_LANES), MOST_LANES)


def _encode(values: Sequence[Tensor], sections: Sequence[Section]) -> bytes:
    """One byte for each group of codes (its width), then the stream."""
    groups = groups_of(sections)
    matrices, bits = [], []
    for group in groups:
        matrix = symbols_of(group, sections, dict(enumerate(values)))
        if group.codes:
            matrix = (matrix + 128) % 256 - 128
            bits.append(_width(matrix))
            matrix += 1 << (bits[-1] - 1)
        matrices.append(matrix)
    steps = []
    for matrix, walk in zip(matrices, walks(groups, bits, sections, dict(enumerate(values))), strict=True):
        step = next(walk, None)
        while step is not None:
            symbol_n = (matrix[step.rows, step.column] - step.mean_n) % step.tables.symbols
            frequency, before = step.tables.spans(step.context_n, symbol_n)
            steps.append((frequency.astype(np.uint16), before.astype(np.uint16)))
            try:
                step = walk.send(symbol_n)
            except StopIteration:
                step = None
    return bytes(bits) + rans.encode(steps, lanes_for(groups))


def _width(codes: Ints) -> int:
    """The fewest bits, 2 at least, that hold all codes."""
    top = max(int(codes.max(initial=0)), -1 - int(codes.min(initial=0)), 1)
    return top.bit_length() + 1


def _decode(coded: bytes, sections: Sequence[Section]) -> list[Tensor]:
    """The tensors. Raises ValueError where the stream is not one of these sections."""
    groups = groups_of(sections)
    count = sum(group.codes for group in groups)
    bits = list(coded[:count])
    if len(bits) < count or not all(2 <= width <= 8 for width in bits):
        raise ValueError("entropy: a width of codes that there is not")
    decoder = rans.Decoder(coded[count:], lanes_for(groups))
    widths = iter(bits)
    values: dict[int, Tensor] = {}
    for group, walk in zip(groups, walks(groups, bits, sections, values), strict=True):
        offset = 1 << (next(widths) - 1) if group.codes else 0
        matrix = np.zeros((group.rows, group.columns * group.width), dtype=np.uint8)
        step = next(walk, None)
        while step is not None:
            slots = decoder.slots(len(step.context_n))
            symbol_n = step.tables.find(step.context_n, slots)
            decoder.advance(slots, *step.tables.spans(step.context_n, symbol_n))
            matrix[step.rows, step.column] = (symbol_n + step.mean_n) % step.tables.symbols
            try:
                step = walk.send(symbol_n)
            except StopIteration:
                step = None
        values |= values_of(group, sections, matrix - np.uint8(offset))
    decoder.finish()
    return [values[index] for index in range(len(sections))]
