"""GPTQ against the closed form, column by column, and against rounding to nearest."""

import pytest
import torch
from torch import Tensor

from golf.errors import RunError
from golf.quant.gptq import GPTQConfig, inverse_factor
from golf.quant.grid import round_to_grid

STACK, ROWS, WIDTH, LIMIT = 2, 6, 12, 7


def gptq(damping: float = 0.01, block: int = 128, order: str = "descending") -> GPTQConfig:
    return GPTQConfig(damping=damping, block=block, order=order)


def problem(width: int = WIDTH, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    """w_BOI, step_BO1 and hessian_BII of inputs that hang together and differ in power."""
    generator = torch.Generator().manual_seed(0)
    mix_BII = torch.randn(STACK, width, width, generator=generator) * torch.linspace(0.3, 3, width)
    x_BNI = torch.randn(STACK, 8 * width, width, generator=generator) @ mix_BII
    w_BOI = torch.randn(STACK, rows, width, generator=generator)
    return w_BOI, w_BOI.abs().amax(2, keepdim=True) / LIMIT, x_BNI.transpose(1, 2) @ x_BNI / x_BNI.shape[1]


def output_error(w_BOI: Tensor, code_BOI: Tensor, step_BO1: Tensor, hessian_BII: Tensor) -> Tensor:
    """tr(E H E^T) of each matrix."""
    e_BOI = w_BOI - code_BOI * step_BO1
    return ((e_BOI @ hessian_BII) * e_BOI).sum((1, 2))


def exact(w_OI: Tensor, step_O1: Tensor, hessian_II: Tensor, damping: float, order_I: list[int]) -> Tensor:
    """Fix one column after another at its nearest code; the free ones then take the values that make the least damped
    output error, by the closed form in float64."""
    w_OI, step_O = w_OI.double(), step_O1[:, 0].double()
    h_II = hessian_II.double() + damping * hessian_II.diagonal().mean().double() * torch.eye(len(hessian_II))
    free_OI, code_OI = w_OI.clone(), torch.zeros_like(w_OI)
    for place, column in enumerate(order_I):
        code_OI[:, column] = (free_OI[:, column] / step_O).round().clamp(-LIMIT, LIMIT)
        fixed, left = order_I[: place + 1], order_I[place + 1 :]
        if left:
            e_OF = code_OI[:, fixed] * step_O[:, None] - w_OI[:, fixed]
            free_OI[:, left] = w_OI[:, left] - e_OF @ h_II[fixed][:, left] @ torch.linalg.inv(h_II[left][:, left])
    return code_OI


@pytest.mark.parametrize("damping", [0.01, 0.3])
@pytest.mark.parametrize("order", ["descending", "ascending", "none"])
def test_it_is_the_closed_form(order: str, damping: float) -> None:
    w_BOI, step_BO1, hessian_BII = problem()
    code_BOI = gptq(damping, order=order).round(w_BOI, step_BO1, LIMIT, hessian_BII)
    for w, step, hessian, codes in zip(w_BOI, step_BO1, hessian_BII, code_BOI, strict=True):
        power = hessian.diagonal()
        sign = {"descending": -1, "ascending": 1, "none": 0}[order]
        columns = sorted(range(WIDTH), key=lambda i: sign * power[i].item())
        assert torch.equal(codes.double(), exact(w, step, hessian, damping, columns))


def test_outputs_err_less_than_by_rounding_to_nearest() -> None:
    w_BOI, step_BO1, hessian_BII = problem(64, 40)
    nearest, best, worst = (
        output_error(w_BOI, codes, step_BO1, hessian_BII)
        for codes in (
            round_to_grid(w_BOI, step_BO1, LIMIT),
            gptq().round(w_BOI, step_BO1, LIMIT, hessian_BII),
            gptq(order="ascending").round(w_BOI, step_BO1, LIMIT, hessian_BII),
        )
    )
    assert (best < 0.5 * nearest).all() and (best < worst).all()


@pytest.mark.parametrize("block", [1, 5, 64])
def test_the_block_changes_nothing(block: int) -> None:
    w_BOI, step_BO1, hessian_BII = problem(64, 40)
    codes, whole = (gptq(block=b).round(w_BOI, step_BO1, LIMIT, hessian_BII) for b in (block, 64))
    assert (codes != whole).float().mean() < 0.002, "but for a tie that rounding breaks the other way"


def test_columns_stand_where_they_stood() -> None:
    w_BOI, step_BO1, hessian_BII = problem(16)
    shuffled_I = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    codes = gptq().round(w_BOI, step_BO1, LIMIT, hessian_BII)
    moved = gptq().round(w_BOI[..., shuffled_I], step_BO1, LIMIT, hessian_BII[:, shuffled_I][..., shuffled_I])
    assert torch.equal(moved, codes[..., shuffled_I])


def test_the_factor_is_that_of_the_inverse() -> None:
    _, _, hessian_BII = problem()
    upper_BII = inverse_factor(hessian_BII, 0.1).double()
    damped_BII = hessian_BII.double() + 0.1 * torch.stack([h.diagonal().mean() * torch.eye(WIDTH) for h in hessian_BII])
    torch.testing.assert_close(
        upper_BII.transpose(1, 2) @ upper_BII, torch.linalg.inv(damped_BII), atol=1e-4, rtol=1e-4
    )
    assert torch.equal(upper_BII, upper_BII.triu())


def test_without_a_hessian_it_rounds_to_nearest_and_dead_inputs_cost_nothing() -> None:
    w_BOI, step_BO1, hessian_BII = problem()
    assert torch.equal(gptq().round(w_BOI, step_BO1, LIMIT, None), round_to_grid(w_BOI, step_BO1, LIMIT))
    hessian_BII[0, 3], hessian_BII[0, :, 3] = 0, 0
    codes = gptq().round(w_BOI, step_BO1, LIMIT, hessian_BII)
    assert (codes[0, :, 3] == 0).all() and (codes[1, :, 3] != 0).any()
    alive = [i for i in range(WIDTH) if i != 3]
    alone = gptq().round(w_BOI[:1, :, alive], step_BO1[:1], LIMIT, hessian_BII[:1, alive][..., alive])
    assert torch.equal(codes[:1][..., alive], alone)


def test_steps_by_group_stay_with_their_columns() -> None:
    w_BOI, _, hessian_BII = problem(16)
    step_BOI = w_BOI.unflatten(2, (4, 4)).abs().amax(3, keepdim=True).expand(-1, -1, 4, 4).flatten(2) / LIMIT
    shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(0))  # so that no order is its own inverse
    hessian_BII = hessian_BII[:, shuffled][:, :, shuffled]
    order_I = hessian_BII[0].diagonal().argsort(descending=True, stable=True)
    assert not torch.equal(order_I, order_I.argsort())
    moved = (w_BOI[:1, :, order_I], step_BOI[:1, :, order_I], LIMIT, hessian_BII[:1][:, order_I][:, :, order_I])
    found = gptq(order="descending").round(w_BOI[:1], step_BOI[:1], LIMIT, hessian_BII[:1])
    assert torch.equal(found[:, :, order_I], gptq(order="none").round(*moved))


def test_weights_of_a_dead_input_are_left_to_their_owner() -> None:
    w_BOI = torch.ones(1, 3, 1)
    assert gptq().round(w_BOI, torch.ones(1, 3, 1), LIMIT, torch.zeros(1, 1, 1)).sum() == 0
    assert torch.equal(w_BOI, torch.ones(1, 3, 1))


def test_a_matrix_that_cannot_be_inverted_is_named() -> None:
    w_BOI, step_BO1, hessian_BII = problem()
    with pytest.raises(RunError, match=r"quant\.rounding\.damping=1e-08"):
        gptq(1e-8).round(w_BOI, step_BO1, LIMIT, hessian_BII - 10 * torch.eye(WIDTH))
