"""Variables typed after make: a misspelt one is named, what belongs to make or another tool passes."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from quantyard.cli.make_variables import CALLED_BY_MAKE, check_make_variables, typed_make_variables
from quantyard.errors import BadRequest
from quantyard.paths import REPO_DIR


def _make(folder: Path, *variables: str) -> str:
    """MAKEFLAGS as a recipe gets it."""
    (folder / "Makefile").write_text('x:\n\t@printf %s "$$MAKEFLAGS"\n')
    environment = {"PATH": os.environ["PATH"]}
    argv = ["make", "--no-print-directory", "-C", folder, "x", *variables]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _check(*typed: str) -> None:
    check_make_variables({CALLED_BY_MAKE: "1", "MAKEFLAGS": f" -- {' '.join(typed)}"})


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (("MODLE=x",), "Did you mean MODEL=…?"),
        (("model=x",), "Did you mean MODEL=…?"),
        (("QAUNT=Q8_0", "MODLE=x"), "Did you mean QUANT=… MODEL=…?"),
        (("hf_token=x",), "Did you mean HF_TOKEN=…?"),
        (("DRYRUN=1",), "Did you mean DRY_RUN=…?"),
        (("gguf-file=x",), "Did you mean GGUF_FILE=…?"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_one_that_was_meant(typed: tuple[str, ...], says: str) -> None:
    with pytest.raises(BadRequest) as error:
        _check(*typed)
    assert says in error.value.hint
    assert all(word.partition("=")[0] in error.value.message for word in typed)


def test_no_value_is_repeated() -> None:
    with pytest.raises(BadRequest) as error:
        _check("HF_TOKN=hf_secret")
    assert "hf_secret" not in error.value.message + error.value.hint


@pytest.mark.parametrize(
    "name",
    ["PYTHON", "SLOW", "HOSTILE", "https_proxy", "HTTP_PROXY", "LORA_FILE", "COMPOSE_PROFILES", "DESTDIR",
     "PREFIX", "V", "HF_HOME", "HF_TOKEN_PATH", "SSL_CERT_FILE", "PIP_INDEX_URL", "DOCKER_HOST", "NO_COLOR", "JOBS"],
)  # fmt: skip
def test_what_belongs_to_the_makefile_or_another_tool_passes(name: str) -> None:
    _check(f"{name}=x", "MODEL=org/name")


def test_no_variable_of_make_itself_is_taken_for_one_of_ours() -> None:
    argv, environment = ["make", "-pq", "-f", "/dev/null"], {"PATH": os.environ["PATH"]}
    told = subprocess.run(argv, env=environment, capture_output=True, text=True).stdout
    names = set(re.findall(r"^([A-Z_.]+) :?= ", told, re.MULTILINE))
    assert {"CC", "AR", "RM"} <= names
    _check(*(f"{name}=x" for name in names))


def test_the_names_are_read_from_what_make_passes_on(tmp_path: Path) -> None:
    told = _make(tmp_path, "MODLE=a b", "q=1", "R=$x=y", "T:=x -- Z=1", "-k", "--no-builtin-rules")
    assert set(typed_make_variables(told)) == {"MODLE", "q", "R", "T"}
    assert set(typed_make_variables(_make(tmp_path))) == set()
    assert set(typed_make_variables("")) == set()


def test_variables_of_another_makefile_are_not_ours() -> None:
    check_make_variables({"MAKEFLAGS": " -- MODLE=x"})


def test_our_makefile_says_that_it_calls(tmp_path: Path) -> None:
    text = (REPO_DIR / "Makefile").read_text()
    assert re.search(rf"^RUN = {CALLED_BY_MAKE}=1 ", text, re.MULTILINE)
