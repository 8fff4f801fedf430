"""Scorers and evaluators made of a function, for tests."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.dist import ALONE, Ranks
from golf.evals.book import Book, Score
from golf.evals.case import Case
from golf.evals.evaluator import EvaluatorConfig, WindowsConfig
from golf.evals.probes import PROBES
from golf.ledger import Ledger
from golf.tokens.prepare import Prepared
from golf.tokens.tokenizer import ByteCounter

LogProbs = Callable[[Tensor, int], Tensor]
Lawful = tuple[Callable[..., Case], Prepared]  # a case for any evaluator, and the data that it is of


class Model:
    """Stands where a model does: only its log_probs is asked for."""

    text_length: int | None = None

    def __init__(self, log_probs: LogProbs):
        self.log_probs = log_probs


class Averaging(nn.Module):
    """A causal model of few operations: the next token by the last one and by the mean of the window so far."""

    text_length: int | None = None

    def __init__(self, vocab_size: int, dim: int = 16):
        super().__init__()
        self.embed, self.head, self.stack = nn.Module(), nn.Module(), nn.Module()
        self.embed.table_VD = nn.Parameter(torch.randn(vocab_size, dim) / 4)
        self.head.weight_VE = nn.Parameter(torch.randn(vocab_size, 2 * dim) / 4)
        self.stack.stored_depth = lambda: 0  # type: ignore[assignment]

    def log_probs(self, ids_BT: Tensor, last: int | None = None) -> Tensor:
        x_BTD = self.embed.table_VD[ids_BT]
        mean_BTD = x_BTD.cumsum(1) / torch.arange(1, ids_BT.shape[1] + 1)[:, None]
        x_BTE = torch.cat([x_BTD, mean_BTD], dim=-1)[:, -(last or 0) :]
        return F.log_softmax(x_BTE @ self.head.weight_VE.T, dim=-1)


def windows_of(length: int, stride: int | None = None, batch_tokens: int = 500, **fields: Any) -> WindowsConfig:
    return WindowsConfig(length=length, stride=stride, batch_tokens=batch_tokens, **fields)


def score(
    config: EvaluatorConfig, model: Any, stream: np.ndarray, counter: ByteCounter, bos_id: int = 1, ranks: Ranks = ALONE
) -> Score:
    return config.run(model, Book(stream, counter, ranks), bos_id)


def plain_counter(vocab_size: int) -> ByteCounter:
    """Every token is a byte."""
    return ByteCounter(torch.ones(vocab_size, dtype=torch.int64), *torch.zeros(2, vocab_size, dtype=torch.bool))


def findings(case: Case, prepared: Prepared, probes: Iterable[str] = PROBES) -> dict[str, str]:
    """Return what these probes say of a case, while the data's files are watched."""
    with Ledger().watching(prepared.files()) as ledger, torch.no_grad():
        case.ledger = ledger
        return {name: PROBES[name](case).verdict for name in probes}
