"""Every YAML of conf/model, with one evaluator: nothing moves its scores, but for other numbers where it hashes."""

from dataclasses import replace

import pytest

from tests.helpers.model_choices import CHOICES
from tests.helpers.relations import case_of, declared, evaluator_of, model_of, moving


@pytest.mark.parametrize("choice", CHOICES)
def test_nothing_moves_scores(choice: str) -> None:
    model, evaluator = model_of(choice), replace(evaluator_of("documents"), documents=8)  # all at once
    case = case_of(evaluator, model, choice)
    expected = declared(evaluator, model)
    found = moving(case, expected)
    assert found.keys() == expected, found
