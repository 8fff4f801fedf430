"""AdamW, torch's own, as a group."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from golf.dist import ALONE, Ranks
from golf.fields import between, positive
from golf.optim.optimizer import Group, GroupConfig
from golf.schedules import Schedule, Tick


@dataclass(kw_only=True, slots=True)
class AdamWConfig(GroupConfig):
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: Schedule

    def __post_init__(self) -> None:
        positive(lr=self.lr, eps=self.eps)
        between(0, 0.999999, beta1=self.beta1, beta2=self.beta2)

    def build(self, parameters: dict[str, nn.Parameter], dtype: torch.dtype, ranks: Ranks = ALONE) -> "AdamW":
        return AdamW(self, parameters)


class AdamW(Group):
    def __init__(self, config: AdamWConfig, parameters: dict[str, nn.Parameter]):
        super().__init__(parameters)
        self.config = config
        self.inner = torch.optim.AdamW(
            list(parameters.values()), lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps
        )

    def step(self, multiplier: float, tick: Tick) -> None:
        (group,) = self.inner.param_groups
        group["lr"] = self.config.lr * multiplier
        group["weight_decay"] = self.config.weight_decay(tick)
        self.inner.step()

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self.inner.state[parameter].items()
        }

    def load(self, state: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            if f"{name}/step" not in state:  # saved before its first step
                continue
            moments = {key: state[f"{name}/{key}"].to(parameter.device, copy=True) for key in ("exp_avg", "exp_avg_sq")}
            self.inner.state[parameter] = {"step": state[f"{name}/step"].clone(), **moments}
