"""The plan: which stages a build needs, in which order, and what each will cost.

A stage is one row of `STAGES` and one module with a `main()`. What it reads is named by digest (`StageSpec`),
so whoever runs it, on this machine or another, can find its inputs in a store of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from quantyard.errors import BadRequest
from quantyard.protocol.allowed_outputs import Leaves, LeavesOf, divergences, fetched, named, nothing, shards
from quantyard.protocol.base import (
    ConvertRequest,
    DequantizeRequest,
    FetchRequest,
    OutType,
    QuantizeRequest,
    StageRequest,
    VerifyRequest,
    digest_of,
    digest_of_request,
)
from quantyard.protocol.evaluation import Suite
from quantyard.quants.catalog import Quant
from quantyard.sources.resolve import Source
from quantyard.store.artifacts import Artifact

HOUR_S = 3600.0


@dataclass(frozen=True)
class StageRow:
    """What never changes about a stage.

    `pinned` marks a stage whose request alone decides every byte it makes (a download checked against the
    source's own hashes): its key leaves out the code and the image, so that neither a new release of
    Quantyard nor a rebuilt image downloads a model again.
    """

    name: str  # also the module, the log prefix, the label and the key in the manifest
    image: str  # what it runs in; also the package of its module, unless `package` is another
    network: bool = False
    secrets: tuple[str, ...] = ()
    timeout_s: float = 6 * HOUR_S
    resumable: bool = False
    pinned: bool = False
    package: str = ""
    leaves: LeavesOf = nothing  # which files, by its request

    @property
    def code(self) -> str:
        """The package that its module is in."""
        return self.package or self.image

    @property
    def module(self) -> str:
        """What `python -m` runs."""
        return f"{self.code}.{self.name}"


# What a folder in Hugging Face format may hold; and what lm-eval and its data sets leave, whose names are not ours.
_MODEL_FILES = r"[^/]+\.(json|safetensors|txt|model|jinja|md)|additional_chat_templates/[^/]+\.jinja"
_DATASETS_FILES = r"(sets|nltk_data)/.+"
_EVALUATE_FILES = r"[^./][^/]*/.+"
_PLOTS = r"plots/[^/]+\.(svg|png)"

# To add a stage: add a row here with the files that it must and may leave, a request in contract.py (or evaluation.py,
# serving.py), a module `<package>/<name>.py` with a `main()`, and in facts.py what is read of its facts.
STAGES: Mapping[str, StageRow] = {
    row.name: row
    for row in (
        StageRow(
            "fetch", "builder", network=True, secrets=("HF_TOKEN",), timeout_s=48 * HOUR_S, resumable=True, pinned=True,
            leaves=fetched,
        ),
        StageRow("convert", "builder", leaves=named("model.gguf", "reference.json")),
        StageRow(
            "calibrate", "builder", timeout_s=48 * HOUR_S, resumable=True,
            leaves=named("imatrix.gguf", "calibration.txt"),
        ),
        StageRow("quantize", "builder", leaves=named("model.gguf")),
        StageRow("rounding", "builder", timeout_s=2 * HOUR_S, leaves=named("rounding.json")),
        StageRow("verify", "builder", timeout_s=2 * HOUR_S),
        StageRow("dequantize", "builder", timeout_s=1 * HOUR_S, leaves=named("config.json", may=_MODEL_FILES)),
        StageRow("random_model", "builder", timeout_s=0.5 * HOUR_S, leaves=named("config.json", may=_MODEL_FILES)),
        StageRow("lora", "builder", timeout_s=1 * HOUR_S, leaves=named("adapter.gguf")),
        StageRow("split", "builder", timeout_s=2 * HOUR_S, leaves=shards),
        StageRow(
            "datasets", "eval", network=True, secrets=("HF_TOKEN",), timeout_s=12 * HOUR_S, resumable=True,
            leaves=named("datasets.json", may=_DATASETS_FILES),
        ),
        StageRow(
            "evaluate", "eval", timeout_s=48 * HOUR_S, resumable=True,
            leaves=named("evaluation.json", may=_EVALUATE_FILES),
        ),
        StageRow("divergence", "eval", timeout_s=12 * HOUR_S, leaves=divergences),
        StageRow("speed", "eval", timeout_s=1 * HOUR_S, leaves=named("speed.json")),
        StageRow(
            "report", "eval", timeout_s=0.5 * HOUR_S, leaves=named("report.json", "report.md", may=_PLOTS)
        ),
        StageRow("contract", "contract", timeout_s=2 * HOUR_S, package="server", leaves=named("report.json")),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Output:
    """An input that another step of the plan makes."""

    step: str


@dataclass(frozen=True)
class External:
    """An input that exists already, such as a local model or a user's suite; a spec names it by its digest."""

    artifact: Artifact


Origin = Output | External


@dataclass(frozen=True)
class Step:
    """One stage with its request, and where its inputs come from."""

    label: str  # unique in the plan: "convert", "quantize Q4_K_M"
    row: StageRow
    request: StageRequest
    inputs: Mapping[str, Origin]
    size_bytes: int  # expected size of what it leaves on disk


@dataclass(frozen=True)
class StageSpec:
    """A stage ready to run anywhere: its inputs are digests, its key says what it is."""

    label: str
    row: StageRow
    request: StageRequest
    inputs: Mapping[str, str]
    key: str

    @property
    def leaves(self) -> Leaves:
        """Which files it must leave, and may."""
        return self.row.leaves(self.request)


def spec_of(step: Step, inputs: Mapping[str, str], code_version: str, image: str) -> StageSpec:
    """The spec of a step whose input digests are known. See DESIGN: request, inputs, code and image make the key."""
    parts: dict[str, JsonValue] = {"request": digest_of_request(step.request), "inputs": dict(inputs)}
    if not step.row.pinned:
        parts |= {"code": code_version, "image": image}
    return StageSpec(step.label, step.row, step.request, dict(inputs), digest_of(parts))


@dataclass(frozen=True)
class ModelFile:
    """One GGUF by where it comes from; `path` is that of its first shard, inside its origin."""

    origin: Origin
    path: str


@dataclass(frozen=True)
class Target:
    """One GGUF the build ends with: the step that makes it, the step that verifies it."""

    quant: Quant
    file: ModelFile
    verified_by: str
    size_bytes: int

    @property
    def made_by(self) -> str:
        """A step's label, or "" when the source itself is that file."""
        return self.file.origin.step if isinstance(self.file.origin, Output) else ""


@dataclass(frozen=True)
class Measuring:
    """What the steps that follow a build measure; laid out by `measure.py`."""

    suite: Suite
    baseline: str
    labels: tuple[str, ...]  # the baseline's first


@dataclass(frozen=True)
class BuildPlan:
    """Steps in an order that can be run, and the files they end with."""

    source: Source
    steps: tuple[Step, ...]
    base: ModelFile  # what the quants are made of
    targets: tuple[Target, ...]
    outtype: OutType
    outtype_reason: str
    measuring: Measuring | None = None
    contracts: tuple[str, ...] = ()  # the quants whose served contract is tested


@dataclass(frozen=True)
class BuildOptions:
    """What the user decided about the build, beside the source."""

    quants: tuple[Quant, ...]
    outtype: OutType
    allow_pickle: bool
    allow_requantize: bool
    allow_mismatch: bool
    threads: int
    workers: int
    endpoint: str | None
    imatrix: bool = False  # there will be an importance matrix; calibration.py puts it into the plan


def make_plan(source: Source, options: BuildOptions) -> BuildPlan:
    """Lay out the steps: fetch → convert → quantize and verify each quant, each only if the source needs it.

    Raises:
        BadRequest: a quant that cannot be made without an importance matrix.
    """
    if not options.imatrix:
        _refuse_without_imatrix(options.quants)
    steps: list[Step] = []
    origin = _origin(source, options, steps)
    outtype, reason = source.outtype(options.outtype)
    base = ModelFile(Output("convert"), "model.gguf")
    if source.kind == "gguf":
        base = ModelFile(origin, source.gguf_file or "")
    if source.kind == "huggingface":
        request = ConvertRequest(name=source.model.name, outtype=outtype, allow_pickle=options.allow_pickle)
        size_bytes = source.converted_size_bytes(outtype)
        steps.append(Step("convert", STAGES["convert"], request, {"source": origin}, size_bytes))
    targets = [_target(source, options, quant, outtype, base, steps) for quant in options.quants]
    return BuildPlan(source, tuple(steps), base, tuple(targets), outtype, reason)


def _refuse_without_imatrix(quants: Sequence[Quant]) -> None:
    """llama-quantize would refuse too, but after the download."""
    if names := [quant.name for quant in quants if quant.needs_imatrix]:
        message = f"{', '.join(names)} cannot be made without an importance matrix, and there is none."
        hint = "Let one be made, IMATRIX=auto; give one, IMATRIX=file.gguf; or choose another quant: make quants"
        raise BadRequest(message, hint)


def _origin(source: Source, options: BuildOptions, steps: list[Step]) -> Origin:
    if source.local is not None:
        return External(source.local)
    request = FetchRequest(
        repo_id=source.repo_id, commit=source.model.commit, files=source.files,
        endpoint=options.endpoint, workers=options.workers,
    )
    steps.append(Step("fetch", STAGES["fetch"], request, {}, source.size_bytes))
    return Output("fetch")


def _target(
    source: Source, options: BuildOptions, quant: Quant, outtype: OutType,
    base: ModelFile, steps: list[Step],
) -> Target:
    size_bytes = source.quant_size_bytes(quant)
    made = base
    if not source.is_already(quant, outtype):
        request = QuantizeRequest(
            quant=quant.base, ftype=quant.ftype, source_file=base.path,
            allow_requantize=options.allow_requantize, threads=options.threads, **recipe_fields(quant),
            recipe=quant.recipe.name if quant.recipe else "",
        )
        label = f"quantize {quant.name}"
        steps.append(Step(label, STAGES["quantize"], request, {"source": base.origin}, size_bytes))
        made = ModelFile(Output(label), "model.gguf")
    steps.append(_verify(source, options, quant, made, base))
    return Target(quant, made, steps[-1].label, size_bytes)


def recipe_fields(quant: Quant) -> dict[str, Any]:
    """What a request says of the recipe; nothing for a plain quant."""
    if quant.recipe is None:
        return {}
    recipe = quant.recipe
    return {
        "tensor_types": dict(recipe.tensors), "output_type": recipe.output,
        "token_embedding_type": recipe.token_embedding,
    }


def _verify(source: Source, options: BuildOptions, quant: Quant, made: ModelFile, base: ModelFile) -> Step:
    inputs = {"model": made.origin, "source": base.origin}
    has_reference = source.kind == "huggingface"
    if has_reference:
        inputs["reference"] = base.origin  # convert leaves reference.json beside model.gguf
    request = VerifyRequest(
        quant=quant.base, model_file=made.path, source_file=base.path, has_reference=has_reference,
        allow_mismatch=options.allow_mismatch, threads=options.threads, **recipe_fields(quant),
    )
    return Step(f"verify {quant.name}", STAGES["verify"], request, inputs, 0)


def dequantize_step(gguf: ModelFile, size_bytes: int) -> Step:
    """The step `make demo` starts from: a GGUF back in Hugging Face format."""
    request = DequantizeRequest(source_file=gguf.path)
    return Step("dequantize", STAGES["dequantize"], request, {"source": gguf.origin}, size_bytes)
