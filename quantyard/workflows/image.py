"""Makes server images that contain a GGUF, and the images of the tools."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quantyard.engines.images import IMAGES
from quantyard.errors import BadRequest
from quantyard.paths import REPO_DIR
from quantyard.requests import BuildRequest
from quantyard.serve import model_image
from quantyard.serve.compose_files import is_encoder_decoder
from quantyard.workflows.planning import workflow_engine, workflow_of_built, workflow_plan
from quantyard.workflows.reporter import WorkflowReporter
from quantyard.workflows.run import run_build_plan


@dataclass(frozen=True)
class PackedImage:
    """One image with a model inside; `run` is the command that starts it."""

    tag: str
    quant: str
    pushed: bool
    run: str
    key: str  # the command that prints the API key of the running container


def workflow_pack_image(request: BuildRequest, reporter: WorkflowReporter) -> tuple[PackedImage, ...]:
    """Build missing files, then pack each into an image; with several files, each tag ends with the quant's name.

    Returns:
        Each image.

    Raises:
        BadRequest: TAG is not the name of an image, or the engine is not docker.
        EngineError: the registry of TAG does not answer.
        QuantyardError: see errors.py.
    """
    asked = request.pack
    assert asked is not None, "the command has it"
    model_image.check_served_image_tag(asked.tag)
    engine, _reason = workflow_engine(request)
    if engine.name != "docker":
        raise BadRequest("An image needs Docker, and ENGINE is local.", "See what is missing: make doctor")
    if asked.push:
        from quantyard.engines.docker_images import refuse_unreachable_registry  # the SDK is loaded where it is needed

        refuse_unreachable_registry(asked.tag)
    request, source = workflow_of_built(replace(request, measure=None))
    built = run_build_plan(request, workflow_plan(request, source), reporter)
    manifest, packed = built.manifest, list[PackedImage]()
    if is_encoder_decoder([file.path for file in built.files]):
        message = "The image would hold llama-server, which cannot run an encoder-decoder."
        raise BadRequest(message, f"Serve it with compose, which has a server for it: make serve MODEL={request.model}")
    with reporter.steps() as steps:
        engine.prepare("server", steps.note)
        base = engine.describe("server")["base_digest"]
        for file in built.files:
            tag = asked.tag if len(built.files) == 1 else f"{asked.tag}-{file.quant.lower()}"
            steps.note(f"packing {file.path.name} as {tag}")
            image = model_image.served_model_image(
                tag, file.quant, file.path, manifest, next(iter(built.projector), None)
            )
            model_image.build_served_image(REPO_DIR, image, base, request.images, push=asked.push)
            run, key = model_image.served_image_commands(tag, request.serve.port if request.serve else 8080)
            packed.append(PackedImage(tag, file.quant, asked.push, run, key))
    return tuple(packed)


def workflow_prepare_tools(request: BuildRequest, reporter: WorkflowReporter) -> dict[str, dict[str, str]]:
    """Prepare the tools: the images (docker), or `.venv-local` (local).

    Returns:
        The description of each image: digests, or versions of packages.

    Raises:
        EngineError: the tools cannot be prepared.
    """
    engine, _reason = workflow_engine(request)
    with reporter.steps() as steps:
        for image in IMAGES:
            engine.prepare(image, steps.note)
    return {image: engine.describe(image) for image in IMAGES}
