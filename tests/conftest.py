"""Settings of every test process, the choice of tests by tier, and the toy data and toy runs that tests share.

What imports torch is imported within fixtures: the process that only hands out tests does without.
"""

import gc
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.tiers import TIERS, select, tries_everything

if TYPE_CHECKING:
    from golf.config import Run
    from tests.helpers.runs import Job

pytest_plugins = ["tests.helpers.costs"]
gc.disable()  # until all is collected: imports make objects that stay
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two spinning threads on a shared core cost more than they bring
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("COLUMNS", None)  # which processes of pytest-xdist have: tables would be as narrow
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a background job of a shell: the runs that tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)  # would inherit it, and rightly go on
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup, likewise
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

Make = Callable[..., Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", choices=TIERS, default="default", help="which tests: default, slow, or all there are")
    parser.addoption("--part", metavar="K/N", help="the K-th of N parts of the tier")


def pytest_configure(config: pytest.Config) -> None:
    from hypothesis import settings

    settings.register_profile("golf", deadline=None, max_examples=150 if tries_everything(config) else 10)
    settings.load_profile("golf")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = select(items, config.getoption("--tier"), config.getoption("--part"))
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


def pytest_collection_finish() -> None:
    """Let the garbage collector work again, on what tests make."""
    import torch

    torch.set_num_threads(1)
    gc.freeze()
    gc.enable()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A part of a tier may hold no test at all, which is no failure."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.getoption("--part") is not None:
        session.exitstatus = pytest.ExitCode.OK


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy text and its prepared data, made once for all test processes."""
    from tests.helpers.runs import composed, made_once, toy_overrides
    from tests.tokens.helpers import toy_data

    def make(folder: Path) -> None:
        toy_data(folder, documents=600)
        composed(*toy_overrides(folder, [])).data.prepare(folder / "data", log=lambda line: None)

    return made_once(tmp_path_factory, "toy", make)


@pytest.fixture(scope="session")
def toy(toy_folder: Path) -> Callable[..., "Run"]:
    """toy(*overrides) -> a typed toy run on prepared data."""
    from tests.helpers.runs import composed, toy_overrides

    return lambda *extra: composed(*toy_overrides(toy_folder, list(extra)))


@pytest.fixture
def job(toy_folder: Path, tmp_path: Path) -> Callable[..., "Job"]:
    """job(*overrides) -> a toy job in a folder of its own."""

    from tests.helpers.runs import Job, composed, toy_overrides

    def make(*extra: str, outputs: str = "outputs") -> "Job":
        return Job(composed(*toy_overrides(toy_folder, [f"outputs={tmp_path / outputs}", *extra])))

    return make


@pytest.fixture(scope="session")
def finished(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """finished(*overrides) -> the folder of a finished toy run, trained once for all processes. Only to be read."""
    from tests.helpers.runs import finished_run

    return lambda *overrides: finished_run(tmp_path_factory, toy_folder, overrides)


@pytest.fixture
def finished_copy(finished: Make, tmp_path: Path) -> Make:
    """finished_copy(*overrides) -> such a folder in an `outputs` of its own, in which a test may write."""

    def copy(*overrides: str) -> Path:
        run = finished(*overrides)
        outputs = shutil.copytree(run.parents[1], tmp_path / "copied" / run.name / "outputs")
        return outputs / run.parent.name / run.name

    return copy
