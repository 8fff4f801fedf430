"""Which classes a configuration may name: golf's own, and those of packages that the user named on this machine.

A name comes out of a file, and the file may be somebody else's: a run folder, an artifact, a command.txt. So nothing is
imported but a module that stands in golf's own folder, or in a package of GOLF_PACKAGES.
"""

import dataclasses
import importlib
import os
import re
import typing
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

VARIABLE = "GOLF_PACKAGES"
GOLF = Path(__file__).resolve().parent
DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")


def registered() -> tuple[str, ...]:
    """Return the packages of GOLF_PACKAGES, names with commas: where else than in golf config classes may stand."""
    return tuple(name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip())


def config_class(target: Any, within: Sequence[str] = ()) -> type:
    """Import and return the config dataclass that a file names by its import path.

    within: the packages of golf that it may stand in, beside those that the user registered; none: all of golf. Raises
    ValueError, which says what is wrong with the name; a module outside of these is not imported.
    """
    if not isinstance(target, str) or not DOTTED.fullmatch(target):
        raise ValueError("not the import path of a class; name a config dataclass, such as golf.models.lm.LMConfig")
    allowed = (*(within or ("golf",)), *registered())
    if not any(target.startswith(f"{package}.") for package in allowed):
        own = f"; {VARIABLE}={target.split('.')[0]} registers that package, if it is yours" * (target[:5] != "golf.")
        raise ValueError(f"not in {' or '.join(allowed)}, and nothing else is imported{own}")
    return _imported(target)


@cache
def _imported(target: str) -> type:
    module_name, _, name = target.rpartition(".")
    if module_name.split(".")[0] == "golf":
        file = GOLF.joinpath(*module_name.split(".")[1:]).with_suffix(".py")
        if not file.is_file():
            raise ValueError(f"cannot be imported (golf has no module {module_name}); name a config dataclass")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot be imported ({_where(error)}{reason}); name a config dataclass") from None
    cls = vars(module).get(name)
    own = isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == module_name
    # what has a field of any type is made by code: its values would not be checked
    if not own or Any in typing.get_type_hints(cls).values():
        raise ValueError("not a config dataclass; name one, such as golf.models.lm.LMConfig")
    return typing.cast(type, cls)


def _where(error: BaseException) -> str:
    """Return the file and line that an import failed in."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: "
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    file = last.tb_frame.f_code.co_filename if last is not None else "<frozen"
    return "" if last is None or file.startswith("<frozen") else f"{file}, line {last.tb_lineno}: "
