"""What makes tests of reports cheap: plots as their words alone, and counts of seeds that are worked out once."""

from functools import cache

import pytest

from golf.reports import figures, stats
from tests.reports.helpers import sketch

remembered = cache(stats.seeds_needed)


@pytest.fixture(autouse=True)
def seeds_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers are in many of these sweeps, and how many seeds would tell them apart is a long search."""
    monkeypatch.setattr(stats, "seeds_needed", remembered)


@pytest.fixture
def sketches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are filled and not laid out."""
    monkeypatch.setattr(figures, "_svg", sketch)
