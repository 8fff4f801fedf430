"""Checks for the __post_init__ of config dataclasses. Messages begin with `field=value`; typed() adds the key path."""

import math
from types import MappingProxyType

from golf.suggestions import hint

LARGEST = 2**53  # beyond it floats are not whole any more, and nothing here counts so far
OPERATIONAL = MappingProxyType({"operational": True})  # metadata of a field that changes how, not what: not in identity


def one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        near = hint(str(value), choices)
        raise ValueError(f"{field}={value!r} is not a choice; use one of {', '.join(choices)}{near}")


def positive(**values: float | None) -> None:
    """Raise ValueError for the first value that is not a finite number above zero; None (absent) passes.

    Whole numbers have a largest one, LARGEST.
    """
    for field, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{field}={value} is not positive; set it to a finite number above 0")
        if isinstance(value, int) and value > LARGEST:
            raise ValueError(f"{field}={value} is too large; set it to {LARGEST} or less")


def between(low: float, high: float, **values: float | None) -> None:
    """Raise ValueError for the first value outside low .. high, NaN included; None (absent) passes."""
    for field, value in values.items():
        if value is not None and not low <= value <= high:
            near = low if value < low else high
            raise ValueError(f"{field}={value} must lie in {low:.10g} .. {high:.10g}; try {field}={near:.10g}")
