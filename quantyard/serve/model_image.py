"""`make image`: a server image with the GGUF in a separate layer, and labels that name its source."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quantyard.engines.images import BAKE, bake_image_environment, run_docker
from quantyard.errors import BadRequest
from quantyard.requests import ImageSettings
from quantyard.store.manifest import Manifest

_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_TAG = re.compile(rf"^(?:[a-z0-9][a-z0-9.-]*(?::\d+)?/)?{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?$")


@dataclass(frozen=True)
class ModelImage:
    """The name and content of the image."""

    tag: str
    name: str  # the model's name in the API
    quant: str
    gguf: Path
    sha256: str
    source: str  # a URL; "" for a local source
    revision: str
    license: str
    projector: Path | None = None  # what reads pictures or sound for it


def check_served_image_tag(tag: str) -> None:
    """Refuse an invalid image name before anything is built.

    Raises:
        BadRequest: the tag is not a valid image name.
    """
    if not _TAG.match(tag):
        given = f"TAG={tag} is not the name of an image" if tag else "TAG is not given"
        raise BadRequest(f"{given}.", "Name it like this: make image MODEL=… TAG=registry.example/team/model:q4")


def served_image_commands(tag: str, port: int) -> tuple[str, str]:
    """The command that starts an image, as a container that can write to its /tmp alone, and the command that prints
    the key which the container then makes.
    """
    name = "quantyard-" + re.sub(r"[^\w.-]", "-", tag.rpartition("/")[2])
    hardened = "--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges"
    run = f"docker run --rm --name {name} {hardened} -p 127.0.0.1:{port}:8080 {tag}"
    return run, f"docker exec {name} cat /tmp/api-key"


def served_model_image(
    tag: str, quant: str, gguf: Path, manifest: Manifest, projector: Path | None = None
) -> ModelImage:
    """The image of one file of a build."""
    source, record = manifest.source, manifest.quants[quant]
    address = f"https://huggingface.co/{source.repo_id}" if source.repo_id else ""  # a local path is private
    return ModelImage(
        tag=tag, name=gguf.stem, quant=quant, gguf=gguf, sha256=record.sha256, source=address,
        revision=source.commit, license=source.license or "", projector=projector,
    )


def build_served_image(
    repo_dir: Path, image: ModelImage, base_digest: str, settings: ImageSettings, *, push: bool
) -> None:
    """Build the image, with SBOM and provenance if the builder can attach them, and push it if requested.

    Raises:
        EngineError: the image cannot be built or pushed.
    """
    attests = push and _can_builder_attest(repo_dir)
    env = bake_image_environment(repo_dir, "server", base_digest, settings) | {
        "IMAGE_TAG": image.revision[:12], "MODEL_NAME": image.name, "MODEL_TAG": image.tag, "SOURCE": image.source,
        "REVISION": image.revision, "QUANT": image.quant, "SHA256": image.sha256, "LICENSE": image.license,
    }
    with _image_build_context(image) as folder:
        # Newer buildx requires permission to read folders outside the project.
        allow = ["--allow", f"fs.read={folder}"] if "--allow" in _docker_build_output(repo_dir, *BAKE, "--help") else []
        how = ["--push", "--sbom=true", "--provenance=mode=max"] if attests else ["--load"]
        argv = [*BAKE, *allow, *how, "served-model"]
        run_docker(repo_dir, argv, env | {"GGUF": str(folder)}, f"{image.tag} could not be built")
    if push and not attests:
        run_docker(repo_dir, ["docker", "push", image.tag], env, f"{image.tag} could not be pushed")


@contextmanager
def _image_build_context(image: ModelImage) -> Iterator[Path]:
    """A folder that contains only the GGUF and its projector, next to them so that hard links are possible."""
    folder = Path(tempfile.mkdtemp(prefix=".image-", dir=image.gguf.parent))
    files = {"model.gguf": image.gguf} | ({"mmproj.gguf": image.projector} if image.projector else {})
    try:
        for name, path in files.items():
            try:
                (folder / name).hardlink_to(path.resolve())
            except OSError:
                shutil.copyfile(path, folder / name)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _can_builder_attest(repo_dir: Path) -> bool:
    """Whether the builder can attach attestations; the daemon's builder (driver `docker`) cannot."""
    said = _docker_build_output(repo_dir, "docker", "buildx", "inspect")
    return bool(said) and not re.search(r"^Driver:\s+docker$", said, re.MULTILINE)


def _docker_build_output(repo_dir: Path, *argv: str) -> str:
    run = subprocess.run(argv, cwd=repo_dir, capture_output=True, text=True, check=False)
    return run.stdout if run.returncode == 0 else ""
