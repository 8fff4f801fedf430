"""Every choice of a mixer, its rotation, windows and named parts: what holds for every model."""

import pytest

from tests.helpers.every_model import Checks, Tried, choices_for, tried


@pytest.fixture(scope="module", params=choices_for("attention"))
def case(request: pytest.FixtureRequest) -> Tried:
    return tried(request.param)


class TestEveryAttention(Checks):
    pass
