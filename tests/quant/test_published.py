"""The quantisers that published runs had, against their formulas, and the sizes that plans foretell of them."""

import pytest
import torch
from torch import Tensor

from golf.conf_files import CONF
from golf.plan import outline
from golf.quant.formats import IntConfig
from golf.quant.rotation import RotatedConfig, rotated
from tests.helpers.parts import run_of_line
from tests.helpers.quant import gaussian, quant_of
from tests.helpers.tiers import quick

FLOORED = sorted(path.stem for path in (CONF / "quant").glob("*_floor.yaml"))
QUANTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
SPREADS = (0.01, 0.3, 3.0)  # all rows on the floor, some, none


def format_of(quant: str, name: str) -> IntConfig:
    """Return a format of a quantiser at full size, which has no tensor too small for it."""
    chosen = quant_of(quant, track="h100x8").formats[name]
    chosen = chosen.inner if isinstance(chosen, RotatedConfig) else chosen
    assert isinstance(chosen, IntConfig) and chosen.half_below == 65_536
    chosen.half_below = None
    return chosen


def rounded(w_OI: Tensor, step_O: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Return codes and steps, the steps as they are stored."""
    step_O = step_O.clamp_min(1 / limit).half()
    return (w_OI / step_O.float()[:, None]).round().clamp(-limit, limit).to(torch.int8), step_O


def row_maximum(w_OI: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """PR 254, PR 374 and PR 401's headline."""
    return rounded(w_OI, w_OI.abs().amax(1) / limit, limit)


def best_for_the_matrix(w_OI: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """PR 414: of five quantiles the one whose error, over all rows, is least; the first of equals."""
    tried = [rounded(w_OI, w_OI.abs().quantile(q, dim=1) / limit, limit) for q in QUANTILES]
    return min(tried, key=lambda one: (w_OI - one[0] * one[1].float()[:, None]).square().mean().item())


def best_for_each_row(w_OI: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """PR 508 and PR 462's family, where no Hessian was measured."""
    rows = [best_for_the_matrix(w_1I, limit) for w_1I in w_OI.split(1)]
    return torch.cat([codes for codes, _ in rows]), torch.cat([step for _, step in rows])


def clipped_tables(w_OI: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The 99.99984 % quantile, of tables."""
    return rounded(w_OI, w_OI.abs().quantile(0.9999984, dim=1) / limit, limit)


RULES = [
    ("int6_floor", "int6", row_maximum),
    ("int6_gptq_lite_floor", "int6", best_for_the_matrix),
    ("int6_gptq_floor", "int6", best_for_each_row),
    ("int6_optrot_floor", "rotated", best_for_each_row),
    ("int6_optrot_floor", "int8", best_for_each_row),
    ("int6_optrot_floor", "table", clipped_tables),
    *((quant, "int8", clipped_tables) for quant in ("int8", *FLOORED) if quant != "int6_optrot_floor"),
]


@pytest.mark.parametrize("quant, name, rule", RULES)
def test_codes_and_steps_are_those_of_the_published_rule(quant: str, name: str, rule: object) -> None:
    chosen = format_of(quant, name)
    for spread in SPREADS:
        (w_OI,) = gaussian(12, 200, spread)
        codes, step_O = rule(w_OI, chosen.limit)  # type: ignore[operator]
        parts = chosen.encode(w_OI[None])
        assert torch.equal(parts["codes"][0], codes)
        assert torch.equal(parts["scale"][0], step_O)


@pytest.mark.parametrize("quant", FLOORED)
def test_small_tensors_stay_in_half_precision(quant: str) -> None:
    """65,536 elements are small, one more is not (on the track of the records; other tracks scale it)."""
    formats = quant_of(quant, track="h100x8").formats
    for name in {quant_of(quant).roles[role] for role in ("matrix", "head")}:
        assert not formats[name].rounds((512, 128)) and formats[name].rounds((1, 65_537)), name


def test_rotated_rows_are_rounded_after_the_transform() -> None:
    chosen = quant_of("int6_optrot_floor", track="tiny").formats["rotated"]
    w_BOI = gaussian(32, 96)
    parts = chosen.encode(w_BOI)
    codes, step_O = best_for_each_row(rotated(w_BOI)[0], 31)
    assert torch.equal(parts["codes"][0], codes) and torch.equal(parts["scale"][0], step_O)


# Bytes of the model that logs and READMEs name; what the file of the code takes is left out where it is known.
PUBLISHED = {
    "baseline_naive": (15_815_847, 0.01),
    "pr584_baseline": (15_487_414, 0.01),
    "pr401": (15_810_000, 0.03),
    "pr401_squared": (15_090_000, 0.02),
    "pr401_swiglu": (19_600_000, 0.01),
    "pr401_f1": (20_577_000, 0.02),
    "pr401_share": (16_610_000, 0.02),
}


@pytest.mark.parametrize("experiment", quick(("baseline_naive", "pr584_baseline", "pr401_f1"), PUBLISHED))
def test_plans_foretell_published_sizes(experiment: str) -> None:
    size, within = PUBLISHED[experiment]
    predicted = outline(run_of_line("track=h100x8", f"experiment={experiment}")).artifact_bytes
    assert predicted == pytest.approx(size, rel=within)
