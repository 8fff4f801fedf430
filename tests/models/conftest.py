"""Toy runs for tests of models: put together without Hydra, and without data."""

from collections.abc import Callable

import pytest

from golf.config import Run
from tests.helpers.parts import toy_of


@pytest.fixture(scope="session")
def toy() -> Callable[..., Run]:
    """toy(*overrides) -> a typed toy run, which a test may change."""
    return toy_of
