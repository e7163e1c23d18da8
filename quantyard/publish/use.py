"""How the files of a release are used: context, memory, prompt format and sampling, as the files themselves say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from quantyard.formats.gguf import GgufError, GgufHeader, gguf_strings, read_gguf_model
from quantyard.memory.kv_cache import ContextUse, context_bytes
from quantyard.memory.layers import ModelLayers, read_cache_layers
from quantyard.protocol.measurements import EvalReport
from quantyard.store.manifest import ContextRecord, Manifest, UseRecord
from quantyard.store.stages import stored_stage_folder

_CONTEXTS: Final = (8192, 32768)  # tokens; those that people ask for
_SAMPLING: Final = "general.sampling."  # llama.cpp's converter writes the model's generation_config.json here
# To record another of llama.cpp's settings: add its name.
SAMPLERS: Final = ("temp", "top_k", "top_p", "min_p", "penalty_repeat")
_CHATS: Final = ("system-user", "user")  # of the reference; the first that the template takes
_LONGEST_PROMPT: Final = 2000  # characters
_ENDS: Final = ("eos", "eot", "eom")  # what llama.cpp ends an answer with
_LONGEST_STOP: Final = 100  # characters


def with_release_use(manifest: Manifest, folder: Path, paths: Mapping[str, Path]) -> Manifest:
    """The manifest with what the model's files say of their use.

    Args:
        folder: the model's, in the store.
        paths: quant → path of its whole file.
    """
    headers = {quant: header for quant, path in paths.items() if (header := _readable_released_header(path))}
    if not headers:
        return manifest
    first = next(iter(headers.values()))
    quants = {
        quant: record.model_copy(
            update={"context": _released_context(headers[quant], manifest) if quant in headers else None}
        )
        for quant, record in manifest.quants.items()
    }
    use = UseRecord(
        context_tokens=first.context_length or 0,
        prompt=_released_prompt(manifest, folder),
        sampling=_released_sampling(first),
        stop=_released_stop_texts(first),
    )
    return manifest.model_copy(update={"quants": quants, "use": use})


def _readable_released_header(path: Path) -> GgufHeader | None:
    try:
        return read_gguf_model(path)
    except (GgufError, OSError):  # the file was verified before; without its header the card says less
        return None


def _released_context(header: GgufHeader, manifest: Manifest) -> ContextRecord | None:
    layers = read_cache_layers(header)
    if layers is None:
        return None
    trained = header.context_length or 0
    served = [tokens for tokens in _CONTEXTS if not trained or tokens <= trained] or [trained]
    return ContextRecord(
        served={tokens: context_bytes(layers, ContextUse(tokens)) for tokens in served},
        measured={
            tokens: _released_context_memory(layers, tokens)
            for r in manifest.evaluations.values()
            for tokens in _timed_release_contexts(r)
        },
    )


def _released_context_memory(layers: ModelLayers, tokens: int) -> int:
    return context_bytes(layers, ContextUse(tokens, whole_windows=True))


def _timed_release_contexts(report: EvalReport) -> set[int]:
    """The contexts that speed was measured at."""
    return {m.speed.n_ctx for m in report.measurements if m.speed}


def _released_sampling(header: GgufHeader) -> dict[str, float]:
    """The settings that the model's makers recommend; llama.cpp uses them if the user sets none."""
    found = {key.removeprefix(_SAMPLING): value for key, value in header.metadata.items() if key.startswith(_SAMPLING)}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float) and name in SAMPLERS}


def _released_stop_texts(header: GgufHeader) -> list[str]:
    """The texts of the tokens that end an answer, where a text can be written on one line."""
    ids = [header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _ENDS]
    try:
        texts = gguf_strings(header, "tokenizer.ggml.tokens", {i for i in ids if isinstance(i, int)})
    except (GgufError, OSError):
        return []
    found = dict.fromkeys(texts[i] for i in ids if isinstance(i, int) and i in texts)
    return [text for text in found if 0 < len(text) <= _LONGEST_STOP and text.isprintable() and '"' not in text]


def _released_prompt(manifest: Manifest, folder: Path) -> str:
    """A conversation as the model's own template writes it; `convert` recorded it. "" if there is none."""
    made = manifest.stages.get("convert")
    if made is None:
        return ""
    path = stored_stage_folder(folder, "convert", made.key) / "files" / "reference.json"
    try:
        chats: dict[str, Any] = {chat["name"]: chat["text"] for chat in json.loads(path.read_bytes())["chats"]}
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    found = [chats[name] for name in _CHATS if isinstance(chats.get(name), str)]
    return next((text for text in found if len(text) <= _LONGEST_PROMPT), "")
