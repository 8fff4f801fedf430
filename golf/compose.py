"""From conf/ to a typed Run: what the Hydra door, tests and benchmarks share. Only doors import this file."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from golf.config import Run
from golf.errors import UserError
from golf.rundir import ROOT
from golf.typed import typed

VERSION_BASE = "1.3"
CONF = ROOT / "conf"


def run_of(config: DictConfig, choices: Mapping[str, str | None]) -> Run:
    """The typed run of a composed configuration; choices: group -> option, for the label where none is given."""
    node = OmegaConf.to_container(config, resolve=True)
    assert isinstance(node, dict)
    if node.get("label") is None:
        node["label"] = choices.get("experiment") or f"{choices.get('model')}-{choices.get('quant')}"
    return typed(node, "", Run)


def run_of_whole(config: DictConfig) -> Run:
    """The typed run of a configuration that still has its `hydra` node; the node is taken out."""
    choices = dict(config.hydra.runtime.choices)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return run_of(config, choices)


@contextmanager
def composing(arguments: Sequence[str]) -> Iterator[None]:
    """Whatever is wrong with a composition leaves as a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(one_line(error, arguments)) from None


def compose_whole(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose conf/ outside of Hydra's own main; the configuration still has its `hydra` node."""
    register_resolvers()
    GlobalHydra.instance().clear()
    with composing(overrides), initialize_config_dir(str(CONF), version_base=VERSION_BASE):
        return hydra_compose("config", overrides=list(overrides), return_hydra_config=True)


def compose(overrides: Sequence[str] = ()) -> Run:
    """The typed run of command-line overrides. Raises as the command line would."""
    config = compose_whole(overrides)
    with composing(overrides):
        return run_of_whole(config)


def one_line(error: Exception, arguments: Sequence[str]) -> str:
    """The message of a composition error, with the offending argument and without Hydra's advice to append it."""
    unknown = re.search(r"Could not override '([^']+)'", str(error))
    if unknown:
        given = next((a for a in arguments if a.lstrip("+~").startswith(unknown[1])), unknown[1])
        if (CONF / unknown[1].replace(".", "/")).is_dir():
            return f"{given}: {unknown[1]} has no default to change; add it, with +{given.lstrip('+')}"
        return f"{given}: there is no key {unknown[1]}; --cfg job prints every key there is"
    several = re.search(r"Ambiguous value for argument '([^']+)'", str(error))
    if several:
        key, _, values = several[1].partition("=")
        return (
            f"{several[1]}: several values; add -m to sweep over them, or write {key}=[{values}] for a list, "
            f"{key}='{values}' for a text"
        )
    resolving = re.search(r"ValueError raised while resolving interpolation: (.*)", str(error))
    if resolving:
        return resolving[1]
    if not isinstance(error, HydraException | OmegaConfBaseException):  # Hydra stumbled over a group's value
        groups = [a for a in arguments if "." not in a.split("=")[0] and re.search(r"=(null|\[.*\])?$", a)]
        return f"{' '.join(groups) or error}: a group takes the name of one of its options; --help lists them"
    message = str(error).split("Config search path:")[0]  # where Hydra looked is no help, and long
    return " ".join(line.strip() for line in message.splitlines() if line.strip())


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
