"""What a sweep file says of a search: how many trials, where, and which are stopped. Typed like any configuration."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna

from golf.config import NOT_IDENTITY
from golf.errors import UserError
from golf.fields import between, positive
from golf.launcher.grid import NOT_IN_ROWS, key_of, quoted
from golf.nodes import target_of
from golf.typed import typed

AT = "hydra.sweeper.search"


@dataclass(kw_only=True, slots=True)
class Dimension:
    """What may be tried for one key."""

    def suggest(self, trial: optuna.Trial, key: str) -> Any:
        """The value that the study draws for this trial, or drew before."""
        raise NotImplementedError

    def ends(self) -> list[Any]:
        """Values that are checked before anything starts."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class Range(Dimension):
    """low .. high, both included. log: drawn evenly in the logarithm; whole: whole numbers only."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high < float("inf"):
            raise ValueError(f"low={self.low} must lie below high={self.high}, a finite number")
        if self.log:
            positive(low=self.low)
        if self.whole and (self.low % 1 or self.high % 1):
            raise ValueError(f"whole=true, and low={self.low} or high={self.high} is no whole number")

    def suggest(self, trial: optuna.Trial, key: str) -> float:
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def ends(self) -> list[Any]:
        return [int(self.low), int(self.high)] if self.whole else [self.low, self.high]


@dataclass(kw_only=True, slots=True)
class Choice(Dimension):
    """One of several numbers, texts or group options, without an order."""

    choices: list[Any]

    def __post_init__(self) -> None:
        texts = [text_of(value) for value in self.choices]
        if len(texts) < 2 or len(set(texts)) < len(texts):
            raise ValueError(f"choices={self.choices} must be two values or more, all different")
        if any(not isinstance(value, int | float | str | None) for value in self.choices):
            raise ValueError(f"choices={self.choices} must be numbers, texts, true, false or null")

    def suggest(self, trial: optuna.Trial, key: str) -> Any:
        return trial.suggest_categorical(key, self.choices)

    def ends(self) -> list[Any]:
        return self.choices


@dataclass(kw_only=True, slots=True)
class Search:
    """A search for the values with the lowest bits per byte.

    trials: how many in all; seed: of every trial's run and of what draws them. A trial is stopped where its best score
    on the way is not among the best `keep` (a share) of the finished trials' at the same step; never before `startup`
    trials have finished or `warmup` (a share) of its budget is spent; keep=null: none is. The first `startup` trials
    are drawn at random, later ones by TPE (Bergstra et al. 2011; Watanabe 2023). allow_val: whether scores on the
    validation text may guide it; space: key -> what may be tried.
    """

    trials: int
    seed: int
    startup: int = 5
    keep: float | None = 0.5
    warmup: float = 0.25
    allow_val: bool = False
    space: dict[str, Dimension] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positive(trials=self.trials, startup=self.startup, keep=self.keep)
        between(0, 2**31 - 1, seed=self.seed)
        between(0, 1, keep=self.keep, warmup=self.warmup)
        if not self.space:
            raise ValueError("space={}: nothing to search; write a key: {low: ..., high: ...}")
        for key in self.space:
            root = re.split(r"[./@]", key_of(key))[0]
            if root in NOT_IDENTITY | set(NOT_IN_ROWS) or key_of(key) == "eval.split":
                raise ValueError(f"space.{key}: says how a run is named, watched or scored; leave it out")

    def ends(self) -> list[dict[str, Any]]:
        """key -> value of trials that between them have every end of a range and every choice."""
        lists = {key: dimension.ends() for key, dimension in self.space.items()}
        count = max(len(values) for values in lists.values())
        return [{key: values[index % len(values)] for key, values in lists.items()} for index in range(count)]


def search_of(node: Any) -> Search:
    """The search of a sweep file's node. Raises UserError that begins with the full key."""
    if not isinstance(node, Mapping):
        raise UserError(f"{AT}={node!r}: must be keys such as trials, seed and space")
    space = node.get("space") or {}
    if not isinstance(space, Mapping):
        raise UserError(f"{AT}.space={space!r}: must be keys, each with low and high, or with choices")
    return typed({**node, "space": {key: _named(key, item) for key, item in space.items()}}, AT, Search)


def _named(key: str, item: Any) -> Any:
    """A dimension's node with its class: choices make a Choice, all else a Range."""
    if item is None:
        return None  # taken out
    if not isinstance(item, Mapping):
        raise UserError(f"{AT}.space.{key}={item!r}: must be {{low: ..., high: ...}} or {{choices: [...]}}")
    return {"_target_": target_of(Choice if "choices" in item else Range), **item}


def text_of(value: Any) -> str:
    """A value as Hydra reads it in an override."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return quoted(value) if isinstance(value, str) else repr(value)


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """The overrides that give a trial its values."""
    return [f"{key}={text_of(value)}" for key, value in values.items()]
