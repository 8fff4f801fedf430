"""What the weights meet: for each matrix the mean of x x^T over its inputs, measured in one pass over some text.

D, I: channels of an input; N: positions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from golf.dist import Ranks
from golf.fields import positive
from golf.losses import CROSS_ENTROPY, NLL
from golf.models.linear import Dense
from golf.models.lm import LM
from golf.tokens.loader import Loader


@dataclass(frozen=True, slots=True)
class Source:
    """What a calibration may draw on. rows: sequences of a rank in one pass; open_training: text from its start."""

    model: LM
    length: int
    rows: int
    seed: int
    ranks: Ranks
    open_training: Callable[[], Loader]


@dataclass(kw_only=True, slots=True)
class CalibrationConfig:
    """The slot: whose text. tokens: how many at least, over all ranks, in whole sequences of the length trained at."""

    tokens: int

    def __post_init__(self) -> None:
        positive(tokens=self.tokens)

    @property
    def reads_training(self) -> bool:
        """Whether it opens training text: then its time counts as training."""
        return False

    def passes(self, source: Source) -> Iterator[Tensor]:
        """ids_BT of each pass of this rank; every rank has as many passes."""
        raise NotImplementedError

    def _rows(self, source: Source) -> Iterator[int]:
        """How many sequences each pass of a rank has."""
        share = -(-self.tokens // (source.length * source.ranks.world))
        for start in range(0, share, source.rows):
            yield min(source.rows, share - start)


@dataclass(kw_only=True, slots=True)
class TrainTextConfig(CalibrationConfig):
    """Training text, from its start; a maintainer ruled on 2026-03-28 that its time counts as training."""

    @property
    def reads_training(self) -> bool:
        return True

    def passes(self, source: Source) -> Iterator[Tensor]:
        loader = source.open_training()
        for rows in self._rows(source):
            yield loader.batch(rows * source.ranks.world, source.length)[0]
        loader.close()


@dataclass(kw_only=True, slots=True)
class SelfTextConfig(CalibrationConfig):
    """Text that the model draws itself at `temperature`, from an even token on; allowed at any time (PR 1019: 0.8)."""

    temperature: float

    def __post_init__(self) -> None:
        CalibrationConfig.__post_init__(self)
        positive(temperature=self.temperature)

    def passes(self, source: Source) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(source.seed + source.ranks.rank)
        model, vocab_size = source.model, len(source.model.embed.table_VD)
        for rows in self._rows(source):
            ids_BT = torch.randint(vocab_size, (rows, 1), generator=generator)
            while ids_BT.shape[1] < source.length:
                log_p_BV = model.log_probs(ids_BT.to(source.ranks.device), last=1)[:, -1].float().cpu()
                next_B1 = torch.multinomial((log_p_BV / self.temperature).softmax(dim=1), 1, generator=generator)
                ids_BT = torch.cat((ids_BT, next_B1), dim=1)
            yield ids_BT


@dataclass(kw_only=True, slots=True)
class RandomTextConfig(CalibrationConfig):
    """Tokens drawn evenly, no text at all (PR 1019: worse by 0.002 BPB)."""

    def passes(self, source: Source) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(source.seed + source.ranks.rank)
        for rows in self._rows(source):
            yield torch.randint(len(source.model.embed.table_VD), (rows, source.length), generator=generator)


def gradient_power(config: CalibrationConfig, source: Source) -> dict[str, float]:
    """parameter name -> mean square of the derivative of a pass's mean loss by one of its weights, over all passes."""
    model, ranks = source.model, source.ranks
    trained = {name: p for name, p in model.named_parameters() if not name.startswith("auxiliary.")}
    before = {name: p.requires_grad for name, p in trained.items()}
    sums = torch.zeros(len(trained) + 1, dtype=torch.float64, device=ranks.device)
    loss, model.loss = model.loss, CROSS_ENTROPY
    try:
        model.requires_grad_(True)
        for ids_BT in config.passes(source):
            ids_BT = ids_BT.to(ranks.device)
            nll = model(ids_BT[:, :-1].contiguous(), ids_BT[:, 1:].contiguous())[NLL]
            found = torch.autograd.grad(nll, list(trained.values()), allow_unused=True)
            squares = [torch.zeros(()) if g is None else g.double().square().mean() for g in found]
            sums += torch.stack([*(s.to(ranks.device) for s in squares), torch.ones((), device=ranks.device)]).double()
    finally:
        model.loss = loss
        for name, p in trained.items():
            p.requires_grad_(before[name])
    *powers, passes = ranks.sum_(sums).tolist()
    return {name: power / passes for name, power in zip(trained, powers, strict=True)}


class Inputs:
    """Sums of x x^T of every Dense matrix of a model while it runs, looped visits included.

    Matrices that are always given the very same tensor (queries, keys and values) share one sum: whether they do is
    seen in the first pass.
    """

    def __init__(self, model: LM):
        self.names: dict[nn.Module, str] = {
            module: f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Dense)
        }
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.leader: dict[str, str] | None = None
        self._visits: dict[str, list[Tensor]] = {name: [] for name in self.names.values()}
        self._hooks: list[RemovableHandle] = []

    def begin_pass(self) -> None:
        self._hooks = [module.register_forward_pre_hook(self._see) for module in self.names]

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        name = self.names[module]
        if self.leader is None:
            self._visits[name].append(inputs[0])
        elif self.leader[name] == name:
            self.add(name, inputs[0])

    def add(self, name: str, x: Tensor) -> None:
        x_NI = x.detach().flatten(0, -2).float()
        if name not in self.sums:
            self.sums[name] = torch.zeros(x_NI.shape[1], x_NI.shape[1], device=x.device)
            self.counts[name] = 0
        self.sums[name].addmm_(x_NI.T, x_NI)
        self.counts[name] += len(x_NI)

    def end_pass(self) -> None:
        """Stop looking; after the first pass also find who shares, and take that pass in."""
        self.close()
        if self.leader is not None:
            return
        first: dict[tuple[int, ...], str] = {}
        self.leader = {
            name: first.setdefault(tuple(map(id, seen)), name) for name, seen in self._visits.items() if seen
        }
        for name in dict.fromkeys(self.leader.values()):  # in one order on every rank
            for x in self._visits[name]:
                self.add(name, x)
        self._visits.clear()

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def means(self, ranks: Ranks) -> dict[str, Tensor]:
        """name of each matrix -> hessian_II over the inputs on all ranks."""
        for name, total in self.sums.items():
            count = ranks.sum_(torch.tensor(float(self.counts[name]), device=total.device, dtype=torch.float64))
            ranks.sum_(total).div_(count.float())
        leader = self.leader or {}
        return self.sums | {name: self.sums[first] for name, first in leader.items()}


@torch.no_grad()
def measure(config: CalibrationConfig, source: Source) -> dict[str, Tensor]:
    """parameter name -> hessian_II, fp32, of each Dense matrix and of the one that makes the logits."""
    model, ranks = source.model, source.ranks
    inputs = Inputs(model)
    try:
        for ids_BT in config.passes(source):
            inputs.begin_pass()
            x_BTD = model.hidden(ids_BT.to(ranks.device))
            model.head.log_probs(x_BTD, model.embed.table_VD)
            inputs.end_pass()
            if model.head.output is not None:
                inputs.add(model.head.output, x_BTD)
    finally:
        inputs.close()
    return inputs.means(ranks)
