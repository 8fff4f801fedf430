"""Golf's own coder of an artifact's tensors: adaptive context models over rows, columns and layers, then rANS.

Integer codes are coded column by column, many rows at a time, those of all layers' like tensors one after another. The
context of a weight is the magnitude to expect there: what the row had so far, times how much larger than the average
the column was in the rows before (outlier channels run through all layers). Nothing but the widest code of a kind is
stored as side information. Other types are coded a byte at a time, each byte of a number with a table of its own.
"""

import math
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from golf.artifact import rans
from golf.artifact.codecs import CodecConfig
from golf.artifact.contexts import UNIT, Tables, byte_tables, code_tables, context_of
from golf.artifact.rans import Ints
from golf.artifact.sections import Section, bytes_of, tensor_of

PRIOR_SYMBOLS = 32  # how many symbols' worth of belief in the average a row and a column begin with
LANES_SHIFT, FEWEST_LANES, MOST_LANES = 14, 16, 2048  # a lane for so many symbols: its state costs five bytes


class Step(NamedTuple):
    """Symbols that are coded together: their tables, contexts, and where they stand in their group."""

    tables: Tables
    context_n: Ints
    rows: slice
    column: int


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


def groups_of(sections: Sequence[Section]) -> list[Group]:
    """Sections alike but for the numbers in their names, in the order of the first of each kind."""
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
    return groups


def walk_codes(group: Group, tables: Tables, zero: int, lanes: int) -> Walk:
    """Steps through a matrix of codes. zero: the symbol of code 0."""
    row_R, column_C = np.zeros(group.rows, dtype=np.int64), np.zeros(group.columns, dtype=np.int64)
    mean, total, count = UNIT, PRIOR_SYMBOLS, PRIOR_SYMBOLS
    for start in range(0, group.rows, lanes):
        rows = slice(start, min(start + lanes, group.rows))
        row_n = row_R[rows]
        local, seen = PRIOR_SYMBOLS * mean, PRIOR_SYMBOLS
        for column in range(group.columns):
            prior = PRIOR_SYMBOLS * local // seen
            expected_n = (UNIT * row_n + prior) // (column + PRIOR_SYMBOLS)
            in_column = (UNIT * int(column_C[column]) + PRIOR_SYMBOLS * mean) // (start + PRIOR_SYMBOLS)
            context_n = context_of(expected_n * in_column // max(1, mean))
            symbol_n = yield Step(tables, context_n, rows, column)
            tables.learn(context_n, symbol_n)
            magnitude_n = np.abs(symbol_n - zero)
            row_n += magnitude_n
            added = int(magnitude_n.sum())
            column_C[column] += added
            local, seen = local + UNIT * added, seen + len(symbol_n)
            total, count = total + added, count + len(symbol_n)
            mean = UNIT * total // count


def walk_bytes(group: Group, lanes: int) -> Walk:
    """Steps through numbers, their bytes from the last (sign and exponent) to the first."""
    for column in reversed(range(group.columns)):
        tables = byte_tables()
        for start in range(0, group.rows, lanes):
            rows = slice(start, min(start + lanes, group.rows))
            context_n = np.zeros(rows.stop - start, dtype=np.int64)
            symbol_n = yield Step(tables, context_n, rows, column)
            tables.learn(context_n, symbol_n)


def walks(groups: Sequence[Group], bits: Sequence[int]) -> list[Walk]:
    """A walk for each group; codes of one width share their tables. bits: of each group of codes, in order."""
    lanes = lanes_for(groups)
    shared = {width: code_tables(width) for width in set(bits)}
    widths = iter(bits)
    found = []
    for group in groups:
        if group.codes:
            width = next(widths)
            found.append(walk_codes(group, shared[width], 1 << (width - 1), lanes))
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
    for matrix, walk in zip(matrices, walks(groups, bits), strict=True):
        step = next(walk, None)
        while step is not None:
            symbol_n = matrix[step.rows, step.column]
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
    for group, walk in zip(groups, walks(groups, bits), strict=True):
        offset = 1 << (next(widths) - 1) if group.codes else 0
        matrix = np.zeros((group.rows, group.columns), dtype=np.uint8)
        step = next(walk, None)
        while step is not None:
            slots = decoder.slots(step.rows.stop - step.rows.start)
            symbol_n = step.tables.find(step.context_n, slots)
            decoder.advance(slots, *step.tables.spans(step.context_n, symbol_n))
            matrix[step.rows, step.column] = symbol_n
            try:
                step = walk.send(symbol_n)
            except StopIteration:
                step = None
        flat = torch.from_numpy((matrix - np.uint8(offset)).reshape(-1))
        pieces = flat.split([sections[index].size_bytes for index in group.members])
        values |= {index: tensor_of(piece, sections[index]) for index, piece in zip(group.members, pieces, strict=True)}
    decoder.finish()
    return [values[index] for index in range(len(sections))]
