"""What README, tutorial and guide print to serve the demo, taken from their text: each command does what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import requests

from quantyard.paths import REPO_DIR
from tests.docker.compose_project import Project, free_port
from tests.docker.server import wait_for

# To hold another page to it: name it, and the heading below which it prints the commands.
PAGES: Final = {
    "README.md": "## Try it\n", "docs/tutorial.md": "## 5. Serve it\n", "docs/how-to/serve.md": "# Serve a model\n",
}  # fmt: skip
PORT: Final = "8080"
READY_WITHIN_S = 120.0


def text_of(page: str) -> str:
    """The section of a page."""
    below = (REPO_DIR / page).read_text().partition(PAGES[page])[2]
    return below.partition("\n## ")[0]


def printed(page: str, begins: str) -> str:
    """The command of a page that begins so; a line that ends with a backslash goes on."""
    lines = "\n".join(line[4:] for line in text_of(page).splitlines() if line.startswith("    "))
    commands = [re.split(r"\s+# ", line)[0].strip() for line in lines.replace("\\\n", " ").splitlines()]
    found = [command for command in commands if command.startswith(begins)]
    assert len(found) == 1, f"{page} prints {len(found)} commands that begin with {begins}: {commands}"
    return found[0]


def test_every_page_prints_the_same_commands() -> None:
    assert {printed(page, "docker compose up") for page in ("README.md", "docs/tutorial.md")} == {"docker compose up"}
    assert {printed(page, "make chat") for page in PAGES} == {"make chat"}
    assert len({printed(page, "curl ").partition(" -d ")[0] for page in PAGES}) == 1


class Terminal:
    """A project that serves, and the port at which it does so in place of the one that is printed."""

    def __init__(self, project: Project, port: str) -> None:
        self.project, self.port = project, port

    def here(self, text: str) -> str:
        """A printed command or address, with this port."""
        assert f"127.0.0.1:{PORT}" in text
        return text.replace(f"127.0.0.1:{PORT}", f"127.0.0.1:{self.port}")


@pytest.fixture(scope="module")
def served(server_image: str, demo_q4: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """Both files of the demo, by the README's own `docker compose up` in a terminal."""
    folder, port = tmp_path_factory.mktemp("readme"), str(free_port())
    project = Project(folder)
    for path in (demo_q4, demo_q4.with_name(demo_q4.name.replace("Q4_K_M", "Q8_0"))):
        shutil.copy(path, folder / "artifacts" / "served" / path.name)
    process = project.start(printed("README.md", "docker compose up"), PORT=port)
    said: list[str] = []
    assert process.stdout is not None
    threading.Thread(target=said.extend, args=(process.stdout,), daemon=True).start()
    try:
        wait_for(lambda: is_healthy(port) or process.poll() is not None, READY_WITHIN_S, lambda: "".join(said))
        assert process.poll() is None, "".join(said)
        yield Terminal(project, port)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        project.down()


def is_healthy(port: str) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
    except requests.RequestException:
        return False


@pytest.mark.parametrize("page", PAGES)
def test_the_printed_curl_is_answered_without_the_name_of_a_model(served: Terminal, page: str) -> None:
    command = served.here(printed(page, "curl "))
    assert '"model"' not in command
    done = subprocess.run(
        ["sh", "-c", command], cwd=served.project.folder, text=True, capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["choices"][0]["message"]["content"], done.stdout


def test_make_chat_answers(served: Terminal) -> None:
    keys = {"KEY_FILE": str(served.project.folder / "artifacts" / "keys" / "api-key"), "PORT": served.port}
    done = subprocess.run(
        ["sh", "-c", printed("README.md", "make chat")], cwd=REPO_DIR, env=os.environ | keys | {"MAX_TOKENS": "16"},
        input="What is the capital of France?\n/exit\n", text=True, capture_output=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 2, done.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_the_printed_address_is_that_of_the_web_page(served: Terminal, page: str) -> None:
    address = re.search(rf"http://127\.0\.0\.1:{PORT}", text_of(page))
    assert address
    answer = requests.get(served.here(address[0]), timeout=20)
    assert answer.status_code == 200 and answer.headers["Content-Type"].startswith("text/html")
    for file in re.findall(r'(?:src|href)="\./?([^":]+\.(?:js|css))"|src="([^":]+\.js)"', answer.text):
        name = next(filter(None, file))
        assert requests.get(f"{served.here(address[0])}/{name}", timeout=20).status_code == 200, name


def test_the_tutorials_other_model_is_served(served: Terminal) -> None:
    named = re.findall(r'"model": "([^"]+)"', text_of("docs/tutorial.md"))
    key = {"Authorization": f"Bearer {served.project.key()}"}
    listed = requests.get(f"http://127.0.0.1:{served.port}/v1/models", headers=key, timeout=20).json()["data"]
    assert len(listed) == 2 and {model["id"] for model in listed} > set(named)
