"""The table of stages: what each runs in, what it may reach, how long it may take, and which files it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantyard.protocol.allowed_outputs import (
    LeavesOf,
    nothing,
    stage_allowed_divergences,
    stage_allowed_fetched,
    stage_allowed_files,
    stage_allowed_shards,
)

HOUR_S = 3600.0


@dataclass(frozen=True)
class StageRow:
    """The properties of a stage that no request changes.

    `pinned` marks a stage whose request alone decides every byte it makes (a download checked against the
    source's hashes): its key leaves out the code and the image, so that neither a new release of Quantyard
    nor a rebuilt image downloads a model again.
    """

    name: str  # also the module, the log prefix, the label and the key in the manifest
    image: str  # what it runs in; also the package of its module, unless `package` is another
    network: bool = False
    secrets: tuple[str, ...] = ()
    timeout_s: float = 6 * HOUR_S
    resumable: bool = False
    pinned: bool = False
    package: str = ""
    leaves: LeavesOf = nothing  # the files that it must and may leave, by its request

    @property
    def code(self) -> str:
        """The package that its module is in."""
        return self.package or self.image

    @property
    def module(self) -> str:
        """What `python -m` runs."""
        return f"{self.code}.{self.name}"


# What a folder in Hugging Face format may hold; and what lm-eval and its data sets leave, under names that they choose.
_MODEL_FILES = r"[^/]+\.(json|safetensors|txt|model|jinja|md)|additional_chat_templates/[^/]+\.jinja"
_DATASETS_FILES = r"(sets|nltk_data)/.+"
_EVALUATE_FILES = r"[^./][^/]*/.+"
_PLOTS = r"plots/[^/]+\.(svg|png)"

# To add a stage: add a row here with the files that it must and may leave, a request in `protocol` (builder.py,
# evaluation.py or api_tests.py), a module `<package>/<name>.py` with a `main()`, and in facts.py what is read of its
# facts.
STAGES: Mapping[str, StageRow] = {
    row.name: row
    for row in (
        StageRow(
            "fetch", "builder", network=True, secrets=("HF_TOKEN",), timeout_s=48 * HOUR_S, resumable=True, pinned=True,
            leaves=stage_allowed_fetched,
        ),
        StageRow("convert", "builder", leaves=stage_allowed_files("model.gguf", "reference.json")),
        StageRow(
            "calibrate", "builder", timeout_s=48 * HOUR_S, resumable=True,
            leaves=stage_allowed_files("imatrix.gguf", "calibration.txt"),
        ),
        StageRow("quantize", "builder", leaves=stage_allowed_files("model.gguf")),
        StageRow("rounding", "builder", timeout_s=2 * HOUR_S, leaves=stage_allowed_files("rounding.json")),
        StageRow("verify", "builder", timeout_s=2 * HOUR_S),
        StageRow("dequantize", "builder", timeout_s=1 * HOUR_S,
            leaves=stage_allowed_files("config.json", may=_MODEL_FILES)),
        StageRow("random_model", "builder", timeout_s=0.5 * HOUR_S,
            leaves=stage_allowed_files("config.json", may=_MODEL_FILES)),
        StageRow("lora", "builder", timeout_s=1 * HOUR_S, leaves=stage_allowed_files("adapter.gguf")),
        StageRow("split", "builder", timeout_s=2 * HOUR_S, leaves=stage_allowed_shards),
        StageRow(
            "datasets", "eval", network=True, secrets=("HF_TOKEN",), timeout_s=12 * HOUR_S, resumable=True,
            leaves=stage_allowed_files("datasets.json", may=_DATASETS_FILES),
        ),
        StageRow(
            "evaluate", "eval", timeout_s=48 * HOUR_S, resumable=True,
            leaves=stage_allowed_files("evaluation.json", may=_EVALUATE_FILES),
        ),
        StageRow("divergence", "eval", timeout_s=12 * HOUR_S, leaves=stage_allowed_divergences),
        StageRow("speed", "eval", timeout_s=1 * HOUR_S, leaves=stage_allowed_files("speed.json")),
        StageRow(
            "report", "eval", timeout_s=0.5 * HOUR_S, leaves=stage_allowed_files("report.json", "report.md", may=_PLOTS)
        ),
        StageRow("contract", "contract", timeout_s=2 * HOUR_S, package="server",
            leaves=stage_allowed_files("report.json")),
    )
}  # fmt: skip
