"""The rules of the house: who may import what, and who may print."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from quantyard.cli import COMMANDS
from quantyard.engines.images import RECIPES, SHARED
from quantyard.paths import REPO_DIR
from quantyard.plan.stages import STAGES

OURS = ("builder", "eval", "server", "quantyard")


def _modules(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from sorted((REPO_DIR / package).rglob("*.py"))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.commands
@pytest.mark.parametrize("package", ["builder", "eval", "server"])
def test_what_runs_in_an_image_imports_nothing_of_ours_but_what_is_shared(package: str) -> None:
    shared = set(SHARED[package])
    own = _modules(package, *(f"quantyard/{room}" for room in shared))
    for path in own:
        ours = {name for name in _imports(path) if name.split(".")[0] in OURS}
        allowed = (package, *(f"quantyard.{room}" for room in shared))
        foreign = {name for name in ours if not f"{name}.".startswith(tuple(f"{start}." for start in allowed))}
        assert not foreign, f"{path.name} imports {foreign}"


@pytest.mark.parametrize("path", sorted((REPO_DIR / "docker").glob("*.Dockerfile")), ids=lambda path: path.stem)
def test_an_image_holds_exactly_what_is_shared_with_it(path: Path) -> None:
    copied = re.findall(r"COPY quantyard/(\w+)/ /opt/quantyard/src/quantyard/\1/", path.read_text())
    own = RECIPES[path.stem].packages[-1:]  # what is below it has its own
    assert copied == (list(SHARED[own[0]]) if own else [])


@pytest.mark.commands
def test_only_the_docker_engine_imports_docker() -> None:
    guilty = [p.name for p in _modules(*OURS) if any(name.split(".")[0] == "docker" for name in _imports(p))]
    assert guilty == ["docker.py"]


def test_only_the_command_line_prints() -> None:
    def prints(path: Path) -> bool:
        calls = (n for n in ast.walk(_tree(path)) if isinstance(n, ast.Call))
        return any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls)

    guilty = [p.relative_to(REPO_DIR / "quantyard").as_posix() for p in _modules("quantyard") if prints(p)]
    assert guilty == ["cli/output.py", "protocol/runner.py"]  # the frame speaks in images


@pytest.mark.parametrize("path", list(_modules("quantyard/workflows")), ids=lambda path: path.stem)
def test_a_workflow_neither_prints_nor_reads_the_command_line_or_the_environment(path: Path) -> None:
    nodes = list(ast.walk(_tree(path)))
    called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    assert not called & {"print", "input", "sys.exit", "os.getenv"}
    used = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    assert not used & {"sys.argv", "sys.stdout", "sys.stderr", "os.environ"}
    libraries = {name.split(".")[0] for name in _imports(path)}
    assert not libraries & {"argparse", "rich"}
    assert not any(f"{name}.".startswith(("quantyard.cli.", "quantyard.api.")) for name in _imports(path))


def test_the_environment_is_read_at_the_edge_only() -> None:
    # images: to pass it on; secrets: XDG; docker_engine, podman_service: DOCKER_HOST, which the SDK reads too
    # encoder_decoder/image: a program, whose settings they are
    # offline, llama_server, local/encoder_decoder: they only write, for libraries that read it while imported
    edge = {
        "quantyard/api/call.py", "quantyard/protocol/runner.py", "quantyard/engines/images.py",
        "quantyard/engines/secrets.py", "quantyard/engines/docker_engine.py", "quantyard/engines/podman_service.py",
        "eval/tasks/offline.py", "server/client/chat.py", "server/local/llama_server.py",
        "server/local/encoder_decoder.py", "server/encoder_decoder/image.py",
    }
    paths = {p.relative_to(REPO_DIR).as_posix() for p in _modules(*OURS) if "os.environ" in p.read_text()}
    guilty = {path for path in paths if not path.startswith("quantyard/cli/")} - edge
    assert not guilty


def test_the_docker_folder_holds_no_python() -> None:
    assert not list((REPO_DIR / "docker").rglob("*.py"))


def test_every_stage_is_a_module_with_a_main() -> None:
    for row in STAGES.values():
        path = REPO_DIR / row.code / f"{row.name}.py"
        assert "def main()" in path.read_text(), f"{row.name} has no main() in {path}"


@pytest.mark.parametrize("command", [name for name, *_ in COMMANDS if name not in ("completion", "node")])
def test_every_command_is_a_target_of_make(command: str) -> None:
    assert re.search(rf"^{command}:.*## ", (REPO_DIR / "Makefile").read_text(), re.MULTILINE)


# Files of the model's own in other words: what stands in them is the model's business.
_OF_THE_MODEL = {
    "builder/dequantize.py", "builder/lora.py", "builder/checks/lora_base.py", "builder/checks/hf_reference.py",
}


def _names_facts(node: ast.AST) -> bool:
    """`….facts` or `…["facts"]`, read."""
    if isinstance(node, ast.Attribute):
        return node.attr == "facts" and isinstance(node.ctx, ast.Load)
    return isinstance(node, ast.Subscript) and ast.unparse(node.slice) == "'facts'"


@pytest.mark.commands
def test_only_the_typed_models_read_the_facts_of_a_stage() -> None:
    of_stages = {REPO_DIR / "quantyard" / "protocol", REPO_DIR / "quantyard" / "store"}
    for path in (path for path in _modules("quantyard") if path.parent not in of_stages):
        calls = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call)]
        handed_on = {id(arg) for call in calls for arg in (*call.args, *(word.value for word in call.keywords))}
        guilty = [node for node in ast.walk(_tree(path)) if _names_facts(node) and id(node) not in handed_on]
        assert not guilty, f"{path.relative_to(REPO_DIR)}: {[ast.unparse(node) for node in guilty]}"


@pytest.mark.commands
def test_no_file_that_we_write_as_json_can_hold_a_number_that_is_not_finite() -> None:
    careless = set()
    for path in _modules(*OURS):
        calls = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call)]
        writes = [call for call in calls if ast.unparse(call.func).endswith((".write_text", ".write_bytes"))]
        dumps = [call for write in writes for call in ast.walk(write) if isinstance(call, ast.Call)]
        if any(ast.unparse(call.func) == "json.dumps" and "allow_nan" not in ast.unparse(call) for call in dumps):
            careless.add(path.relative_to(REPO_DIR).as_posix())
    assert careless <= _OF_THE_MODEL, "take finite_json.dump_finite_json"
