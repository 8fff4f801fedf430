"""Golf's own coder of an artifact's tensors: adaptive context models over rows, columns and layers, then rANS.

Integer codes are coded column by column, many rows at a time, those of all layers' like tensors one after another. What
is coded of a weight is its distance from the mean of the column in earlier rows of the same tensor and of a like step,
where that mean is clearly not 0 (embeddings of tokens that are hardly seen are copies of one vector). Its context is
the magnitude to expect there: what the row had so far, times how much larger than the average the column was in the
rows before (outlier channels run through all layers). Nothing but the widest code of a kind is stored as side
information. Other types are coded first, a byte at a time: sign and exponent after those of the numbers before, any
other byte after the one above it.
"""

import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from golf.artifact import rans
from golf.artifact.codecs import CodecConfig
from golf.artifact.contexts import BYTE_CONTEXTS, UNIT, Tables, byte_tables, code_tables, context_of
from golf.artifact.rans import Ints
from golf.artifact.sections import Section, bytes_of, tensor_of

PRIOR_SYMBOLS = 32  # how many symbols' worth of belief in the average a row and a column begin with
LANES_SHIFT, FEWEST_LANES, MOST_LANES = 14, 16, 2048  # a lane for so many symbols: its state costs five bytes
KINDS, LIKE = (
    256,
    9,
)  # kinds of rows within a group; fp16 steps are alike but for so many low bits: within half an octave
FAST, SLOW, MANY = 1, 4, 2**16  # log2 of how many numbers before it tell a number's size; of many: matrices, not scales
CLEAR = 6  # square of the standard errors that a column's mean must be away from 0


class Step(NamedTuple):
    """Symbols that are coded together: their tables and contexts, where they stand in their group, and what is taken
    from each (modulo the alphabet) before it is coded."""

    tables: Tables
    context_n: Ints
    rows: slice
    column: int
    mean_n: Ints | int = 0


Walk = Generator[Step, Ints, None]  # gives steps, is sent their symbols


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


@dataclass(frozen=True, slots=True)
class Group:
    """Like tensors of all layers as one matrix of symbols: codes (columns as they are) or bytes (a column each)."""

    members: list[int]
    codes: bool
    rows: int
    columns: int

    @property
    def kinds(self) -> int:
        """How many kinds its rows are told apart into; what is kept of them is then no larger than the group."""
        return max(1, min(KINDS, self.rows))


def groups_of(sections: Sequence[Section]) -> list[Group]:
    """Sections alike but for the numbers in their names, in the order of the first of each kind; codes come last, so
    that steps are known by then."""
    kinds: dict[tuple, list[int]] = {}
    for index, section in enumerate(sections):
        codes = section.dtype == torch.int8
        alike = (re.sub(r"\d+", "#", section.name), *section.shape) if codes else section.name.rpartition("/")[2]
        kinds.setdefault((section.dtype, alike), []).append(index)
    groups = []
    for (dtype, _), members in kinds.items():
        codes, shape = dtype == torch.int8, sections[members[0]].shape
        columns = math.prod(shape[1:]) if codes else dtype.itemsize
        rows = sum(sections[index].size_bytes for index in members) // max(1, columns)
        groups.append(Group(members, codes, rows, columns))
    return sorted(groups, key=lambda group: group.codes)


def kinds_of(group: Group, sections: Sequence[Section], values: Mapping[int, Tensor]) -> Ints:
    """kind_R: rows of one tensor whose steps are alike have one kind. values: by section, with all steps."""
    steps = {section.name: index for index, section in enumerate(sections) if section.name.endswith("/scale")}
    found = []
    for place, index in enumerate(group.members):
        rows = sections[index].numbers // max(1, group.columns)
        kind_R = np.zeros(rows, dtype=np.int64)
        of = steps.get(sections[index].name.rpartition("/")[0] + "/scale")
        if of is not None and sections[of].dtype == torch.float16 and sections[of].numbers == rows:
            kind_R += values[of].flatten().view(torch.int16).numpy().astype(np.int64) >> LIKE
        found.append((kind_R + place * 37) % group.kinds)
    return np.concatenate(found)


class Means:
    """Of each column, over the earlier rows of a kind."""

    def __init__(self, kinds: int, columns: int):
        self.sum_KC = np.zeros((kinds, columns), dtype=np.int32)
        self.square_KC = np.zeros((kinds, columns), dtype=np.int64)
        self.rows_K = np.zeros(kinds, dtype=np.int64)

    def rounded(self, kind_n: Ints, column: int) -> Ints:
        """The nearest whole number to each mean that is clearly not 0, else 0."""
        sum_K, rows_K = self.sum_KC[:, column].astype(np.int64), np.maximum(self.rows_K, 1)
        clear_K = sum_K * sum_K > CLEAR * self.square_KC[:, column]
        return np.where(clear_K, (2 * sum_K + rows_K) // (2 * rows_K), 0)[kind_n]

    def learn(self, kind_n: Ints, column: int, code_n: Ints) -> None:
        np.add.at(self.sum_KC[:, column], kind_n, code_n.astype(np.int32))
        np.add.at(self.square_KC[:, column], kind_n, code_n * code_n)


def rows_at_once(rows: int, lanes: int) -> list[slice]:
    """All rows in slices of `lanes`; the first ones are smaller, since they have less to learn from."""
    slices, start, size = [], 0, max(1, lanes // 8)
    while start < rows:
        slices.append(slice(start, min(start + size, rows)))
        start, size = start + size, min(2 * size, lanes)
    return slices


def walk_codes(group: Group, tables: Tables, zero: int, lanes: int, kinds: Callable[[], Ints]) -> Walk:
    """Steps through a matrix of codes. zero: the symbol of code 0; kinds: of the rows, once their steps are known."""
    kind_R, means = kinds(), Means(group.kinds, group.columns)
    row_R, column_C = np.zeros(group.rows, dtype=np.int64), np.zeros(group.columns, dtype=np.int64)
    mean, total, count = UNIT, PRIOR_SYMBOLS, PRIOR_SYMBOLS
    for rows in rows_at_once(group.rows, lanes):
        start, row_n, kind_n = rows.start, row_R[rows], kind_R[rows]
        local, seen = PRIOR_SYMBOLS * mean, PRIOR_SYMBOLS
        for column in range(group.columns):
            prior = PRIOR_SYMBOLS * local // seen
            expected_n = (UNIT * row_n + prior) // (column + PRIOR_SYMBOLS)
            in_column = (UNIT * int(column_C[column]) + PRIOR_SYMBOLS * mean) // (start + PRIOR_SYMBOLS)
            context_n = context_of(expected_n * in_column // max(1, mean))
            mean_n = means.rounded(kind_n, column)
            symbol_n = yield Step(tables, context_n, rows, column, mean_n)
            tables.learn(context_n, symbol_n)
            means.learn(kind_n, column, (symbol_n + mean_n) % (2 * zero) - zero)
            magnitude_n = np.abs(symbol_n - zero)
            row_n += magnitude_n
            added = int(magnitude_n.sum())
            column_C[column] += added
            local, seen = local + UNIT * added, seen + len(symbol_n)
            total, count = total + added, count + len(symbol_n)
            mean = UNIT * total // count
        np.add.at(means.rows_K, kind_n, 1)


def walk_bytes(group: Group, lanes: int) -> Walk:
    """Steps through numbers, their bytes from the last (sign and exponent) to the first; each lane has a strip of them.

    The context of a last byte is how large the numbers before it in the strip were, of any other the byte above it.
    """
    length, slow = -(-group.rows // lanes), SLOW if group.rows >= MANY else FAST
    above_R = np.zeros(group.rows, dtype=np.int64)
    for column in reversed(range(group.columns)):
        tables, last = byte_tables(), column == group.columns - 1
        level_n = np.full(min(lanes, group.rows), 64 << slow)
        for place in range(length):
            rows = slice(place, group.rows, length)
            level_n = level_n[: -(-(group.rows - place) // length)]
            context_n = (level_n >> slow if last else above_R[rows]) * BYTE_CONTEXTS >> (7 if last else 8)
            symbol_n = yield Step(tables, context_n, rows, column)
            tables.learn(context_n, symbol_n)
            above_R[rows] = symbol_n
            level_n += (symbol_n & 127) - (level_n >> slow)


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
            found.append(walk_bytes(group, lanes))
    return found


def lanes_for(groups: Sequence[Group]) -> int:
    symbols = sum(group.rows * group.columns for group in groups)
    return min(max(symbols >> LANES_SHIFT, FEWEST_LANES), MOST_LANES)


def _encode(values: Sequence[Tensor], sections: Sequence[Section]) -> bytes:
    """One byte for each group of codes (its width), then the stream."""
    groups = groups_of(sections)
    matrices, bits = [], []
    for group in groups:
        flat = torch.cat([bytes_of(values[index]) for index in group.members]).numpy()
        matrix = flat.reshape(group.rows, group.columns).astype(np.int64)
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


def _width(codes: NDArray[np.int64]) -> int:
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
        matrix = np.zeros((group.rows, group.columns), dtype=np.uint8)
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
        flat = torch.from_numpy((matrix - np.uint8(offset)).reshape(-1))
        pieces = flat.split([sections[index].size_bytes for index in group.members])
        values |= {index: tensor_of(piece, sections[index]) for index, piece in zip(group.members, pieces, strict=True)}
    decoder.finish()
    return [values[index] for index in range(len(sections))]
