"""Reads conf/ without Hydra: YAML files, the resolvers of ${width:512}, and one part of the configuration alone."""

import math
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

from golf.errors import UserError
from golf.rundir import ROOT
from golf.typed import typed

CONF = ROOT / "conf"
FULL_SIZE = {"width": 1.0, "depth": 1.0, "batch": 1.0, "steps": 1.0, "seq": 1.0}

Stamp = tuple[int, int]  # a file's modification time in nanoseconds and its size in bytes


def stamp_of(path: str | Path) -> Stamp:
    """Return what tells whether a file has changed."""
    state = os.stat(path)
    return state.st_mtime_ns, state.st_size


@cache
def _loader_class() -> type:
    """Return omegaconf's YAML loader (its numbers, no dates, no key twice) on libyaml's parser where PyYAML has it."""
    pure_python: Any = get_yaml_loader()
    if not yaml.__with_libyaml__:
        return pure_python
    from yaml.cyaml import CParser

    class FastLoader(CParser, pure_python):
        def __init__(self, stream: Any):
            CParser.__init__(self, stream)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

    return FastLoader


def parse(text: str) -> Any:
    """Return the value of a YAML text, as OmegaConf.load reads it."""
    return yaml.load(text, Loader=_loader_class())


def read_yaml(path: str | Path) -> tuple[str, Any]:
    """Return the text and the value of a YAML file. Raises UserError, with the file and the line, where it is none."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        return text, parse(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}: cannot be read as YAML: line {line}: {error.problem}") from None


def load_part(
    name: str, *, scale: Mapping[str, float] | None = None, root: Mapping[str, Any] | None = None, **fields: Any
) -> Any:
    """Build the dataclass of one YAML of conf/: load_part("model/mixer/mla", rope=load_part("model/rope/full")).

    scale: factors of a track that differ from full size; root: what else the file's ${...} refer to, such as
    {"data": {"vocab_size": 384}}; fields: values in place of the file's. Raises UserError for a file that is not there,
    one that is made of others (a defaults list: compose() puts those together) and a wrong value.
    """
    path = CONF / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"{name}: there is no {path}; name a YAML of conf/, such as model/mixer/mla")
    _, node = read_yaml(path)
    if "defaults" in node:
        raise UserError(f"{name}: is made of other files (its defaults list); compose a run with it")
    register_resolvers()
    whole = OmegaConf.create({"scale": {**FULL_SIZE, **(scale or {})}, **(root or {}), "part": node})
    resolved: Any = OmegaConf.to_container(whole.part, resolve=True)
    return typed(resolved | fields, name.replace("/", "."))


# ---------------------------------------------------------------- resolvers


def register_resolvers() -> None:
    """${width:512} and its kin: full-size numbers, scaled by the track's factors.

    width: to a multiple of 16, or of a second argument (${width:640,20}: what ten heads need); depth and steps: whole,
    at least 1, or a second argument (${depth:4,2}); seq: to a multiple of 16; batch: tokens, to whole sequences; area:
    a count of elements of a width x width matrix.
    """

    def number(key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{key}={value!r} is not a positive number; {key}=1 is the full size")
        return float(value)

    def scaled(full: Any, factor: float, unit: int, least: int = 1) -> int:
        return max(least, round(float(full) * factor / unit)) * unit

    def register(name: str, factor: str, unit: int, power: int = 1) -> None:
        def resolve(full: Any, second: Any = None, *, _root_: Any) -> int:
            by = number(f"scale.{factor}", _root_.scale[factor]) ** power
            if second is None:
                return scaled(full, by, unit)
            return scaled(full, by, int(second)) if unit > 1 else scaled(full, by, unit, int(second))

        OmegaConf.register_new_resolver(name, resolve, replace=True)

    def batch(full: Any, *, _root_: Any) -> int:
        length = _root_.batch.sequence_length
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ValueError(f"batch.sequence_length={length!r} is not a length; set a whole number above 0")
        return scaled(full, number("scale.batch", _root_.scale.batch), length)

    register("width", "width", 16)
    register("depth", "depth", 1)
    register("steps", "steps", 1)
    register("seq", "seq", 16)
    register("area", "width", 1, power=2)
    OmegaConf.register_new_resolver("batch", batch, replace=True)
