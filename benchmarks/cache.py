"""Documents scored chunk by chunk with their keys and values kept, against the same with whole windows; paired ratios.

    python benchmarks/cache.py [--length 1024] [--chunk 48] [--documents 16] [--pairs 5] [--dim 192] [--layers 4]

Both take turns, so that whatever else the machine does falls on both; scores are compared first. `ngram` learns beside
a model that stays as it is, `head` trains an adapter on the head of each document.
"""

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from paired import model_of, ratios

from golf.dist import ALONE
from golf.evals.book import Book
from golf.evals.evaluator import DocumentsConfig
from golf.evals.learning import AdamWLearnerConfig
from golf.evals.ngram import NGramConfig
from golf.evals.scorers import FixedConfig, ScorerConfig
from golf.evals.ttt_lora import LoRAScorerConfig
from golf.tokens.tokenizer import ByteCounter

ADAM = AdamWLearnerConfig(lr=1e-4, weight_decay=0.5, beta1=0.0, beta2=0.999, eps=1e-10)


def ngram(cache: bool) -> ScorerConfig:
    return NGramConfig(shortest=2, longest=3, strength=100.0, scorer=FixedConfig(cache=cache))


def head(cache: bool) -> ScorerConfig:
    return LoRAScorerConfig(learner=ADAM, rank=8, alpha=16.0, keep_a=True, head=True, matrices={}, cache=cache)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"length": 1024, "chunk": 48, "documents": 16, "pairs": 5, "dim": 192, "layers": 4, "vocab": 1024}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    model = model_of(chosen.dim, chosen.layers, chosen.vocab)
    generator = np.random.default_rng(0)
    texts = [np.append(1, generator.integers(4, chosen.vocab, chosen.length - 1)) for _ in range(chosen.documents)]
    stream = np.concatenate(texts).astype(np.uint16)
    flags = torch.zeros(chosen.vocab, dtype=torch.bool)
    counter = ByteCounter(torch.ones(chosen.vocab, dtype=torch.int64), flags, flags)

    def score(scorer: ScorerConfig) -> Callable[[], float]:
        config = DocumentsConfig(
            length=chosen.length, chunk_tokens=chosen.chunk, documents=chosen.documents, order="stream",
            batch_tokens=8192, scorer=scorer,
        )  # fmt: skip
        return lambda: config.run(model, Book(stream, counter, ALONE), 1).loss

    for name, make in {"ngram": ngram, "head": head}.items():
        kept, whole = score(make(True)), score(make(False))
        apart = abs(kept() - whole())
        assert apart < 1e-6, f"{name}: {apart} nats a token apart"
        found = ratios(chosen.pairs, kept, whole)
        print(
            f"{name}: documents of {chosen.length} in chunks of {chosen.chunk}, {chosen.layers} x {chosen.dim}: whole "
            f"windows take {statistics.median(found):.2f} times as long ({min(found):.2f} .. {max(found):.2f}); scores "
            f"{apart:.1e} nats a token apart",
            flush=True,
        )


if __name__ == "__main__":
    main()
