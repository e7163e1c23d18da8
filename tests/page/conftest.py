"""A real browser for the comparison page: Debian's chromium and its driver, headless.

Without them these tests are skipped; with REQUIRE_BROWSER=1 that is a failure.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quantyard.report_page.render import render_report_page
from quantyard.store.manifest import Manifest


class Browser:
    """A page in chromium, and what happened while it was open."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, **look: Any) -> None:
        """Show a file; how it is looked at as in `visit`."""
        self.visit(path.as_uri(), **look)

    def visit(
        self, address: str, *, width: int = 1280, scheme: str = "light", script: bool = True, media: str = ""
    ) -> None:
        """Show what is at an address in a window `width` pixels wide."""
        self._tell("Emulation.setScriptExecutionDisabled", value=not script)
        wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wishes.items()]
        self._tell("Emulation.setEmulatedMedia", media=media, features=features)
        window = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self._tell("Emulation.setDeviceMetricsOverride", **window)
        self.driver.get_log("browser"), self.driver.get_log("performance")
        self.driver.get(address)

    def _tell(self, command: str, **arguments: Any) -> None:
        self.driver.execute_cdp_cmd(command, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a JavaScript expression."""
        return self.driver.execute_script(f"return {script}", *arguments)

    def texts(self, query: str) -> list[str]:
        """The text of every element in sight that matches."""
        return [e.text for e in self.driver.find_elements("css selector", query) if e.is_displayed()]

    def one(self, query: str) -> Any:
        """The first element that matches."""
        return self.driver.find_element("css selector", query)

    def press(self, *keys: str) -> None:
        """Keys, sent to what has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def complaints(self) -> list[str]:
        """What the console says: errors, warnings, refusals of the Content-Security-Policy."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Every address asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    """One chromium for all tests."""
    chromium, found = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not found:
        missing = "no chromium and chromedriver here: apt-get install chromium chromium-driver"
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(f"REQUIRE_BROWSER=1, but {missing}")
        pytest.skip(missing)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)  # no sandbox: chromium refuses to run as root with it, as tests in a container do
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options, Service(found))
    yield started
    started.quit()


@pytest.fixture
def browser(driver: Any) -> Browser:
    """The browser, with nothing said yet."""
    return Browser(driver)


@pytest.fixture
def page(tmp_path: Path) -> Callable[[Manifest, str], Path]:
    """Writes the page of a manifest to a file."""

    def write(manifest: Manifest, suite: str = "standard") -> Path:
        path = tmp_path / "report.html"
        path.write_text(render_report_page(manifest, suite), encoding="utf-8")
        return path

    return write
