"""Embeddings and scores: asks the original once, when the model is converted, and compares each GGUF with its answers.

The texts are lines of `running_text.txt`, so that every script is compared: a tokenizer that takes one otherwise shows
in the cosines of that script alone. The limits, and why: docs/explanation/embeddings.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue, ValidationError

from builder.checks.corpus import running_text
from builder.llama.run_tool import run_llama_tool
from builder.llama.runtime import LlamaRuntime
from builder.llama.toolchain import LlamaTools
from quantyard.formats.finite_json import dump_finite_json
from quantyard.formats.gguf import GgufHeader
from quantyard.formats.purpose import Pooling, gguf_pooling, gguf_purpose
from quantyard.formats.sentence_modules import MODULES_FILE, pooling_file, read_pooling
from quantyard.formatting.numbers import format_cosine, format_memory
from quantyard.hardware.machine import available_memory_bytes
from quantyard.protocol.base import ExitCode
from quantyard.protocol.embeddings import EMBEDDINGS_FILE, EmbeddingReference, ScoredPair, ScriptAgreement
from quantyard.protocol.runner import StageFailure

ENGLISH: Final = "english"
ENGLISH_LEAST: Final = 0.99  # mean cosine of English, or the correlation of scores: below it the build is refused
ENGLISH_LEAST_QUANTIZED: Final = 0.5  # of a quantized file, whose loss is for the evaluation to measure
SCRIPT_BELOW: Final = 0.02  # another script's mean so far below that of English is a warning
_SCRIPT: Final = Path(__file__).with_name("hf_embeddings.py")
_TIMEOUT_S: Final = 3600.0
_MEMORY_SHARE: Final = 0.7
_LINES: Final = 2  # of each passage
_ENGLISH_LINES: Final = 6
_LEAST_LETTERS: Final = 12  # of a line
_LEAST_PAIRS: Final = 3  # for a correlation
Vector = npt.NDArray[np.float64]


# ---- the original's answers --------------------------------------------------------------------------


def ask_original(
    tools: LlamaTools, source: Path, env: Mapping[str, str], model: GgufHeader, folder: Path
) -> EmbeddingReference | None:
    """Write the original's answers beside `reference.json`; None for a model that generates text.

    Args:
        env: of the converter's Python.
        folder: where they are written.
    """
    purpose = gguf_purpose(model)
    if purpose == "generate":
        return None
    pooling: Pooling = "rank" if purpose == "rerank" else _pooling_of_source(source)
    asked: dict[str, Any] = {
        "purpose": purpose, "pooling": pooling, "max_tokens": model.context_length, "dtype": "float32",
        "template": str(model.metadata.get("tokenizer.chat_template.rerank", "")),
        "texts": _embedding_parity_texts() if purpose == "embed" else [],
        "pairs": _rerank_pairs() if purpose == "rerank" else [],
    }  # fmt: skip
    why_not = _no_memory_for_embedder(model.n_params) or _run_hf_embeddings(tools, source, env, asked, folder)
    path = folder / EMBEDDINGS_FILE
    if not why_not:
        try:
            return EmbeddingReference.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            why_not = f"its answers cannot be read: {str(error).splitlines()[0][:200]}"
    found = EmbeddingReference(purpose=purpose, pooling=pooling, why_not=why_not)
    path.write_text(found.model_dump_json())
    return found


def _run_hf_embeddings(
    tools: LlamaTools, source: Path, env: Mapping[str, str], asked: dict[str, Any], folder: Path
) -> str:
    """Why there are no answers; "" if there are."""
    question = folder.parent / "asked.json"
    question.write_text(dump_finite_json(asked))
    argv = [str(tools.converter_python), str(_SCRIPT), "--source", str(source), "--asked", str(question)]
    run = run_llama_tool([*argv, "--out", str(folder / EMBEDDINGS_FILE)], env, lambda _line: None, _TIMEOUT_S)
    question.unlink()
    return "" if run.exit_code == 0 else (run.error or (run.tail.splitlines() or [run.end])[-1])[:400]


def _no_memory_for_embedder(n_params: int) -> str:
    needed, there = 4 * n_params, int(available_memory_bytes() * _MEMORY_SHARE)
    if needed <= there:
        return ""
    return f"it takes {format_memory(needed)} of memory in 32 bits, and {format_memory(there)} are free"


def _pooling_of_source(source: Path) -> Pooling:
    modules = _read_embedder_json(source / MODULES_FILE)
    return read_pooling(_read_embedder_json(source / pooling_file(modules)))


def _read_embedder_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _passage_lines(passage: dict[str, str]) -> list[str]:
    return [line for line in passage["text"].splitlines() if sum(map(str.isalpha, line)) >= _LEAST_LETTERS]


def _passage_script(passage: dict[str, str]) -> str:
    return ENGLISH if passage["name"].startswith(ENGLISH) else passage["script"]


def _embedding_parity_texts() -> list[dict[str, str]]:
    """Lines of every passage."""
    return [
        {"name": passage["name"], "script": _passage_script(passage), "text": line}
        for passage in running_text()
        for line in _passage_lines(passage)[: _ENGLISH_LINES if _passage_script(passage) == ENGLISH else _LINES]
    ]


def _rerank_pairs() -> list[dict[str, str]]:
    """A line of every passage as a query, with the lines that follow and one of another text of the same script."""
    found: list[dict[str, str]] = []
    passages = running_text()
    for passage in passages:
        script, lines = _passage_script(passage), _passage_lines(passage)
        others = [line for other in passages if _passage_script(other) == script and other is not passage
                  for line in _passage_lines(other)[1:2]]  # fmt: skip
        documents = [*lines[1 : 1 + _ENGLISH_LINES if script == ENGLISH else 3], *others[:2]]
        found += [{"name": passage["name"], "script": script, "query": lines[0], "document": d} for d in documents]
    return found


# ---- a GGUF's answers --------------------------------------------------------------------------------


def compare_embeddings(
    runtime: LlamaRuntime, model: GgufHeader, reference: EmbeddingReference | None
) -> dict[str, JsonValue]:
    """Facts about a GGUF's embeddings or scores; {} of one that generates text.

    Raises:
        StageFailure: `verify-embeddings`, English differs from the original's.
    """
    purpose = gguf_purpose(model)
    if purpose == "generate":
        return {}
    facts: dict[str, JsonValue] = {"purpose": purpose, "pooling": gguf_pooling(model)}
    if reference is None or reference.why_not:
        why = reference.why_not if reference else "the source is a GGUF"
        return {**facts, "embeddings_not_compared": why}
    scripts = (
        _compare_rerank_scores(runtime, reference.pairs)
        if purpose == "rerank"
        else _compare_embeddings(runtime, reference)
    )
    _refuse_embeddings_of_english(scripts, model, reference)
    warned = scripts_below(scripts)
    return {
        **facts, "embedding_reference": reference.witness,
        "scripts": [found.model_dump(mode="json") for found in scripts], "scripts_below": [*warned],
    }  # fmt: skip


def scripts_below(scripts: Sequence[ScriptAgreement]) -> list[str]:
    """The scripts whose answers are further from the original's than those of English."""
    english = next((found.agreement for found in scripts if found.script == ENGLISH), 1.0)
    return [found.script for found in scripts if found.agreement < english - SCRIPT_BELOW]


def _compare_embeddings(runtime: LlamaRuntime, reference: EmbeddingReference) -> list[ScriptAgreement]:
    found = runtime.embeddings([text.text for text in reference.texts])
    cosines: dict[str, list[float]] = {}
    for text, values in zip(reference.texts, found, strict=True):
        cosines.setdefault(text.script, []).append(_embedding_cosine(np.asarray(text.values), np.asarray(values)))
    return [
        ScriptAgreement(script=script, n=len(all_), agreement=float(np.mean(all_)), least=min(all_))
        for script, all_ in sorted(cosines.items())
    ]


def _compare_rerank_scores(runtime: LlamaRuntime, pairs: Sequence[ScoredPair]) -> list[ScriptAgreement]:
    found = runtime.scores([(pair.query, pair.document) for pair in pairs])
    by_script: dict[str, list[tuple[float, float]]] = {}
    for pair, score in zip(pairs, found, strict=True):
        by_script.setdefault(pair.script, []).append((pair.score, score))
    return [
        ScriptAgreement(script=script, n=len(both), agreement=r, least=r)
        for script, both in sorted(by_script.items())
        if len(both) >= _LEAST_PAIRS and (r := _rerank_correlation(both)) is not None
    ]


def _embedding_cosine(one: Vector, other: Vector) -> float:
    """Of vectors of two lengths 0: they cannot be of one model. Not finite: -1."""
    if one.shape != other.shape:
        return 0.0
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.clip(one @ other / length, -1, 1)) if np.isfinite(length) and length else -1.0


def _rerank_correlation(both: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's; None where the original gives one score to all."""
    one, other = (np.array(values, dtype=np.float64) for values in zip(*both, strict=True))
    if not np.isfinite(other).all():
        return -1.0
    return _embedding_cosine(one - one.mean(), other - other.mean()) if one.std() else None


def _refuse_embeddings_of_english(
    scripts: Sequence[ScriptAgreement], model: GgufHeader, reference: EmbeddingReference
) -> None:
    english = next((found for found in scripts if found.script == ENGLISH), None)
    least = ENGLISH_LEAST_QUANTIZED if model.is_quantized else ENGLISH_LEAST
    if english is None or english.agreement >= least:
        return
    what = "scores correlate with" if reference.purpose == "rerank" else "embeddings have a mean cosine to"
    message = (
        f"llama.cpp computes something else than {reference.witness}: on English its {what} the original's of "
        f"{format_cosine(english.agreement)}, where {format_cosine(least)} is the least."
    )
    hint = "Its pooling or its head may be one that the converter leaves out. Another llama.cpp may: LLAMA_CPP_TAG=…"
    raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "verify-embeddings", message, hint)
