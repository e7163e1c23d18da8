"""The demo model, served by the server of ENGINE=local. Its contract is tested by the release of the demo."""

from __future__ import annotations

import signal
from pathlib import Path

import requests

from quantyard.protocol.exit_codes import Answer
from tests.conftest import run, start
from tests.docker.server import wait_for


def test_without_docker_the_same_file_key_and_address_serve(
    local_tools: None, demo_q4: Path, tmp_path: Path
) -> None:
    built = demo_q4
    process = start(
        "serve", ENGINE="local", ARTIFACTS=str(tmp_path), MODEL_FILE=str(built), PORT="18090", CONTEXT_SIZE="1024",
        THREADS="1",
    )
    try:
        address = "http://127.0.0.1:18090"
        wait_for(lambda: _status(address + "/v1/models") == 401, 60)
        key_file = tmp_path / "keys" / "api-key"
        assert key_file.stat().st_mode & 0o777 == 0o600
        headers = {"Authorization": f"Bearer {key_file.read_text().strip()}"}
        models = requests.get(address + "/v1/models", headers=headers, timeout=20).json()["data"]
        assert [model["id"] for model in models] == [built.stem]
        body = {"messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 8}
        answer = requests.post(address + "/v1/chat/completions", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"]
        command_lines = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline"))
        assert not any(key_file.read_text().strip().encode() in line for line in command_lines)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_file_that_does_not_load_ends_the_local_server_with_a_reason(local_tools: None, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0")
    done = run("serve", ENGINE="local", ARTIFACTS=str(tmp_path), MODEL_FILE=str(path), PORT="18091")
    assert done.returncode == Answer.ENGINE and "cut.gguf" in done.stderr and "SHA-256" in done.stderr


def _status(url: str) -> int:
    try:
        return requests.get(url, timeout=2).status_code
    except requests.exceptions.RequestException:
        return 0
