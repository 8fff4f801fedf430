"""Formats around or beside the integer grid: few values, rotations, low-rank corrections."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from golf.errors import UserError
from golf.quant.formats import FormatConfig
from golf.quant.gptq import GPTQConfig
from golf.quant.lqer import LQERConfig
from golf.quant.pruning import PrunedConfig
from golf.quant.rotation import RotatedConfig, rotated
from golf.quant.rounding import How, NearestConfig, RoundingConfig
from golf.quant.salient import SalientConfig
from golf.quant.ternary import FewValuesConfig, pack, unpack
from tests.helpers.quant import gaussian, row_int


def few(values: int = 3, packed: bool = False, fix: bool = True, group: int = 8) -> FewValuesConfig:
    return FewValuesConfig(values=values, group=group, packed=packed, shrinkage_fix=fix)


def back(chosen: FormatConfig, w_B: Tensor) -> Tensor:
    """There and back, with what a reader is told checked on the way."""
    shape = tuple(w_B.shape[1:])
    parts = chosen.encode(w_B)
    assert {name: (part.dtype, tuple(part.shape[1:])) for name, part in parts.items()} == chosen.layout(shape)
    found = chosen.decode(parts, shape)
    assert found.shape == w_B.shape and found.dtype == torch.float32
    return found


@pytest.mark.parametrize("values", [2, 3])
@pytest.mark.parametrize("count", [1, 5, 8, 23])
def test_packed_codes_come_back(values: int, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    choices = torch.tensor([-1, 1] if values == 2 else [-1, 0, 1], dtype=torch.int8)
    code_BN = choices[torch.randint(len(choices), (3, count), generator=generator)]
    packed = pack(code_BN, values)
    assert packed.shape == (3, -(-count // (8 if values == 2 else 5))) and torch.equal(
        unpack(packed, values, count), code_BN
    )


def test_a_byte_that_is_no_five_trits_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than five trits"):
        unpack(torch.tensor([[243]], dtype=torch.uint8), 3, 5)


@pytest.mark.parametrize("values", [2, 3])
def test_few_values_are_the_group_mean_or_nothing(values: int) -> None:
    w_BOI = gaussian(6, 24, stack=2)
    found, packed = back(few(values, fix=False), w_BOI), back(few(values, packed=True, fix=False), w_BOI)
    assert torch.equal(found, packed)
    groups, mean = found.reshape(-1, 8), w_BOI.reshape(-1, 8).abs().mean(1)
    for group, size, before in zip(groups, mean, w_BOI.reshape(-1, 8), strict=True):
        used = group[group != 0]
        assert torch.allclose(used.abs(), size, rtol=1e-3) and (used.sign() == before[group != 0].sign()).all()
        assert ((before.abs() < size / 2 * 1.01) | (group != 0)).all()
    assert (found == 0).any() == (values == 3)


def test_the_shrinkage_fix_makes_a_second_time_change_nothing() -> None:
    w_BOI = gaussian(6, 24, stack=2)
    once = back(few(), w_BOI)
    torch.testing.assert_close(back(few(), once), once, rtol=2e-3, atol=0)
    shrunk = back(few(fix=False), w_BOI)
    assert not torch.allclose(back(few(fix=False), shrunk), shrunk, rtol=2e-3)
    torch.testing.assert_close(
        once.reshape(-1, 8).abs().mean(1), w_BOI.reshape(-1, 8).abs().mean(1), rtol=2e-3, atol=1e-6
    )


def test_groups_must_divide_rows() -> None:
    with pytest.raises(UserError, match="groups of 7 columns"):
        few(group=7).layout((6, 24))


@pytest.mark.parametrize("rows", [1, 2, 8, 12, 7])
def test_rotations_keep_lengths_and_undo_themselves(rows: int) -> None:
    w_BOI = gaussian(rows, 5, stack=2)
    turned = rotated(w_BOI)
    torch.testing.assert_close(rotated(turned), w_BOI)
    torch.testing.assert_close(turned.square().sum((1, 2)), w_BOI.square().sum((1, 2)))
    assert torch.equal(turned, w_BOI) == (rows % 2 == 1)
    if rows == 2:
        sums = torch.stack((w_BOI[:, 0] + w_BOI[:, 1], w_BOI[:, 0] - w_BOI[:, 1]), dim=1) / 2**0.5
        torch.testing.assert_close(turned, sums)


def test_rotated_rows_spread_an_outlier() -> None:
    w_BOI = gaussian(16, 64)
    w_BOI[0, 3] *= 20
    plain, mixed = row_int(4), RotatedConfig(inner=row_int(4))
    spread = [back(chosen, w_BOI) - w_BOI for chosen in (plain, mixed)]
    assert spread[1][0, 3].square().sum() < 0.5 * spread[0][0, 3].square().sum()


def test_a_correction_takes_the_largest_part_of_the_error() -> None:
    generator = torch.Generator().manual_seed(0)
    w_BOI = gaussian(24, 40, stack=2)
    low = torch.randn(2, 24, 1, generator=generator) @ torch.randn(2, 1, 40, generator=generator)
    coarse = row_int(3)
    class_of = LQERConfig(inner=coarse, rank=2, group=16)
    errors = [(back(chosen, w_BOI + 0.3 * low) - w_BOI - 0.3 * low).square().sum() for chosen in (coarse, class_of)]
    assert errors[1] < 0.9 * errors[0]
    parts = class_of.encode(w_BOI)
    assert parts["a"].min() >= -2 and parts["a"].max() <= 1 and parts["b"].min() >= -8 and parts["b"].max() <= 7
    exact = w_BOI - coarse.decode(coarse.encode(w_BOI), (24, 40))
    u, _, v = torch.linalg.svd(exact[0])
    a_Or = (parts["a"].float() * parts["a_scale"].float()[:, :, None])[0]
    b_rI = parts["b"][0].float().view(2, 40)
    for vector in range(2):
        for found, exact in ((a_Or[:, vector], u[:, vector]), (b_rI[vector], v[vector])):
            assert torch.nn.functional.cosine_similarity(found, exact, dim=0).abs() > 0.85, "in the order of s"


def test_what_cannot_nest_is_refused() -> None:
    correction = LQERConfig(inner=row_int(), rank=2, group=8)
    with pytest.raises(ValueError, match="inner: has a correction"):
        LQERConfig(inner=correction, rank=2, group=8)
    by_group = replace(row_int(5), per="group", group=4)
    with pytest.raises(ValueError, match="inner: salient columns of steps by group"):
        PrunedConfig(inner=SalientConfig(inner=by_group, columns=4), share=0.1)


def test_salient_columns_of_steps_by_group_come_back() -> None:
    chosen = SalientConfig(inner=replace(row_int(5), per="group", group=4), columns=4)
    w_BOI = gaussian(8, 12, stack=2)
    assert (back(chosen, w_BOI) - w_BOI).abs().max() < 0.2


@pytest.mark.parametrize(
    "chosen",
    [
        few(),
        RotatedConfig(inner=row_int()),
        LQERConfig(inner=row_int(), rank=2, group=8),
        SalientConfig(inner=row_int(), columns=2),
        PrunedConfig(inner=row_int(), share=0.5),
    ],
)
def test_vectors_stay_in_half_precision(chosen: FormatConfig) -> None:
    vector = torch.linspace(-1, 1, 9)[None]
    assert torch.equal(back(chosen, vector), vector.half().float())


GPTQ = GPTQConfig(damping=0.01, block=4, order="descending")


@pytest.mark.parametrize("rounding", [NearestConfig(), GPTQ])
def test_salient_columns_are_finer_in_the_same_rounding(rounding: RoundingConfig) -> None:
    """Each tensor of the stack has its own group: strong inputs of the first, large weights of the second."""
    w_BOI = gaussian(6, 10, stack=2)
    w_BOI[1, :, :4] *= 3
    w_BOI[1, :, 8:] *= 9  # no whole group
    power_BI = torch.ones(2, 10)
    power_BI[0, 4:8] = 50
    chosen = SalientConfig(inner=row_int(5), columns=4)
    parts = chosen.encode(w_BOI, How(rounding, torch.diag_embed(power_BI)))
    assert parts["salient"].tolist() == [[1], [0]]
    found = chosen.decode(parts, (6, 10))
    step_BO1 = parts["scale"].float()[:, :, None]
    for one, group in enumerate(parts["salient"].flatten().tolist()):
        finer = torch.where(torch.arange(10) // 4 == group, 8, 1)
        expected = (w_BOI[one] / (step_BO1[one] / finer)).round().clamp(-15 * finer, 15 * finer)
        chosen_I = finer > 1
        assert torch.equal(parts["fine"][one].float(), expected[:, chosen_I]), "a diagonal Hessian owes nothing"
        assert torch.equal(parts["codes"][one].float(), expected[:, ~chosen_I])
        assert torch.equal(found[one], expected * step_BO1[one] / finer)
    assert parts["fine"].abs().amax() > 15 >= parts["codes"].abs().amax()


def test_salient_columns_take_part_in_what_gptq_owes() -> None:
    """The salient group is rounded with GPTQ's own compensation: the outputs err less than by either part alone."""
    generator = torch.Generator().manual_seed(3)
    x_NI = torch.randn(200, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    hessian_BII = (x_NI.T @ x_NI / 200)[None]
    w_BOI = gaussian(8, 16)

    def error(chosen: FormatConfig, rounding: RoundingConfig) -> float:
        e = w_BOI - chosen.decode(chosen.encode(w_BOI, How(rounding, hessian_BII)), (8, 16))
        return float(((e @ hessian_BII) * e).sum())

    plain, salient = row_int(4), SalientConfig(inner=row_int(4), columns=4)
    assert error(salient, GPTQ) < min(error(plain, GPTQ), error(salient, NearestConfig()))


def test_a_salient_group_that_is_not_there_is_refused() -> None:
    chosen = SalientConfig(inner=row_int(5), columns=4)
    parts = chosen.encode(gaussian(6, 10))
    for group in (-1, 2):
        with pytest.raises(ValueError, match="beyond"):
            chosen.decode(parts | {"salient": torch.tensor([[group]], dtype=torch.int16)}, (6, 10))
    with pytest.raises(ValueError, match="finer"):
        SalientConfig(inner=row_int(8), columns=4)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_ones_of_the_smallest_steps_are_pruned(share: float) -> None:
    w_BOI = gaussian(12, 20, stack=2) * torch.linspace(0.1, 2, 12)[:, None]
    w_BOI[:, :, 0] *= 4
    whole = row_int(5).encode(w_BOI)
    kept = PrunedConfig(inner=row_int(5), share=share).encode(w_BOI)
    assert torch.equal(kept["scale"], whole["scale"])
    for before, after, step_O in zip(whole["codes"], kept["codes"], whole["scale"], strict=True):
        gone, ones = before != after, before.abs() == 1
        assert gone.sum() == int(share * ones.sum()) and not (gone & ~ones).any() and (after[gone] == 0).all()
        steps = step_O[:, None].expand_as(before)
        if 0 < share < 1:
            assert gone.any() and steps[gone].max() <= steps[ones & ~gone].min()
