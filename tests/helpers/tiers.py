"""The tiers of tests: default (every commit), slow (process matrices, whole products), all (every combination too)."""

import math
import zlib
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import pytest
from _pytest.mark import ParameterSet

TIERS = ("default", "slow", "all")


def wide(*values: Any) -> ParameterSet:
    """Return a case of a test that runs in the tier `all` only."""
    return pytest.param(*values, marks=pytest.mark.wide)


def slow(*values: Any) -> ParameterSet:
    """Return a case of a test that runs in the tiers `slow` and `all`."""
    return pytest.param(*values, marks=pytest.mark.slow)


def quick(kept: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Return these values as parameters of a test: the kept ones as they are, the others for the tier `all`."""
    return [value if value in kept else wide(value) for value in values]


def tries_everything(config: pytest.Config) -> bool:
    """Return whether this is the tier `all`, in which tests try all combinations."""
    return bool(config.getoption("--tier") == "all")


def select(items: list[pytest.Item], tier: str, part: str | None) -> list[pytest.Item]:
    """Return the tests of a tier. part: "3/30" for the third of thirty parts, cut by the tests' names."""
    if tier == "all":
        chosen = items
    else:
        chosen = [item for item in items if not has(item, "wide") and has(item, "slow") == (tier == "slow")]
        kept = covering(chosen)
        chosen = [item for item in chosen if item in kept]
    if part is not None:
        number, count = parse_part(part)
        chosen = [item for item in chosen if zlib.crc32(item.nodeid.encode()) % count == number - 1]
    return chosen


def parse_part(part: str) -> tuple[int, int]:
    """Return (3, 30) for "3/30". Raises pytest.UsageError for anything else."""
    number, _, count = part.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise pytest.UsageError(f"--part={part}: write K/N, the K-th of N parts, such as 3/30")
    return int(number), int(count)


def has(item: pytest.Item, marker: str) -> bool:
    """Return whether a test has a marker."""
    return item.get_closest_marker(marker) is not None


def covering(items: list[pytest.Item]) -> set[pytest.Item]:
    """Return, of each test over all combinations of some lists, cases that together show each value; else all cases.

    Of a x b combinations it keeps max(a, b) cases.
    """
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_test.setdefault(item.nodeid.split("[")[0], []).append(item)
    kept = set()
    for cases in by_test.values():
        shows = {item: {(name, id(value)) for name, value in params_of(item).items()} for item in cases}
        unseen = set().union(*shows.values())
        values = Counter(name for name, _ in unseen)
        if len(values) < 2 or len(cases) < math.prod(values.values()):
            kept |= set(cases)
            continue
        while unseen:
            kept.add(item := max(cases, key=lambda case: len(shows[case] & unseen)))
            unseen -= shows[item]
    return kept


def params_of(item: pytest.Item) -> dict[str, Any]:
    """Return the parameters of a test by name."""
    return item.callspec.params if hasattr(item, "callspec") else {}
