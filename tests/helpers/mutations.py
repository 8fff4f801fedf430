"""JSON files changed at random, as damage or an adversary would."""

import copy
import json
import random
from pathlib import Path
from typing import Any

DEEP = "stands for a list in a list in a list ..."
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


def places(node: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a JSON tree."""
    found = []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        found += [(node, key), *places(value)]
    return found


def change(node: Any, rng: random.Random) -> None:
    """Change a JSON tree in its place: something left out, moved, of another type, negative, huge or deep."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        container, key = rng.choice(places(node))
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
            other, place = rng.choice(places(node))
            container[key] = copy.deepcopy(other[place])
        else:
            container[key] = DEEP
        if not places(node):
            return


def as_text(node: Any) -> bytes:
    """Return the JSON of a tree, with what DEEP stands for in its place."""
    return json.dumps(node).replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000).encode()


def mutated_file(path: Path, rng: random.Random) -> bytes:
    """Return other contents for a file of JSON, of a JSON value a line, or of plain text."""
    data = path.read_bytes()
    if path.suffix == ".txt" or rng.random() < 0.25:
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 5))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        odd = (b"", b"null", b"[]", b'"x"', b"3\n", b"\xff\xfe")
        return rng.choice((bytes(damaged), data[: rng.randrange(len(data))], data + b"3\n", rng.choice(odd)))
    lines = [data] if path.suffix == ".json" else data.splitlines()
    index = rng.randrange(len(lines))
    node = json.loads(lines[index])
    change(node, rng)
    lines[index] = as_text(node)
    return b"\n".join(lines) + b"\n"
