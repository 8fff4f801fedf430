"""What benchmarks that time two ways of one thing share."""

import time
from collections.abc import Callable

import torch

from golf.compose import compose
from golf.dist import ALONE
from golf.models.kernels import choose_backend
from golf.models.lm import LM


def model_of(dim: int, layers: int, vocab: int) -> LM:
    """The baseline at this size, every weight a little random, on the fastest kernel of the machine."""
    run = compose([f"model.dim={dim}", f"model.layers={layers}", f"data.vocab_size={vocab}"])
    torch.manual_seed(0)
    model = run.model.build()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    model.attend = choose_backend("auto", ALONE.device, run.model.mixer.kernel_channels(dim)).attend
    return model


def ratios(pairs: int, first: Callable[[], object], second: Callable[[], object]) -> list[float]:
    """Seconds of the second over those of the first, taken in turns, so that whatever else the machine does falls on
    both."""
    found = []
    for _ in range(pairs):
        seconds = []
        for action in (first, second):
            started = time.perf_counter()
            action()
            seconds.append(time.perf_counter() - started)
        found.append(seconds[1] / seconds[0])
    return found
