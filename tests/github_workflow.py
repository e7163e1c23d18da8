"""The workflow that users copy, and a runner of its steps: bash as GitHub starts it, the real command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from quantyard.cli.settings import SETTINGS
from quantyard.paths import REPO_DIR

TEMPLATE = REPO_DIR / "docs" / "examples" / "github-actions" / "quantyard.yml"
_OUTPUT = re.compile(r"\$\{\{ steps\.(\w+)\.outputs\.(\w+) \}\}")
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")


def workflow() -> dict[str, Any]:
    """The template, parsed."""
    value = yaml.safe_load(TEMPLATE.read_text())
    assert isinstance(value, dict)
    return value


def steps() -> list[dict[str, Any]]:
    """The steps of its one job."""
    (job,) = workflow()["jobs"].values()
    return list(job["steps"])


def step(name: str) -> dict[str, Any]:
    """The step of this name."""
    return next(row for row in steps() if row.get("name") == name)


@dataclass
class Job:
    """One run of the job in a folder that holds quantyard.toml; the secrets are empty."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run the step of this name, as `shell: bash` does."""
        (job,) = workflow()["jobs"].values()
        given, script = step(name), self.folder / ".step.sh"
        script.write_text(given["run"])
        (self.folder / ".output").write_text("")
        said = self._filled(job["env"] | given.get("env", {}))
        environment = {**self._machine(), **said, **self.variables}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)], cwd=self.folder, env=environment,
            capture_output=True, text=True, timeout=600, check=False,
        )
        for line in (self.folder / ".output").read_text().splitlines():
            key, _, value = line.partition("=")
            self.outputs[f"{given.get('id')}.{key}"] = value
        return done

    @property
    def summary(self) -> str:
        """What the steps wrote for the page of the run."""
        return (self.folder / ".summary").read_text()

    def _machine(self) -> dict[str, str]:
        """This machine's environment with the command `quantyard`, and without settings of whoever runs the test."""
        programs = self.folder / ".bin"
        programs.mkdir(exist_ok=True)
        (programs / "quantyard").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m quantyard "$@"\n')
        (programs / "quantyard").chmod(0o755)
        hidden = {setting.name for setting in SETTINGS} | set(_CERTIFICATES)
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        return kept | {
            "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(REPO_DIR),
            "HF_HOME": str(self.folder / ".hf"),
            "GITHUB_OUTPUT": str(self.folder / ".output"), "GITHUB_STEP_SUMMARY": str(self.folder / ".summary"),
        }  # fmt: skip

    def _filled(self, env: dict[str, Any]) -> dict[str, str]:
        """The values of `env`, with outputs of steps in place of expressions; secrets are empty."""
        texts = {key: _OUTPUT.sub(lambda m: self.outputs.get(f"{m[1]}.{m[2]}", ""), str(v)) for key, v in env.items()}
        return {key: re.sub(r"\$\{\{ secrets\.\w+ \}\}", "", text) for key, text in texts.items()}
