"""Every YAML of conf/eval, on one model: what moves its scores is what it declares, and nothing else."""

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from torch import Tensor

from golf import evals
from golf.conf_files import CONF
from golf.errors import UserError
from golf.evals import known_bad
from golf.evals.evaluator import EvaluatorConfig
from golf.evals.scorers import BESIDE, ORDER, ScorerConfig
from golf.models.lm import LM
from tests.helpers.model_choices import CHOICES
from tests.helpers.relations import (
    PREFIX,
    case_of,
    declared,
    evaluator_of,
    five_ranks,
    model_of,
    moved_by,
    moving,
    relation,
    rounding,
)
from tests.helpers.tiers import slow, tries_everything

EVALUATORS = sorted(path.stem for path in (CONF / "eval").glob("*.yaml"))


@pytest.mark.parametrize("choice", EVALUATORS)
def test_what_moves_scores_is_what_is_declared(choice: str) -> None:
    """All of it: a declaration that nothing needs would let a fault pass."""
    case = case_of(evaluator_of(choice), model_of(), choice)
    expected = declared(case.evaluator, model_of())
    found = moving(case, expected)
    assert found.keys() == expected, found


def classes_of(base: type) -> Iterator[type]:
    """Yield golf's own classes for a slot."""
    for cls in base.__subclasses__():
        if cls.__module__.startswith("golf.") and cls.__module__ != known_bad.__name__:
            yield cls
        yield from classes_of(cls)


@pytest.mark.parametrize("slot", [EvaluatorConfig, ScorerConfig])
def test_every_class_declares_what_its_scores_depend_on(slot: type) -> None:
    for module in pkgutil.iter_modules(evals.__path__):
        import_module(f"{evals.__name__}.{module.name}")
    found = list(classes_of(slot))
    assert len(found) > 1
    assert [cls.__name__ for cls in found if cls.depends_on is slot.depends_on] == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("choice", EVALUATORS)
def test_a_declaration_has_reasons(choice: str) -> None:
    found = evaluator_of(choice).depends_on
    assert found.keys() <= {ORDER, BESIDE} and all(len(reason.split()) > 3 for reason in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("choice", EVALUATORS)
def test_text_is_cut_at_many_places(choice: str, request: pytest.FixtureRequest) -> None:
    """At every place there is in the tier `all`."""
    places = 1000 if tries_everything(request.config) else 20
    assert not relation(PREFIX, case_of(evaluator_of(choice), model_of(), choice, places))


@pytest.mark.parametrize("choice", [c if c in ("ttt_lora", "ttt_sgd") else slow(c) for c in EVALUATORS])
def test_a_rank_without_text_asks_no_model(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five ranks, some of which have nothing to grade or to learn from. Not every model can do with no rows."""
    hidden = LM.hidden

    def of_rows(model: LM, ids_BT: Tensor, *rest: Any, **more: Any) -> Tensor:
        assert len(ids_BT) > 0
        return hidden(model, ids_BT, *rest, **more)

    monkeypatch.setattr(LM, "hidden", of_rows)
    assert not moved_by([five_ranks], case_of(evaluator_of(choice), model_of(), choice))


@pytest.mark.slow
@pytest.mark.parametrize("model", CHOICES)
@pytest.mark.parametrize("choice", EVALUATORS)
def test_every_evaluator_with_every_model(choice: str, model: str) -> None:
    """Of both together nothing moves that neither declares. What golf refuses to score with has no score."""
    try:
        case = case_of(evaluator_of(choice), model_of(model), f"{choice} {model}")
    except UserError as error:
        pytest.skip(str(error))
    case.noise = rounding(case)  # type: ignore[misc]
    if case.noise > case.tolerance:
        pytest.skip(f"what learns here makes {case.noise:.2g} nats of a rounding")
    expected = declared(case.evaluator, model_of(model))
    found = moving(case, expected)
    assert found.keys() <= expected, found
