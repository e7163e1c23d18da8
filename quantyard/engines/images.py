"""The images that stages run in: their parts, and how they are built.

The *recipe* of an image is the digest of everything that we add to its base. Recipe and base digest together identify
the tools and are part of stage keys. The id of an image is not, since it changes with every rebuild.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from quantyard.errors import EngineError
from quantyard.records import dataclass
from quantyard.requests import ImageSettings

# The rooms of `quantyard` that a package's stages may import; its image contains all of them.
SHARED: Mapping[str, tuple[str, ...]] = {
    "builder": ("formats", "formatting", "hardware", "llama", "network", "protocol", "sandbox"),
    "eval": ("formats", "formatting", "hardware", "llama", "metrics", "network", "protocol", "sandbox"),
    "server": ("formats", "formatting", "hardware", "llama", "metrics", "protocol"),
}


@dataclass(frozen=True)
class ImageParts:
    """The parts of an image, in addition to its Dockerfile, the bake file and its base."""

    pin: tuple[str, str]  # the variables of versions.env with its base's image and tag
    packages: tuple[str, ...] = ()  # packages whose code it contains
    files: tuple[str, ...] = ()  # patterns of other files that it contains


_ON_BUILDER = ("docker/builder.Dockerfile", "locks/builder.txt", "locks/converter.txt")
# The files that determine the compiled wheels, together with the image they are compiled in.
_COMPILED = ("locks/sdists.txt", "locks/build.txt", "docker/compile-wheels.sh", "docker/llama-cpp.cmake")
# And those that determine the wheels of pure Python that are built beside them.
_PURE = ("locks/pure-sdists.txt", "docker/pure-wheels.sh")
# To add an image: see docker-bake.hcl, and add a row.
RECIPES: Mapping[str, ImageParts] = {
    "builder": ImageParts(("LLAMA_CPP_IMAGE", "LLAMA_CPP_TAG"), ("builder",), _ON_BUILDER[1:]),
    "eval": ImageParts(("EVAL_BASE_IMAGE", "EVAL_BASE_TAG"), ("eval",), ("locks/eval.txt", *_PURE, *_COMPILED)),
    "server": ImageParts(("LLAMA_CPP_IMAGE", "LLAMA_CPP_SERVER_TAG"), files=("server/image/*.sh",)),
    "contract": ImageParts(("LLAMA_CPP_IMAGE", "LLAMA_CPP_TAG"), ("builder", "server"), _ON_BUILDER),
}
IMAGES = tuple(RECIPES)
BAKE = ("docker", "buildx", "bake", "--file", "docker/docker-bake.hcl")


@cache
def engine_code_version(repo_dir: Path, package: str) -> str:
    """SHA-256 of the code that a stage of this package runs: the package, and the rooms that it imports."""
    # Suites are left out: a stage gets them through its request, which is part of the key anyway.
    own = (path for path in _files_below(repo_dir / package) if path.parent.name != "suites")
    rooms = (repo_dir / "quantyard" / room for room in SHARED[package])
    shared = (path for room in rooms for path in _files_below(room) if path.suffix == ".py")
    return _digest_of_image_paths(repo_dir, [*sorted(own), *sorted(shared)])


def _files_below(folder: Path) -> Iterator[Path]:
    """The files below a folder but for compiled ones; in half the time of `rglob`."""
    for parent, folders, names in os.walk(folder):
        folders[:] = (name for name in folders if name != "__pycache__")
        yield from (Path(parent, name) for name in names)


@cache
def engine_image_recipe(repo_dir: Path, image: str) -> str:
    """SHA-256 of everything that we add to the base of an image: recipe files, dependencies, code."""
    made_of = RECIPES[image]
    names = (f"docker/{image}.Dockerfile", "docker/docker-bake.hcl", *made_of.files)
    text = _digest_of_image_paths(repo_dir, [path for name in names for path in sorted(repo_dir.glob(name))])
    if image == "eval":
        text += _wheels_base_image(repo_dir)
    text += "".join(engine_code_version(repo_dir, package) for package in made_of.packages)
    return hashlib.sha256(text.encode()).hexdigest()


def bake_image(
    repo_dir: Path, image: str, tag: str, base_digest: str, settings: ImageSettings, on_line: Callable[[str], None]
) -> None:
    """Build an image with `docker buildx bake`, because the Python SDK does not support BuildKit.

    Raises:
        EngineError: buildx is missing, or the build failed; `detail` has its last lines.
    """
    env = bake_image_environment(repo_dir, image, base_digest, settings) | {"IMAGE_TAG": tag.rpartition(":")[2]}
    if image == "eval" and not env.get("WHEELS"):
        env["COMPILED"] = compiled_wheels_folder(repo_dir)
    run_docker(repo_dir, [*BAKE, "--load", image], env, f"The {image} image could not be built", on_line)


def bake_image_environment(repo_dir: Path, image: str, base_digest: str, settings: ImageSettings) -> dict[str, str]:
    """The variables that docker-bake.hcl reads, for one image."""
    return dict(os.environ) | dict(settings.proxies) | {
        "BASE": settings.bases[image], "BASE_DIGEST": base_digest, "RECIPE": engine_image_recipe(repo_dir, image),
        "EXTRA_CA": str(settings.extra_ca or ""), "PROXY": settings.reverse_proxy, "BUILDKIT_PROGRESS": "plain",
        "WHEELS_BASE": _wheels_base_image(repo_dir),
    }


def _wheels_base_image(repo_dir: Path) -> str:
    lines = (repo_dir / "versions.env").read_text().splitlines()
    pins = dict(line.split("=", 1) for line in lines if line.startswith("WHEELS_BASE_"))
    return f"{pins['WHEELS_BASE_IMAGE']}:{pins['WHEELS_BASE_TAG']}"


def compiled_wheels_folder(repo_dir: Path) -> str:
    """The folder of wheels that another checkout or a virtual environment compiled in the same way; "" if none."""
    command = [str(repo_dir / "scripts" / "wheels.sh"), "--cached"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout.strip()


def run_docker(
    repo_dir: Path, argv: Sequence[str], env: Mapping[str, str], failure: str,
    on_line: Callable[[str], None] = lambda _line: None,
) -> None:
    """Run a docker command without printing its output.

    Raises:
        EngineError: docker is missing, or the command failed: `failure` is the message, `detail` its last lines.
    """
    tail: deque[str] = deque(maxlen=20)
    try:
        process = subprocess.Popen(
            argv, cwd=repo_dir, env=dict(env), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )
    except FileNotFoundError as error:
        raise EngineError("The docker command is not installed.", "See what is missing: make doctor") from error
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line.rstrip())
            on_line(line.rstrip())
    if process.returncode != 0:
        message = f"{failure} (exit code {process.returncode})."
        raise EngineError(message, "Its last output says why. See what is missing: make doctor", "\n".join(tail))


def _digest_of_image_paths(repo_dir: Path, paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.relative_to(repo_dir).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
