"""Bits a weight of every codec on grids of Gaussian weights, against their order-0 entropy, and the time of ours.

    python benchmarks/codecs.py [--layers 6] [--rows 2048] [--columns 512] [--large 36000000]
    python benchmarks/codecs.py --artifact outputs/single/RUN/artifact.golf

Rows spread by 15 % (as in published comparisons), one int8 a weight. --large: weights of the timed run (0: none).
--artifact: the codes of a trained artifact instead.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from golf.artifact.codecs import BytesConfig, CodecConfig
from golf.artifact.entropy import EntropyConfig
from golf.artifact.file import read_artifact
from golf.artifact.sections import Section

GRIDS = {
    "int6 k=11.5": (11.5, 31),
    "int6 k=12.85": (12.85, 31),
    "int6 k=14": (14.0, 31),
    "int7 k=14": (14.0, 63),
    "int8 k=20": (20.0, 127),
    "int6 k=4": (4.0, 31),
}
CODECS: dict[str, CodecConfig] = {
    "zlib-9": BytesConfig(coder="zlib", level=9, shuffle=False),
    "zstd-22": BytesConfig(coder="zstd", level=22, shuffle=False),
    "lzma-9": BytesConfig(coder="lzma", level=9, shuffle=False),
    "brotli-11": BytesConfig(coder="brotli", level=11, shuffle=False),
    "entropy": EntropyConfig(),
}


def gaussian(layers: int, rows: int, columns: int, k: float, limit: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(layers):
        spread_O1 = torch.exp(0.15 * torch.randn(rows, 1, generator=generator))
        w_OI = torch.randn(rows, columns, generator=generator) * spread_O1
        values.append((w_OI / (k * w_OI.std() / limit)).round().clamp(-limit, limit).to(torch.int8))
    return values


def entropy(values: list[Tensor]) -> float:
    """Bits a symbol, order 0, of all together."""
    counts = sum(torch.bincount(value.flatten().int() + 128, minlength=256) for value in values)
    share = counts.double() / counts.sum()
    return -torch.special.xlogy(share, share).sum().item() / math.log(2)


def bits(values: list[Tensor], sections: list[Section], codec: CodecConfig) -> float:
    return 8 * len(codec.encode(values, sections)) / sum(value.numel() for value in values)


def row(name: str, values: list[Tensor], sections: list[Section]) -> None:
    found = {codec: bits(values, sections, chosen) for codec, chosen in CODECS.items()}
    print(
        f"{name:16s} H0 {entropy(values):.4f}  " + "  ".join(f"{codec} {b:.4f}" for codec, b in found.items()),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--large", type=int, default=36_000_000)
    parser.add_argument("--artifact", type=Path)
    chosen = parser.parse_args()
    if chosen.artifact:
        stored = read_artifact(chosen.artifact).stored
        codes = {name: kept.parts["codes"] for name, kept in stored.items() if "codes" in kept.parts}
        kinds = [Section(f"{name}/codes", torch.int8, tuple(value.shape)) for name, value in codes.items()]
        row("trained codes", list(codes.values()), kinds)
        return
    shape = (chosen.rows, chosen.columns)
    for name, (k, limit) in GRIDS.items():
        values = gaussian(chosen.layers, *shape, k, limit)
        row(name, values, [Section(f"blocks.{i}.w/codes", torch.int8, shape) for i in range(chosen.layers)])
    if chosen.large:
        layers = chosen.large // (chosen.rows * chosen.columns)
        values = gaussian(layers, *shape, 12.85, 31)
        sections = [Section(f"blocks.{i}.w/codes", torch.int8, shape) for i in range(layers)]
        started = time.perf_counter()
        coded = EntropyConfig().encode(values, sections)
        middle = time.perf_counter()
        found = EntropyConfig().decode(coded, sections)
        ended = time.perf_counter()
        assert all(torch.equal(a, b) for a, b in zip(values, found, strict=True))
        count = layers * chosen.rows * chosen.columns
        print(f"entropy, {count:,} weights: encode {middle - started:.1f} s, decode {ended - middle:.1f} s")


if __name__ == "__main__":
    main()
