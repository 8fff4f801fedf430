"""Which tensors get the finer steps, and files that fill the cap."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from golf.calibrate import Measured
from golf.checks import check
from golf.config import Run
from golf.errors import UserError
from golf.export import store
from golf.ledger import Ledger
from golf.losses import NLL
from golf.quant.allocation import MOST_TRIES, WaterfillConfig, fit
from golf.quant.calibration import gradient_power
from golf.quant.formats import IntConfig
from golf.quant.rounding import PLAIN
from golf.quant.steps import SDClipConfig
from tests.helpers.quant import QUANTS, Given, copy_of, ids, quant_of, shaken, source
from tests.helpers.tiers import slow, wide

Toy = Callable[..., Run]
DIALLED = ("int6_sdclip", "int6_awq", "int7_embed", "int6_optrot", "int6_lqer", "waterfill")


def test_power_is_the_mean_square_gradient(toy: Toy) -> None:
    model = shaken(toy("loss=[entropy_weighted]"))
    passes = [ids(3), ids(2, seed=1)]
    found = gradient_power(Given(*passes), source(model))
    expected = dict.fromkeys(found, 0.0)
    for ids_BT in passes:
        model.zero_grad()
        model(ids_BT[:, :-1], ids_BT[:, 1:])[NLL].backward()
        for name, parameter in model.named_parameters():
            expected[name] += parameter.grad.double().square().mean().item() / 2
    assert found == pytest.approx(expected, rel=1e-4)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_water_levels_all_by_curvature() -> None:
    """c d^2 is alike everywhere, and the bits of all weights together stay."""
    generator = torch.Generator().manual_seed(0)
    sizes, spreads = {"a": 400, "b": 900, "c": 100}, {"a": 1.0, "b": 0.2, "c": 3.0}
    weights = {name: torch.randn(size, generator=generator) * spreads[name] for name, size in sizes.items()}
    power = {"a": 1e-4, "b": 3e-4, "c": 2e-5}
    factors = WaterfillConfig(strength=1.0, most=100.0).factors(weights, power)
    felt = {name: power[name] * (factors[name] ** 2 * weights[name].square().mean().item()) for name in weights}
    assert felt["a"] == pytest.approx(felt["b"]) == pytest.approx(felt["c"])
    assert sum(sizes[name] * math.log(factors[name]) for name in sizes) == pytest.approx(0, abs=1e-6)
    assert WaterfillConfig(strength=0.0, most=8.0).factors(weights, power) == dict.fromkeys(weights, 1.0)
    assert max(WaterfillConfig(strength=2.0, most=1.5).factors(weights, power).values()) == pytest.approx(1.5)


def test_a_fit_finds_the_size_in_a_few_files() -> None:
    for cap in (60_000, 100_000, 139_000):
        sizes: list[int] = []

        def size_of(factor: float, sizes: list[int] = sizes) -> int:
            sizes.append(round(100_000 - 25_000 * math.log2(factor) + 200 * math.sin(10 * factor)))
            return sizes[-1]

        found = fit(size_of, cap, 0.001, 190_000)
        assert found.fits and found.full and 0.995 * cap <= found.size_bytes <= 0.999 * cap
        assert found.tries == len(sizes) <= 6


def test_a_fit_that_cannot_be_says_so() -> None:
    never = fit(lambda factor: 1000, 900, 0.001, 10)
    assert (never.size_bytes, never.tries, never.fits, never.full) == (1000, MOST_TRIES, False, False)
    ends = fit(lambda factor: min(800, round(500 / factor)), 900, 0.001, 4000)
    assert ends.fits and not ends.full and ends.size_bytes == 800 and ends.tries == MOST_TRIES


def test_a_fit_keeps_its_margin_below_the_cap() -> None:
    assert not fit(lambda factor: 999_500, 1_000_000, 0.001, 10).fits
    assert fit(lambda factor: 998_900, 1_000_000, 0.001, 10).fits


def test_what_says_nothing_keeps_its_steps_and_weighs_on_nobody() -> None:
    weights = {name: torch.randn(40, 10, generator=torch.Generator().manual_seed(0)) for name in "abc"}
    config = WaterfillConfig(strength=1.0, most=8.0)
    alone = config.factors(weights, dict.fromkeys(weights, 1e-4))
    silent = {"zero": torch.zeros(10, 10), "unfelt": torch.ones(1, 1)}
    power = dict.fromkeys(weights, 1e-4) | {"zero": 1.0, "unfelt": 0.0}
    assert config.factors(weights | silent, power) == alone | dict.fromkeys(silent, 1.0)


def test_finer_steps_never_clip_more() -> None:
    """A cap that is far away is not filled with worse weights."""
    config = IntConfig(bits=6, steps=SDClipConfig(k=12.85, by_hessian=0.0), per="row", group=None, half_below=None)
    w_B = torch.randn(2, 64, 256, generator=torch.Generator().manual_seed(0))
    errors = []
    for octaves in range(6):
        parts = config.encode(w_B, replace(PLAIN, widen_B=torch.tensor([2.0**-octaves, 1.0])))
        error_B = (config.decode(parts, (64, 256)) - w_B).square().mean(dim=(1, 2))
        errors.append(error_B[0].item())
        assert error_B[1] == pytest.approx(errors[0], rel=0.1), "each of a stack has its own width"
    assert errors == sorted(errors, reverse=True) and errors[1] < 0.3 * errors[0] and errors[-1] == errors[-2]


@pytest.mark.parametrize("quant", QUANTS)
def test_a_quantiser_whose_steps_are_tied_fills_no_cap(quant: str, toy: Toy) -> None:
    run = replace(copy_of(toy), quant=quant_of(quant))
    check(run)
    run.quant.fit = True
    if quant in DIALLED:
        check(run)
        return
    with pytest.raises(UserError, match=r"^quant\.fit=true: the steps of this quantiser are tied to"):
        check(run)


@pytest.mark.parametrize("quant", ["int6_sdclip", "waterfill"])
def test_a_small_file_fills_a_cap(quant: str, toy: Toy, tmp_path: Path) -> None:
    assert_it_fills_caps(replace(copy_of(toy), quant=quant_of(quant, rounding="nearest", codec="zstd")), tmp_path)


@pytest.mark.parametrize("quant", [slow("int6_sdclip"), *map(wide, DIALLED[1:])])
def test_every_dialled_quantiser_fills_a_cap(quant: str, toy: Toy, tmp_path: Path) -> None:
    run = toy(f"quant={quant}", "quant/rounding=nearest", "model.dim=128", "data.vocab_size=384")
    assert_it_fills_caps(run, tmp_path)


def assert_it_fills_caps(run: Run, folder: Path) -> None:
    """Files of normal weights, for caps around the size that the steps of the formats come to."""
    torch.manual_seed(0)
    model = run.model.build()
    weights = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    prepared = run.data.prepare(Path(run.data_dir), log=lambda line: None)
    measured = Measured({}, {name: 1.0 + len(name) for name in weights})

    def made(**changes: object) -> tuple[int, dict]:
        for key, value in changes.items():
            setattr(run if key == "cap_bytes" else run.quant, key, value)
        path = folder / "artifact.golf"
        told = store(run, prepared, weights, "last", model.stored_roles(), path, Ledger(), measured)
        return path.stat().st_size, told

    natural, nothing = made()
    assert nothing == {}
    for share in (0.6, 0.95, 1.4):
        cap = round(share * natural)
        size, told = made(cap_bytes=cap, fit=True)
        assert 0.995 * cap <= size <= cap and told["size_bytes"] == size and told["full"], (share, told)
