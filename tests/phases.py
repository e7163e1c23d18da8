"""Which tests a run takes (`--tier`, `--phase`), and what each folder took.

The tiers, of which each holds the one before:

- `fast`: the units but for those marked `commands`, each of which takes more than a tenth of a second;
- `quick`: all units, and what is marked `quick`: a dozen tests with real parts, for `make test`;
- `change` (the default): what must hold at every change;
- `all`: what is marked `slow` too, both engines everywhere, and every case of what is sampled else.

The phases, which scripts/test.sh runs one after the other:

- `units`: what needs Python alone; its tests are safe side by side, so they are spread over the cores;
- `parts`: real images, environments and servers; two files at a time, each stage with one thread;
- `alone`: what is marked `alone`, for it watches the clock or the whole machine.

The tests in hostile/ are parts where they use a fixture of PARTS, or are marked `parts`.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent
PARTS = frozenset({"docker_client", "images", "local_tools", "engine", "some_engine"})  # and what builds on these
TIERS = ("fast", "quick", "change", "all")
# The longest files with real parts, which are begun first: what comes last is short, so no worker ends long after the
# other. Who starts beside the first does not need the model that the first one builds.
BEGUN_FIRST = (
    "e2e/test_eval_demo.py", "e2e/test_architectures.py", "e2e/test_matrix_demo.py", "docker/test_faults.py",
    "e2e/test_release_demo.py", "e2e/test_matrix_faults.py", "e2e/test_twin.py", "docker/test_containers.py",
    "docker/test_hub_build.py", "e2e/test_python_api.py", "cluster/test_slurm_build.py",
    "measure/test_against_hf.py", "measure/test_datasets.py", "measure/test_domains.py", "measure/test_llama_lm.py",
    "measure/test_divergence.py", "measure/test_real_tokenizers.py",
)  # fmt: skip

# The examples of every property; a test names a number of its own only where one example is slow.
# No deadline: a loaded machine is slow, not wrong. In CI every change meets the same examples.
settings.register_profile("local", deadline=None, max_examples=25)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True)
settings.register_profile("all", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "local"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", choices=TIERS, default="change", help="how much is run; see tests/phases.py")
    parser.addoption("--phase", choices=("units", "parts", "alone"), help="only these; all three where it is not said")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tier, phase = config.getoption("--tier"), config.getoption("--phase")
    wanted = {item: _is_in(item, tier) and phase in (None, _phase(item)) for item in items}
    config.hook.pytest_deselected(items=[item for item in items if not wanted[item]])
    items[:] = sorted((item for item in items if wanted[item]), key=_turn)
    gc.freeze()  # what was imported and collected stays to the end: no garbage is looked for among it


def _turn(item: pytest.Item) -> int:
    name = item.path.relative_to(TESTS).as_posix()
    return BEGUN_FIRST.index(name) if name in BEGUN_FIRST else len(BEGUN_FIRST)


def _is_in(item: pytest.Item, tier: str) -> bool:
    def is_marked(name: str) -> bool:
        return item.get_closest_marker(name) is not None

    if tier == "all":
        return True
    if tier == "fast":
        return _phase(item) == "units" and not is_marked("commands")
    if tier == "change":
        return not is_marked("slow") and (is_marked("both_engines") or not _is_second_engine(item))
    return _phase(item) == "units" or (is_marked("quick") and not is_marked("slow") and not _is_second_engine(item))


def _is_second_engine(item: pytest.Item) -> bool:
    """ENGINE=local, unless it is the only one."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return parameters.get("engine") == "local" and _docker_answers()


@cache
def _docker_answers() -> bool:
    from quantyard.engines.docker import connect_docker
    from quantyard.errors import EngineError

    try:
        connect_docker(timeout_s=20).close()
    except EngineError:
        return False
    return True


def _phase(item: pytest.Item) -> str:
    folder = item.path.relative_to(TESTS).parts[0]
    if item.get_closest_marker("alone"):
        return "alone"
    if folder == "hostile":
        parts = item.get_closest_marker("parts") is not None or PARTS & set(getattr(item, "fixturenames", ()))
        return "parts" if parts else "units"
    return "units" if folder == "unit" else "parts"


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
