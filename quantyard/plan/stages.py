"""The table of stages: the image, network, secrets, time limit and outputs of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from quantyard.protocol.allowed_outputs import (
    LeavesOf,
    nothing,
    stage_allowed_behaved,
    stage_allowed_evaluated,
    stage_allowed_fetched,
    stage_allowed_files,
    stage_allowed_projectors,
    stage_allowed_shards,
    stage_allowed_shared,
)
from quantyard.records import dataclass

HOUR_S = 3600.0
SHARED_STAGES: Final = ("divergence", "domains")  # several steps can be one run, which decodes the baseline once


@dataclass(frozen=True)
class StageRow:
    """The properties of a stage that do not depend on its request.

    `pinned` marks a stage whose request alone determines its output (a download checked against the source's hashes).
    Its key leaves out the code and the image, so that a new release of Quantyard or a rebuilt image does not download
    a model again.
    """

    name: str  # also the module, the log prefix, the label and the key in the manifest
    image: str  # also the package of its module, unless `package` is set
    network: bool = False
    secrets: tuple[str, ...] = ()
    timeout_s: float = 6 * HOUR_S
    resumable: bool = False
    pinned: bool = False
    package: str = ""
    leaves: LeavesOf = nothing  # the files that it must and may leave, by its request

    @property
    def code(self) -> str:
        """The package of its module."""
        return self.package or self.image

    @property
    def module(self) -> str:
        """The module for `python -m`."""
        return f"{self.code}.{self.name}"


# Files of a folder in Hugging Face format; data sets of lm-eval, which chooses their names.
_MODEL_FILES = r"[^/]+\.(json|safetensors|txt|model|jinja|md)|additional_chat_templates/[^/]+\.jinja"
_DATASETS_FILES = r"(sets|nltk_data)/.+"
_PLOTS = r"plots/[^/]+\.(svg|png)"

# To add a stage: add a row here with the files that it must and may leave, a request in `protocol` (builder.py,
# evaluation.py or api_tests.py), a module `<package>/<name>.py` with a `main()`, and in facts.py or
# measuring_facts.py the facts that are read.
STAGES: Mapping[str, StageRow] = {
    row.name: row
    for row in (
        StageRow(
            "fetch", "builder", network=True, secrets=("HF_TOKEN",), timeout_s=48 * HOUR_S, resumable=True, pinned=True,
            leaves=stage_allowed_fetched,
        ),
        StageRow("convert", "builder",
            leaves=stage_allowed_files("model.gguf", "reference.json", may=r"embeddings\.json")),
        StageRow("projector", "builder", leaves=stage_allowed_projectors),
        StageRow("twin", "builder", timeout_s=0.5 * HOUR_S),
        StageRow("parity", "builder"),
        StageRow(
            "calibrate", "builder", timeout_s=48 * HOUR_S, resumable=True,
            leaves=stage_allowed_files("imatrix.gguf", "calibration.txt"),
        ),
        StageRow("quantize", "builder", leaves=stage_allowed_files("model.gguf")),
        StageRow("rounding", "builder", timeout_s=2 * HOUR_S, leaves=stage_allowed_files("rounding.json")),
        StageRow("verify", "builder", timeout_s=2 * HOUR_S),
        StageRow("verify_foreign", "builder", timeout_s=2 * HOUR_S),
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
            leaves=stage_allowed_evaluated,
        ),
        StageRow(
            "behaviour", "eval", timeout_s=48 * HOUR_S, resumable=True,
            leaves=stage_allowed_behaved,
        ),
        StageRow("divergence", "eval", timeout_s=12 * HOUR_S, leaves=stage_allowed_shared),
        StageRow("domains", "eval", timeout_s=24 * HOUR_S, resumable=True, leaves=stage_allowed_shared),
        StageRow("speed", "eval", timeout_s=1 * HOUR_S, leaves=stage_allowed_files("speed.json")),
        StageRow("cache", "eval", timeout_s=12 * HOUR_S, leaves=stage_allowed_files("cache.json")),
        # Not an image: tools that the engine `local` alone has; see `workflows/planning.py`.
        StageRow("openvino", "openvino", timeout_s=12 * HOUR_S, package="eval",
            leaves=stage_allowed_files("openvino.json")),
        StageRow("similarity", "eval", timeout_s=12 * HOUR_S, leaves=stage_allowed_files("similarity.json")),
        StageRow(
            "report", "eval", timeout_s=0.5 * HOUR_S, leaves=stage_allowed_files("report.json", "report.md", may=_PLOTS)
        ),
        StageRow("contract", "contract", timeout_s=2 * HOUR_S, package="server",
            leaves=stage_allowed_files("report.json")),
    )
}  # fmt: skip
