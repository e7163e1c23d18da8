"""The recipes, the scripts and the pins agree with each other."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from quantyard.cli.request import read_command_request
from quantyard.engines.images import IMAGES

REPO = Path(__file__).resolve().parents[2]
BAKE = REPO / "docker" / "docker-bake.hcl"
DOCKERFILES = sorted((REPO / "docker").glob("*.Dockerfile"))
EVAL = REPO / "docker" / "eval.Dockerfile"
SCRIPTS = sorted((REPO / "scripts").glob("*.sh"))
EXACT = r"[A-Za-z0-9_.-]+(\[[a-z0-9,]+\])?==\d[0-9A-Za-z.]*"  # name[extras]==version
GROUPS = tomllib.loads((REPO / "pyproject.toml").read_text())["dependency-groups"]

# A CPU as /proc/cpuinfo describes it, and what cmake-args.sh must switch on for it.
_AVX2 = "sse4_2 avx f16c fma avx2 bmi2"
_AVX512 = f"{_AVX2} avx512f avx512cd avx512vl avx512dq avx512bw"
CPUS = {
    "old": ("fpu sse4_2", {"SSE42"}),
    "avx2": (_AVX2, {"SSE42", "AVX", "F16C", "FMA", "AVX2", "BMI2"}),
    "avx2 with vnni": (f"{_AVX2} avx_vnni", {"SSE42", "AVX", "F16C", "FMA", "AVX2", "BMI2", "AVX_VNNI"}),
    "avx512 without its base set": (f"{_AVX2} avx512f avx512_vnni", {"SSE42", "AVX", "F16C", "FMA", "AVX2", "BMI2"}),
    "a virtual machine that advertises amx": (
        f"{_AVX512} avx512vbmi avx512_vnni avx512_bf16 avx_vnni amx_tile amx_int8 amx_bf16",
        {"SSE42", "AVX", "F16C", "FMA", "AVX2", "BMI2", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16"},
    ),
}


def pins() -> dict[str, str]:
    """versions.env as a shell reads it."""
    lines = (REPO / "versions.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def pinned_values() -> set[str]:
    """The values that must stand in one place only; a word like `full` says too little to look for."""
    return {value for value in pins().values() if re.search(r"[./:=]|\d", value)}


def without_comments(path: Path) -> str:
    """The lines of a recipe or script that do something."""
    return "\n".join(re.sub(r"(^|\s)#.*", "", line) for line in path.read_text().splitlines())


def _copies(path: Path) -> list[str]:
    """What each COPY from the context names: its sources, and last its target."""
    joined = re.sub(r"\\\n", " ", path.read_text())
    return re.findall(r"^COPY (?:--chmod=\d+ +)?(?!--)(.*)$", re.sub(" +", " ", joined), re.MULTILINE)


def bake_targets() -> set[str]:
    """The images the bake file builds for this machine."""
    names = re.findall(r'^target "([a-z][a-z-]*)"', BAKE.read_text(), re.MULTILINE)
    return {name for name in names if not name.endswith(("-release", "-wheels", "-model"))}


def test_every_line_of_versions_env_is_a_comment_or_a_pin() -> None:
    lines = (REPO / "versions.env").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"#.*|[A-Z][A-Z0-9_]*=[^\s'\"$`;&|]+|", line)] == []


def test_versions_env_gives_a_shell_what_it_gives_us() -> None:
    shell = subprocess.run(
        ["bash", "-c", "set -a; . ./versions.env; env -0"],
        cwd=REPO, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    )
    seen = dict(entry.split("=", 1) for entry in shell.stdout.split("\0") if entry)
    assert pins().items() <= seen.items()


def test_no_pin_is_named_twice() -> None:
    names = re.findall(r"^([A-Z0-9_]+)=", (REPO / "versions.env").read_text(), re.MULTILINE)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", [BAKE, *DOCKERFILES, *SCRIPTS], ids=lambda path: path.name)
def test_no_recipe_or_script_repeats_a_pin(path: Path) -> None:
    text = without_comments(path)
    assert [value for value in pinned_values() if value in text] == []


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_takes_its_base_from_bake_and_fetches_no_frontend(path: Path) -> None:
    text = path.read_text()
    stages = set(re.findall(r"^FROM .* AS (\S+)$", text, re.MULTILINE))
    bases = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) - stages - {"scratch"}  # scratch: nothing to fetch
    assert all(base.startswith("${") for base in bases), bases
    assert not re.search(r"^#\s*syntax\s*=", text, re.MULTILINE | re.IGNORECASE)


def test_every_dockerfile_has_the_stage_it_is_named_after_and_none_after_it_but_what_holds_a_model() -> None:
    for path in DOCKERFILES:
        stages = re.findall(r"^FROM .* AS (\S+)$", path.read_text(), re.MULTILINE)
        after = stages[stages.index(path.name.removesuffix(".Dockerfile")) + 1 :]
        assert after == (["model", "served-model"] if path.name == "server.Dockerfile" else [])


def test_every_dockerfile_has_a_bake_target_and_a_release_target() -> None:
    names = {path.name.removesuffix(".Dockerfile") for path in DOCKERFILES}
    assert bake_targets() == names == set(IMAGES)
    assert all(f'target "{name}-release"' in BAKE.read_text() for name in names)


def test_the_context_of_a_build_holds_what_the_dockerfiles_copy() -> None:
    sources = {s.split("/")[0] for path in DOCKERFILES for line in _copies(path) for s in line.split()[:-1]}
    bound = {source for path in DOCKERFILES for source in re.findall(r"type=bind,source=([\w.-]+)", path.read_text())}
    sources |= bound
    allowed = {line.strip("!/") for line in (REPO / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources and sources <= allowed


def test_every_base_image_has_a_stand_in() -> None:
    bases = read_command_request(argparse.Namespace(), {}).images.bases
    assert set(bases) == set(IMAGES) and bases["contract"] == bases["builder"]
    own = [image for image in IMAGES if image != "contract"]
    assert len({bases[image] for image in own}) == len(own)
    script = (REPO / "scripts/base-images.sh").read_text()
    assert f'\nIMAGES="{" ".join(own)} proxy wheels"\n' in script  # no image of ours is built on these two
    assert all(f"\nlayout_{image}() {{\n" in script for image in own)


def test_llama_cpp_is_compiled_for_every_cpu_and_with_neither_amx_nor_what_this_host_has() -> None:
    recipe = without_comments(REPO / "docker" / "llama-cpp.cmake")
    assert "set(GGML_NATIVE OFF)" in recipe and "AMX" not in recipe
    everywhere = re.findall(r"^\s*foreach\(set_of_instructions (.*)\)", recipe, re.MULTILINE)
    assert [set(names.split()) for names in everywhere] == [CPUS["avx2"][1]]
    assert re.findall(r"-DGGML_(\w+):BOOL=ON", recipe.replace("${set_of_instructions}", "")) == ["AVX512"]


def test_scores_do_not_depend_on_the_cpu_because_the_eval_image_has_no_kernels_for_some_cpus_only() -> None:
    assert "rm -rf /opt/quantyard/lib/llama_cpp/lib/glibc-hwcaps" in without_comments(EVAL)


def test_the_eval_image_installs_without_a_network_and_what_compiles_stays_behind() -> None:
    last = without_comments(EVAL).partition("AS eval\n")[2]
    assert "RUN --network=none" in last and "--no-index" in last
    assert "apt-get" not in last and "secret" not in last and "COPY --from" not in last


@pytest.mark.parametrize("words", [["--what"], ["contract"], ["--rootfs", "/nowhere", "eval"]], ids=" ".join)
def test_base_images_refuses_what_it_does_not_know_and_tells_its_usage(words: list[str]) -> None:
    run = subprocess.run([REPO / "scripts/base-images.sh", *words], capture_output=True, text=True, check=False)
    assert run.returncode == 2 and "Usage: scripts/base-images.sh" in run.stderr


def test_a_root_file_system_is_for_one_image(tmp_path: Path) -> None:
    (tmp_path / "rootfs.tar").touch()
    argv = [REPO / "scripts/base-images.sh", "--rootfs", tmp_path / "rootfs.tar"]
    run = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert run.returncode == 2 and "name it" in run.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_runs_unprivileged_and_without_its_base_images_entrypoint(path: Path) -> None:
    lines = path.read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])
    assert any(line.startswith("ENTRYPOINT") for line in lines)


def test_the_docker_folder_holds_no_python() -> None:
    assert list((REPO / "docker").rglob("*.py")) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_can_be_run_is_strict_and_parses(path: Path) -> None:
    assert os.access(path, os.X_OK)
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in text
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("group", GROUPS)
def test_every_dependency_is_pinned_exactly(group: str) -> None:
    """The scripts read llama-cpp-python's version out of its requirement, so it too must be exact."""
    requirements = [entry for entry in GROUPS[group] if isinstance(entry, str)]
    assert [line for line in requirements if not re.fullmatch(EXACT, line)] == []


def test_the_converter_has_one_llama_cpp_python_to_come_from() -> None:
    requirements = [line for lines in GROUPS.values() for line in lines if isinstance(line, str)]
    assert len([line for line in requirements if line.startswith("llama-cpp-python==")]) == 1


def test_one_package_has_one_version_in_all_groups() -> None:
    versions: dict[str, set[str]] = {}
    together = [lines for group, lines in GROUPS.items() if group != "converter"]  # in a folder of its own
    for line in {line for lines in together for line in lines if isinstance(line, str)}:
        name, _, version = line.partition("==")
        versions.setdefault(name, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


@pytest.mark.parametrize("cpu", CPUS)
def test_llama_cpp_is_compiled_with_what_the_cpu_has_and_never_with_amx(cpu: str, tmp_path: Path) -> None:
    flags, wanted = CPUS[cpu]
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n")
    args = subprocess.run([REPO / "scripts/cmake-args.sh", cpuinfo], capture_output=True, text=True, check=True).stdout
    assert args.startswith("-DGGML_NATIVE=OFF ")
    assert set(re.findall(r"-DGGML_(\w+)=ON", args)) == wanted
    assert "AMX" not in args


def test_a_cpu_without_flags_is_an_error_and_not_a_native_build(tmp_path: Path) -> None:
    argv = [REPO / "scripts/cmake-args.sh", tmp_path / "none"]
    run = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, "")
    assert "CMAKE_ARGS" in run.stderr
