"""The two phases of a test run, and what each folder took.

`--phase=units` takes what needs Python alone: its tests are safe side by side, so scripts/test.sh spreads them over
the cores. `--phase=parts` takes the rest, one after the other: real images, environments and servers, whose tests
share a demo model and watch the machine. The tests in hostile/ are known by the fixtures they use, or by the
marker `parts`.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent
PARTS = frozenset({"docker_client", "images", "local_tools", "engine", "some_engine"})  # and what builds on these

# The examples of every property; a test names a number of its own only where one example is slow.
# No deadline: a loaded machine is slow, not wrong. In CI every change meets the same examples.
settings.register_profile("local", deadline=None, max_examples=25)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True)
settings.register_profile("all", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "local"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--phase", choices=("units", "parts"), help="only what needs Python alone, or only the rest")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    phase = config.getoption("--phase")
    if phase is None:
        return
    fits = {True: [], False: []}
    for item in items:
        fits[_is_unit(item) == (phase == "units")].append(item)
    config.hook.pytest_deselected(items=fits[False])
    items[:] = fits[True]


def _is_unit(item: pytest.Item) -> bool:
    folder = item.path.relative_to(TESTS).parts[0]
    if folder == "hostile":
        return item.get_closest_marker("parts") is None and not PARTS & set(getattr(item, "fixturenames", ()))
    return folder == "unit"


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> object:
    """Where the time went; side by side, these are sums over all workers."""
    done = yield
    seconds = Counter[str]()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if isinstance(report, pytest.TestReport):
            seconds["/".join(report.nodeid.split("/")[:2])] += report.duration
    for folder, took_s in seconds.most_common():
        terminalreporter.write_line(f"{took_s:8.0f} s  {folder}")
    return done
