"""Words that are near to a misspelt one: the `did you mean` of every message."""

import contextlib
import difflib
from collections.abc import Iterable
from pathlib import Path

NO_VALUE = ("none", "null", "nil", "~", "")


def nearest(word: str, options: Iterable[str]) -> str | None:
    """Return the option that is spelt most like `word`; None where none is near."""
    return next(iter(difflib.get_close_matches(word, list(options), n=1)), None)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return `did you mean X? `, with its blank behind, to be put into a message; empty where no option is near."""
    near = nearest(word, options)
    return "" if near is None else f"did you mean {near}? "


def hint(word: str, options: Iterable[str]) -> str:
    """Return `; did you mean X?`, to be put behind a message; empty where no option is near."""
    near = nearest(word, options)
    return "" if near is None else f"; did you mean {near}?"


def means_null(value: object) -> bool:
    """Return whether a value is a text by which people mean that there is none, and that YAML and Hydra take as it is.

    Behind a key that can be null, None would else be the name of an account, or cut a text at each None.
    """
    return isinstance(value, str) and value.strip().lower() in NO_VALUE


def names_in(folder: Path) -> list[str]:
    """Return the names of what lies in a folder; none where it cannot be read."""
    with contextlib.suppress(OSError):
        return sorted(path.name for path in folder.iterdir())
    return []


def nearest_key(key: str, node: object) -> str | None:
    """Return the key path of nested mappings that is nearest to `key`, such as model.dim for model.dimm, or for dim.

    Each part of a path may be misspelt; a single name may also be the last part of one longer path.
    """
    path: list[str] = []
    here = node
    for part in key.split("."):
        names = [str(name) for name in here] if isinstance(here, dict) else []
        found = part if part in names else nearest(part, names)
        if found is None:
            return _by_last_part(key.split(".")[-1], node)
        path.append(found)
        here = here[found] if isinstance(here, dict) else None
    return ".".join(path)


def _by_last_part(name: str, node: object) -> str | None:
    """Return the shortest key path whose last part is `name`."""
    paths = [path for path in _paths(node) if path.split(".")[-1] == name]
    return min(paths, key=len, default=None)


def _paths(node: object, before: str = "") -> Iterable[str]:
    for name, member in node.items() if isinstance(node, dict) else ():
        yield f"{before}{name}"
        yield from _paths(member, f"{before}{name}.")
