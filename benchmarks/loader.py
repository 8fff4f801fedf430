"""Tokens a second of each loader, with and without prefetching, between made-up training steps.

    python benchmarks/loader.py [--shards a.bin b.bin ...] [--batches 50] [--step-ms 20]

Without --shards it makes 20 million random tokens. `ratio` is with prefetching over without.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from rich.console import Console
from rich.table import Table

from golf.tokens.loader import LoaderConfig, PackedConfig, SequentialConfig, ShuffledConfig
from golf.tokens.shards import TokenStream, write_shards

SEQUENCES, LENGTH = 512, 1024  # upstream's global batch of 524,288 tokens
BOS_ID = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+")
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--step-ms", type=float, default=20, help="length of the step between batches, a sleep")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = options.shards or random_shards(Path(folder))
        table = Table("loader", "open, s", "plain, Mtok/s", "prefetch, Mtok/s", "ratio")
        for kind in (SequentialConfig, ShuffledConfig, PackedConfig):
            opened, plain = measure(kind(prefetch=False), shards, options.batches, options.step_ms / 1000)
            _, ahead = measure(kind(prefetch=True), shards, options.batches, options.step_ms / 1000)
            name = kind.__name__.removesuffix("Config").lower()
            table.add_row(name, f"{opened:.2f}", f"{plain / 1e6:.1f}", f"{ahead / 1e6:.1f}", f"{ahead / plain:.2f}")
        Console().print(table)


def random_shards(folder: Path) -> list[Path]:
    """20 million tokens in two shards, a document about every 500."""
    source = np.random.default_rng(0)
    tokens = source.integers(4, 1024, 20_000_000).astype(np.uint16)
    tokens[source.random(len(tokens)) < 1 / 500] = BOS_ID
    return write_shards(folder, "train", [tokens], shard_tokens=10_000_000)


def measure(config: LoaderConfig, shards: list[Path], batches: int, step_seconds: float) -> tuple[float, float]:
    """(seconds to open, tokens a second); a step is a sleep, as a GPU's is for the CPU."""
    start = time.perf_counter()
    loader = config.open(TokenStream(shards), bos_id=BOS_ID, seed=0, rank=0, world=1)
    opened = time.perf_counter() - start
    loader.batch(SEQUENCES, LENGTH)
    start = time.perf_counter()
    for _ in range(batches):
        loader.batch(SEQUENCES, LENGTH)
        time.sleep(step_seconds)
    seconds = time.perf_counter() - start
    loader.close()
    return opened, batches * SEQUENCES * LENGTH / seconds


if __name__ == "__main__":
    main()
