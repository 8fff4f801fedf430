"""What tests of every model leave out is tried under another name."""

from collections.abc import Callable

from golf.config import Run
from tests.helpers.every_model import SLOTS
from tests.helpers.model_choices import CHOICES, SAME


def test_what_is_not_tried_is_one_that_is(toy: Callable[..., Run]) -> None:
    assert set(SAME.values()) <= set(CHOICES)
    for left_out, tried in SAME.items():
        assert toy(left_out).model == toy(tried).model, left_out


def test_every_choice_has_a_test_file() -> None:
    groups = {f"model/{slot}".rstrip("/") for slots in SLOTS.values() for slot in slots}
    assert {choice.split("=")[0] for choice in CHOICES} <= groups
