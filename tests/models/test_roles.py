"""Each parameter has a role, and the optimizer's names change what a role decides."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from golf.config import Run
from golf.errors import UserError
from golf.optim.optimizer import OptimizerConfig
from golf.roles import roles_of
from tests.helpers.models import built


def test_a_parameter_without_a_role_is_refused_with_the_line_to_add(toy: Callable[..., Run]) -> None:
    model = built(toy())
    model.extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(
        UserError, match=r'LM: declares no role for its parameter extra \(extra\); .* roles = \{"extra": "matrix"\}'
    ):
        roles_of(model)


def test_optimizer_names_override_roles_and_must_fit(toy: Callable[..., Run]) -> None:
    run = toy()
    config: OptimizerConfig = run.optimizer
    config.names = {"*.mlp.down.weight": "scalars"}
    claimed = config.assign(run.model.build_on_meta())
    assert claimed["stack.blocks.0.mlp.down.weight"] == "scalars"
    assert claimed["stack.blocks.0.mlp.up.weight"] == "matrices"
    config.names = {"*.nope": "scalars"}
    with pytest.raises(ValueError, match=r"optimizer\.names\.\*\.nope: fits no parameter"):
        config.assign(run.model.build_on_meta())
