"""Checks for the __post_init__ of config dataclasses. Messages begin with `field=value`; typed() adds the key path."""


def one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{field}={value!r} is not a choice; use one of {', '.join(choices)}")


def positive(**values: float | None) -> None:
    """Raise ValueError for the first value that is zero or less; None (absent) passes."""
    for field, value in values.items():
        if value is not None and value <= 0:
            raise ValueError(f"{field}={value} is not positive; set it above 0")
