"""Artifacts changed at random: each is read right or refused in one line, within bounds.

    python tests/artifact/fuzz.py [20000] [--seed 0]

The artifacts are of a model of one block. Four kinds: damage that the checksum must see; a payload changed under a
checksum made right again; the same with the checksum of its contents made right too; a header changed at a random
place, under a right checksum, as an adversary would. Memory is limited to what the reader may take.
"""

import argparse
import copy
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
from tests.helpers.quant import quant_of, written_artifact
from tests.helpers.runs import TOY, composed

QUANTS = {"int6": "zstd", "int6_lqer": "entropy", "ternary": "lzma", "int8": "brotli", "int6_awq": "entropy"}
LANES = 512  # of the entropy coder: a step takes a column of a whole matrix
MORE_BYTES = 2**30  # that reading may take beside what the process has
DEEP = "stands for a list in a list in a list ..."
SECONDS = 20.0  # that one file may take
SCALARS: list[Any] = [
    0,
    -1,
    1,
    2,
    7,
    2**31,
    2**63,
    10**30,
    0.5,
    float("inf"),
    "",
    "x",
    "int8",
    None,
    True,
    [],
    {},
    [[]],
]


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


def places(node: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a JSON tree."""
    found = []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        found += [(node, key), *places(value)]
    return found


def change_header(header: dict[str, Any], rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        container, key = rng.choice(places(header))
        kind = rng.randrange(6)
        if kind == 0:
            del container[key]
        elif kind == 1:
            container[key] = copy.deepcopy(rng.choice(SCALARS))
        elif kind == 2 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif kind == 3 and isinstance(container[key], int | float):
            container[key] *= rng.choice((-1, 2, 10**6, 0.5))
        elif kind == 4:
            other, place = rng.choice(places(header))
            container[key] = copy.deepcopy(other[place])
        else:
            container[key] = DEEP
        if not places(header):
            return


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
    change_header(header, rng)
    text = json.dumps(header).replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000).encode()
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
