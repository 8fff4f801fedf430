"""Lines of the public threads, `SEED=1337 NUM_LAYERS=11 torchrun ... train_gpt.py`, as golf's overrides.

What a variable means stands in recipes.yaml; nothing of a script is run.
"""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from golf.compose import compose_whole
from golf.conf_files import CONF
from golf.errors import UserError
from golf.suggestions import hint

TABLE = Path(__file__).with_name("recipes.yaml")
BY_RANKS = {1: ["track=h100x1"], 8: ["track=h100x8"]}
OFF = ("0", "", "false", "False")


@dataclass(frozen=True, kw_only=True, slots=True)
class Translation:
    """overrides: golf's command line; unknown: variables that no rule takes, as they were given."""

    overrides: list[str]
    unknown: list[str]


def from_environment(line: str, base: str | None = None) -> Translation:
    """Translate a line. base: the experiment that the script is without any variable (None: by the script's name, else
    baseline_naive). Raises UserError for a value that can't be meant, or a rule that lacks another variable."""
    table = yaml.safe_load(TABLE.read_text())
    given, words = _split(line)
    known = {name for rule in table["rules"] for name in [*rule["when"], *rule.get("unless", [])]}
    off = {name for name in table["inert"] if given.get(name, "0") in OFF}
    overrides = [*_track(words), f"experiment={_base(words, base, table['scripts'])}"]
    config = compose_whole(overrides)
    scripts_own = {
        "NUM_LAYERS": str(config.model.layers),
        "MODEL_DIM": str(config.model.dim),
        "NUM_HEADS": str(config.model.mixer.heads),
    }
    parts = {group: list(OmegaConf.select(config, place)) for group, place in table["places"].items()}
    return Translation(
        overrides=[*overrides, *_translated(given, scripts_own, parts, table)],
        unknown=[f"{name}={value}" for name, value in given.items() if name not in known | off],
    )


def _split(line: str) -> tuple[dict[str, str], list[str]]:
    """(variables, the rest of the words)."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UserError(f"from_env={line}: is no command line ({error})") from None
    given: dict[str, str] = {}
    rest = []
    for word in words:
        match = re.fullmatch(r"([A-Z][A-Z0-9_]*)=(.*)", word)
        if match is None:
            rest.append(word)
        elif match[1] in given:
            raise UserError(f"from_env: {match[1]} is given twice; keep one")
        else:
            given[match[1]] = match[2]
    return given, rest


def _track(words: list[str]) -> list[str]:
    counts = [match[1] for word in words if (match := re.fullmatch(r"--nproc[_-]per[_-]node=(\d+)", word))]
    nproc = int(counts[-1]) if counts else 8
    return BY_RANKS.get(nproc, ["track=h100x8", f"launch.nproc={nproc}"])


def _base(words: list[str], base: str | None, scripts: dict[str, str]) -> str:
    named = [experiment for word in words for end, experiment in scripts.items() if word.endswith(end)]
    chosen = base or (named[0] if named else "baseline_naive")
    if not (CONF / "experiment" / f"{chosen}.yaml").exists():
        near = hint(chosen, [path.stem for path in (CONF / "experiment").glob("*.yaml")])
        raise UserError(f"base={chosen}: no such experiment; see conf/experiment{near}")
    return chosen


def _translated(
    given: dict[str, str], scripts_own: dict[str, str], there: dict[str, list[str]], table: dict[str, Any]
) -> list[str]:
    """Overrides of the rules that hold. scripts_own: values that the script has by itself; there: group -> the parts
    that the experiment has."""
    on = {name for name, value in given.items() if name not in table["switches"] or value not in OFF}
    settings: dict[str, str] = {}
    parts = {group: list(names) for group, names in there.items()}
    for rule in table["rules"]:
        if not set(rule["when"]) <= on or set(rule.get("unless", [])) & on:
            continue
        for group, part in rule.get("part", {}).items():
            parts[group] += [part] if part not in parts[group] else []
        for key, template in rule.get("set", {}).items():
            settings[key] = _filled(template, scripts_own | given, rule["when"])
    groups = {key: value for key, value in settings.items() if (CONF / key).is_dir()}
    values = {key: value for key, value in settings.items() if key not in groups}
    lists = {group: f"[{','.join(names)}]" for group, names in parts.items() if names != there[group]}
    return [f"{key}={value}" for key, value in {**groups, **lists, **values}.items()]


def _filled(template: str, given: dict[str, str], needed_by: list[str]) -> str:
    def value(match: re.Match[str]) -> str:
        name, function = match[1], match[2]
        if name not in given:
            raise UserError(f"from_env: {needed_by[0]}={given[needed_by[0]]} wants {name} too; add it to the line")
        try:
            return FUNCTIONS[function](given[name], given) if function else given[name]
        except (ValueError, ZeroDivisionError):
            raise UserError(f"from_env: {name}={given[name]}: is no number that {name} can be") from None

    return re.sub(r"\{(\w+)(?:\|(\w+))?\}", value, template)


def _decimal(value: str, given: dict[str, str]) -> str:
    return str(float(value))


def _horizon(value: str, given: dict[str, str]) -> str:
    """A decay of 0.997 forgets over 333.3 steps."""
    return str(1 / (1 - float(value)))


def _of_head(value: str, given: dict[str, str]) -> str:
    """Channels that turn, as a share of a head's."""
    return str(int(value) / (int(given["MODEL_DIM"]) // int(given["NUM_HEADS"])))


FUNCTIONS: dict[str, Callable[[str, dict[str, str]], str]] = {
    "decimal": _decimal,
    "horizon": _horizon,
    "of_head": _of_head,
}
