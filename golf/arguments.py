"""Command lines of the doors that compose nothing: key=value words, and argparse's in one line."""

import argparse
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from golf.errors import UserError
from golf.suggestions import did_you_mean, hint


def print_help(arguments: Sequence[str], usage: str) -> bool:
    """Print what a door is for, or golf's version, where that is asked for or nothing is; return whether it was."""
    if "--version" in arguments:
        print(f"golf {version('golf')}")
        return True
    if not arguments or {"-h", "--help"} & set(arguments):
        print(usage)
        return True
    return False


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors of one line, with the option that is near to an unknown one."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.add_argument("--version", action="version", version=f"golf {version('golf')}")

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"(?:unrecognized arguments: |invalid choice: ')([\w-]+)", message)
        names = [name for action in self._actions for name in [*action.option_strings, *(action.choices or ())]]
        near = did_you_mean(wrong[1], names) if wrong else ""
        raise UserError(f"{message}; {near}{self.prog} --help says what there is")


def key_values(arguments: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """{key: value}. Raises UserError for a word that is not key=value, for a key that is unknown or given twice."""
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in keys:
            near = hint(key.lstrip("-"), keys)
            raise UserError(f"{argument}: takes {', '.join(keys)}, each as key=value{near}")
        if value in ("None", "null", "NULL", ""):
            raise UserError(f"{argument}: is a text here; leave {key} out where there is none")
        if key in given:
            raise UserError(f"{key} is given twice ({key}={given[key]} and {argument}); keep one")
        given[key] = value
    return given


def one_of(key: str, value: str, choices: Sequence[str]) -> str:
    """Return the value of a key. Raises UserError where it is none of `choices`."""
    if value not in choices:
        raise UserError(f"{key}={value}: {' or '.join(choices)}{hint(value, choices)}")
    return value


def switched_on(given: dict[str, str], key: str) -> bool:
    """Whether key=true was given. Raises UserError for anything but true and false."""
    return one_of(key, given.get(key, "false"), ("true", "false")) == "true"
