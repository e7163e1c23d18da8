"""The record of `openvino`: one file in OpenVINO, beside llama.cpp."""

from quantyard.protocol.base import Frozen
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.openvino import OpenVinoRefusal, OpenVinoSettings


class OpenVinoMeasurement(Frozen):
    """One file in OpenVINO beside the same file in llama.cpp, and beside the baseline in llama.cpp.

    All read the same chunks, so the divergences are of the same tokens. A file that OpenVINO cannot load has a
    `refusal` in place of results; what compares with the baseline is None beside itself.
    """

    label: str
    text: str  # name of the text
    n_ctx: int
    n_chunks: int
    n_tokens: int  # scored
    settings: OpenVinoSettings
    refusal: OpenVinoRefusal = ""
    detail: str = ""  # OpenVINO's words of a refusal
    versions: dict[str, str] = {}  # of OpenVINO's packages
    weight_bytes: dict[str, int] = {}  # bytes of what the weights became, by OpenVINO's element type
    computes: dict[str, str] = {}  # OpenVINO's properties: precision of the cache, of activations …
    llama_kld: Estimate | None = None  # KL(baseline || file in llama.cpp), nats
    baseline_kld: Estimate | None = None  # KL(baseline || file in OpenVINO)
    p99_baseline_kld: float | None = None
    baseline_top1: Estimate | None = None  # how often OpenVINO's most likely token is the baseline's
    runtime_kld: Estimate | None = None  # KL(file in llama.cpp || file in OpenVINO)
    p99_runtime_kld: float | None = None
    runtime_top1: Estimate | None = None
    greedy_same: float | None = None  # mean share of the generated tokens before the first that differs
    n_prompts: int = 0
    prompt_tokens_per_s: float | None = None  # of OpenVINO, at the pace of the median prompt
    generated_tokens_per_s: float | None = None
    llama_prompt_tokens_per_s: float | None = None
    llama_generated_tokens_per_s: float | None = None
    threads: int = 0
    duration_s: float = 0.0
