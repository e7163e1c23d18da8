"""The stage `twin`: does what llama.cpp computes of this architecture equal what Transformers computes?

Of config.json a small model of the same kind is made, with random weights (`twin_model/`). Transformers computes its
logits; the converter and the llama.cpp of this build do the same; the two are compared. A model of any size takes
seconds, since its weights are never read. The stage writes no file; its facts say what was found.

    proved    equal within arithmetic
    limited   equal up to a number of tokens, the model's sliding window or original context, and not beyond
    known     equal but for a difference that is known and small; its sentence is in `known.py`
    differs   not equal; the stage fails with exit code 3, unless that is allowed
    unproved  there is no twin: Transformers, or the converter, cannot make one of this config; says why
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pydantic import JsonValue

from builder.checks.tokenizer_files import refuse_unconvertible_tokenizer
from builder.llama.converter import NO_DRAFT_LAYERS, open_converter
from builder.llama.run_tool import ToolRun, run_llama_tool
from builder.llama.toolchain import llama_tools
from builder.twin_model.compare import TwinAgreement, join_agreements
from builder.twin_model.known import KnownDifference, ignores_window, known_differences
from builder.twin_model.layers import first_wrong_layer, layer_sentence
from builder.twin_model.random_weights import WEIGHTS_WRITTEN
from builder.twin_model.sides import (
    SCRIPTS,
    NotComparedError,
    compare_sides,
    compute_llama_side,
    last_words_of_side,
    refuse_failed_side,
)
from quantyard.formats.finite_json import dump_finite_json
from quantyard.formatting.numbers import format_cosine, format_difference, format_digits, format_percent
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import TwinRequest
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage

_TIMEOUT_S: Final = 300.0  # of each part; they take seconds
# Beside config.json, what a converter may read of a model: its tokenizer and templates. Never a file of weights.
_COPIED: Final = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.vocab")
_MAX_COPIED_BYTES: Final = 64 << 20
_NEAR: Final = 4  # positions after a window's end within which its effect is seen
_FOLDERS: Final = "?_*/config.json"  # of sentence-transformers: how hidden states are pooled
_INDEX: Final = ".index.json"


@dataclass(frozen=True)
class _Attempt:
    """One twin: which config, how deep, of which weights."""

    config: dict[str, Any]
    full_depth: bool = False
    seed: int = 1


@dataclass(frozen=True)
class _Found:
    """What one twin showed: its prompts from short to long."""

    parts: list[TwinAgreement]
    facts: dict[str, Any]
    wrong_layer: int | None = None  # the first; None: none differs, or it is not known

    @property
    def is_equal(self) -> bool:
        return all(part.is_equal for part in self.parts)

    @property
    def compared(self) -> str:
        """What was compared: "logit", "embedding" or "score"."""
        return str(self.facts.get("compared", "logit"))

    @property
    def limit(self) -> tuple[str, int] | None:
        """What it is right up to, and how many tokens of the real model that is; None: not even a short text. Beyond
        a window the first tokens still are, beyond its original context a scaled rope may change all of a text.
        """
        short, long = self.parts[0], self.parts[-1]
        if not short.is_equal or long.first_wrong is None:
            return None
        window, context = self.facts.get("window"), self.facts.get("rope_context")
        if window and 0 <= long.first_wrong - window[0] <= _NEAR:
            return "sliding window", int(window[1])
        return ("original context", int(context[1])) if context else None


@dataclass
class _Workshop:
    """Where twins are made, and by what."""

    stage: Stage
    threads: int
    argv: list[tuple[str, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tools = llama_tools(self.stage)
        self._source = self.stage.in_dir / "source"

    def make(self, attempt: _Attempt) -> _Found:
        """Make a twin, have it computed by both sides, and compare.

        Raises:
            NotComparedError: a side cannot.
        """
        place = self.stage.scratch_dir / "twin"
        shutil.rmtree(place, ignore_errors=True)
        given, twin, out = (place / name for name in ("given", "twin", "out"))
        for folder in (given, twin, out):
            folder.mkdir(parents=True)
        (given / "config.json").write_text(dump_finite_json(attempt.config))
        self._copy_tokenizer(twin)
        gguf = out / "twin.gguf"
        self.stage.begin("Transformers computes the twin")
        with ThreadPoolExecutor(1) as beside:
            converted: list[Future[ToolRun]] = []
            made = self._transformers(
                attempt, given, twin, out, lambda: converted.append(beside.submit(self._convert, twin, gguf))
            )
            refuse_failed_side(made, "Transformers")
            if converted[0].result().exit_code != 0 or not gguf.is_file():
                raise NotComparedError(last_words_of_side(converted[0].result(), "The converter"))
        self.stage.begin("llama.cpp computes the twin")
        compute_llama_side(self._tools, gguf, out, self.threads, _TIMEOUT_S)
        found = _read_twin_found(out)
        return found if found.is_equal else replace(found, wrong_layer=self._wrong_layer(gguf, out))

    def _wrong_layer(self, gguf: Path, out: Path) -> int | None:
        with suppress(NotComparedError):
            compute_llama_side(self._tools, gguf, out, self.threads, _TIMEOUT_S, with_layers=True)
        prompts = json.loads((out / "prompts.json").read_bytes())
        return first_wrong_layer(out, [prompt["positions"] for prompt in prompts])

    def _copy_tokenizer(self, twin: Path) -> None:
        for pattern in _COPIED:
            for path in self._source.glob(pattern):
                small = path.is_file() and path.stat().st_size <= _MAX_COPIED_BYTES
                if small and path.name != "config.json" and not path.name.endswith(_INDEX):
                    shutil.copyfile(path, twin / path.name)
        for path in self._source.glob(_FOLDERS):
            if path.is_file() and path.stat().st_size <= _MAX_COPIED_BYTES:
                (twin / path.parent.name).mkdir(exist_ok=True)
                shutil.copyfile(path, twin / path.parent.name / path.name)

    def _transformers(self, attempt: _Attempt, given: Path, twin: Path, out: Path, on_weights: Any) -> ToolRun:
        argv = [str(self._tools.converter_python), str(SCRIPTS / "random_weights.py"), "--source", str(given)]
        argv += ["--twin", str(twin), "--out", str(out), "--seed", str(attempt.seed)]
        argv += ["--threads", str(self.threads), *(["--full-depth"] if attempt.full_depth else [])]

        def on_line(line: str) -> None:
            if line == WEIGHTS_WRITTEN:
                on_weights()

        return run_llama_tool(argv, self._tools.clean_env, on_line, _TIMEOUT_S)

    def _convert(self, twin: Path, gguf: Path) -> ToolRun:
        converter = open_converter(self._tools, twin, gguf.parent)
        argv = [str(self._tools.converter_python), str(self._tools.converter), str(converter.folder)]
        argv += ["--outfile", str(gguf), "--outtype", "f32", *converter.arguments]
        run = run_llama_tool(argv, converter.env, lambda _line: None, _TIMEOUT_S)
        if run.exit_code != 0 and "mtp" in run.tail:  # Transformers builds no such layers
            run = run_llama_tool([*argv, NO_DRAFT_LAYERS], converter.env, lambda _line: None, _TIMEOUT_S)
        self.argv.append(run.argv)
        return run


def _read_twin_found(out: Path) -> _Found:
    prompts = json.loads((out / "prompts.json").read_bytes())
    parts = [compare_sides(out, "llama", number, prompt["positions"]) for number, prompt in enumerate(prompts)]
    return _Found(parts, json.loads((out / "facts.json").read_bytes()))


# ---- the verdict -------------------------------------------------------------------------------------


def twin(stage: Stage, request: TwinRequest) -> StageOutcome:
    """Compare the twin of `/in/source`.

    Raises:
        StageFailure: 3 (`twin`), llama.cpp computes something else; 2, a file of the tokenizer is missing.
    """
    shop = _Workshop(stage, request.threads or 2)
    try:
        config = _twin_source_config(stage.in_dir / "source" / "config.json")
        refuse_unconvertible_tokenizer(stage.in_dir / "source", str((config.get("architectures") or [""])[0]))
        facts = _twin_verdict(shop, config)
    except NotComparedError as error:
        facts = {
            "status": "unproved", "finding": f"Not proved: {str(error).rstrip('.')}.",
            "lacks_package": error.lacks_package,
        }  # fmt: skip
    if facts["status"] == "differs" and not request.allow_twin_mismatch:
        hint = str(facts.pop("hint", "") or "Another llama.cpp may compute it: LLAMA_CPP_TAG=full-bNNNN.")
        hint += " To build it all the same: ALLOW_TWIN_MISMATCH=1"
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "twin", str(facts["finding"]), hint)
    return StageOutcome(facts={**facts, "allowed": facts["status"] == "differs"}, argv=tuple(shop.argv))


def _twin_source_config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise NotComparedError("config.json cannot be read") from error
    if not isinstance(found, dict):
        raise NotComparedError("config.json holds no object")
    return found


def _twin_verdict(shop: _Workshop, config: dict[str, Any]) -> dict[str, JsonValue]:
    """What the twin shows. One that differs is tried again: without what is known to differ, then at the model's own
    depth and with other weights, so that neither chance nor the small depth is taken for a fault.
    """
    found = shop.make(_Attempt(config))
    if found.is_equal:
        return _twin_facts("proved", found)
    if found.limit and ignores_window(config):
        return _twin_facts("limited", found, found.limit)
    of_its_class: KnownDifference | None = None
    for known in known_differences(config):
        neutral = known.neutral(config)
        if neutral is None:
            of_its_class = known
            continue
        with suppress(NotComparedError):
            again = shop.make(_Attempt(neutral))
            if again.is_equal:
                return _twin_facts(
                    "known" if known.accepted else "differs", again if known.accepted else found, known=known
                )
    deep = shop.make(_Attempt(config, full_depth=True, seed=2))
    if deep.is_equal:
        return _twin_facts("proved", deep)
    return _twin_facts("limited" if deep.limit else "differs", deep, deep.limit, of_its_class)


def _twin_facts(
    status: str, found: _Found, limit: tuple[str, int] | None = None, known: KnownDifference | None = None
) -> dict[str, JsonValue]:
    whole = join_agreements(found.parts)
    numbers = (
        f"max |Δ {found.compared}| {format_difference(whole.max_delta)} where {found.compared}s spread by "
        f"{format_digits(whole.spread, 2)}, {_twin_likeness(found.compared, whole)}, on a random twin"
    )
    facts: dict[str, JsonValue] = {
        "status": status, "compared": found.compared,
        "max_delta": whole.max_delta, "spread": whole.spread, "same_top": whole.same_top,
        "mean_kld": whole.mean_kld, "positions": whole.n_positions, "depth": found.facts["depth"],
        "real_depth": found.facts["real_depth"], "prompt_tokens": found.facts["prompt_tokens"],
        "right_up_to_tokens": limit[1] if limit else None, "first_wrong_position": whole.first_wrong,
        "first_wrong_layer": found.wrong_layer,
        "finding": _twin_sentence(status, numbers, found, limit, known),
    }  # fmt: skip
    if known and not known.accepted:
        facts["hint"] = known.hint
    return facts


def _twin_likeness(compared: str, whole: TwinAgreement) -> str:
    if compared == "logit":
        return f"top-1 {format_percent(whole.same_top)}, mean KLD {format_difference(whole.mean_kld)} nats"
    return f"least cosine {format_cosine(whole.least_cosine)}"


def _twin_sentence(
    status: str, numbers: str, found: _Found, limit: tuple[str, int] | None, known: KnownDifference | None
) -> str:
    if status == "proved":
        return f"Computes what Transformers computes: {numbers}."
    if limit:
        short = f"Computes what Transformers computes up to {limit[1]:,} tokens, its {limit[0]}"
        return f"{short}; llama.cpp computes something else beyond: {numbers}."
    if status == "known" and known:
        return f"Computes what Transformers computes but for one thing: {known.sentence} Apart from that: {numbers}."
    where = f"from position {join_agreements(found.parts).first_wrong} on"
    parted = layer_sentence(found.wrong_layer, int(found.facts["depth"]))
    said = [f"llama.cpp computes something else than Transformers, {where}: {numbers}.", parted]
    return " ".join(filter(None, [*said, f"The cause: {known.sentence}" if known else ""]))


def main() -> None:
    """Entry point of the stage."""
    run_stage(TwinRequest, twin)


if __name__ == "__main__":
    main()
