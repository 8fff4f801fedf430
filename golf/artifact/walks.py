"""The ways through a group of symbols: in which order they are coded, and what is expected of each.

A walk sees only symbols that were coded before, so that encoder and decoder take the same one.
"""

from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np

from golf.artifact.contexts import NEAR_CONTEXTS, SIZE_CONTEXTS, UNIT, Tables, context_of
from golf.artifact.groups import Group
from golf.artifact.rans import Ints

PRIOR_SYMBOLS, PRIOR_NUMBERS = 32, 8  # codes' and numbers' worth of belief in the average that a row begins with
FAST, SLOW, MANY = 1, 4, 2**16  # log2 of how many numbers before it tell a number's size; of many: matrices, not steps
CLEAR = 6  # square of the standard errors that a column's mean must be away from 0
NEAR, NEARER = 96, 3  # of 256: how much of a row, lately (log2 of the symbols), was as in most rows
LEVEL = 64  # what is expected of a last byte before anything is seen


class Step(NamedTuple):
    """Symbols that are coded together: their tables and contexts, where they stand in their group, and what is taken
    from each (modulo the alphabet) before it is coded."""

    tables: Tables
    context_n: Ints
    rows: slice
    column: int
    mean_n: Ints | int = 0


Walk = Generator[Step, Ints, None]  # gives steps, is sent their symbols


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


def walk_rows(group: Group, tables: list[Tables], lanes: int) -> Walk:
    """Steps through a matrix of numbers, rows beside one another; tables: of each of a number's bytes.

    The context of a last byte is the size of the row's numbers so far. Rows that so far went with most rows before them
    (embeddings of tokens that are hardly seen are copies of one vector) are told from what those had in the column.
    """
    count_CA = np.zeros((group.columns, 256), dtype=np.int64)
    total, count, last = PRIOR_NUMBERS * LEVEL, PRIOR_NUMBERS, group.width - 1
    for rows in rows_at_once(group.rows, lanes // 2):
        above_NC = np.zeros((rows.stop - rows.start, group.columns), dtype=np.int64)
        size_n, near_n = np.zeros((2, len(above_NC)), dtype=np.int64)
        for column in range(group.columns):
            level_n = (size_n + PRIOR_NUMBERS * total // count) // (column + PRIOR_NUMBERS)
            known_n = near_n >= NEAR
            context_n = np.where(known_n, NEAR_CONTEXTS + (near_n >> 5), level_n * SIZE_CONTEXTS >> 7)
            most = int(count_CA[column].argmax())
            mean_n = most * known_n
            symbol_n = yield Step(tables[last], context_n, rows, column * group.width + last, mean_n)
            tables[last].learn(context_n, symbol_n)
            byte_n = (symbol_n + mean_n) % 256
            above_NC[:, column] = byte_n
            np.add.at(count_CA[column], byte_n, 1)
            near_n += ((np.abs(byte_n - most) <= 1) * 256 - near_n) >> NEARER
            added_n = byte_n & 127
            size_n += added_n
            total, count = total + int(added_n.sum()), count + len(byte_n)
        for byte in reversed(range(last)):
            for column in range(group.columns):
                context_n = (above_NC[:, column] == 0).astype(np.int64)
                symbol_n = yield Step(tables[byte], context_n, rows, column * group.width + byte)
                tables[byte].learn(context_n, symbol_n)
                above_NC[:, column] = symbol_n


def walk_strips(group: Group, tables: list[Tables], lanes: int) -> Walk:
    """Steps through numbers, their bytes from the last to the first; each lane has a strip of them. tables: of each
    byte. The context of a last byte is how large the numbers before it in the strip were, of any other whether the byte
    above is 0."""
    length, slow = -(-group.rows // lanes), SLOW if group.rows >= MANY else FAST
    above_R = np.zeros(group.rows, dtype=np.int64)
    for byte in reversed(range(group.width)):
        level_n = np.full(min(lanes, group.rows), LEVEL << slow)
        for place in range(length):
            rows = slice(place, group.rows, length)
            level_n = level_n[: -(-(group.rows - place) // length)]
            last = byte == group.width - 1
            context_n = (level_n >> slow) * SIZE_CONTEXTS >> 7 if last else (above_R[rows] == 0).astype(np.int64)
            symbol_n = yield Step(tables[byte], context_n, rows, byte)
            tables[byte].learn(context_n, symbol_n)
            above_R[rows] = symbol_n
            level_n += (symbol_n & 127) - (level_n >> slow)
