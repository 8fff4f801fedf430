"""Toy runs: a two-layer model on a few hundred made-up documents, small enough to train in a second."""

import copy
import functools
import math
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two spinning threads on a shared core cost more than they bring
os.environ["WANDB_MODE"] = "offline"

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from hypothesis import settings

from golf.compose import compose
from golf.config import Run
from tests.tokens.helpers import toy_data

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a background job of a shell: the runs that tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)  # would inherit it, and rightly go on

TOY = [
    "track=tiny",
    "data=text",
    "data.vocab_size=384",
    "model.dim=32",
    "model.layers=3",
    "model.mixer.heads=2",
    "model.mixer.kv_heads=1",
    "batch.sequence_length=32",
    "batch.tokens_per_step=256",
    "batch.max_microbatch_sequences=4",
    "budget.max_steps=6",
    "compute.precision=fp32",
    "log=none",
    "log.every_steps=2",
    "checkpoint.every_seconds=null",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--wide", action="store_true", help="every combination of parameters, and what is marked wide")


def pytest_configure(config: pytest.Config) -> None:
    settings.register_profile("golf", deadline=None, max_examples=150 if config.getoption("--wide") else 10)
    settings.load_profile("golf")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --wide, of a test with several parameters stay as many cases as show each value of each of them."""
    if not config.getoption("--wide"):
        kept = covering([item for item in items if item.get_closest_marker("wide") is None])
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


def wide(*values: Any) -> ParameterSet:
    """A case of a test that runs with --wide only."""
    return pytest.param(*values, marks=pytest.mark.wide)


def quick(kept: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Parameters of a test: these values, those that are not kept with --wide only."""
    return [value if value in kept else wide(value) for value in values]


def covering(items: list[pytest.Item]) -> set[pytest.Item]:
    """Of every test that tries all combinations of some lists, the cases that between them show each value: of a x b
    cases max(a, b). All cases of the others."""
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_test.setdefault(item.nodeid.split("[")[0], []).append(item)
    kept = set()
    for cases in by_test.values():
        shows = {item: {(name, id(value)) for name, value in params_of(item).items()} for item in cases}
        unseen = set().union(*shows.values())
        values = Counter(name for name, _ in unseen)
        if len(values) < 2 or len(cases) < math.prod(values.values()):
            kept |= set(cases)
            continue
        while unseen:
            kept.add(item := max(cases, key=lambda case: len(shows[case] & unseen)))
            unseen -= shows[item]
    return kept


def params_of(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def merged(base: list[str], extra: list[str]) -> list[str]:
    """Overrides, the later of two for one key kept."""
    by_key = {override.split("=", 1)[0]: override for override in [*base, *extra]}
    return list(by_key.values())


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy text and its prepared data, made once a session."""
    folder = tmp_path_factory.mktemp("toy")
    toy_data(folder, documents=600)
    compose(toy_overrides(folder, [])).data.prepare(folder / "data", log=lambda line: None)
    return folder


def toy_overrides(folder: Path, extra: list[str]) -> list[str]:
    """The command line of a toy run on the text in `folder`."""
    (text,) = folder.glob("toy-*.jsonl")
    places = [f"data.path={text}", f"data_dir={folder / 'data'}", f"outputs={folder / 'outputs'}"]
    return merged([*TOY, *places, "data.val_one_in=8", "data.tune_one_in=8"], extra)


@functools.cache
def _composed(overrides: tuple[str, ...]) -> Run:
    return compose(overrides)


def composed(*overrides: str) -> Run:
    """compose(), half a second, once for each command line; every caller gets a copy of its own."""
    return copy.deepcopy(_composed(overrides))


@pytest.fixture(scope="session")
def toy(toy_folder: Path) -> Callable[..., Run]:
    """toy(*overrides) -> a typed toy run on prepared data."""
    return lambda *extra: composed(*toy_overrides(toy_folder, list(extra)))
