"""Score-first test-time training of low-rank adapters, one set for each document (PR 1530 and the records after it),
and phases of training the weights themselves on documents that are graded (PR 1610, PR 1626).

G: documents under way; r: rank; I, O: inputs and outputs of a matrix.
"""

import copy
import math
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.checkpoint import pack, unpack
from golf.dist import Ranks
from golf.errors import UserError
from golf.evals.cache import Cache, Whole, check_learning
from golf.evals.learning import LearnerConfig, Step, cosine, dealt, learning_copy, one_epoch, rate_of
from golf.evals.lesson import in_rows, tensor
from golf.evals.scorers import ORDER, Graded, Scorer, ScorerConfig, Window
from golf.fields import OPERATIONAL, between, positive
from golf.models.lm import LM


def is_matrix(weight: Any) -> bool:
    return isinstance(weight, Tensor) and weight.ndim == 2


@dataclass(kw_only=True, slots=True)
class LoRAScorerConfig(ScorerConfig):
    """y += (x A^T) B^T alpha / rank on the matrices that `matrices` names (patterns of module names; null drops one)
    and, with `head`, on the logits. A is uniform within +-1/sqrt(inputs), B begins at zero.

    Every document has its own. They train one step on each chunk of it that is graded, and never on its last. With new
    documents B and the optimizer begin anew; A does too, or is kept as it was trained (keep_a: PR 1767).

    cache: keys and values of documents are kept from chunk to chunk (golf/evals/cache.py), where no adapter has a say
    in them: on the head, or in the last block on the MLP, the mixer's query and out. The score is the same.
    """

    notes: ClassVar[str] = "score-first training of adapters on each document's graded chunks"
    learner: LearnerConfig
    rank: int
    alpha: float
    keep_a: bool
    head: bool
    matrices: dict[str, str | None] = field(default_factory=dict)
    cache: bool = field(default=False, metadata=OPERATIONAL)

    def __post_init__(self) -> None:
        positive(rank=self.rank, alpha=self.alpha)

    @property
    def documents(self) -> bool:
        return True

    @property
    def depends_on(self) -> dict[str, str]:
        """Its own adapters, so nothing of the documents beside it."""
        return {ORDER: "A is what was drawn for a document's place, and trained on those that had it before (keep_a)"}

    def open(self, model: LM, ranks: Ranks) -> "LoRAScorer":
        return LoRAScorer(self, copy.deepcopy(model).requires_grad_(False), ranks)


class LoRAScorer(Scorer):
    """Adapters around the model that it is given, whose own weights it leaves alone."""

    def __init__(self, config: LoRAScorerConfig, model: LM, ranks: Ranks):
        self.config, self.model, self.ranks = config, model, ranks
        self.reading = Cache(model) if config.cache else Whole(model)
        self.a: dict[str, Tensor] = {}  # a_GrI and b_GOr of this rank's documents, by module
        self.b: dict[str, Tensor] = {}
        self.drawn = 0  # documents, of all ranks, that there is an A for
        self.optimizer: torch.optim.Optimizer | None = None
        self.on = True  # False: the model alone
        self.slot_B = torch.zeros(1, dtype=torch.int64)
        self.sizes = self._attach()
        self.generator = torch.Generator().manual_seed(0)

    def _attach(self) -> dict[str, tuple[int, int]]:
        """Hook the matrices; their (inputs, outputs), and the head's."""
        found: dict[str, tuple[int, int]] = {}
        modules = {name: m for name, m in self.model.named_modules() if is_matrix(getattr(m, "weight", None))}
        for key, pattern in self.config.matrices.items():
            names = [name for name in modules if pattern is not None and fnmatch(name, pattern)]
            if pattern is not None and not names:
                some = ", ".join(list(modules)[:4])
                raise UserError(f"scorer.matrices.{key}={pattern}: fits no matrix; there are {some} ...")
            for name in names:
                if name not in found:
                    outputs, inputs = modules[name].weight.shape
                    found[name] = (inputs, outputs)
                    modules[name].register_forward_hook(self._hook(name))
        if self.config.head:
            found["head"] = self.model.embed.table_VD.shape[::-1]
        if not found:
            raise UserError("scorer.matrices: names none and head=false; nothing could learn")
        return found

    def _hook(self, name: str) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + self._delta(name, inputs[0]).to(output.dtype) if self.on else output

        return add

    def _delta(self, name: str, x_BTI: Tensor) -> Tensor:
        own_B = self.slot_B // self.ranks.world
        low_BTr = torch.einsum("bti,bri->btr", x_BTI, self.a[name][own_B].to(x_BTI.dtype))
        scale = self.config.alpha / self.config.rank
        return torch.einsum("btr,bor->bto", low_BTr, self.b[name][own_B].to(x_BTI.dtype)) * scale

    def begin(self, first_G: np.ndarray) -> None:
        """Adapters for this rank's documents, if it has any, drawn as one rank would draw them for all."""
        self.reading.begin()
        own = slice(self.ranks.rank, None, self.ranks.world)
        enough = self.config.keep_a and len(first_G) <= self.drawn
        self.drawn = max(self.drawn, len(first_G))
        for name, (inputs, outputs) in self.sizes.items():
            if enough:
                a_GrI = self.a[name].detach()
            else:
                fresh_GrI = torch.rand(len(first_G), self.config.rank, inputs, generator=self.generator) * 2 - 1
                a_GrI = (fresh_GrI / math.sqrt(inputs))[own].to(self.ranks.device)
                if self.config.keep_a and name in self.a:
                    a_GrI[: len(self.a[name])] = self.a[name].detach()
            self.a[name] = a_GrI.clone().requires_grad_(True)
            b_shape = (len(first_G[own]), outputs, self.config.rank)
            self.b[name] = torch.zeros(b_shape, device=self.ranks.device, requires_grad=True)
        weights = [*self.a.values(), *self.b.values()]
        if self.optimizer is None and self.config.cache and len(first_G[own]):
            self.slot_B = torch.tensor([self.ranks.rank], device=self.ranks.device)
            check_learning(self.model)
        self.optimizer = self.config.learner.build([{"params": weights, "lr": self.config.learner.lr}])

    def log_probs(self, window: Window) -> Tensor:
        return self._log_probs(window.ids_BT, window.slot_B, window.scored)

    def _log_probs(self, ids_BT: Tensor, slot_B: Tensor, scored: int) -> Tensor:
        self.slot_B = slot_B
        x_BSD = self.reading.hidden(ids_BT, scored, slot_B)
        logp_BSV = self.model.head.log_probs(x_BSD, self.model.embed.table_VD)
        return F.log_softmax(logp_BSV + self._delta("head", x_BSD), dim=-1) if self.config.head else logp_BSV

    def state(self) -> dict[str, Tensor]:
        """Between documents: what is kept of A, and the random numbers."""
        kept = {name: a.detach() for name, a in self.a.items()} if self.config.keep_a else {}
        return {"generator": self.generator.get_state(), "drawn": torch.tensor(self.drawn), **pack({"a": kept})}

    def load(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])
        self.drawn = int(state["drawn"])
        self.a = {name: a.to(self.ranks.device) for name, a in unpack(state, "a").items()}

    def update(self, graded: Graded) -> float | None:
        """A step for each document that goes on, on the mean of what was graded of it; the mean of those, of all ranks.

        Where no document of any rank goes on there is none. What has ended takes part with a gradient of zero."""
        on = graded.goes_on_B.nonzero()[:, 0]
        self.reading.keep(graded.slot_B[on].tolist())
        if not any(self.ranks.any_of(len(on) > 0)):
            return None
        assert self.optimizer is not None
        for w in (*self.a.values(), *self.b.values()):
            w.grad = torch.zeros_like(w)
        loss = self._differentiate(graded, on) if len(on) else 0.0
        self.optimizer.step()
        sums = torch.tensor([loss, len(on)], dtype=torch.float64, device=self.ranks.device)
        total, count = self.ranks.sum_(sums).tolist()
        return total / count

    def _differentiate(self, graded: Graded, on: Tensor) -> float:
        """Add to the gradients those of the sum, over these rows, of the mean of what was graded; returns the sum."""
        scored = graded.mask_BT.shape[1] - int(graded.mask_BT.any(0).int().argmax())  # the last inputs: all graded
        mask_BS, targets_BS = graded.mask_BT[on, -scored:], graded.targets_BT[on, -scored:]
        with torch.enable_grad():
            logp_BSV = self._log_probs(graded.rows_BT[on], graded.slot_B[on], scored)
            nll_BS = -logp_BSV.gather(-1, targets_BS[..., None])[..., 0] * mask_BS
            total = (nll_BS.sum(1) / mask_BS.sum(1)).sum()
            total.backward()
        return float(total.detach())


@dataclass(kw_only=True, slots=True)
class PhasedConfig(ScorerConfig):
    """Adapters for each document, and phases: once so many documents are graded, one pass of plain training of the
    model's weights over all of them (so far), in rows of `length`; the rate falls along a cosine over each phase.

    boundaries: documents, by name (null drops one), rising.
    """

    notes: ClassVar[str] = "score-first: adapters on each document, the weights in phases on graded documents"
    adapters: LoRAScorerConfig
    learner: LearnerConfig
    boundaries: dict[str, int | None]
    rows: int
    length: int
    clip_norm: float

    def __post_init__(self) -> None:
        positive(rows=self.rows, length=self.length, clip_norm=self.clip_norm)
        for name, boundary in self.boundaries.items():
            between(1, 1e9, **{f"boundaries.{name}": boundary})

    @property
    def documents(self) -> bool:
        return True

    @property
    def depends_on(self) -> dict[str, str]:
        return self.adapters.depends_on | {ORDER: "phases train the weights on all documents graded before"}

    def in_brief(self) -> Self:
        """A phase after every two documents, as many as there are."""
        rising = sorted((boundary, name) for name, boundary in self.boundaries.items() if boundary is not None)
        return replace(self, boundaries={name: 2 * number for number, (_, name) in enumerate(rising, 1)})

    def shortened(self, length: int) -> Self:
        return replace(self, length=min(length, self.length))

    def open(self, model: LM, ranks: Ranks) -> "Phased":
        return Phased(self, learning_copy(model), ranks)


class Phased(Scorer):
    """The adapters sit on the copy of the model whose weights the phases train."""

    def __init__(self, config: PhasedConfig, model: LM, ranks: Ranks):
        self.config, self.model, self.ranks = config, model, ranks
        self.adapters = LoRAScorer(config.adapters, model, ranks)
        self.ahead = sorted(boundary for boundary in config.boundaries.values() if boundary is not None)
        self.texts: list[list[np.ndarray]] = []  # of all ranks' documents: those graded, then those under way
        self.weights = list(model.parameters())

    def begin(self, first_G: np.ndarray) -> None:
        if self.ahead and len(self.texts) >= self.ahead[0]:
            self.ahead = [boundary for boundary in self.ahead if boundary > len(self.texts)]
            self._phase()
        self.under_way = [[first_G[slot : slot + 1]] for slot in range(len(first_G))]
        self.texts += self.under_way
        self.adapters.begin(first_G)

    def log_probs(self, window: Window) -> Tensor:
        return self.adapters.log_probs(window)

    def update(self, graded: Graded) -> float | None:
        for text, new in zip(self.under_way, graded.new_G, strict=True):
            text.append(new)
        return self.adapters.update(graded)

    def state(self) -> dict[str, Tensor]:
        texts = {str(i): torch.from_numpy(np.concatenate(t).astype(np.int64)) for i, t in enumerate(self.texts)}
        weights = {name: w.detach() for name, w in self.model.named_parameters()}
        parts = {"text": texts, "weight": weights, "adapters": self.adapters.state()}
        return {"ahead": torch.tensor(len(self.ahead)), **pack(parts)}

    def load(self, state: dict[str, Tensor]) -> None:
        self.ahead = self.ahead[len(self.ahead) - int(state["ahead"]) :]
        texts, weights = unpack(state, "text"), unpack(state, "weight")
        self.texts = [[texts[str(i)].numpy()] for i in range(len(texts))]
        with torch.no_grad():
            for name, w in self.model.named_parameters():
                w.copy_(weights[name])
        self.adapters.load(unpack(state, "adapters"))

    def _phase(self) -> None:
        """One pass over all graded documents, their rows dealt out to ranks."""
        lesson, steps = self._rows()
        for w in self.weights:
            w.requires_grad_(True)
        optimizer = self.config.learner.build([{"params": self.weights, "lr": self.config.learner.lr}])
        step = Step(self.model, self.weights, optimizer, self.config.clip_norm, None, self.ranks)
        taken = iter(range(len(steps)))

        def falling(*rows: Tensor) -> float:
            with rate_of(optimizer, cosine(next(taken), len(steps))):
                return step(*rows)

        self.adapters.on = False
        one_epoch(falling, lesson, steps)
        self.adapters.on = True
        for w in self.weights:
            w.requires_grad_(False)

    def _rows(self) -> tuple[tuple[Tensor, Tensor, Tensor], list[np.ndarray]]:
        """(rows_BT, targets_BT, mask_BT) of this rank, each document in rows of its own, and which of them each step
        takes."""
        texts = [np.concatenate(text) for text in self.texts]
        rows, masks = zip(*(in_rows(text, 0, len(text) - 1, self.config.length) for text in texts), strict=True)
        row_BU, mask_BT = np.concatenate(rows), np.concatenate(masks)
        place_B = np.arange(self.ranks.rank, len(row_BU), self.ranks.world)
        tokens_BU = tensor(row_BU[place_B], self.ranks.device)
        mask = torch.from_numpy(mask_BT[place_B]).to(self.ranks.device)
        return (tokens_BU[:, :-1], tokens_BU[:, 1:], mask), dealt(place_B, len(row_BU), self.config.rows)
