"""The optimizer: a table that maps parameter roles to groups, each group with its own rule.

Several ranks hold the same weights and each its own gradients; the optimizer averages them on its way.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from golf.dist import ALONE, Ranks
from golf.fields import one_of, positive
from golf.optim.multiplier import LRMultiplierConfig
from golf.optim.sam import AscentConfig
from golf.roles import assign, check_table, roles_of
from golf.schedules import Tick


class Group:
    """Some parameters and the rule that moves them.

    sharded: the group averages gradients over ranks itself, each rank a share of them; else they come averaged.
    """

    sharded = False

    def __init__(self, parameters: dict[str, nn.Parameter]):
        self.parameters = parameters

    def reduce(self) -> None:
        """Start to average the gradients over ranks, where the group does it itself."""

    def gradients(self) -> list[Tensor]:
        """The averaged gradients that this rank steps by; whoever writes to them changes the step."""
        return [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]

    def step(self, multiplier: float, tick: Tick) -> None:
        """One update from the gradients; `multiplier` scales the group's learning rate."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold, the same on any number of ranks; every rank calls it."""
        raise NotImplementedError

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back what state() gave; entries of other parameters are passed over."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class GroupConfig:
    """The slot of one group."""

    def build(self, parameters: dict[str, nn.Parameter], dtype: torch.dtype, ranks: Ranks = ALONE) -> Group:
        """dtype: the run's precision, which matrix iterations inside an update follow."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """groups by name; roles and names (patterns) map parameters to groups; multipliers change learning rates by layer.

    clip_norm is global over all groups. clip: null is the norm of the gradient averaged over ranks, `local` that of
    each rank's own before it is averaged (parallel Muon, PR 399). ascent: null, or where the gradient is taken instead.
    """

    groups: dict[str, GroupConfig]
    roles: dict[str, str]
    names: dict[str, str]
    default: str | None
    multipliers: dict[str, LRMultiplierConfig | None] = field(default_factory=dict)
    clip_norm: float | None
    clip: str | None = None
    ascent: AscentConfig | None = None

    def __post_init__(self) -> None:
        positive(clip_norm=self.clip_norm)
        if self.clip is not None:
            one_of("clip", self.clip, ("local",))
        check_table(self.roles, self.names, self.default, self.groups)
        for key, multiplier in self.multipliers.items():
            for name in multiplier.groups if multiplier is not None else ():
                one_of(f"multipliers.{key}.groups", name, tuple(self.groups))

    def assign(self, model: nn.Module) -> dict[str, str]:
        """parameter name -> group name, every parameter once."""
        return assign(roles_of(model), roles=self.roles, names=self.names, default=self.default, path="optimizer")

    def factors(self, model: nn.Module) -> dict[str, float]:
        """parameter name -> what its group's learning rate is multiplied by, every parameter once."""
        owners = self.assign(model)
        factors = dict.fromkeys(owners, 1.0)
        for key, multiplier in self.multipliers.items():
            if multiplier is not None:
                for name in multiplier.fitting(owners, f"optimizer.multipliers.{key}"):
                    factors[name] *= multiplier.factor
        return factors

    def build(self, model: nn.Module, dtype: torch.dtype, ranks: Ranks = ALONE) -> "Optimizer":
        return Optimizer(self, model, dtype, ranks)


@dataclass(frozen=True, slots=True)
class Part:
    """Parameters of one configured group with one factor on its learning rate."""

    name: str
    factor: float
    group: Group


class Optimizer:
    """All groups of a model as one. A step is two calls: differentiate(), which fills gradients, and step()."""

    def __init__(self, config: OptimizerConfig, model: nn.Module, dtype: torch.dtype, ranks: Ranks = ALONE):
        self.config, self.ranks = config, ranks
        self.parameters = dict(model.named_parameters())
        self.used: dict[Hashable, list[nn.Parameter]] = {}  # by stage
        factors = config.factors(model)
        members: dict[tuple[str, float], dict[str, nn.Parameter]] = defaultdict(dict)
        for name, owner in config.assign(model).items():
            members[owner, factors[name]][name] = self.parameters[name]
        parts = [
            Part(name, factor, config.groups[name].build(mine, dtype, ranks))
            for (name, factor), mine in members.items()
        ]
        # Small parameters first: they are averaged at once, and step while the shares of matrices are on their way.
        self.parts = sorted(parts, key=lambda part: part.group.sharded)

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def differentiate(self, closure: Callable[[], Tensor], stage: Hashable = 0) -> Tensor:
        """Fill this rank's gradients by `closure`, which adds them up and returns the loss; returns the loss.

        stage: what of the model is in use, anything that stands for the same parameters in every step.
        """

        def evaluate() -> Tensor:
            self.zero_grad()
            loss = closure()
            self._complete(stage)
            return loss

        ascent = self.config.ascent
        return evaluate() if ascent is None else ascent.differentiate(evaluate, [*self.parameters.values()], self.ranks)

    def _complete(self, stage: Hashable) -> None:
        """Zeros where this rank left out a gradient that another has, so that all ranks average the same list. What no
        rank uses has no gradient, so that no group moves or decays it before its time."""
        if stage not in self.used:
            parameters = list(self.parameters.values())
            flags = self.ranks.any_of(*(parameter.grad is not None for parameter in parameters))
            self.used[stage] = [parameter for parameter, flag in zip(parameters, flags, strict=True) if flag]
        for parameter in self.used[stage]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, multiplier: float, tick: Tick) -> None:
        """Average the gradients over ranks, clip their norm where configured, and update every group."""
        clip_norm = self.config.clip_norm
        own = self.config.clip == "local" or self.ranks.world == 1  # alone, the two are one
        if clip_norm is not None and own:
            nn.utils.clip_grad_norm_(list(self.parameters.values()), clip_norm)
        self.ranks.average_(self._gradients(sharded=False))
        for part in self.parts:
            part.group.reduce()
        if clip_norm is not None and not own:
            self._clip_mean(clip_norm)
        for part in self.parts:
            part.group.step(multiplier * part.factor, tick)

    def _gradients(self, *, sharded: bool) -> list[Tensor]:
        return [tensor for part in self.parts if part.group.sharded is sharded for tensor in part.group.gradients()]

    def _clip_mean(self, clip_norm: float) -> None:
        """Clip what the ranks have averaged: shares of it lie on each, the rest on all."""
        whole, shares = self._gradients(sharded=False), self._gradients(sharded=True)
        norms = [nn.utils.get_total_norm(tensors).to(self.ranks.device) for tensors in (whole, shares)]
        norm = (norms[0].square() + self.ranks.sum_(norms[1].square())).sqrt()
        factor = (clip_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch does it
        for tensor in (*whole, *shares):
            tensor.mul_(factor)

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold; every rank calls it."""
        return {f"{part.name}/{key}": t for part in self.parts for key, t in part.group.state().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        for part in self.parts:
            head = f"{part.name}/"
            part.group.load({key.removeprefix(head): t for key, t in state.items() if key.startswith(head)})
