"""The denominator, through an evaluator: bytes of the decoded text, for vocabularies of the challenge's sizes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from golf.tokens.tokenizer import ByteCounter, encode_documents, load_tokenizer, train_tokenizer
from tests.evals.helpers import Model, plain_counter, score, windows_of
from tests.helpers.texts import TRICKY
from tests.helpers.tiers import slow


def test_a_uniform_byte_model_scores_eight() -> None:
    stream = np.random.default_rng(0).integers(0, 256, 500).astype(np.uint16)
    uniform = Model(lambda ids_BT, last: torch.full((len(ids_BT), last, 256), -math.log(256)))
    assert score(windows_of(50, 10), uniform, stream, plain_counter(256)).bpb == pytest.approx(8, abs=1e-6)


@pytest.mark.parametrize("vocab_size, known_words", [(1024, 1000), slow(4096, 6000)])
def test_bytes_of_a_pass_are_those_of_the_text(vocab_size: int, known_words: int, tmp_path: Path) -> None:
    """Emoji, byte fallback, double spaces, control tokens, empty documents."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(2, 9, known_words)]
    texts = [" ".join(rng.choice(words, 40)) for _ in range(known_words // 4)]
    train_tokenizer(texts, vocab_size, tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    documents = list(encode_documents(tmp_path / "tokenizer.model", [*TRICKY, *texts[:20], "", ""], "test"))
    stream = np.concatenate([*documents, [tokenizer.bos_id(), 0, 2, 3]]).astype(np.uint16)
    decoded = sum(len(tokenizer.decode(document[1:].tolist()).encode()) for document in documents)
    zeros = Model(lambda ids_BT, last: torch.full((len(ids_BT), last, vocab_size), -1.0))
    counter = ByteCounter.from_tokenizer(tmp_path / "tokenizer.model")
    for length, stride in ((64, None), (32, 5)):
        found = score(windows_of(length, stride), zeros, stream, counter, tokenizer.bos_id())
        assert found.bytes == decoded and found.tokens == len(stream) - 1
