"""What an artifact holds, tensor by tensor: bits stored against their entropy, bytes, and what rounding changed."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from golf.artifact.codecs import CodecConfig
from golf.artifact.file import Artifact, read_artifact
from golf.artifact.sections import Section, bytes_of
from golf.quant.formats import Parts, decode_one


@dataclass(frozen=True, slots=True)
class Line:
    """One tensor. entropy_bits: order 0, of its codes, a weight; stored_bytes: alone through the codec; error: relative
    mean square against the weights before quantisation, None where they are not known."""

    name: str
    shape: tuple[int, ...]
    format: str
    entropy_bits: float
    stored_bytes: int
    error: float | None

    @property
    def numbers(self) -> int:
        return Section(self.name, torch.int8, self.shape).numbers

    @property
    def stored_bits(self) -> float:
        """Bits a weight as stored, scales and all."""
        return 8 * self.stored_bytes / max(1, self.numbers)


def contents(path: Path, weights: dict[str, Tensor] | None = None) -> tuple[Artifact, list[Line]]:
    """The artifact and a line for each of its tensors; weights: those before quantisation, by name.

    A codec that learns over tensors stores them all in less than the sum of what they take alone.
    """
    artifact = read_artifact(path)
    shapes = {name: tuple(parameter.shape) for name, parameter in artifact.model.named_parameters()}
    lines = []
    for name, kept in artifact.stored.items():
        w = decode_one(artifact.formats[kept.format], kept.parts, shapes[name])
        error = None
        if weights is not None:
            before = weights[name].float()
            error = ((w - before).square().sum() / before.square().sum().clamp_min(1e-30)).item()
        alone = _alone(name, kept.parts, artifact.codec)
        lines.append(Line(name, tuple(w.shape), kept.format, _entropy(kept.parts, w.numel()), alone, error))
    return artifact, lines


def _entropy(parts: Parts, weights: int) -> float:
    """Bits a weight of the codes, order 0 (packed: by the byte); where there are none, of halves, byte by byte."""
    codes = [part for part in parts.values() if part.dtype.itemsize == 1] or [max(parts.values(), key=Tensor.numel)]
    return sum(_order_0(column) * len(column) for part in codes for column in bytes_of(part).T) / max(1, weights)


def _order_0(byte_N: Tensor) -> float:
    count = torch.bincount(byte_N.int(), minlength=256).double()
    share = count / count.sum().clamp_min(1)
    return -torch.special.xlogy(share, share).sum().item() / math.log(2)


def _alone(name: str, parts: Parts, codec: CodecConfig) -> int:
    sections = [Section(f"{name}/{part}", v.dtype, tuple(v.shape)) for part, v in parts.items()]
    return len(codec.encode(list(parts.values()), sections))
