"""Every format on zero, constant, tiny and huge weights, alone and mixed: what is stored is what was trained."""

import contextlib
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.errors import RunError
from golf.nodes import configs
from golf.quant.formats import FloatConfig, FormatConfig, IntConfig
from golf.quant.lqer import LQERConfig
from golf.quant.pruning import PrunedConfig
from golf.quant.quantizer import QuantConfig
from golf.quant.rotation import RotatedConfig, rotated
from golf.quant.rounding import PLAIN, How, NearestConfig
from golf.quant.salient import SalientConfig
from golf.quant.steps import LeastErrorConfig, MaxAbsConfig, MeanAbsConfig, QuantileConfig, SearchConfig
from golf.quant.ternary import FewValuesConfig
from tests.helpers.quant import QUANTS, quant_of, row_int

ROWS, COLUMNS = 8, 128
LEAST = 2.0**-24  # the smallest number of fp16
NAME = "stack.blocks.0.mlp.up.weight"


def weights() -> dict[str, Tensor]:
    """Return w_OI by what they are."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(ROWS, COLUMNS, generator=generator)
    whole = torch.randint(-40, 41, (ROWS, COLUMNS), generator=generator) * LEAST
    one, rows, mixed = torch.zeros(ROWS, COLUMNS), normal.clone(), normal.clone()
    one[:, 3] = 0.7
    rows[::2] = 0.0
    mixed[:, ::4], mixed[:, 1::4], mixed[:, 2::4] = LEAST, 0.0, 3e4 * normal[:, 2::4].sign()
    steps = normal / normal.abs().amax(1, keepdim=True)
    return {
        "zero": torch.zeros(ROWS, COLUMNS),
        "constant": torch.full((ROWS, COLUMNS), -0.37),
        "the least of fp16": torch.full((ROWS, COLUMNS), LEAST),
        "below fp16": normal * LEAST / 100,
        "a few of the least": whole,
        "steps among the subnormal": steps * 31 * 1.49 * LEAST,
        "normal": normal,
        "rows of zeros between": rows,
        "one column": one,
        "tiny, zero and large in a row": mixed,
        "large": 1e5 * normal,
        "huge in one row": torch.cat((normal[:1] * 1e5, normal[1:])),
    }


WEIGHTS = weights()


def formats_of(quant: str) -> dict[str, FormatConfig]:
    """Return a quantiser's formats, whose small tensors are as large ones."""
    chosen = quant_of(quant)
    for _, config in configs(chosen):
        if isinstance(config, IntConfig):
            config.half_below = None
    return chosen.formats


FORMATS: dict[str, FormatConfig] = {
    f"{quant}.{name}": chosen for quant in QUANTS for name, chosen in formats_of(quant).items()
}
FORMATS |= {
    "two values": FewValuesConfig(values=2, group=32, packed=True, shrinkage_fix=True),
    "two values as they are": FewValuesConfig(values=2, group=32, packed=False, shrinkage_fix=False),
    "three values": FewValuesConfig(values=3, group=32, packed=False, shrinkage_fix=False),
    "groups": IntConfig(bits=4, steps=quant_of("int6").formats["int6"].steps, per="group", group=16, half_below=None),
    "a tensor": IntConfig(
        bits=8, steps=quant_of("int6").formats["int6"].steps, per="tensor", group=None, half_below=None
    ),
    "least error": row_int(5, LeastErrorConfig(candidates=20)),
    "mean": row_int(6, MeanAbsConfig(factor=3.0)),
    "median": row_int(6, QuantileConfig(quantile=0.5, floor=None)),
    "search for a row": row_int(6, SearchConfig(quantiles=[0.6, 0.9], over="row", floor=None)),
}
DISTINCT = {repr(chosen): name for name, chosen in reversed(FORMATS.items())}


def grid_of(chosen: FormatConfig) -> IntConfig | None:
    """Return the integer grid within a format whose values are those of the grid, None where it has none."""
    inner: Any = chosen
    while isinstance(inner, RotatedConfig | SalientConfig):
        inner = inner.inner
    return inner if isinstance(inner, IntConfig) else None


def assert_no_further_than_half_a_step(chosen: FormatConfig, w_OI: Tensor, parts: dict[str, Tensor]) -> None:
    grid = grid_of(chosen)
    if isinstance(chosen, FloatConfig):
        assert torch.equal(chosen.decode(parts, (ROWS, COLUMNS))[0], w_OI.to(parts["value"].dtype).float())
    if grid is None:
        return
    w, found = w_OI, chosen.decode(parts, (ROWS, COLUMNS))[0]
    if isinstance(chosen, RotatedConfig):
        w, found = rotated(w[None])[0], rotated(found[None])[0]
    step = parts["scale"][0].float()[:, None]
    w, found = w.reshape(len(step), -1), found.reshape(len(step), -1)
    unclipped = w.abs() <= grid.limit * step
    error = (found - w).abs()
    room = 1e-5 * w.abs().amax() if isinstance(chosen, RotatedConfig) else 1e-6 * w.abs()
    assert (error <= 0.5 * step + room)[unclipped].all()
    if isinstance(grid.steps, MaxAbsConfig):
        assert (w.abs() <= (grid.limit + 0.5) * step + room).all(), "the maximum is the last code"


@pytest.mark.parametrize("name", DISTINCT.values())
def test_what_is_stored_is_what_was_trained(name: str) -> None:
    chosen = FORMATS[name]
    for kind, w_OI in WEIGHTS.items():
        w_B = w_OI[None]
        parts = chosen.encode(w_B)
        found = chosen.decode(parts, (ROWS, COLUMNS))
        assert found.isfinite().all() and all(part.isfinite().all() for part in parts.values()), kind
        if saturates(parts):  # which is refused where it would be stored
            assert kind.startswith(("large", "huge", "tiny, zero and large")), kind
            continue
        if kind == "zero":
            assert torch.equal(found, w_B)
        assert found.abs().max() <= 2.1 * w_OI.abs().max(), kind
        if not isinstance(chosen, PrunedConfig | LQERConfig):
            assert_no_further_than_half_a_step(chosen, w_OI, parts)


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("measured", [False, True])
def test_what_no_format_holds_is_refused_by_its_name(quant: str, measured: bool) -> None:
    """1e7 needs steps that fp16 does not have; training sees a finite number all the same."""
    chosen = replace(quant_of(quant), roles=quant_of(quant).roles, names={})
    for _, config in configs(chosen):
        if isinstance(config, IntConfig):
            config.half_below = None
    x = torch.randn(512, COLUMNS, generator=torch.Generator().manual_seed(1))
    hessians = {NAME: x.T @ x / 512, "other": x.T @ x / 512} if measured else {}
    sound = {"other": WEIGHTS["normal"], NAME: WEIGHTS["rows of zeros between"]}
    assert decoded(chosen, sound, hessians).isfinite().all()
    for w_OI in WEIGHTS.values():
        with contextlib.suppress(RunError):
            assert decoded(chosen, {**sound, NAME: w_OI}, hessians).isfinite().all()
    one = WEIGHTS["normal"].clone()
    one[2, 5] = 1e7
    for huge in (torch.full((ROWS, COLUMNS), -1e7), one, 1e7 * WEIGHTS["normal"]):
        format_of_it = chosen.formats[chosen.assign({NAME: "matrix"})[NAME]]
        parts = format_of_it.encode(huge[None])
        assert format_of_it.decode(parts, (ROWS, COLUMNS)).isfinite().all()
        if saturates(parts):
            with pytest.raises(
                RunError, match=rf"^{re.escape(NAME)} can't be stored as quant\.formats\.\w+, which needs"
            ):
                decoded(chosen, {**sound, NAME: huge}, hessians)
        else:
            assert decoded(chosen, {**sound, NAME: huge}, hessians).isfinite().all()


def saturates(parts: dict[str, Tensor]) -> bool:
    """Whether a number of the parts is the largest of fp16, which stands for all that is larger."""
    return any((part.abs() == 65504).any() for part in parts.values() if part.dtype == torch.float16)


def decoded(chosen: QuantConfig, weights: dict[str, Tensor], hessians: dict[str, Tensor]) -> Tensor:
    stored = chosen.quantize(weights, dict.fromkeys(weights, "matrix"), hessians)[NAME]
    shape = tuple(weights[NAME].shape)
    return chosen.formats[stored.format].decode({part: v[None] for part, v in stored.parts.items()}, shape)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_no_number_is_refused_by_its_name(wrong: float) -> None:
    weight = WEIGHTS["normal"].clone()
    weight[1, 1] = wrong
    with pytest.raises(RunError, match=rf"^{re.escape(NAME)} holds infinite numbers"):
        quant_of("int6").quantize({NAME: weight}, {NAME: "matrix"})


def test_vectors_in_half_precision_are_refused_too() -> None:
    chosen = quant_of("int6")
    roles = {"fine": "scalar", "gain": "scalar"}
    chosen.quantize({"fine": torch.tensor([65504.0]), "gain": torch.tensor([65519.0])}, roles)
    with pytest.raises(RunError, match=r"^gain can't be stored as quant\.formats\.fp16, which needs 6\.55e\+04"):
        chosen.quantize({"fine": torch.tensor([65504.0]), "gain": torch.tensor([65520.0])}, roles)


def test_plain_rounding_saturates() -> None:
    """What fake quantisation gives of weights beyond the type is its largest number."""
    assert How(NearestConfig()) == PLAIN and not PLAIN.strict
    assert FloatConfig(dtype="fp16").encode(torch.tensor([[-1e9]]))["value"].item() == -65504
