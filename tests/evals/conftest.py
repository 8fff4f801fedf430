"""A model and a text that there is something to learn from."""

from pathlib import Path

import numpy as np
import pytest
import torch

from golf.compose import compose
from golf.models.lm import LM
from tests.helpers.runs import toy_overrides

BOS = 1


@pytest.fixture(scope="package")
def model(toy_folder: Path) -> LM:
    torch.manual_seed(0)
    model = compose(toy_overrides(toy_folder, [])).model.build()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.fixture(scope="package")
def stream() -> np.ndarray:
    """Documents that repeat themselves: BOS and 1 to 60 tokens."""
    rng = np.random.default_rng(0)
    texts = [np.append(BOS, np.resize(rng.integers(10, 60, 7), size)) for size in (30, 3, 60, 17, 1, 45, 26)]
    return np.concatenate(texts).astype(np.uint16)
