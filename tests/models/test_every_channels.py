"""Every embedding, feature, MLP, residual, head and further loss: what holds for every model."""

import pytest

from tests.helpers.every_model import Checks, Tried, choices_for, tried


@pytest.fixture(scope="module", params=choices_for("channels"))
def case(request: pytest.FixtureRequest) -> Tried:
    return tried(request.param)


class TestEveryChannels(Checks):
    pass
