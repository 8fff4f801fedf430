"""Reads conf/ without Hydra: YAML files, the resolvers of ${width:512}, and one part of the configuration alone."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from golf.code_record import ROOT
from golf.errors import UserError
from golf.typed import typed

CONF = ROOT / "conf"
FULL_SIZE = {"width": 1.0, "depth": 1.0, "batch": 1.0, "steps": 1.0, "seq": 1.0}

TAB = re.compile(r"^ *\t", re.MULTILINE)
TABS = "; a line begins with a tab, and YAML is indented with blanks"

Stamp = tuple[int, int]  # a file's modification time in nanoseconds and its size in bytes


def stamp_of(path: str | Path) -> Stamp:
    """Return what tells whether a file has changed."""
    state = os.stat(path)
    return state.st_mtime_ns, state.st_size


TEXT = "tag:yaml.org,2002:str"
NOT_TEXT = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null")}


@cache
def _loader_class() -> type:
    """Return omegaconf's YAML loader (its numbers, no dates, no key twice) on libyaml's parser where PyYAML has it.

    Keys are texts as they are written: a row may be called `on`, `null` or `1e3`.
    """
    pure_python: Any = get_yaml_loader()

    class Loader(pure_python):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if isinstance(key, yaml.ScalarNode) and key.tag in NOT_TEXT:
                    key.tag = TEXT
            return super().construct_mapping(node, deep=deep)

    if not yaml.__with_libyaml__:
        return Loader
    from yaml.cyaml import CParser

    class FastLoader(CParser, Loader):
        def __init__(self, stream: Any):
            CParser.__init__(self, stream)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

    return FastLoader


def parse(text: str) -> Any:
    """Return the value of a YAML text, as OmegaConf.load reads it, but for its keys."""
    return yaml.load(text, Loader=_loader_class())


def read_yaml(path: str | Path) -> tuple[str, DictConfig]:
    """Return the text of a YAML file and what it holds, which is empty where the file is.

    Raises UserError, with the file and the line, where it is no such file.
    """
    text = _text_of(path)
    try:
        value = parse(text)
        config = OmegaConf.create({} if value is None else value) if isinstance(value, dict | None) else None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        reason = f"{error.problem}{TABS if TAB.search(text) else ''}"
        raise UserError(f"{path}: cannot be read as YAML: line {line}: {reason}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{path}: cannot be read as YAML: line {line}: {error.reason}") from None
    except OmegaConfBaseException as error:
        key = str(getattr(error, "key", None) or getattr(error, "full_key", None) or "")
        lines = [
            number for number, line in enumerate(text.splitlines(), 1) if key and line.strip().startswith(f"{key}:")
        ]
        at = f"line {lines[0]}: " if lines else ""
        raise UserError(f"{path}: cannot be read as YAML: {at}{str(error).splitlines()[0]}") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as YAML: {reason}") from None
    if config is None:
        raise UserError(f"{path}: is no mapping; a file of conf/ holds lines of key: value")
    return text, config


def _text_of(path: str | Path) -> str:
    """Return a UTF-8 file as text, without a byte order mark. Raises UserError where it is none."""
    try:
        blob = Path(path).read_bytes()
        return blob.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = blob.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: cannot be read as YAML: line {line}: is not UTF-8 ({error.reason})") from None


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
    a count of elements of a width x width matrix; horizon: of a decay a step, 1/(1 - decay) steps, not rounded.
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

    def horizon(decay: Any, *, _root_: Any) -> float:
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise ValueError(f"{decay!r} is no decay of a step; write one of 0 or more and below 1, such as 0.997")
        return max(1.0, 1 / (1 - decay) * number("scale.steps", _root_.scale.steps))

    register("width", "width", 16)
    register("depth", "depth", 1)
    register("steps", "steps", 1)
    register("seq", "seq", 16)
    register("area", "width", 1, power=2)
    OmegaConf.register_new_resolver("batch", batch, replace=True)
    OmegaConf.register_new_resolver("horizon", horizon, replace=True)


@contextmanager
def no_variables() -> Iterator[None]:
    """Within the context no ${oc.env:NAME} is filled in: the words or files of somebody's run may ask for secrets."""
    OmegaConf.register_new_resolver("oc.env", _refused, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _refused(name: str, *default: Any) -> Any:
    raise ValueError(f"${{oc.env:{name}}} of a run's own command or files is not filled in; write what it stands for")
