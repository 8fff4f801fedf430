"""Scorers: what an evaluator asks for distributions, and then tells what was graded. They see nothing but the past.

B rows of T inputs, the last S of whose next tokens are graded, each by a distribution over V tokens. G: documents that
are under way at once on all ranks (1 where all text is one stream); rank r has the rows of r, r + world, ...
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from golf.checkpoint import pack, unpack
from golf.dist import Ranks
from golf.evals.cache import Cache
from golf.fields import OPERATIONAL, between, positive
from golf.models.lm import LM

ORDER, BESIDE = "order", "beside"  # of the documents; the text of documents that are under way at once


@dataclass(frozen=True, slots=True)
class Window:
    """ids_BT: inputs, the last of which comes before the last target; scored: S; slot_B: each row's document, 0 .. G-1
    (a row that is all padding has some document's)."""

    ids_BT: Tensor
    scored: int
    slot_B: Tensor


@dataclass(frozen=True, slots=True)
class Graded:
    """What a round graded, to learn from. rows_BT, targets_BT: the text in rows to train on, this rank's share;
    mask_BT: which of it was graded just now; slot_B: each row's document; goes_on_B: whether that has text left to
    grade; place_B: where each row stands among the `rows` of all ranks; new_G: the new targets as plain token arrays,
    by document, of all ranks; index: of the round, out of `rounds`."""

    rows_BT: Tensor
    targets_BT: Tensor
    mask_BT: Tensor
    goes_on_B: Tensor
    slot_B: Tensor
    place_B: np.ndarray
    rows: int
    new_G: Sequence[np.ndarray]
    index: int
    rounds: int


class Scorer:
    """What the evaluator calls, in this order for each round: log_probs and observe for each window, then update."""

    def begin(self, first_G: np.ndarray) -> None:
        """New documents, G at once on all ranks, of which these first tokens are known; what was learnt of the last
        ones alone is forgotten. All text as one stream begins once."""

    def log_probs(self, window: Window) -> Tensor:
        """logp_BSV over the whole vocabulary, each position's from the window's inputs up to it and from the past."""
        raise NotImplementedError

    def observe(self, window: Window, targets_BS: Tensor, mask_BS: Tensor) -> None:
        """These were just committed, on this rank; what is kept of them may matter after update() only."""

    def update(self, graded: Graded) -> float | None:
        """Learn from a round that is committed; returns the loss it learnt with, if it did. All ranks together."""
        return None

    def state(self) -> dict[str, Tensor]:
        """What a pass that was cut off between two rounds goes on with."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """What state() gave."""


@dataclass(kw_only=True, slots=True)
class ScorerConfig:
    """The slot. notes: what a result says of such a score."""

    notes: ClassVar[str] = ""

    @property
    def documents(self) -> bool:
        """Whether it learns of each document by itself, and so needs text document by document."""
        return False

    @property
    def learns(self) -> bool:
        """Whether what was graded changes what comes after, so that each chunk has to be graded by itself."""
        return True

    @property
    def depends_on(self) -> dict[str, str]:
        """ORDER, BESIDE: what a score depends on besides the text before it in its document or window, and why.

        Nothing else may move a score: not batch_tokens, ranks or shards, nor how tokens are numbered, nor what is
        graded later (tests/metamorphic).
        """
        raise NotImplementedError

    def open(self, model: LM, ranks: Ranks) -> Scorer:
        """A scorer at the start of a stream; the model is left as it is."""
        raise NotImplementedError

    def in_brief(self) -> Self:
        """The same, with what comes after many documents brought forward (EvaluatorConfig.in_brief)."""
        return self

    def shortened(self, length: int) -> Self:
        """Return the same, with rows of so many tokens at most where it trains on rows of its own."""
        return self

    def describe(self) -> str:
        return self.notes


@dataclass(kw_only=True, slots=True)
class FixedConfig(ScorerConfig):
    """The model as it is. cache: keys and values of documents are kept from chunk to chunk (golf/evals/cache.py), for
    what learns beside it chunk by chunk; the score is the same."""

    notes: ClassVar[str] = "fixed weights"

    cache: bool = field(default=False, metadata=OPERATIONAL)

    @property
    def learns(self) -> bool:
        return False

    @property
    def depends_on(self) -> dict[str, str]:
        return {}

    def open(self, model: LM, ranks: Ranks) -> "Scorer":
        return Cached(model) if self.cache else Fixed(model)


class Fixed(Scorer):
    def __init__(self, model: LM):
        self.model = model

    def log_probs(self, window: Window) -> Tensor:
        return self.model.log_probs(window.ids_BT, window.scored)


class Cached(Scorer):
    """The model as it is, asked for what is new in a window."""

    def __init__(self, model: LM):
        self.model, self.cache = model, Cache(model)

    def begin(self, first_G: np.ndarray) -> None:
        self.cache.begin()

    def log_probs(self, window: Window) -> Tensor:
        x_BSD = self.cache.hidden(window.ids_BT, window.scored, window.slot_B)
        logp_BSV: Tensor = self.model.head.log_probs(x_BSD, self.model.embed.table_VD)
        return logp_BSV

    def update(self, graded: Graded) -> float | None:
        self.cache.keep(graded.slot_B[graded.goes_on_B].tolist())
        return None


@dataclass(kw_only=True, slots=True)
class TemperatureConfig(ScorerConfig):
    """Another scorer's logits over a constant that was chosen beforehand (PR 576); below 1 sharpens."""

    temperature: float
    scorer: ScorerConfig

    def __post_init__(self) -> None:
        positive(temperature=self.temperature)

    def open(self, model: LM, ranks: Ranks) -> "Temperature":
        return Temperature(self, self.scorer.open(model, ranks))

    @property
    def documents(self) -> bool:
        return self.scorer.documents

    @property
    def learns(self) -> bool:
        return self.scorer.learns

    @property
    def depends_on(self) -> dict[str, str]:
        return self.scorer.depends_on

    def in_brief(self) -> Self:
        return replace(self, scorer=self.scorer.in_brief())

    def shortened(self, length: int) -> Self:
        return replace(self, scorer=self.scorer.shortened(length))

    def describe(self) -> str:
        return f"temperature {self.temperature:g} on {self.scorer.describe()}"


class Around(Scorer):
    """A scorer that passes everything on to another one; what is made of it changes the distributions."""

    def __init__(self, inner: Scorer):
        self.inner = inner

    def begin(self, first_G: np.ndarray) -> None:
        self.inner.begin(first_G)

    def log_probs(self, window: Window) -> Tensor:
        return self.inner.log_probs(window)

    def observe(self, window: Window, targets_BS: Tensor, mask_BS: Tensor) -> None:
        self.inner.observe(window, targets_BS, mask_BS)

    def update(self, graded: Graded) -> float | None:
        return self.inner.update(graded)

    def state(self) -> dict[str, Tensor]:
        return pack({"inner": self.inner.state()})

    def load(self, state: dict[str, Tensor]) -> None:
        self.inner.load(unpack(state, "inner"))


class Temperature(Around):
    def __init__(self, config: TemperatureConfig, inner: Scorer):
        super().__init__(inner)
        self.temperature = config.temperature

    def log_probs(self, window: Window) -> Tensor:
        return F.log_softmax(self.inner.log_probs(window) / self.temperature, dim=-1)


@dataclass(kw_only=True, slots=True)
class MixtureConfig(ScorerConfig):
    """Probabilities of several scorers, weighed by how well each did on what was graded before (Bayes; Herbster and
    Warmuth 1998: `share` of the weight is dealt out anew after each round, so that a scorer can come back)."""

    share: float
    scorers: dict[str, ScorerConfig | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        between(0, 1, share=self.share)
        if len(self.parts()) < 2:
            raise ValueError("scorers=... holds fewer than two; a mixture needs two or more")

    def parts(self) -> dict[str, ScorerConfig]:
        return {name: part for name, part in self.scorers.items() if part is not None}

    @property
    def documents(self) -> bool:
        return any(part.documents for part in self.parts().values())

    @property
    def depends_on(self) -> dict[str, str]:
        reason = "scorers weigh by how well they did on all text that was graded"
        return {ORDER: reason, BESIDE: reason}

    def open(self, model: LM, ranks: Ranks) -> "Mixture":
        return Mixture(self, {name: part.open(model, ranks) for name, part in self.parts().items()}, ranks)

    def in_brief(self) -> Self:
        return replace(self, scorers={name: part.in_brief() for name, part in self.parts().items()})

    def shortened(self, length: int) -> Self:
        return replace(self, scorers={name: part.shortened(length) for name, part in self.parts().items()})

    def describe(self) -> str:
        return "mixture of " + " and ".join(part.describe() for part in self.parts().values())


class Mixture(Scorer):
    def __init__(self, config: MixtureConfig, scorers: dict[str, Scorer], ranks: Ranks):
        self.share, self.scorers, self.ranks = config.share, scorers, ranks
        self.log_weight_K = torch.full((len(scorers),), -np.log(len(scorers)), dtype=torch.float64)
        self._gained_K = torch.zeros_like(self.log_weight_K)
        self._last: list[Tensor] = []

    def begin(self, first_G: np.ndarray) -> None:
        for scorer in self.scorers.values():
            scorer.begin(first_G)

    def log_probs(self, window: Window) -> Tensor:
        self._last = [scorer.log_probs(window) for scorer in self.scorers.values()]
        weighed = [logp + float(weight) for logp, weight in zip(self._last, self.log_weight_K, strict=True)]
        return torch.logsumexp(torch.stack(weighed), dim=0)

    def observe(self, window: Window, targets_BS: Tensor, mask_BS: Tensor) -> None:
        for k, (scorer, logp_BSV) in enumerate(zip(self.scorers.values(), self._last, strict=True)):
            scorer.observe(window, targets_BS, mask_BS)
            hit_BS = logp_BSV.gather(-1, targets_BS[..., None])[..., 0].double()
            self._gained_K[k] += (hit_BS * mask_BS).sum().cpu()
        self._last = []

    def update(self, graded: Graded) -> float | None:
        own_K, self._gained_K = self._gained_K, torch.zeros_like(self._gained_K)
        gained_K = self.ranks.sum_(own_K.to(self.ranks.device)).cpu()
        weight_K = torch.softmax(self.log_weight_K + gained_K, dim=0)
        self.log_weight_K = ((1 - self.share) * weight_K + self.share / len(weight_K)).clamp_min(1e-300).log()
        losses = [scorer.update(graded) for scorer in self.scorers.values()]
        return next((loss for loss in losses if loss is not None), None)

    def state(self) -> dict[str, Tensor]:
        inner = pack({f"scorer.{name}": scorer.state() for name, scorer in self.scorers.items()})
        return {"log_weight_K": self.log_weight_K, **inner}

    def load(self, state: dict[str, Tensor]) -> None:
        self.log_weight_K = state["log_weight_K"]
        for name, scorer in self.scorers.items():
            scorer.load(unpack(state, f"scorer.{name}"))
