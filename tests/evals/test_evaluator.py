"""Scores against naive references: coverage, windows, bytes, the byte-level bound."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from golf.config import Run
from golf.dist import Ranks
from golf.evals.book import Score
from golf.evals.evaluator import EvalConfig, WindowsConfig, windows
from golf.scoring import Scoring
from golf.tokens.prepare import Prepared
from golf.tokens.tokenizer import ByteCounter, load_tokenizer
from tests.evals.helpers import Averaging, Model
from tests.evals.helpers import score as score_of

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def prepared(toy: Callable[..., Run], toy_folder: Path) -> Prepared:
    return toy().data.prepare(toy_folder / "data", log=lambda line: None)


@pytest.mark.parametrize("tokens", [2, 9, 10, 11, 33, 64, 65, 66])
@pytest.mark.parametrize("length, stride", [(10, 10), (10, 3), (10, 1), (64, 64), (64, 32)])
def test_windows_grade_every_target_once_in_order(tokens: int, length: int, stride: int) -> None:
    graded = []
    for window in windows(tokens, length, stride):
        last = window.start + window.length
        assert window.start >= 0 and last <= tokens - 1 and window.length <= length
        graded += range(last - window.scored + 1, last + 1)
    assert graded == list(range(1, tokens))


def test_sliding_targets_have_context() -> None:
    for window in list(windows(200, 32, 8))[1:]:
        assert window.length - window.scored >= 32 - 8


@pytest.mark.parametrize("stride", [None, 1, 5, 32])
def test_equals_a_naive_scorer(stride: int | None, small: Averaging, prepared: Prepared) -> None:
    """One window at a time, whole distributions, plain Python sums."""
    stream = np.fromfile(prepared.splits["val"].shards[0], dtype=np.uint16, offset=1024)[:300]
    counter = ByteCounter.from_tokenizer(prepared.tokenizer)
    score = score_of(WindowsConfig(length=32, stride=stride, batch_tokens=160), small, stream, counter)
    nats, step = 0.0, stride or 32
    with torch.no_grad():
        for target in range(1, 300):
            done = 0 if target <= 32 else 32 + step * math.ceil((target - 32) / step)
            end = min(done, 299) if done else 32
            begin = max(0, done - 32)
            context = torch.from_numpy(stream[begin:end].astype(np.int64))[None]
            row = target - 1 - begin
            nats -= small.log_probs(context)[0, row, int(stream[target])].item()
    assert score.tokens == 299
    assert score.nats == pytest.approx(nats, rel=1e-6)


def test_a_uniform_model_scores_log_vocab_and_a_unigram_model_its_cross_entropy(prepared: Prepared) -> None:
    stream = np.fromfile(prepared.splits["val"].shards[0], dtype=np.uint16, offset=1024)
    counter = ByteCounter.from_tokenizer(prepared.tokenizer)
    config = WindowsConfig(length=50, stride=None, batch_tokens=500)
    V = prepared.vocab_size

    def uniform(ids_BT: Tensor, last: int) -> Tensor:
        return torch.full((len(ids_BT), last, V), -math.log(V))

    score = score_of(config, Model(uniform), stream, counter)
    assert score.loss == pytest.approx(math.log(V), rel=1e-6)
    assert score.bpb == pytest.approx((len(stream) - 1) * math.log2(V) / score.bytes, rel=1e-6)

    counts = np.bincount(stream, minlength=V) + 1.0
    logp = np.log(counts / counts.sum())
    table = torch.from_numpy(logp)
    score = score_of(config, Model(lambda ids_BT, last: table.expand(len(ids_BT), last, V)), stream, counter)
    assert score.nats == pytest.approx(-logp[stream[1:]].sum(), rel=1e-9)


def test_bytes_are_those_of_the_decoded_text(prepared: Prepared) -> None:
    """BPB by the table equals BPB by decoding every document to text and counting UTF-8 bytes."""
    stream = np.fromfile(prepared.splits["val"].shards[0], dtype=np.uint16, offset=1024)
    tokenizer = load_tokenizer(prepared.tokenizer)
    documents = np.split(stream, np.flatnonzero(stream == prepared.bos_id))[1:]
    decoded = sum(len(tokenizer.decode(document[1:].tolist()).encode()) for document in documents)
    zeros = Model(lambda ids_BT, last: torch.zeros(len(ids_BT), last, prepared.vocab_size))
    config = WindowsConfig(length=64, stride=None, batch_tokens=640)
    score = score_of(config, zeros, stream, ByteCounter.from_tokenizer(prepared.tokenizer))
    assert score.bytes == decoded == prepared.splits["val"].bytes


def test_bytes_follow_the_token_before(prepared: Prepared) -> None:
    """A space mark counts a byte, but not after BOS: the evaluator must hand over the right predecessor."""
    tokenizer = load_tokenizer(prepared.tokenizer)
    marked = next(i for i in range(300, prepared.vocab_size) if tokenizer.id_to_piece(i).startswith("\u2581"))
    stream = np.array([prepared.bos_id, marked, marked, prepared.bos_id, marked, marked, marked], dtype=np.uint16)
    counter = ByteCounter.from_tokenizer(prepared.tokenizer)
    base = int(counter.base_V[marked])
    for length, stride in ((6, None), (3, None), (4, 1)):
        zeros = Model(lambda ids_BT, last: torch.zeros(len(ids_BT), last, prepared.vocab_size))
        score = score_of(WindowsConfig(length=length, stride=stride, batch_tokens=8), zeros, stream, counter)
        assert score.bytes == 5 * base + 3


def test_score_units() -> None:
    score = Score(nats=math.log(2) * 24, tokens=6, bytes=3, seconds=1)
    assert score.bpb == pytest.approx(8) and score.loss == pytest.approx(math.log(2) * 4)


def test_scoring_reads_the_split_it_is_told(toy: Callable[..., Run], prepared: Prepared) -> None:
    for split in ("val", "tune"):
        run = toy(f"eval.split={split}")
        score = Scoring(run.eval, prepared, ALONE).score(run.model.build())
        assert score.tokens == prepared.splits[split].tokens - 1


def test_eval_config_wants_plain() -> None:
    sliding = WindowsConfig(length=8, stride=4, batch_tokens=8)
    with pytest.raises(ValueError, match="plain"):
        EvalConfig(main="sliding", split="val", every_steps=None, evaluators={"sliding": sliding})
