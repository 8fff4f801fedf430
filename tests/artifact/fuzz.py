"""Artifacts changed at random: each is read right or refused in one line, within bounds.

    python tests/artifact/fuzz.py [20000] [--seed 0]

The artifacts are of a model of one block. Four kinds: damage that the checksum must see; a payload changed under a
checksum made right again; the same with the checksum of its contents made right too; a header changed at a random
place, under a right checksum, as an adversary would. Memory is limited to what the reader may take.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from golf.artifact.file import PREFIX, read_artifact, seal
from golf.artifact.sections import checksum
from golf.conf_files import load_part
from golf.errors import UserError
from golf.quant.salient import SalientConfig
from tests.helpers.mutations import as_text, change
from tests.helpers.quant import quant_of, written_artifact
from tests.helpers.runs import TOY, composed

QUANTS = {"int6": "zstd", "int6_lqer": "entropy", "ternary": "lzma", "int8": "brotli", "int6_awq": "entropy"}
LANES = 512  # of the entropy coder: a step takes a column of a whole matrix
MORE_BYTES = 2**30  # that reading may take beside what the process has
SECONDS = 20.0  # that one file may take


def artifacts(folder: Path) -> list[bytes]:
    """Return a small sound artifact of each kind of storage."""
    run, blobs = composed(*TOY, "data.path=none.jsonl"), []
    run.model = replace(run.model, vocab_size=96, layers=1, stack=load_part("model/stack/plain"))
    for name, codec in QUANTS.items():
        run.quant = quant_of(name, codec=codec)
        for chosen in run.quant.formats.values():
            if isinstance(chosen, SalientConfig):
                chosen.columns = 8
        blobs.append(written_artifact(run, folder)[0].read_bytes())
    return blobs


def mutated(blob: bytes, rng: random.Random) -> tuple[str, bytes]:
    """(kind, bytes)"""
    size = PREFIX.unpack_from(blob)[2]
    packed, payload = blob[PREFIX.size : PREFIX.size + size], bytearray(blob[PREFIX.size + size :])
    kind = rng.choice(("damage", "payload", "forged", "header", "header"))
    if kind == "damage":
        whole = bytearray(blob)
        whole[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        return kind, bytes(rng.choice((whole, blob[: rng.randrange(len(blob))], blob + rng.randbytes(3))))
    if kind in ("payload", "forged"):
        for _ in range(rng.choice((1, 2, 20))):
            payload[rng.randrange(len(payload))] = rng.randrange(256)
        cut = rng.choice((len(payload), len(payload), rng.randrange(len(payload))))
        return kind, seal(packed, bytes(payload[:cut]))
    header = json.loads(zlib.decompress(packed))
    change(header, rng)
    text = as_text(header)
    return kind, seal(zlib.compress(text if rng.randrange(20) else text[:-1]), bytes(payload))


def forged_checksum(blob: bytes) -> Callable[[Any], int]:
    """In place of the contents' checksum: what the header says."""
    header = json.loads(zlib.decompress(blob[PREFIX.size : PREFIX.size + PREFIX.unpack_from(blob)[2]]))
    return lambda values: header["payload_crc32"]


def fuzz(count: int, seed: int, folder: Path, *, limited: bool) -> Counter:
    """Read so many changed artifacts; return outcomes by kind. Raises whatever a reader must not.

    limited: limit the memory of this process once a file of each kind was read: what is imported on the way is no
    memory of a file's.
    """
    with patch("golf.artifact.entropy.FEWEST_LANES", LANES):
        blobs = artifacts(folder)
        if limited:
            read_all(len(blobs), 1, blobs, folder / "mutated.golf")
            limit_memory()
        return read_all(count, seed, blobs, folder / "mutated.golf")


def read_all(count: int, seed: int, blobs: list[bytes], path: Path) -> Counter:
    """Read so many changed files, each written to `path`; return outcomes by kind."""
    rng, outcomes = random.Random(seed), Counter[tuple[str, str]]()
    for index in range(count):
        kind, blob = mutated(blobs[index % len(blobs)], rng)
        path.write_bytes(blob)
        contents = forged_checksum(blob) if kind == "forged" else checksum
        started = time.monotonic()
        try:
            with patch("golf.artifact.file.checksum", contents):
                read_artifact(path)
            outcomes[kind, "read"] += 1
        except UserError as error:
            assert len(str(error).splitlines()) == 1, error
            outcomes[kind, "refused"] += 1
        assert time.monotonic() - started < SECONDS, (index, seed)
    return outcomes


def limit_memory() -> None:
    """From here on this process may take MORE_BYTES more address space, no more."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MORE_BYTES, now + MORE_BYTES))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("count", nargs="?", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        outcomes = fuzz(chosen.count, chosen.seed, Path(place), limited=True)
    for (kind, outcome), times in sorted(outcomes.items()):
        print(f"{kind:8s} {outcome:8s} {times:,}")
