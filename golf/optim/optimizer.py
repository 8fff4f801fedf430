"""The optimizer: a table that maps parameter roles to groups, each group with its own rule."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from golf.fields import positive
from golf.roles import assign, check_table, roles_of
from golf.schedules import Tick


class Group:
    """Some parameters and the rule that moves them."""

    def step(self, multiplier: float, tick: Tick) -> None:
        """One update from the gradients; `multiplier` scales the group's learning rate."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold."""
        raise NotImplementedError

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back what state() gave."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class GroupConfig:
    """The slot of one group."""

    def build(self, parameters: dict[str, nn.Parameter], dtype: torch.dtype) -> Group:
        """dtype: the run's precision, which matrix iterations inside an update follow."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """groups by name; roles and names (patterns) map parameters to groups; clip_norm is global over all of them."""

    groups: dict[str, GroupConfig]
    roles: dict[str, str]
    names: dict[str, str]
    default: str | None
    clip_norm: float | None

    def __post_init__(self) -> None:
        positive(clip_norm=self.clip_norm)
        check_table(self.roles, self.names, self.default, self.groups)

    def assign(self, model: nn.Module) -> dict[str, str]:
        """parameter name -> group name, every parameter once."""
        return assign(roles_of(model), roles=self.roles, names=self.names, default=self.default, path="optimizer")

    def build(self, model: nn.Module, dtype: torch.dtype) -> "Optimizer":
        return Optimizer(self, model, dtype)


class Optimizer:
    """All groups of a model as one."""

    def __init__(self, config: OptimizerConfig, model: nn.Module, dtype: torch.dtype):
        claimed = config.assign(model)
        self.parameters = dict(model.named_parameters())
        self.clip_norm = config.clip_norm
        self.groups: dict[str, Group] = {}
        for group, group_config in config.groups.items():
            mine = {name: self.parameters[name] for name, owner in claimed.items() if owner == group}
            if mine:
                self.groups[group] = group_config.build(mine, dtype)

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, multiplier: float, tick: Tick) -> None:
        """Clip the global gradient norm where configured, then update every group."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(list(self.parameters.values()), self.clip_norm)
        for group in self.groups.values():
            group.step(multiplier, tick)

    def state(self) -> dict[str, Tensor]:
        return {f"{name}/{key}": t for name, group in self.groups.items() for key, t in group.state().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        for name, group in self.groups.items():
            head = f"{name}/"
            group.load({key.removeprefix(head): t for key, t in state.items() if key.startswith(head)})
