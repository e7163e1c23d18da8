"""Doctor: each finding with its remedy, and no check stops another."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from quantyard.cli import request
from quantyard.cli.parser import add_command_options
from quantyard.cli.request import read_command_request
from quantyard.workflows import doctor
from quantyard.workflows.doctor import DoctorFinding, workflow_doctor


def _examine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **environment: str) -> dict[str, DoctorFinding]:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    parser = argparse.ArgumentParser()
    add_command_options(parser)
    given = {"ARTIFACTS": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"} | environment
    return {f.what: f for f in workflow_doctor(read_command_request(parser.parse_args([]), given))}


def test_what_is_missing_comes_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = _examine(tmp_path, monkeypatch)
    assert findings["Docker daemon"].state == "note"
    assert "No such file or directory" in findings["Docker daemon"].value
    assert findings["Hub"].state == "note"
    assert all(f.remedy for f in findings.values() if f.state != "ok")


def test_nothing_about_the_daemon_is_asked_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = _examine(tmp_path, monkeypatch)
    assert "Docker disk" not in findings
    assert "builder image" not in findings and "eval image" not in findings


class _Engine:
    """A docker engine that knows two images: `builder` is built, of `eval` not even the base is here."""

    def __init__(self, *_args: object) -> None: ...

    def describe(self, image: str) -> dict[str, str]:
        return {"base_digest": "sha256:1234" if image == "builder" else ""}

    def identity(self, image: str) -> str | None:
        return "known" if image == "builder" else None


def test_each_image_is_a_finding_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import quantyard.engines.docker_engine

    monkeypatch.setattr(doctor, "_examine_docker", lambda _request: DoctorFinding("Docker daemon", "ok", "27"))
    monkeypatch.setattr(quantyard.engines.docker_engine, "DockerEngine", _Engine)
    checks = (
        (doctor._examine_docker, False), (doctor._examine_builder_image, True), (doctor._examine_eval_image, True),
    )  # fmt: skip
    monkeypatch.setattr(doctor, "CHECKS", checks)
    findings = _examine(tmp_path, monkeypatch, EVAL_BASE_IMAGE="registry.example/python")
    assert findings["builder image"].state == "ok"
    assert findings["eval image"].state == "note" and "make base-images" in findings["eval image"].remedy
    assert "registry.example/python:" in findings["eval image"].value


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def _broken_check(_request: object) -> DoctorFinding:
        raise RuntimeError("surprise")

    monkeypatch.setattr(doctor, "CHECKS", ((_broken_check, False), *doctor.CHECKS))
    findings = _examine(tmp_path, monkeypatch)
    assert "surprise" in findings["broken check"].value
    assert "memory" in findings


def test_a_machine_with_neither_engine_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(request, "local_venv_path", lambda _environment, _name="local": tmp_path)
    findings = _examine(tmp_path, monkeypatch)
    assert findings["engine"].state == "missing"
    assert findings["engine"].remedy
