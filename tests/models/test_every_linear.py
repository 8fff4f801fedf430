"""Every source of matrices: what holds for every model."""

import pytest

from tests.helpers.every_model import Checks, Tried, choices_for, tried


@pytest.fixture(scope="module", params=choices_for("linear"))
def case(request: pytest.FixtureRequest) -> Tried:
    return tried(request.param)


class TestEveryLinear(Checks):
    pass
