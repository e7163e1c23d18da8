"""llama-server's web page behind the proxy, in a real browser: from the key to a streamed answer, on both engines."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver.common.keys import Keys

from tests.conftest import start
from tests.docker.compose_project import Project, free_port
from tests.docker.server import wait_for
from tests.page.conftest import Browser
from tests.page.llama_ui import write_llama_ui

WAIT_S = 60.0
# Its page is llama.cpp's own, in place of the one in the image: a stand-in has an older one.
OVERRIDE = """
services:
  server:
    environment: {{LLAMA_ARG_STATIC_PATH: /ui}}
    volumes: [{{type: bind, source: {ui}, target: /ui, read_only: true}}]
"""


@pytest.fixture(scope="session")
def ui(local_tools: None, demo_q4: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of llama.cpp's page."""
    folder = tmp_path_factory.mktemp("ui")
    write_llama_ui(folder, demo_q4)
    folder.chmod(0o755)
    return folder


@contextmanager
def compose(folder: Path, ui: Path | None) -> Iterator[str]:
    """What is in `folder` served by compose; gives the address."""
    project, port, files = Project(folder), str(free_port()), []
    if ui is not None:
        (folder / "ui.yaml").write_text(OVERRIDE.format(ui=ui))
        files = ["-f", "compose.yaml", "-f", "ui.yaml"]
    try:
        done = project.compose(*files, "up", "--detach", "--wait", PORT=port)
        assert done.returncode == 0, done.stderr + project.compose("logs").stdout
        yield f"http://127.0.0.1:{port}/"
    finally:
        project.down()


@contextmanager
def local(folder: Path) -> Iterator[str]:
    """The same by the server of ENGINE=local."""
    port = str(free_port())
    asked = {"ARTIFACTS": str(folder / "artifacts"), "PORT": port, "CONTEXT_SIZE": "2048", "THREADS": "1"}
    process = start("serve", ENGINE="local", **asked)
    try:
        wait_for(lambda: is_up(f"http://127.0.0.1:{port}/health") or process.poll() is not None, 2 * WAIT_S)
        assert process.poll() is None, process.communicate()
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def is_up(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).status_code == 200
    except requests.RequestException:
        return False


@pytest.fixture
def served(tmp_path: Path, demo_q4: Path) -> Callable[..., Path]:
    """Puts these quants of the demo into the folder that a project of this test serves."""

    def put(*quants: str) -> Path:
        Project(tmp_path)
        for quant in quants:
            name = demo_q4.name.replace("Q4_K_M", quant)
            shutil.copy(demo_q4.with_name(name), tmp_path / "artifacts" / "served" / name)
        return tmp_path

    return put


def key_of(folder: Path) -> str:
    return (folder / "artifacts" / "keys" / "api-key").read_text().strip()


def visible(browser: Browser, query: str, text: str = "") -> list[Any]:
    try:
        found = browser.driver.find_elements("css selector", query)
        return [element for element in found if element.is_displayed() and text in element.text]
    except StaleElementReferenceException:  # the page was drawn anew
        return []


def wait_visible(browser: Browser, query: str, text: str = "") -> Any:
    wait_for(lambda: visible(browser, query, text), WAIT_S, lambda: browser.one("body").text)
    return visible(browser, query, text)[0]


def press(browser: Browser, query: str, text: str) -> None:
    def is_pressed() -> bool:
        try:
            visible(browser, query, text)[0].click()
        except (IndexError, WebDriverException):  # not yet, covered, or drawn anew
            return False
        return True

    wait_for(is_pressed, WAIT_S, lambda: browser.one("body").text)


def give_key(browser: Browser, key: str) -> None:
    """What somebody does whom the page asks for the key."""
    press(browser, "button", "Enter API Key")
    wait_visible(browser, "#api-key-input").send_keys(key, Keys.ENTER)


def ask(browser: Browser) -> None:
    """Ask, and wait for the answer and its speed below it."""
    wait_visible(browser, "textarea").send_keys("What is the capital of France?", Keys.ENTER)
    wait_visible(browser, "main, body", "t/s")


def choose(browser: Browser, quant: str) -> None:
    """Choose another model, which is loaded for that."""
    press(browser, "button", "SmolLM2")
    press(browser, "[role=option]", quant)
    wait_visible(browser, "body", f"Model loaded: SmolLM2-135M-Instruct-{quant}")


def failed_files(browser: Browser) -> list[str]:
    """The files of the page that could not be had."""
    failed = [text for text in browser.complaints() if "Failed to load resource" in text]
    return [text for text in failed if re.search(r"\.(js|mjs|css|json|png|svg|webmanifest)\b", text)]


@pytest.mark.parametrize("quants", [("Q4_K_M",), ("Q4_K_M", "Q8_0")], ids=["one file", "two files"])
@pytest.mark.parametrize("engine", ["docker", "local"])
def test_the_page_asks_for_the_key_then_loads_what_is_chosen_and_answers(
    request: pytest.FixtureRequest, browser: Browser, served: Callable[..., Path], engine: str, quants: tuple[str, ...]
) -> None:
    folder = served(*quants)
    if engine == "docker":
        request.getfixturevalue("server_image")
        serving = compose(folder, request.getfixturevalue("ui"))
    else:
        request.getfixturevalue("local_tools")
        serving = local(folder)
    with serving as address:
        browser.visit(address)
        give_key(browser, key_of(folder))
        wait_visible(browser, "textarea")
        if len(quants) > 1:
            choose(browser, quants[-1])
        ask(browser)
        assert failed_files(browser) == []


def test_the_page_in_the_image_has_all_its_files(
    server_image: str, browser: Browser, served: Callable[..., Path]
) -> None:
    with compose(served("Q4_K_M"), None) as address:
        browser.visit(address)
        wait_visible(browser, "textarea, button")
        assert failed_files(browser) == []
        assert "javascript enabled" not in browser.one("body").text
