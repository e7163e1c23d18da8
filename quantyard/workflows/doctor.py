"""Checks the machine for everything that builds need, with a remedy for each finding."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final, Literal

from quantyard.errors import EngineError, QuantyardError
from quantyard.forecast.cost import forecast_disk_folder
from quantyard.formatting.numbers import format_bytes, format_memory
from quantyard.requests import QUEUES, BuildRequest
from quantyard.workflows.doctor_finding import DoctorFinding as DoctorFinding  # noqa: PLC0414  (its place for others)

_COMMAND_TIMEOUT_S = 20
_LITTLE_DISK_BYTES = 20 * 10**9
_LITTLE_MEMORY_BYTES = 8 * 2**30
_PLAN_TIMEOUT_S = 60
_LLAMA_CPP = "llama.cpp without Docker"
_COMPILER = "Debian: apt-get install g++; macOS: xcode-select --install"
_NO_COMPILER = f"Only ENGINE=local needs it. {_COMPILER}"
_NO_SUCH_WHEEL = "Only ENGINE=local needs it. Take another: LLAMA_WHEEL=auto"
# The words of `scripts/wheels.sh --plan`.
_LLAMA_CPP_PLANS: Final[dict[str, tuple[Literal["ok", "note"], str]]] = {
    "kept": ("ok", ""), "prebuilt": ("ok", ""),
    "compile": ("note", "Only ENGINE=local needs it; the first build does it, or now: make images ENGINE=local"),
    "refused": ("note", _NO_SUCH_WHEEL), "missing": ("note", _NO_COMPILER),
}  # fmt: skip
_INSTALL_DOCKER = "Install Docker: https://docs.docker.com/engine/install (Debian: scripts/docker-debian.sh)"


def workflow_doctor(request: BuildRequest) -> list[DoctorFinding]:
    """Run all checks; a check that fails does not stop the others."""
    findings: list[DoctorFinding] = []
    for check, needs_daemon in CHECKS:
        if needs_daemon and not any(f.what == "Docker daemon" and f.state == "ok" for f in findings):
            continue
        try:
            findings.append(check(request))
        except Exception as error:  # a broken check is a finding too
            what = check.__name__.strip("_").replace("_", " ")
            findings.append(DoctorFinding(what, "note", f"could not be checked: {error}"))
    findings += _examine_differing(request)
    if request.engine in QUEUES:
        return [*findings, *_examine_queue_of_cluster(request)]
    if request.cluster.store:
        findings.append(_examine_shared_store(request))
    return [*findings, _examine_engines(findings)]


def _examine_queue_of_cluster(request: BuildRequest) -> list[DoctorFinding]:
    """Imported late: most machines have no cluster."""
    if request.engine == "kubernetes":
        from quantyard.workflows.kube_cluster import examine_kube_cluster

        return examine_kube_cluster(request)
    from quantyard.workflows.doctor_cluster import examine_cluster

    return examine_cluster(request)


def _examine_shared_store(request: BuildRequest) -> DoctorFinding:
    from quantyard.workflows.shared_store import workflow_store_finding

    try:
        return workflow_store_finding(request.cluster.store)
    except QuantyardError as error:
        return DoctorFinding("shared store", "missing", error.message, error.hint)


def _examine_differing(request: BuildRequest) -> list[DoctorFinding]:
    from quantyard.workflows.shared_store import workflow_differing_findings

    try:
        return workflow_differing_findings(request)
    except QuantyardError:  # what examines the store says so
        return []


def _examine_python(_request: BuildRequest) -> DoctorFinding:
    return DoctorFinding("Python", "ok", platform.python_version())  # the set-up refuses older versions


def _examine_docker(_request: BuildRequest) -> DoctorFinding:
    from quantyard.engines.docker_engine import find_docker_daemon

    try:
        info = find_docker_daemon(timeout_s=10).info()
    except EngineError as error:
        remedy = error.hint if shutil.which("docker") else _INSTALL_DOCKER
        return DoctorFinding("Docker daemon", "note", error.message, remedy)
    size = format_memory(int(info["MemTotal"]))
    return DoctorFinding(
        "Docker daemon", "ok", f"{info['ServerVersion']}, {info['Driver']}, {info['NCPU']} CPUs, {size}"
    )


def _examine_docker_disk(_request: BuildRequest) -> DoctorFinding:
    from quantyard.engines.docker_engine import find_docker_daemon

    root = str(find_docker_daemon(timeout_s=10).info()["DockerRootDir"])
    if not Path(root).is_dir():
        return DoctorFinding(
            "Docker disk", "note", f"{root} is not on this machine (a virtual machine or another host)"
        )
    free = shutil.disk_usage(root).free
    if free < _LITTLE_DISK_BYTES:
        return DoctorFinding(
            "Docker disk", "note", f"{format_bytes(free)} free in {root}", "Free some: docker system prune"
        )
    return DoctorFinding("Docker disk", "ok", f"{format_bytes(free)} free in {root}")


def _examine_buildx(_request: BuildRequest) -> DoctorFinding:
    return _examine_docker_plugin("buildx", "builds the images", "Install the buildx plugin (Debian: docker-buildx).")


def _examine_compose(_request: BuildRequest) -> DoctorFinding:
    return _examine_docker_plugin("compose", "serves models", "Install the compose plugin (Debian: docker-compose).")


def _examine_docker_plugin(name: str, use: str, remedy: str) -> DoctorFinding:
    said = _examined_command_output("docker", name, "version")
    if said is None:
        return DoctorFinding(f"Docker {name}", "note", f"not found ({use})", remedy)
    return DoctorFinding(f"Docker {name}", "ok", said.splitlines()[0])


def _examine_gpu(_request: BuildRequest) -> DoctorFinding:
    names = _examined_command_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if names is None:
        return DoctorFinding("GPU", "ok", "none found; builds run on the CPU")
    if "nvidia" not in (_examined_command_output("docker", "info", "--format", "{{json .Runtimes}}") or ""):
        remedy = "Install the NVIDIA Container Toolkit, then: nvidia-ctk runtime configure --runtime=docker"
        return DoctorFinding("GPU", "note", f"{names.splitlines()[0]}, but Docker has no nvidia runtime", remedy)
    return DoctorFinding("GPU", "ok", f"{names.splitlines()[0]}, Docker can use it")


def _examine_builder_image(request: BuildRequest) -> DoctorFinding:
    return _examine_base_image(request, "builder")


def _examine_eval_image(request: BuildRequest) -> DoctorFinding:
    return _examine_base_image(request, "eval")


def _examine_base_image(request: BuildRequest, name: str) -> DoctorFinding:
    from quantyard.engines.docker_engine import DockerEngine
    from quantyard.engines.images import compiled_wheels_folder

    engine = DockerEngine(request.environment, request.images)
    base, digest = request.images.bases[name], engine.describe(name).get("base_digest")
    if not digest:
        remedy = "Its first use pulls it: make images (no registry: make base-images)"
        return DoctorFinding(f"{name} image", "note", f"its base {base} is not pulled yet", remedy)
    if engine.identity(name) is None:
        compiles = name == "eval" and not compiled_wheels_folder(request.environment.repo_dir)
        value = "not built yet" + (": llama.cpp is compiled for it, once (5 to 15 minutes)" if compiles else "")
        return DoctorFinding(f"{name} image", "note", value, "Its first use makes it: make images")
    return DoctorFinding(f"{name} image", "ok", f"on {base} ({digest[:19]})")


def _examine_llama_cpp(request: BuildRequest) -> DoctorFinding:
    """How a set-up of ENGINE=local would get llama.cpp, as the script that will do it says."""
    run = subprocess.run(
        request.environment.set_up_argv("wheels.sh", "--plan"), stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=_PLAN_TIMEOUT_S, check=True,
    )
    word, _, sentence = run.stdout.strip().partition(": ")
    state, remedy = _LLAMA_CPP_PLANS[word]
    return DoctorFinding(_LLAMA_CPP, state, sentence, remedy)


def _examine_local_tools(request: BuildRequest) -> DoctorFinding:
    if not (request.environment.venv / ".ready").exists():
        remedy = "Only ENGINE=local needs them; the first build makes them: make images ENGINE=local"
        return DoctorFinding("local tools", "note", f"{request.environment.venv.name} is not set up", remedy)
    builds = ", ".join(f"{found.name} {found.version}" for found in _llama_cpp_packages(request.environment.venv))
    return DoctorFinding("local tools", "ok", f"{request.environment.venv.name} is set up: {builds}")


def _llama_cpp_packages(venv: Path) -> list[Distribution]:
    """The packages with a llama.cpp in them: the one that measures, and the one that serves."""
    folders = [str(path) for path in venv.glob("lib/python3*/site-packages")]
    return [found for name in ("llama-cpp-python", "xllamacpp") for found in distributions(name=name, path=folders)]


def _examine_disk(request: BuildRequest) -> DoctorFinding:
    free = shutil.disk_usage(forecast_disk_folder(request.artifacts)).free
    value = f"{format_bytes(free)} free in {request.artifacts}"
    if free < _LITTLE_DISK_BYTES:
        return DoctorFinding("disk", "note", value, "A 7B model needs about 50 GB; another disk: ARTIFACTS=/path")
    return DoctorFinding("disk", "ok", value)


def _examine_memory(_request: BuildRequest) -> DoctorFinding:
    size_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    value = format_memory(size_bytes)
    if size_bytes < _LITTLE_MEMORY_BYTES:
        return DoctorFinding("memory", "note", value, "Models above 3B may not convert; close other programs.")
    return DoctorFinding("memory", "ok", value)


def _examine_hub(request: BuildRequest) -> DoctorFinding:
    from quantyard.hub.client import HubAccess, hub_whoami

    access = HubAccess(request.endpoint, request.hf_token)
    try:
        user = hub_whoami(access)
    except QuantyardError as error:
        return DoctorFinding("Hub", "note", error.message, error.hint)
    if user is None:
        remedy = "Only gated and private models need one: hf auth login, or HF_TOKEN=…"
        return DoctorFinding("Hub", "ok", "reached; no token", remedy)
    return DoctorFinding("Hub", "ok", f"reached; the token is {user}'s")


def _examine_engines(findings: list[DoctorFinding]) -> DoctorFinding:
    """The summary: whether any engine can build."""
    states = {finding.what: finding.state for finding in findings}
    if states.get("Docker daemon") == "ok" and states.get("Docker buildx") == "ok":
        return DoctorFinding("engine", "ok", "docker")
    plan = next((finding for finding in findings if finding.what == _LLAMA_CPP), None)
    if states.get("local tools") == "ok" or (plan and plan.remedy not in (_NO_COMPILER, _NO_SUCH_WHEEL)):
        return DoctorFinding("engine", "ok", "local (no Docker daemon with buildx answers)")
    remedy = f"{_INSTALL_DOCKER}. Or, without Docker, a C++ compiler: {_COMPILER}"
    return DoctorFinding("engine", "missing", "neither docker nor local can run", remedy)


# To add a check: add a function that returns a DoctorFinding, and a row; True if it needs a Docker daemon.
CHECKS: tuple[tuple[Callable[[BuildRequest], DoctorFinding], bool], ...] = (
    (_examine_python, False), (_examine_docker, False), (_examine_docker_disk, True), (_examine_buildx, False),
    (_examine_compose, False), (_examine_gpu, False), (_examine_builder_image, True), (_examine_eval_image, True),
    (_examine_llama_cpp, False), (_examine_local_tools, False), (_examine_disk, False), (_examine_memory, False),
    (_examine_hub, False),
)


def _examined_command_output(*argv: str) -> str | None:
    """What a command prints, or None if it is missing or fails."""
    try:
        run = subprocess.run(argv, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None
