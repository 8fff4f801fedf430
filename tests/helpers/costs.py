"""A pytest plugin: the CPU seconds of each test, of its fixtures and of the processes it waited for (--costs=FILE)."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SHOWN = 25


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of those it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.user_properties.append(("cpu_began", cpu_seconds()))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    began = dict(item.user_properties)["cpu_began"]
    report: Any = yield
    if call.when == "teardown":
        report.user_properties = [("cpu_seconds", cpu_seconds() - began)]
    return report


class Costs:
    """Collects what tests cost, prints the dearest, and writes {test: CPU seconds}."""

    def __init__(self, path: Path):
        self.path, self.seconds = path, dict[str, float]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == "cpu_seconds":
                self.seconds[report.nodeid] = value

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        by_file: Counter[str] = Counter()
        for test, seconds in self.seconds.items():
            by_file[test.split("::")[0]] += seconds  # type: ignore[assignment]
        terminalreporter.section(f"CPU seconds of tests: {sum(self.seconds.values()):.1f}")
        for table in (by_file, Counter(self.seconds)):
            for name, seconds in table.most_common(SHOWN):
                terminalreporter.write_line(f"{seconds:7.2f}  {name}")
            terminalreporter.write_line("")
        self.path.write_text(json.dumps(self.seconds, indent=0))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--costs", metavar="FILE", type=Path, help="write the CPU seconds of each test, print the dearest")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--costs") is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Costs(config.getoption("--costs")))
