"""The parts of an artifact's tensors as a codec sees them: a list of (name, type, shape), and their plain bytes."""

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Section(NamedTuple):
    """One part of one tensor; name: tensor/part."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.numbers * self.dtype.itemsize


def bytes_of(value: Tensor) -> Tensor:
    """byte_NK: the K bytes of each of a tensor's N numbers, in order of memory (little-endian)."""
    flat = value.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)  # a view may have odd strides
    return flat.view(torch.uint8).view(value.numel(), value.dtype.itemsize)


def tensor_of(byte_N: Tensor, section: Section) -> Tensor:
    """The tensor that has these bytes, with memory of its own."""
    value = torch.empty(section.numbers, dtype=section.dtype)
    value.view(torch.uint8).copy_(byte_N)
    return value.view(section.shape)


def checksum(values: Sequence[Tensor]) -> int:
    """CRC-32 of the plain bytes: a decoder that errs, on whatever machine, is found out."""
    crc = 0
    for value in values:
        crc = zlib.crc32(bytes_of(value).numpy().data, crc)
    return crc


def join(values: Sequence[Tensor], shuffle: bool) -> bytes:
    """All bytes, section after section. shuffle: the first bytes of a section's numbers, then the second ones ..."""
    planes = (bytes_of(value) for value in values)
    return b"".join((plane.T if shuffle else plane).contiguous().numpy().tobytes() for plane in planes)


def split(raw: bytes, sections: Sequence[Section], shuffle: bool) -> list[Tensor]:
    """What join() joined; raw has exactly the sections' bytes."""
    flat = torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).copy())
    values = []
    for piece, section in zip(flat.split([section.size_bytes for section in sections]), sections, strict=True):
        size = section.dtype.itemsize
        ordered = piece.view(size, section.numbers).T.contiguous().flatten() if shuffle else piece
        values.append(tensor_of(ordered, section))
    return values
