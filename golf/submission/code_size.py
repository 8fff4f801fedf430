"""How many bytes a run's code has, counted in three ways: measured once for one state of golf's source and one recipe.

To bundle, minify and compress takes seconds, so the numbers stand in code_sizes.json beside the runs' folders. What an
audit says of them is no more than a look ahead: golf/submit.py always packs the file that it ships.
"""

import contextlib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from golf.config import Run
from golf.nodes import plain
from golf.rundir import read_json, write_json
from golf.submission.bundle import recipe_of
from golf.submission.entry import code_of

FILE = "code_sizes.json"
SOURCES = Path(__file__).resolve().parents[1]
PACKERS = ("python-minifier", "brotli")


@dataclass(frozen=True, slots=True)
class CodeSize:
    """Holds the bytes of a packed file, of the minified script in it, and of the readable script."""

    packed: int
    minified: int
    source: int


def code_size(run: Run, outputs: Path) -> CodeSize:
    """Return the sizes that are written down in `outputs` for this source and recipe; else measure and write them."""
    path, sources, recipe = outputs / FILE, digest_of_sources(), digest_of_recipe(run)
    known = read_sizes(path, sources)
    if recipe in known:
        return known[recipe]
    found = measure(run)
    sizes = {name: asdict(size) for name, size in (known | {recipe: found}).items()}
    with contextlib.suppress(OSError):  # a folder that is only to be read keeps no sizes
        write_json(path, {"sources": sources, "sizes": sizes})
    return found


def measure(run: Run) -> CodeSize:
    """Bundle and pack the run's code, and count it."""
    code = code_of(run)
    return CodeSize(packed=len(code.file), minified=code.minified_bytes, source=code.raw_bytes)


def read_sizes(path: Path, sources: str) -> dict[str, CodeSize]:
    """Return digest of a recipe -> sizes; nothing where the file is of another source or not well formed."""
    node = read_json(path)
    if not isinstance(node, dict) or node.get("sources") != sources or not isinstance(node.get("sizes"), dict):
        return {}
    return {recipe: CodeSize(**entry) for recipe, entry in node["sizes"].items() if _well_formed(entry)}


def _well_formed(entry: Any) -> bool:
    names = {field.name for field in fields(CodeSize)}
    return isinstance(entry, dict) and set(entry) == names and all(type(n) is int and n > 0 for n in entry.values())


def digest_of_sources() -> str:
    """Return the sha256 of golf's own Python files by path, and of the versions of what packs them."""
    names = sorted(SOURCES.rglob("*.py"))
    contents = [part for path in names for part in (str(path.relative_to(SOURCES)).encode(), path.read_bytes())]
    return _sha256([sys.version.encode(), *(version(name).encode() for name in PACKERS), *contents])


def digest_of_recipe(run: Run) -> str:
    """Return the sha256 of all that a script is written from but the source: the recipe without seed, and the label."""
    recipe = plain(replace(recipe_of(run), seed=0))
    return _sha256([run.label.encode(), json.dumps(recipe).encode()])


def _sha256(parts: Iterable[bytes]) -> str:
    """Return the digest of these parts, each with its length in front."""
    found = sha256()
    for part in parts:
        found.update(f"{len(part)}:".encode() + part)
    return found.hexdigest()
