"""Main effects of a full grid, against sums by hand."""

import pytest

from golf.reports.factors import factors_of


def test_shares_of_a_grid_add_up() -> None:
    """epochs move the score by 3, stride by 1, and one cell by 0.4 more."""
    rows = [
        ({"epochs": epochs, "stride": stride, "label": f"{epochs}{stride}", "seed": 1}, score)
        for epochs, stride, score in ((3, 64, 1.0), (3, 32, 2.0), (8, 64, 4.0), (8, 32, 5.4))
    ]
    epochs, stride, together = factors_of(rows)
    assert epochs.key == "epochs" and epochs.means == pytest.approx({"3": 1.5, "8": 4.7})
    assert stride.means == pytest.approx({"64": 2.5, "32": 3.7})
    whole = sum((score - 3.1) ** 2 for score in (1.0, 2.0, 4.0, 5.4))
    assert epochs.share == pytest.approx(4 * 1.6**2 / whole) and stride.share == pytest.approx(4 * 0.6**2 / whole)
    assert together.key == "together" and together.share == pytest.approx(4 * 0.1**2 / whole)


@pytest.mark.parametrize("rows", [[], [({"a": 1, "b": 1}, 1.0), ({"a": 2, "b": 1}, 2.0), ({"a": 1, "b": 2}, 1.5)]])
def test_rows_that_are_no_grid_have_no_factors(rows: list) -> None:
    assert factors_of(rows) == factors_of([*rows, ({"a": 3, "b": 3}, 1.0)]) == []
