"""llama-server's web page behind the proxy, in a real browser: from the key to a streamed answer."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from tests.docker.compose_project import Project, free_port
from tests.docker.server import wait_for
from tests.page.conftest import Browser
from tests.page.llama_ui import write_llama_ui

WAIT_S = 60.0
ASKED = "What is the capital of France?"
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


Up = Callable[..., str]


@pytest.fixture
def up(server_image: str, tmp_path: Path) -> Iterator[Up]:
    """Serves these files with compose, the page of `ui` in place of the image's; gives the address."""
    project = Project(tmp_path)

    def start(*files: Path, ui: Path | None, **variables: str) -> str:
        for path in files:
            shutil.copy(path, tmp_path / "artifacts" / "served" / path.name)
        argv = []
        if ui is not None:
            (tmp_path / "ui.yaml").write_text(OVERRIDE.format(ui=ui))
            argv = ["-f", "compose.yaml", "-f", "ui.yaml"]
        port = str(free_port())
        done = project.compose(*argv, "up", "--detach", "--wait", PORT=port, **variables)
        assert done.returncode == 0, done.stderr + project.compose("logs").stdout
        return f"http://127.0.0.1:{port}/"

    yield start
    project.down()


def key_of(tmp_path: Path) -> str:
    return (tmp_path / "artifacts" / "keys" / "api-key").read_text().strip()


def visible(browser: Browser, query: str) -> list[Any]:
    return [element for element in browser.driver.find_elements("css selector", query) if element.is_displayed()]


def wait_visible(browser: Browser, query: str) -> Any:
    wait_for(lambda: visible(browser, query), WAIT_S, lambda: browser.one("body").text)
    return visible(browser, query)[0]


def press_button(browser: Browser, text: str) -> None:
    wait_for(lambda: text in browser.one("body").text, WAIT_S, lambda: browser.one("body").text)
    next(button for button in visible(browser, "button") if text in button.text).click()


def give_key(browser: Browser, key: str) -> None:
    """What somebody does whom the page asks for the key."""
    press_button(browser, "Enter API Key")
    wait_visible(browser, "#api-key-input").send_keys(key, Keys.ENTER)


def ask(browser: Browser) -> None:
    """Ask, and see the answer grow."""
    wait_visible(browser, "textarea").send_keys(ASKED, Keys.ENTER)
    seen: list[int] = []

    def is_done() -> bool:
        found = browser.texts("[data-message-role=assistant], .markdown-content, .prose")
        seen.append(len(found[-1]) if found else 0)
        return "t/s" in browser.one("body").text and seen[-1] > 0

    wait_for(is_done, WAIT_S, lambda: browser.one("body").text)


def failed_files(browser: Browser) -> list[str]:
    """The files of the page that could not be had."""
    failed = [text for text in browser.complaints() if "Failed to load resource" in text]
    return [text for text in failed if re.search(r"\.(js|mjs|css|json|png|svg|ico|webmanifest)\b", text)]


@pytest.mark.parametrize("quants", [("Q4_K_M",), ("Q4_K_M", "Q8_0")], ids=["one file", "two files"])
def test_the_page_asks_for_the_key_and_then_answers(
    browser: Browser, up: Up, ui: Path, demo_q4: Path, tmp_path: Path, quants: tuple[str, ...]
) -> None:
    files = [demo_q4.with_name(demo_q4.name.replace("Q4_K_M", quant)) for quant in quants]
    browser.visit(up(*files, ui=ui))
    give_key(browser, key_of(tmp_path))
    ask(browser)
    assert failed_files(browser) == []
