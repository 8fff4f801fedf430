"""Scorers and evaluators of every kind, in small sizes, and what a pass with one of them commits."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from golf.dist import ALONE
from golf.evals.book import NOTHING, Book
from golf.evals.evaluator import DocumentsConfig, EvaluatorConfig
from golf.evals.learning import AdamWLearnerConfig, SGDLearnerConfig
from golf.evals.ngram import NGramConfig
from golf.evals.scorers import FixedConfig, MixtureConfig, TemperatureConfig
from golf.evals.ttt_lora import LoRAScorerConfig, PhasedConfig
from golf.evals.ttt_sgd import SGDScorerConfig
from golf.models.lm import LM, LMConfig
from tests.evals.helpers import plain_counter, windows_of

BOS = 1


def uneven_model(config: LMConfig, std: float = 0.05) -> LM:
    """Return a new model, none of whose matrices are zero. std: of what is added to each weight."""
    torch.manual_seed(0)
    model = config.build()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * std)
    return model


def repeating_stream() -> np.ndarray:
    """Return documents that repeat themselves: BOS and 1 to 60 tokens."""
    rng = np.random.default_rng(0)
    texts = [np.append(BOS, np.resize(rng.integers(10, 60, 7), size)) for size in (30, 3, 60, 17, 1, 45, 26)]
    return np.concatenate(texts).astype(np.uint16)


SGD = SGDLearnerConfig(lr=0.05, weight_decay=0.0, momentum=0.9)
ADAM = AdamWLearnerConfig(lr=0.01, weight_decay=0.5, beta1=0.0, beta2=0.99, eps=1e-10)


def sgd(**fields: Any) -> SGDScorerConfig:
    settings: dict[str, Any] = {"learner": SGD, "epochs": 2, "rows": 2, "cosine": True, "clip_norm": 1.0, "freeze": {}}
    settings |= {"warmup_chunks": 0, "stop_chunk": None, "freeze_layers": "none", "layer_rates": False}
    settings |= {"ema": None, "sam_radius": None}
    return SGDScorerConfig(**(settings | fields))


def lora(**fields: Any) -> LoRAScorerConfig:
    settings: dict[str, Any] = {"learner": ADAM, "rank": 4, "alpha": 8.0, "keep_a": True, "head": True}
    settings["matrices"] = {"all": "*.mlp.*", "query": "*.query"}
    return LoRAScorerConfig(**(settings | fields))


def counts(longest: int, cache: bool = False) -> NGramConfig:
    return NGramConfig(shortest=1, longest=longest, strength=4.0, scorer=FixedConfig(cache=cache))


def documents(**fields: Any) -> DocumentsConfig:
    settings: dict[str, Any] = {"length": 16, "chunk_tokens": 8, "documents": 3, "order": "longest"}
    settings["batch_tokens"] = 64
    return DocumentsConfig(**(settings | fields))


def nll_of(config: EvaluatorConfig, model: Any, stream: np.ndarray) -> np.ndarray:
    """nll_N of each target, as committed; also checks that what was committed was a distribution."""
    nll_N = np.full(len(stream), np.nan)

    class Noted(Book):
        def commit(self, position_BS: np.ndarray, logp_BSV: Tensor) -> tuple[Tensor, Tensor]:
            targets_BS, nll_BS = super().commit(position_BS, logp_BSV)
            assert logp_BSV.logsumexp(-1).abs().max() < 1e-4
            there = position_BS != NOTHING
            nll_N[position_BS[there]] = nll_BS.numpy()[there]
            return targets_BS, nll_BS

    config.run(model, Noted(stream, plain_counter(384), ALONE), BOS)
    return nll_N[1:]


LEARNERS = {
    "fixed": windows_of(16, 4, 64),
    "temperature": windows_of(16, 4, 64, scorer=TemperatureConfig(temperature=0.9, scorer=FixedConfig())),
    "sgd": windows_of(16, 4, 64, chunk_tokens=32, scorer=sgd()),
    "sgd, averaged": windows_of(16, 4, 64, chunk_tokens=32, scorer=sgd(ema=0.5, sam_radius=0.05)),
    "ngram": windows_of(16, 4, 64, chunk_tokens=32, scorer=counts(3)),
    "mixture": windows_of(
        16, 4, 64, chunk_tokens=32, scorer=MixtureConfig(share=0.01, scorers={"fixed": FixedConfig(), "ttt": sgd()})
    ),
    "documents": documents(),
    "documents in order": documents(order="stream", documents=1),
    "ngram by document": documents(scorer=counts(2)),
    "ngram, keys kept": documents(scorer=counts(2, cache=True)),
    "lora": documents(scorer=lora()),
    "lora on the head, keys kept": documents(scorer=lora(matrices={}, cache=True)),
    "phased": documents(
        documents=2,
        scorer=PhasedConfig(
            adapters=lora(), learner=SGD, boundaries={"a": 2, "b": 4}, rows=4, length=16, clip_norm=1.0
        ),
    ),
}  # fmt: skip
INSIDE = ("ngram, keys kept", "lora", "lora on the head, keys kept", "phased")  # these reach into the model
