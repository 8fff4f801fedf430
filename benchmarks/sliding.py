"""A sliding window: ours against whole windows with all their logits; paired ratios, and what arithmetic allows.

    python benchmarks/sliding.py [--length 1024] [--stride 64] [--windows 48] [--pairs 5] [--dim 192] [--layers 4]

The straightforward form (PR 50) takes 32 windows at a time, computes logits and log-probabilities of every position and
keeps the last `stride`. Both take turns, so that whatever else the machine does falls on both.
"""

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from paired import model_of, ratios
from torch import Tensor

from golf.dist import ALONE
from golf.evals.book import Book
from golf.evals.evaluator import WindowsConfig
from golf.evals.scorers import FixedConfig, Scorer, ScorerConfig, Window
from golf.models.lm import LM
from golf.tokens.tokenizer import ByteCounter


class WholeConfig(ScorerConfig):
    """Every position's log-probabilities, of which the last are kept."""

    def open(self, model: LM, ranks: object) -> Scorer:
        return Whole(model)


class Whole(Scorer):
    def __init__(self, model: LM):
        self.model = model

    def log_probs(self, window: Window) -> Tensor:
        return self.model.log_probs(window.ids_BT)[:, -window.scored :]


def arithmetic(model: LM, length: int, stride: int) -> float:
    """Multiplications of a whole window over those of one whose head sees the last `stride` positions."""
    V, D = model.embed.table_VD.shape
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("stack"))
    body = length * matrices + model.stack.effective_depth() * length * length * D  # causal: half of two products
    return (body + length * V * D) / (body + stride * V * D)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("length", 1024), ("stride", 64), ("windows", 48), ("pairs", 5), ("dim", 192), ("layers", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--vocab", type=int, default=1024)
    chosen = parser.parse_args()
    model = model_of(chosen.dim, chosen.layers, chosen.vocab)
    model.compute_dtype = torch.bfloat16
    tokens = chosen.length + (chosen.windows - 1) * chosen.stride + 1
    stream = np.random.default_rng(0).integers(4, chosen.vocab, tokens).astype(np.uint16)
    flags = torch.zeros(chosen.vocab, dtype=torch.bool)
    counter = ByteCounter(torch.ones(chosen.vocab, dtype=torch.int64), flags, flags)

    def score(scorer: ScorerConfig, batch_tokens: int) -> Callable[[], float]:
        config = WindowsConfig(length=chosen.length, stride=chosen.stride, batch_tokens=batch_tokens, scorer=scorer)
        return lambda: config.run(model, Book(stream, counter, ALONE), 1).nats

    ours, whole = score(FixedConfig(), 8192), score(WholeConfig(), 32 * chosen.length)
    assert abs(ours() - whole()) < 1e-3 * whole(), "the same score"
    found = ratios(chosen.pairs, ours, whole)
    bound = arithmetic(model, chosen.length, chosen.stride)
    print(
        f"windows of {chosen.length}, stride {chosen.stride}, {chosen.layers} x {chosen.dim}, {chosen.vocab} tokens: "
        f"whole windows take {statistics.median(found):.2f} times as long ({min(found):.2f} .. {max(found):.2f}); "
        f"by multiplications alone {bound:.2f}"
    )


if __name__ == "__main__":
    main()
