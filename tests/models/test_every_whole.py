"""Every whole model that is more than a choice of one part: what holds for every model."""

import pytest

from tests.helpers.every_model import Checks, Tried, choices_for, tried


@pytest.fixture(scope="module", params=choices_for("whole"))
def case(request: pytest.FixtureRequest) -> Tried:
    return tried(request.param)


class TestEveryWhole(Checks):
    pass
