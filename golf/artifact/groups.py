"""Like tensors of all layers side by side, as the entropy coder goes through them."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from golf.artifact.rans import Ints
from golf.artifact.sections import Section, bytes_of, tensor_of

KINDS = 256  # kinds of rows within a group
LIKE = 9  # fp16 steps are alike but for so many low bits: within half an octave
FEWEST_ROWS, FEWEST_COLUMNS = 256, 64  # of a matrix of numbers: smaller ones are lines of numbers


@dataclass(frozen=True, slots=True)
class Group:
    """One matrix of symbols, rows x (columns x width). members: places of its sections; codes: of a quantiser, else
    numbers of `width` bytes each, in rows as in their tensors, or a number a row."""

    members: list[int]
    codes: bool
    rows: int
    columns: int
    width: int

    @property
    def kinds(self) -> int:
        """How many kinds its rows are told apart into; what is kept of them is then no larger than the group."""
        return max(1, min(KINDS, self.rows))


def groups_of(sections: Sequence[Section]) -> list[Group]:
    """Sections alike but for the numbers in their names, in the order of the first of each kind; codes come last, so
    that steps are known by then."""
    kinds: dict[tuple, list[int]] = {}
    for index, section in enumerate(sections):
        columns = math.prod(section.shape[1:])
        if section.dtype == torch.int8:
            alike = (section.dtype, re.sub(r"\d+", "#", section.name), *section.shape)
        else:
            alike = (section.dtype, section.name.rpartition("/")[2], columns if columns >= FEWEST_COLUMNS else 1)
        kinds.setdefault(alike, []).append(index)
    groups = []
    for (dtype, *_), members in kinds.items():
        codes, columns = dtype == torch.int8, max(1, math.prod(sections[members[0]].shape[1:]))
        numbers = sum(sections[index].numbers for index in members)
        if not codes and (columns < FEWEST_COLUMNS or numbers < FEWEST_ROWS * columns):
            columns = 1
        groups.append(Group(members, codes, numbers // columns, columns, dtype.itemsize))
    return sorted(groups, key=lambda group: group.codes)


def kinds_of(group: Group, sections: Sequence[Section], values: Mapping[int, Tensor]) -> Ints:
    """kind_R: rows of one tensor whose steps are alike have one kind. values: by section, with all steps."""
    steps = {section.name: index for index, section in enumerate(sections) if section.name.endswith("/scale")}
    found = []
    for place, index in enumerate(group.members):
        rows = sections[index].numbers // group.columns
        kind_R = np.zeros(rows, dtype=np.int64)
        of = steps.get(sections[index].name.rpartition("/")[0] + "/scale")
        if of is not None and sections[of].dtype == torch.float16 and sections[of].numbers == rows:
            kind_R += values[of].flatten().view(torch.int16).numpy().astype(np.int64) >> LIKE
        found.append((kind_R + place * 37) % group.kinds)
    return np.concatenate(found)


def symbols_of(group: Group, sections: Sequence[Section], values: Mapping[int, Tensor]) -> Ints:
    """symbol_RC in 0 .. 255, of all its sections in turn."""
    found = [_exposed(bytes_of(values[index]).numpy(), sections[index].dtype) for index in group.members]
    return np.concatenate(found).reshape(group.rows, group.columns * group.width).astype(np.int64)


def values_of(group: Group, sections: Sequence[Section], symbol_RC: np.ndarray) -> dict[int, Tensor]:
    """By section: the tensors that have these symbols (bytes)."""
    byte_NK, start, values = symbol_RC.reshape(-1, group.width), 0, {}
    for index in group.members:
        section = sections[index]
        piece, start = byte_NK[start : start + section.numbers], start + section.numbers
        values[index] = tensor_of(torch.from_numpy(_exposed(piece, section.dtype, back=True)).flatten(), section)
    return values


def _exposed(byte_NK: np.ndarray, dtype: torch.dtype, *, back: bool = False) -> np.ndarray:
    """Numbers whose last byte is sign, five bits of the exponent and two of the mantissa. fp16 is made so; of bf16 and
    fp32 the exponent's top three bits, the same in nearly all weights, change places with the mantissa's top two."""
    if dtype not in (torch.bfloat16, torch.float32):
        return byte_NK
    moved = byte_NK.copy()
    top = moved[:, -2].astype(np.int64) | moved[:, -1].astype(np.int64) << 8
    if back:
        top = top & 0x801F | top >> 3 & 0x0FE0 | top << 7 & 0x7000
    else:
        top = top & 0x801F | (top & 0x0FE0) << 3 | (top & 0x7000) >> 7
    moved[:, -2], moved[:, -1] = top & 255, top >> 8
    return moved
