"""Small models, a few steps of training, and inputs for them."""

import torch
from torch import Tensor, nn

from golf.config import Run
from golf.losses import NLL
from golf.models.kernels import sdpa
from golf.models.lm import LM
from golf.models.slots import Context, Places
from golf.schedules import Tick


def context_of(x_BND: Tensor, ids_BT: Tensor | None = None) -> Context:
    ids_BT = torch.zeros(x_BND.shape[:2], dtype=torch.long) if ids_BT is None else ids_BT
    places = Places.shifted(ids_BT.shape[1], by=x_BND.shape[1] - ids_BT.shape[1])
    return Context(ids_BT, x_BND, places, sdpa, nn.ModuleDict(), ids_BT.shape[1])


def qkv(T: int = 9, H: int = 4, K: int = 2, C: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, T, H, C), torch.randn(2, T, K, C), torch.randn(2, T, K, C)


def built(run: Run) -> LM:
    torch.manual_seed(0)
    return run.model.build()


def ids_for(run: Run, rows: int = 2, length: int = 24) -> Tensor:
    return torch.randint(run.model.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


def stirred(run: Run) -> LM:
    """A model whose every weight does something, without training."""
    model = built(run)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def moved(run: Run, steps: int = 2, dead: list[list[str]] | None = None, losses: list[float] | None = None) -> LM:
    """A model after a few steps, so that matrices that begin at zero do something. dead: gets the names of what had no
    gradient, at each step; losses: gets what it is scored by, before each step."""
    model = built(run)
    optimizer = run.optimizer.build(model, torch.float32)
    ids = ids_for(run, rows=4)
    for step in range(steps):
        optimizer.zero_grad()
        parts = model(ids[:, :-1], ids[:, 1:])
        torch.stack(list(parts.values())).sum().backward()
        if dead is not None:
            dead.append([n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0])
        if losses is not None:
            losses.append(parts[NLL].item())
        optimizer.step(1.0, Tick(step, 0.5, 10))
    return model
