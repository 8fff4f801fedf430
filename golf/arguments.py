"""Command lines of key=value words, for the doors that compose nothing."""

from collections.abc import Sequence

from golf.errors import UserError


def key_values(arguments: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """{key: value}. Raises UserError for a word that is not key=value, for a key that is unknown or given twice."""
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in keys:
            raise UserError(f"{argument}: takes {', '.join(keys)}, each as key=value")
        if key in given:
            raise UserError(f"{key} is given twice ({key}={given[key]} and {argument}); keep one")
        given[key] = value
    return given


def switched_on(given: dict[str, str], key: str) -> bool:
    """Whether key=true was given. Raises UserError for anything but true and false."""
    value = given.get(key, "false")
    if value not in ("true", "false"):
        raise UserError(f"{key}={value}: true or false")
    return value == "true"
