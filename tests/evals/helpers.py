"""Scorers and evaluators made of a function, for tests."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golf.dist import ALONE, Ranks
from golf.evals.book import Book, Score
from golf.evals.evaluator import EvaluatorConfig, WindowsConfig
from golf.tokens.tokenizer import ByteCounter

LogProbs = Callable[[Tensor, int], Tensor]


class Model:
    """Stands where a model does: only its log_probs is asked for."""

    def __init__(self, log_probs: LogProbs):
        self.log_probs = log_probs


def windows_of(length: int, stride: int | None = None, batch_tokens: int = 500, **fields: Any) -> WindowsConfig:
    return WindowsConfig(length=length, stride=stride, batch_tokens=batch_tokens, **fields)


def score(
    config: EvaluatorConfig, model: Any, stream: np.ndarray, counter: ByteCounter, bos_id: int = 1, ranks: Ranks = ALONE
) -> Score:
    return config.run(model, Book(stream, counter, ranks), bos_id)


def plain_counter(vocab_size: int) -> ByteCounter:
    """Every token is a byte."""
    return ByteCounter(torch.ones(vocab_size, dtype=torch.int64), *torch.zeros(2, vocab_size, dtype=torch.bool))
