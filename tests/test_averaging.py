"""Averages against closed forms on a known path of weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from golf.averaging import AverageConfig, Averager, EMAConfig, LAWAConfig, NoAverageConfig, SWAConfig, weights_of
from golf.conf_files import CONF
from golf.schedules import Cooldown, Start, Tick
from tests.helpers.parts import run_of_line

STEPS = 20
RATE = Cooldown(fraction=0.5, floor=0.0, shape="linear")  # decays over the last ten steps
HALF = Start(progress=None, rate_below=0.5)  # reached at ticks 16 .. 19
EMA = EMAConfig(horizon_steps=4, bias_correction=True)


def tick(step: int) -> Tick:
    return RATE.at(Tick(step, step / STEPS, STEPS - step))


def path(model: nn.Module) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(model.weight.shape, generator=generator) for _ in range(STEPS)]


def walked(config: AverageConfig, steps: int = STEPS) -> tuple[Averager, nn.Module, list[Tensor], Tensor]:
    """(averager, model, weights after each step, first weights) of a model led along the path."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    first = model.weight.detach().clone()
    averager = config.build(weights_of(model))
    for step, weights in enumerate(path(model)[:steps]):
        model.weight.data.copy_(weights)
        averager.update(weights_of(model), tick(step))
    return averager, model, path(model)[:steps], first


def ema_of(weights: list[Tensor], decay: float = 0.75) -> Tensor:
    shares = [(1 - decay) * decay ** (len(weights) - 1 - i) for i in range(len(weights))]
    return sum(share * w for share, w in zip(shares, weights, strict=True)) / sum(shares)


def test_no_average_is_the_model() -> None:
    averager, model, _, _ = walked(NoAverageConfig())
    assert averager.identity and torch.equal(averager.averages(weights_of(model))["weight"], model.weight)


def test_corrected_ema_is_the_weighted_mean_of_the_path() -> None:
    averager, model, weights, _ = walked(EMA)
    assert torch.allclose(averager.averages(weights_of(model))["weight"], ema_of(weights), atol=1e-6)


def test_plain_ema_keeps_a_share_of_the_first_weights() -> None:
    averager, model, weights, first = walked(EMAConfig(horizon_steps=4, bias_correction=False), steps=3)
    expected = sum(0.25 * 0.75 ** (2 - i) * w for i, w in enumerate(weights)) + 0.75**3 * first
    assert torch.allclose(averager.averages(weights_of(model))["weight"], expected, atol=1e-6)


@pytest.mark.parametrize(
    "name, decay", [("ema", 0.997), ("ema_plain", 0.997), ("ema_slow", 0.9985), ("ema_swa", 0.997)]
)
def test_the_decays_are_those_of_the_records(name: str, decay: float) -> None:
    """0.997 is a horizon of 333.33 steps; of 333 the decay would be 0.996997."""
    config = run_of_line("track=h100x8", f"average={name}").average
    horizon = (config.of if name == "ema_swa" else config).horizon_steps
    assert 1 - 1 / horizon == pytest.approx(decay, abs=1e-12)


def swa(of: AverageConfig | None = None, *, with_last: bool = False, every: int = 2) -> SWAConfig:
    return SWAConfig(every_steps=every, start=HALF, with_last=with_last, of=of)


def test_swa_is_the_mean_of_its_snapshots() -> None:
    """From tick 16 on, after every second step: the weights after steps 18 and 20."""
    averager, model, weights, _ = walked(swa())
    assert torch.allclose(averager.averages(weights_of(model))["weight"], (weights[17] + weights[19]) / 2, atol=1e-6)


def test_the_last_weights_may_count_as_a_snapshot() -> None:
    averager, model, weights, _ = walked(swa(with_last=True), steps=19)
    assert torch.allclose(averager.averages(weights_of(model))["weight"], (weights[17] + weights[18]) / 2, atol=1e-6)


def test_swa_of_ema_is_the_mean_of_the_path_of_the_ema() -> None:
    averager, model, weights, _ = walked(swa(EMA))
    expected = (ema_of(weights[:18]) + ema_of(weights)) / 2
    assert torch.allclose(averager.averages(weights_of(model))["weight"], expected, atol=1e-6)


def test_lawa_is_the_mean_of_the_latest() -> None:
    config = LAWAConfig(every_steps=3, start=Start(progress=0.0, rate_below=None), count=2, of=None)
    averager, model, weights, _ = walked(config)
    assert torch.allclose(averager.averages(weights_of(model))["weight"], (weights[14] + weights[17]) / 2, atol=1e-6)


@pytest.mark.parametrize("of", [None, EMA])
def test_before_the_first_snapshot_the_average_is_what_would_be_taken(of: AverageConfig | None) -> None:
    lawa = LAWAConfig(every_steps=2, start=HALF, count=3, of=of)
    for config in (swa(of), lawa):
        averager, model, weights, _ = walked(config, steps=10)
        expected = weights[-1] if of is None else ema_of(weights)
        assert averager.identity == (of is None)
        assert torch.allclose(averager.averages(weights_of(model))["weight"], expected, atol=1e-6)


NAMES = sorted(path.stem for path in (CONF / "average").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_average_goes_on_from_its_state(name: str) -> None:
    """At every step of the way, also before it has begun, saved and loaded it gives the same average, bit for bit."""
    config = run_of_line("track=tiny", f"average={name}").average
    if hasattr(config, "every_steps"):
        config.every_steps = 2
    whole, model, _, _ = walked(config)
    for cut in (0, 1, 11, 17):
        before, _, _, _ = walked(config, steps=cut)
        again = config.build(weights_of(model))
        again.load({key: tensor.clone() for key, tensor in before.state().items()})
        for step, weights in list(enumerate(path(model)))[cut:]:
            again.update({"weight": weights}, tick(step))
        assert torch.equal(again.averages(weights_of(model))["weight"], whole.averages(weights_of(model))["weight"])


@pytest.mark.parametrize("name", NAMES)
def test_averages_are_fp32_and_never_the_weights_to_come(name: str) -> None:
    """What bf16 weights give is averaged in fp32, and what was averaged does not follow the weights afterwards."""
    config = run_of_line("track=tiny", f"average={name}").average
    model = nn.Linear(3, 2, bias=False).to(torch.bfloat16)
    averager = config.build(weights_of(model))
    for step in range(STEPS):
        averager.update(weights_of(model), tick(step))
    averages = {key: tensor.clone() for key, tensor in averager.averages(weights_of(model)).items()}
    assert averager.identity or averages["weight"].dtype == torch.float32
    kept = {key: tensor.clone() for key, tensor in averager.state().items()}
    model.weight.data.add_(1.0)
    assert all(torch.equal(tensor, kept[key]) for key, tensor in averager.state().items())


def test_names_say_what_is_averaged() -> None:
    """What has been taken, not what was asked for."""
    assert walked(NoAverageConfig())[0].name() == "last weights"
    assert walked(swa(), steps=10)[0].name() == "last weights", "nothing was taken yet"
    assert walked(swa(EMA))[0].name() == "SWA of 2 x EMA over 4 steps"
    assert walked(EMAConfig(horizon_steps=4, bias_correction=False))[0].name() == "EMA over 4 steps, first weights kept"


@pytest.fixture
def led() -> Callable[[], tuple[Averager, nn.Module]]:
    return lambda: walked(EMA, steps=3)[:2]


def test_applied_swaps_and_restores_bitwise(led: Callable[[], tuple[Averager, nn.Module]]) -> None:
    averager, model = led()
    own = model.weight.detach().clone()
    average = averager.averages(weights_of(model))["weight"].clone()
    with pytest.raises(RuntimeError), averager.applied(model):
        assert torch.equal(model.weight, average) and not torch.equal(own, average)
        raise RuntimeError("in the middle")
    assert torch.equal(model.weight, own)
