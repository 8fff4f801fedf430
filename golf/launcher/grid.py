"""Rows x seeds x what the command line sweeps: the cells of a sweep, as overrides, and the names they get. Pure."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from golf.config import NOT_IDENTITY
from golf.errors import UserError
from golf.suggestions import hint

# Keys that no sweep is named after.
NAMELESS = (NOT_IDENTITY - {"track", "scale", "label"}) | {"seed", "sweep", "hydra"}
PLACES = ("data.path",)  # where a text lies says nothing of what it is
OF_TRACKS = ("track", "scale", "data", "batch", "budget", "compute", "cap_bytes")
NOT_IN_ROWS = ("seed", "label", "sweep_label", "sweep", "hydra")  # a sweep decides these
WORDS = ("null", "true", "false", "inf", "nan")  # more than names to Hydra
LONGEST = 80
ROW_NAME = r"\w[\w.+-]{0,59}"


@dataclass(frozen=True, slots=True)
class Axis:
    """One argument of the command line. key: without + and ~; options: whole overrides, several where it is swept."""

    key: str
    options: tuple[str, ...]

    @property
    def swept(self) -> bool:
        return len(self.options) > 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What a sweep file says. rows: name -> overrides; seeds: registered; control: the row to compare with."""

    purpose: str | None
    control: str | None
    seeds: tuple[int, ...]
    rows: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        at = "hydra.sweeper"
        for name in self.rows:
            if not re.fullmatch(ROW_NAME, name):
                raise UserError(f"{at}.rows.{name}: names a folder; use at most 60 letters, digits and . _ + -")
        for name, line in self.rows.items():
            for override in line:
                if re.split(r"[./@]", key_of(override))[0] in NOT_IN_ROWS:
                    raise UserError(f"{at}.rows.{name}: {override} is the sweep's to set; leave it out of the row")
        if self.control is not None and self.control not in self.rows:
            rows = ", ".join(self.rows) or "(no rows)"
            raise UserError(f"{at}.control={self.control}: not a row; use one of {rows}{hint(self.control, self.rows)}")
        for seed, count in Counter(self.seeds).items():
            if not isinstance(seed, int) or isinstance(seed, bool) or count > 1:
                raise UserError(f"{at}.seeds={list(self.seeds)}: must be different whole numbers")


def key_of(override: str) -> str:
    """`+model.dim=3` -> `model.dim`."""
    return override.split("=", 1)[0].lstrip("+~")


def value_of(override: str) -> str:
    """`label='1e5'` -> 1e5."""
    return override.split("=", 1)[1].strip("'\"")


def quoted(name: str) -> str:
    """As Hydra takes it for a text and not for a number, null or true."""
    return name if re.fullmatch(r"[A-Za-z_][\w-]*", name) and name.lower() not in WORDS else f"'{name}'"


def says_what(key: str) -> bool:
    """Whether a key says what is run; not under which seed or name, where, and how watched."""
    return re.split(r"[./@]", key)[0] not in NAMELESS


def expand(plan: Plan, axes: Sequence[Axis]) -> list[list[str]]:
    """The overrides of every cell, each with its label. The command line wins over rows and over registered seeds.

    Seeds vary slowest: every row has its first score before any has its second. Raises UserError where the command
    line gives all rows one label.
    """
    by_key = {axis.key: axis for axis in axes}
    if plan.rows and "label" in by_key:
        raise UserError(f"{by_key['label'].options[0]}: the rows of a sweep name its runs; leave it out")
    seeds = by_key["seed"].options if "seed" in by_key else tuple(f"seed={seed}" for seed in plan.seeds)
    others = [axis for axis in axes if axis.key not in ("seed", "label")]
    rows = {name: [o for o in line if key_of(o) not in by_key] for name, line in plan.rows.items()} or {"": []}
    bases = [value_of(option) for option in by_key["label"].options] if "label" in by_key else list(rows)
    combos = list(itertools.product(*(axis.options for axis in others)))
    swept = [index for index, axis in enumerate(others) if axis.swept]
    names = _distinct([(base, *(combo[index] for index in swept)) for base in bases for combo in combos])
    cells = []
    for seed in seeds or ("",):
        for base in bases:
            for combo in combos:
                name = names[(base, *(combo[index] for index in swept))]
                label = [f"label={quoted(name)}"] if name else []
                cells.append([*rows.get(base, []), *label, *([seed] if seed else []), *combo])
    return cells


def _distinct(parts: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """A label for each combination of a base and swept overrides; those that would be alike get a hash behind."""
    labels = {part: _shortened("-".join([part[0], *map(slug, part[1:])]).strip("-")) for part in parts}
    count = Counter(labels.values())
    return {part: label if count[label] == 1 else f"{label}-{_hash(' '.join(part))}" for part, label in labels.items()}


def slug(override: str) -> str:
    """model=swiglu -> swiglu, model.dim=64 -> model.dim_64: an override as part of a folder's name."""
    key, _, value = override.lstrip("+~").partition("=")
    value = "null" if value == "[]" else value
    chosen = re.fullmatch(r"\w+", key) and re.match(r"[A-Za-z]", value) and value not in ("true", "false", "null")
    text = (value if chosen else f"{key}_{value}").replace(",", "+")
    return re.sub(r"(_|[^\w.+-])+", "_", text).strip("_")


def sweep_label(name: str | None, axes: Sequence[Axis]) -> str:
    """The folder of a sweep: its file's name (or `grid`) and what the command line adds, other than seeds and places.

    The same command has the same folder, more seeds join it, and another configuration has a folder of its own.
    """
    added = [axis for axis in axes if says_what(axis.key)]
    values = ["+".join(slug(option) for option in axis.options) for axis in added]
    return _shortened("-".join([name or "grid", *values]))


def run_label(base: str, overrides: Sequence[str]) -> str:
    """Return the name of a lone run: its base and what the command line changes, in one order however it was typed.

    The model comes first and what a track sets comes last, since the end of a long name is a hash. Where its text lies
    is left out: the same text elsewhere gives the same run.
    """

    def place(override: str) -> tuple[bool, bool, str]:
        root = re.split(r"[./@]", key_of(override))[0]
        return root in OF_TRACKS, root != "model", key_of(override)

    told = [override for override in sorted(overrides, key=place) if says_what(key_of(override))]
    return _shortened("-".join([base, *(slug(override) for override in told if key_of(override) not in PLACES)]))


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 9]}-{_hash(text)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
