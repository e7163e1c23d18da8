"""The command line: data on stdout, words on stderr, and the right exit code."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline import cli
from pipeline.quants import QUANTS


def _run(monkeypatch: pytest.MonkeyPatch, *argv: str, fault: Exception | None = None) -> int:
    for name in ("EXTRA_CA", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)  # with one set, the command would set others for this process
    if fault is not None:

        def broken(*_args: Any) -> None:
            raise fault

        monkeypatch.setattr(cli, "_find_source", broken)
        monkeypatch.setattr(cli, "choose_engine", lambda *_: (None, ""))
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    return int(ended.value.code or 0)


def test_quants_lists_every_type(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(monkeypatch, "quants") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [quant.name for quant in QUANTS]


def test_json_is_one_object_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "quants", "--json") == 0
    out = json.loads(capsys.readouterr().out)
    assert {quant["name"] for quant in out["quants"]} == {quant.name for quant in QUANTS}


def test_an_error_is_json_too_when_json_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "build", "--json", "--engine=local", "--model=") == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["exit_code"] == 2
    assert "MODEL is not given" in captured.err


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        (OSError(28, "No space left on device"), 5, "The disk is full"),
        (RuntimeError("surprise"), 70, "please report it"),
    ],
)
def test_what_nobody_foresaw_still_ends_with_the_right_code_and_a_sentence(
    fault: Exception, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "build", "--model=org/name", fault=fault) == code
    assert says in capsys.readouterr().err


def test_an_unknown_command_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run(monkeypatch, "bulid") == 2
