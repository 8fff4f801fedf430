"""Models and a text that there is something to learn from, and cases for the audit's probes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from golf.compose import compose
from golf.evals.case import Case
from golf.evals.evaluator import EvaluatorConfig
from golf.models.lm import LM
from golf.tokens.shards import open_shard
from golf.tokens.tokenizer import ByteCounter
from golf.tokens.verify import decoded_bytes
from tests.evals.helpers import Averaging, Lawful
from tests.helpers.learners import repeating_stream, uneven_model
from tests.helpers.runs import toy_overrides


@pytest.fixture(scope="package")
def model(toy_folder: Path) -> LM:
    return uneven_model(compose(toy_overrides(toy_folder, ["model.layers=2"])).model)


@pytest.fixture(scope="package")
def small() -> Averaging:
    """A model of the same vocabulary for whatever asks for no more than log_probs."""
    torch.manual_seed(0)
    return Averaging(384)


@pytest.fixture(scope="package")
def stream() -> np.ndarray:
    return repeating_stream()


@pytest.fixture(scope="package")
def lawful(toy_folder: Path) -> Lawful:
    """Cases of the toy text, of a small model that has seen a little of it unless another is given; its data."""
    prepared = compose(toy_overrides(toy_folder, [])).data.prepare(toy_folder / "data", log=lambda line: None)
    torch.manual_seed(0)
    small = Averaging(prepared.vocab_size)
    seen = open_shard(prepared.splits["train"].shards[0])[: 64 * 60].astype(np.int64)
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-2)
    for rows in torch.from_numpy(seen).view(60, 64).split(4):
        optimizer.zero_grad()
        F.nll_loss(small.log_probs(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
    counter = ByteCounter.from_tokenizer(prepared.tokenizer)

    def case(evaluator: EvaluatorConfig, tokens: int = 320, model: LM | None = None) -> Case:
        stream, other = (open_shard(prepared.splits[name].shards[0])[:tokens] for name in ("val", "tune"))
        return Case(
            evaluator=evaluator,
            model=model or small,  # type: ignore[arg-type]
            stream=np.asarray(stream),
            counter=counter,
            bos_id=prepared.bos_id,
            bytes_of=lambda tokens: decoded_bytes(prepared.tokenizer, prepared.bos_id, tokens),
            other=np.asarray(other),
        )

    return case, prepared
