"""Variables after make and in the environment: what would be ignored is refused, what is another tool's passes."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from pathlib import Path

import pytest

from quantyard.cli.commands import COMMANDS
from quantyard.cli.make_targets import MAKE_TARGETS
from quantyard.cli.variables import CALLED_BY_MAKE, check_target_variables, check_variables, typed_make_variables
from quantyard.errors import BadRequest
from quantyard.paths import REPO_DIR
from server.client.chat import OPTIONS


def _make(folder: Path, *variables: str) -> str:
    """MAKEFLAGS as a recipe gets it."""
    (folder / "Makefile").write_text('x:\n\t@printf %s "$$MAKEFLAGS"\n')
    environment = {"PATH": os.environ["PATH"]}
    argv = ["make", "--no-print-directory", "-C", folder, "x", *variables]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _check(*typed: str, command: str = "publish", level: str = "1", **environment: str) -> tuple[str, ...]:
    called = {CALLED_BY_MAKE: "1", "MAKEFLAGS": f" -- {' '.join(typed)}", "MAKELEVEL": level}
    if command in {target.name for target in MAKE_TARGETS}:
        check_target_variables(command, environment | (called if typed else {}))
        return ()
    function = next(row.function for row in COMMANDS if row.name == command)
    return check_variables(argparse.Namespace(command=function), environment | (called if typed else {}))


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (("MODLE=x",), "Did you mean MODEL=…?"),
        (("model=x",), "Did you mean MODEL=…?"),
        (("QAUNT=Q8_0", "MODLE=x"), "Did you mean QUANT=… MODEL=…?"),
        (("SUIT=smoke",), "Did you mean SUITE=…?"),
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
    ("command", "typed", "says", "hint"),
    [
        ("plan", "TARGET_SIZE=4GiB", "plan does not take TARGET_SIZE; tune does.", "make plan-help"),
        ("build", "QUANTS=Q8_0", "build does not take QUANTS; plan and matrix do.", "Did you mean QUANT=…?"),
        ("matrix", "QUANT=Q8_0", "matrix does not take QUANT; build, eval, serve and others do.", "QUANTS=…?"),
        ("build", "DRY_RUN=1", "build does not take DRY_RUN; publish, release and gc do.", "make build-help"),
        ("build", "LORA_FILE=a.gguf", "build does not take LORA_FILE; serve does.", "make build-help"),
        ("build", "FOO=1", "an unknown variable: FOO.", "For another program, put it in front: FOO=… make build."),
        ("build", "DOCKER_HOST=x", "an unknown variable: DOCKER_HOST.", "put it in front: DOCKER_HOST=… make build."),
        # targets of the Makefile that are not commands
        ("chat", "PROT=8081", "an unknown variable: PROT.", "Did you mean PORT=…? Its variables: PORT, BASE_URL"),
        ("chat", "MODEL_NAM=x", "an unknown variable: MODEL_NAM.", "Did you mean MODEL_NAME=…?"),
        ("chat", "MODEL=x", "chat does not take MODEL; build, eval, serve and others do.", "MODEL_NAME"),
        ("test", "TIRE=change", "an unknown variable: TIRE.", "Did you mean TIER=…?"),
        ("test-fast", "TIER=change", "test-fast does not take TIER; test does.", "Its variables: JOBS"),
        ("base-images", "LLAMA_CPP_TG=x", "an unknown variable: LLAMA_CPP_TG.", "Did you mean LLAMA_CPP_TAG=…?"),
        ("clean", "FOO=1", "an unknown variable: FOO.", "Its variables: none"),
    ],
)
def test_a_variable_that_the_command_does_not_take_is_refused(command: str, typed: str, says: str, hint: str) -> None:
    with pytest.raises(BadRequest) as error:
        _check(typed, command=command)
    assert says in error.value.message and hint in error.value.hint


def test_every_command_that_a_page_or_a_message_names_takes_its_variables() -> None:
    refused = set()
    pages = [*REPO_DIR.glob("*.md"), REPO_DIR / "Makefile"]
    for folder, kind in (("docs", "*.md"), ("quantyard", "*.py"), ("quantyard", "*.jinja"), ("builder", "*.py"),
                         ("eval", "*.py"), ("server", "*.py"), ("scripts", "*.sh")):  # fmt: skip
        pages += (REPO_DIR / folder).rglob(kind)
    commands = {command.name for command in (*COMMANDS, *MAKE_TARGETS)}
    for page in pages:
        for verb, words in re.findall(r"\bmake ([a-z0-9-]+)((?: +\\?\s*[A-Z][A-Z_]*=[^\s`]*)+)", page.read_text()):
            if verb in commands:
                try:
                    _check(*(f"{name}=x" for name in re.findall(r"([A-Z][A-Z_]*)=", words)), command=verb)
                except BadRequest:
                    refused.add(f"make {verb}{words}")
    assert refused <= {
        "make publish DRYRUN=1", "make plan TARGET_SIZE=4GiB", "make build MODLE=…", "make build MODLE=x",
        "make chat PROT=8081", "make test TIRE=change",
    }, "of these the page says that they are refused"  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["PYTHON", "WHEELS", "SLOW", "HOSTILE", "https_proxy", "HTTP_PROXY", "HF_TOKEN", "EXTRA_CA", "ENGINE", "ARTIFACTS"],
)
def test_what_every_command_reads_passes(name: str) -> None:
    assert _check(f"{name}=x", "MODEL=org/name") == ()


def test_serve_takes_the_variables_of_compose() -> None:
    assert _check("LORA_FILE=x", "BIND_ADDRESS=0.0.0.0", "COMPOSE_FILE=x", "PARALLEL=2", command="serve") == ()


def test_the_variables_of_another_projects_makefile_pass_below_it_unless_they_are_slips_of_ours() -> None:
    argv, environment = ["make", "-pq", "-f", "/dev/null"], {"PATH": os.environ["PATH"]}
    told = subprocess.run(argv, env=environment, capture_output=True, text=True).stdout
    names = set(re.findall(r"^([A-Z_.]+) :?= ", told, re.MULTILINE))
    assert {"CC", "AR", "RM"} <= names
    _check(*(f"{name}=x" for name in names), "DESTDIR=x", "PREFIX=x", "V=1", "LORA_FILE=x", level="2")
    with pytest.raises(BadRequest):
        _check("MODLE=x", level="2")


# ---- what make does beside the commands ----------------------------------------------------------------


def test_every_target_of_the_makefile_checks_its_variables() -> None:
    text = (REPO_DIR / "Makefile").read_text()
    others = set(re.search(r"^OTHERS = (.*)$", text, re.MULTILINE)[1].split())  # type: ignore[index]
    names = {target.name for target in MAKE_TARGETS}
    assert names == {name for name in others if not name.startswith(".")}
    for name in names:
        assert re.search(rf"^{name}:.*\n\t@\$\(CHECK\) \$@$", text, re.MULTILINE), name


def test_the_variables_of_chat_are_its_options() -> None:
    chat = next(target for target in MAKE_TARGETS if target.name == "chat")
    assert [*(option.name for option in OPTIONS), "NO_COLOR"] == list(chat.settings or ())


@pytest.mark.parametrize(
    ("target", "typed"),
    [
        ("chat", ("PORT=8081", "TEMPERATURE=0")), ("test", ("TIER=change", "REQUIRE_DOCKER=1", "JOBS=1")),
        ("test-all", ("HOSTILE=all", "EXTRA_CA=x")), ("base-images", ("LLAMA_CPP_SDIST=x",)), ("docs", ("PYTHON=x",)),
    ],
)  # fmt: skip
def test_a_target_takes_its_variables(target: str, typed: tuple[str, ...]) -> None:
    assert _check(*typed, command=target) == ()


def test_a_slip_in_the_environment_of_a_target_is_refused() -> None:
    with pytest.raises(BadRequest) as error:
        _check(command="chat", PROT="8081")
    assert "Did you mean PORT=…?" in error.value.hint
    for target in MAKE_TARGETS:
        assert _check(command=target.name, PATH="x", MODEL="x", REQUIRE_DOCKER="1", TERM="x", CI="true") == ()


def test_make_refuses_it_before_anything_is_set_up() -> None:
    argv = ["make", "--no-print-directory", "-C", str(REPO_DIR), "chat", "PROT=8081"]
    done = subprocess.run(argv, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode == 2 and "Did you mean PORT=…?" in done.stderr and "Traceback" not in done.stderr


# ---- in the environment --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SUIT", "SUITE"), ("SUTIE", "SUITE"), ("MODLE", "MODEL"), ("DRYRUN", "DRY_RUN"), ("dry_run", "DRY_RUN"),
        ("QUANTYARD_SUITE", "SUITE"), ("LICENCE", "LICENSE"), ("HUBBRANCH", "HUB_BRANCH"), ("ARTEFACTS", "ARTIFACTS"),
    ],
)  # fmt: skip
def test_a_slip_in_the_environment_is_refused_unless_the_setting_is_given(name: str, meant: str) -> None:
    with pytest.raises(BadRequest) as error:
        _check(**{name: "hf_secret"})
    assert name in error.value.message and f"Did you mean {meant}=…?" in error.value.hint
    assert f"env -u {name} make publish" in error.value.hint
    assert "hf_secret" not in error.value.message + error.value.hint
    assert _check(**{name: "x", meant: "y"}) == ()


def test_what_is_in_an_environment_for_other_reasons_passes() -> None:
    """Names of shells, of CI services, and of tools."""
    names = (
        "PATH HOME USER LOGNAME SHELL TERM LANG LC_ALL PWD OLDPWD MAIL EDITOR PAGER DISPLAY TZ TMPDIR DATE BASH_ENV "
        "CI GITHUB_TOKEN GITHUB_REF GITHUB_REPOSITORY GITHUB_OUTPUT GITHUB_WORKSPACE RUNNER_OS RUNNER_TEMP GITLAB_CI "
        "CI_COMMIT_TAG CI_PROJECT_PATH CI_JOB_TOKEN JENKINS_URL BUILD_TAG BUILD_NUMBER JOB_NAME NODE_NAME WORKSPACE "
        "TAG_NAME HF_HOME HF_HUB_OFFLINE HF_TOKEN_PATH HUGGING_FACE_HUB_TOKEN SSL_CERT_FILE PIP_INDEX_URL DOCKER_HOST "
        "NO_COLOR COLUMNS LINES http_proxy https_proxy no_proxy NO_PROXY ALL_PROXY CUDA_VISIBLE_DEVICES NVIDIA_DRIVER "
        "OMP_NUM_THREADS MKL_NUM_THREADS TOKENIZERS_PARALLELISM PYTHONPATH VIRTUAL_ENV CONDA_PREFIX MODELS_DIR "
        "LLAMA_CACHE LORA_FILE BIND_ADDRESS COMPOSE_PROFILES COMPOSE_FILE MAKEFLAGS MAKELEVEL MFLAGS SSH_AUTH_SOCK "
        "XDG_RUNTIME_DIR DBUS_SESSION_BUS_ADDRESS HOSTNAME HOSTTYPE SHLVL GPG_KEY KUBERNETES_PORT SPEED PORTS GH_TOKEN"
    )
    for command in COMMANDS:
        assert _check(command=command.name, **dict.fromkeys(names.split(), "x")) == ()


def test_a_setting_of_another_command_in_the_environment_is_named_and_breaks_nothing() -> None:
    assert _check(command="build", QUANTS="Q8_0", REPO="me/x", MODEL="m", ENGINE="local") == ("QUANTS", "REPO")
    assert _check(command="quants", ARTIFACTS="x", HF_TOKEN="x", LLAMA_CPP_TAG="x") == ()


# ---- how make passes them ------------------------------------------------------------------------------


def test_the_names_are_read_from_what_make_passes_on(tmp_path: Path) -> None:
    told = _make(tmp_path, "MODLE=a b", "q=1", "R=$x=y", "T:=x -- Z=1", "-k", "--no-builtin-rules")
    assert set(typed_make_variables(told)) == {"MODLE", "q", "R", "T"}
    assert set(typed_make_variables(_make(tmp_path))) == set()
    assert set(typed_make_variables("")) == set()


def test_our_makefile_says_that_it_calls(tmp_path: Path) -> None:
    text = (REPO_DIR / "Makefile").read_text()
    assert re.search(rf"^RUN = {CALLED_BY_MAKE}=1 ", text, re.MULTILINE)


@pytest.mark.commands
@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (("bulid",), "bulid is not a command of make. Did you mean: make build?"),
        (("plan", "QUANT=Q4_K_M,", "Q8_0"), "make takes Q8_0 for a command: a space ends a value."),
        (("plan", "QUANT=Q4_K_M", ",", "Q8_0"), "make takes , for a command"),
        (("it's",), "it's is not a command of make."),
    ],
)
def test_a_word_that_names_nothing_to_make_is_refused_before_anything_runs(typed: tuple[str, ...], says: str) -> None:
    argv = ["make", "--no-print-directory", "-C", str(REPO_DIR), *typed]
    done = subprocess.run(argv, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr and done.stdout == ""
