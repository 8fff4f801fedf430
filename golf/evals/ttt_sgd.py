"""Score-first test-time training of the model's own weights, chunk by chunk (PR 461, PR 549; PR 401's v7)."""

from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import ClassVar

import torch
from torch import Tensor, nn

from golf.checkpoint import pack, unpack
from golf.dist import Ranks
from golf.errors import UserError
from golf.evals.learning import LearnerConfig, Step, cosine, dealt, learning_copy, one_epoch, rate_of
from golf.evals.scorers import BESIDE, ORDER, Graded, Scorer, ScorerConfig, Window
from golf.fields import between, positive
from golf.models.layers import check_layer_text, layer_set
from golf.models.lm import LM
from golf.optim.multiplier import BLOCK


@dataclass(kw_only=True, slots=True)
class SGDScorerConfig(ScorerConfig):
    """Each chunk is graded, then trained on, `epochs` times in steps of `rows` rows; the rate falls along a cosine over
    the chunks that are trained on.

    warmup_chunks: the rate rises over so many; stop_chunk: no training from this chunk on (null: to the end).
    freeze_layers, freeze: what keeps its weights, by layer (none, first:2 of 11) and by name (patterns, null for none).
    layer_rates: block i of L trains at (i + 1) / L of the rate (PR 401, v2). ema: what is scored with is an average of
    the weights after each step, with this decay (null: the weights). sam_radius: null is plain descent.
    """

    notes: ClassVar[str] = "score-first training of the weights on graded chunks"

    learner: LearnerConfig
    epochs: int
    rows: int
    cosine: bool
    warmup_chunks: int
    stop_chunk: int | None
    freeze_layers: str
    freeze: dict[str, str | None] = field(default_factory=dict)
    layer_rates: bool
    clip_norm: float
    ema: float | None
    sam_radius: float | None

    def __post_init__(self) -> None:
        positive(epochs=self.epochs, rows=self.rows, clip_norm=self.clip_norm, sam_radius=self.sam_radius)
        positive(stop_chunk=self.stop_chunk)
        between(0, 1e6, warmup_chunks=self.warmup_chunks)
        between(0, 1, ema=self.ema)
        check_layer_text(freeze_layers=self.freeze_layers)

    @property
    def depends_on(self) -> dict[str, str]:
        reason = "one model is trained on all text that was graded"
        return {ORDER: reason, BESIDE: reason}

    def open(self, model: LM, ranks: Ranks) -> "SGDScorer":
        return SGDScorer(self, model, ranks)


class SGDScorer(Scorer):
    """Trains a copy of the model."""

    def __init__(self, config: SGDScorerConfig, model: LM, ranks: Ranks):
        self.config, self.ranks = config, ranks
        self.model = learning_copy(model)
        layers = self.model.stack.stored_depth()
        self.weights = trained_weights(self.model, config)
        groups = [
            {"params": [w], "lr": config.learner.lr * (rate_share(name, layers) if config.layer_rates else 1.0)}
            for name, w in self.weights.items()
        ]
        self.optimizer = config.learner.build(groups)
        self.mean = None if config.ema is None else {n: w.detach().clone() for n, w in self.weights.items()}

    def log_probs(self, window: Window) -> Tensor:
        if self.mean is None:
            return self.model.log_probs(window.ids_BT, window.scored)
        return torch.func.functional_call(_LogProbs(self.model), {f"model.{n}": w for n, w in self.mean.items()},
                                          (window.ids_BT, window.scored))  # fmt: skip

    def update(self, graded: Graded) -> float | None:
        config = self.config
        chunks = min(graded.rounds - 1, config.stop_chunk or graded.rounds)
        if graded.index >= chunks:
            return None
        factor = cosine(graded.index, chunks) if config.cosine else 1.0
        factor *= min(1.0, (graded.index + 1) / (config.warmup_chunks + 1))
        step = Step(self.model, list(self.weights.values()), self.optimizer, config.clip_norm, config.sam_radius,
                    self.ranks)  # fmt: skip

        def followed(*rows: Tensor) -> float:
            loss = step(*rows)
            if self.mean is not None:
                for name, mean in self.mean.items():
                    mean.lerp_(self.weights[name].detach(), 1 - float(config.ema or 0))
            return loss

        lesson = (graded.rows_BT, graded.targets_BT, graded.mask_BT)
        steps = dealt(graded.place_B, graded.rows, config.rows)
        with rate_of(self.optimizer, factor):
            losses = [one_epoch(followed, lesson, steps) for _ in range(config.epochs)]
        return losses[0]

    def state(self) -> dict[str, Tensor]:
        moments = {
            f"moment.{name}": {k: v for k, v in self.optimizer.state.get(w, {}).items() if isinstance(v, Tensor)}
            for name, w in self.weights.items()
        }
        weights = {name: w.detach() for name, w in self.weights.items()}
        return pack({"weight": weights, "mean": self.mean or {}, **moments})

    def load(self, state: dict[str, Tensor]) -> None:
        weights, means = unpack(state, "weight"), unpack(state, "mean")
        with torch.no_grad():
            for name, w in self.weights.items():
                w.copy_(weights[name])
                if moments := unpack(state, f"moment.{name}"):  # Adam keeps its step on the CPU
                    self.optimizer.state[w] = {k: v if k == "step" else v.to(w.device) for k, v in moments.items()}
            for name, mean in (self.mean or {}).items():
                mean.copy_(means[name])


class _LogProbs(torch.nn.Module):
    """log_probs as a module's forward."""

    def __init__(self, model: LM):
        super().__init__()
        self.model = model

    def forward(self, ids_BT: Tensor, scored: int) -> Tensor:
        return self.model.log_probs(ids_BT, scored)


def trained_weights(model: LM, config: SGDScorerConfig) -> dict[str, nn.Parameter]:
    """By name, what is not frozen; set to train. Raises UserError where a pattern fits nothing, or nothing is left."""
    frozen_layers = layer_set(config.freeze_layers, model.stack.stored_depth(), "scorer.freeze_layers")
    names = dict(model.named_parameters())
    frozen = {name for name in names if (layer := layer_of(name)) is not None and layer in frozen_layers}
    for key, pattern in config.freeze.items():
        found = {name for name in names if pattern is not None and fnmatch(name, pattern)}
        if pattern is not None and not found:
            raise UserError(
                f"scorer.freeze.{key}={pattern}: fits no parameter; there are {', '.join(list(names)[:4])} ..."
            )
        frozen |= found
    weights = {name: w for name, w in names.items() if name not in frozen}
    if not weights:
        raise UserError("scorer.freeze: nothing is left to train; freeze less, or take eval=sliding")
    for w in weights.values():
        w.requires_grad_(True)
    return weights


def layer_of(name: str) -> int | None:
    """The block that a parameter is in, None outside of blocks."""
    found = BLOCK.match(name)
    return int(found[1]) if found else None


def rate_share(name: str, layers: int) -> float:
    """(i + 1) / L of block i, 1 outside the blocks."""
    layer = layer_of(name)
    return 1.0 if layer is None else (layer + 1) / layers
