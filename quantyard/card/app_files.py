"""What other programs read beside the files of a release: Ollama's Modelfile, LM Studio's model.yaml.

Both say what the model's own files say: the file to take, its context, sampling settings and stop tokens. Neither has a
chat template. LM Studio, and the llama-server in Ollama, take the one in the GGUF; a TEMPLATE of a Modelfile, in Go's
language, would replace it there. Versions of Ollama from before they ran llama-server take a template of their own
that is like it, and write the bare prompt where none is.

Source: docs/modelfile.mdx, server/create.go and server/images.go of Ollama; modelyaml.org and VirtualModelDefinition.ts
of lmstudio-js.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from quantyard.card.subject import CardSubject
from quantyard.formats.purpose import Purpose
from quantyard.formatting.numbers import format_as_written, format_count
from quantyard.store.manifest import MODEL_YAML, MODELFILE

_CONTEXT: Final = 8192  # tokens to begin with: the memory of all that a model was trained for is more than most have
_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
# llama.cpp's name of a sampling setting → Ollama's parameter, and LM Studio's key: whether it has a check box.
_SAMPLING: Final = {
    "temp": ("temperature", "temperature", False), "top_k": ("top_k", "topKSampling", False),
    "top_p": ("top_p", "topPSampling", True), "min_p": ("min_p", "minPSampling", True),
    "penalty_repeat": ("repeat_penalty", "repeatPenalty", True),
}  # fmt: skip
_DOMAINS: Final[dict[Purpose, str]] = {"generate": "llm", "embed": "embedding"}  # neither program ranks documents


def card_app_texts(subject: CardSubject) -> dict[str, str]:
    """{"Modelfile": text, "model.yaml": text} of a release; without what its program cannot run or load."""
    purpose, _pooling = subject.purpose
    names = [entry.path for record in subject.quants.values() for entry in record.files]
    if not subject.taken or subject.is_encoder_decoder or purpose not in _DOMAINS:
        return {}
    found = {MODELFILE: _ollama_modelfile(subject, purpose)} if all(map(_PLAIN.fullmatch, names)) else {}
    return found | ({MODEL_YAML: _lm_studio_model_yaml(subject, purpose)} if subject.context.repo_id else {})


def _app_context_tokens(subject: CardSubject) -> int:
    """The context to begin with; 0: not known."""
    use = subject.manifest.use
    return min(use.context_tokens, _CONTEXT) if use else 0


def _app_sampling(subject: CardSubject) -> dict[str, float]:
    use = subject.manifest.use
    return {name: value for name, value in use.sampling.items() if name in _SAMPLING} if use else {}


def _app_stop_texts(subject: CardSubject) -> list[str]:
    """The texts of the tokens that end an answer. A base model goes on with a text, and ends it by itself."""
    use = subject.manifest.use
    return list(use.stop) if use and subject.has_chat_template else []


# ---- Ollama ------------------------------------------------------------------------------------------


def _ollama_modelfile(subject: CardSubject, purpose: Purpose) -> str:
    lines = [
        *_ollama_modelfile_head(subject, purpose),
        "",
        *_ollama_from_lines(subject),
        *_ollama_parameter_lines(subject, purpose),
    ]
    return "\n".join(lines) + "\n"


def ollama_name(subject: CardSubject) -> str:
    """A name for the model in Ollama."""
    return re.sub(r"[^a-z0-9._-]+", "-", subject.title.lower()).strip("-._") or "model"


def _ollama_modelfile_head(subject: CardSubject, purpose: Purpose) -> Iterator[str]:
    name = ollama_name(subject)
    run = f"; ollama run {name}" if purpose == "generate" else ""
    yield "# For Ollama, in the folder of the file that FROM names:"
    yield f"#   ollama create {name} -f {MODELFILE}{run}"
    if others := [record.files[0].path for label, record in subject.quants.items() if label != subject.taken]:
        yield f"# FROM may name another of these files: {', '.join(others)}"
    if len(subject.quants[subject.taken].files) > 1:
        yield "# The model is in parts. For a version of Ollama that takes one file: llama-gguf-split --merge"
    if purpose == "generate" and subject.has_chat_template:
        yield "# The chat template is in the file. Versions of Ollama without llama-server take one of their own that"
        yield f"# is like it, or none; what yours takes: ollama show {name} --template"


def _ollama_from_lines(subject: CardSubject) -> Iterator[str]:
    for entry in subject.quants[subject.taken].files:
        yield f"FROM ./{entry.path}"
    projector = subject.manifest.projector
    if projector and projector.files and _PLAIN.fullmatch(projector.files[0].path):
        yield "# What reads pictures or sound for it:"
        yield f"FROM ./{projector.files[0].path}"


def _ollama_parameter_lines(subject: CardSubject, purpose: Purpose) -> Iterator[str]:
    if purpose == "generate" and not subject.has_chat_template:
        yield "# A base model, which continues a text."
        yield 'TEMPLATE "{{ .Prompt }}"'
    if (use := subject.manifest.use) and use.context_tokens:
        yield f"# It was trained for {format_count(use.context_tokens)} tokens; more of them take more memory."
        yield f"PARAMETER num_ctx {_app_context_tokens(subject)}"
    if purpose != "generate":
        return
    if sampling := _app_sampling(subject):
        yield "# As the model's makers recommend."
        yield from (f"PARAMETER {_SAMPLING[name][0]} {format_as_written(value)}" for name, value in sampling.items())
    yield from (f'PARAMETER stop "{text}"' for text in _app_stop_texts(subject))


# ---- LM Studio ---------------------------------------------------------------------------------------


def _lm_studio_model_yaml(subject: CardSubject, purpose: Purpose) -> str:
    import yaml

    user, _, repo = subject.context.repo_id.partition("/")
    definition: dict[str, Any] = {
        "model": f"{_lm_studio_name(user)}/{_lm_studio_name(re.sub('-GGUF$', '', repo, flags=re.IGNORECASE))}",
        "base": [
            {"key": subject.context.repo_id.lower(), "sources": [{"type": "huggingface", "user": user, "repo": repo}]}
        ],
        "metadataOverrides": _lm_studio_metadata(subject, purpose),
    }
    if purpose == "generate" and (config := _lm_studio_config(subject)):
        definition["config"] = config
    head = (
        "# For LM Studio (modelyaml.org). `lms push` publishes it on LM Studio's Hub; the part of `model` before the\n"
        "# slash is your name there.\n"
    )
    if purpose == "generate" and subject.has_chat_template:
        head += "# The chat template is in the files.\n"
    return f"{head}{yaml.safe_dump(definition, sort_keys=False, allow_unicode=True)}"


def _lm_studio_name(text: str) -> str:
    """As LM Studio's Hub spells names: small letters, digits, dots and single hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "model"


def _lm_studio_metadata(subject: CardSubject, purpose: Purpose) -> dict[str, Any]:
    use, projector = subject.manifest.use, subject.manifest.projector
    measured = [m.file for m in subject.measured.values()]
    peaks = [m.speed.peak_memory_bytes for m in subject.measured.values() if m.speed]
    return {
        "domain": _DOMAINS[purpose],
        **({"architectures": [measured[0].architecture]} if measured else {}),
        "compatibilityTypes": ["gguf"],
        **({"paramsStrings": [_app_parameter_count(measured[0].n_params)]} if measured else {}),
        **({"minMemoryUsageBytes": min(peaks)} if peaks else {}),
        **({"contextLengths": [use.context_tokens]} if use and use.context_tokens else {}),
        **({"vision": bool(projector and projector.files and "vision" in projector.media)} if purpose == "generate"
           else {}),
    }  # fmt: skip


def _app_parameter_count(n_params: int) -> str:
    """135_000_000 → "135M", 8_030_000_000 → "8B", 1_540_000_000 → "1.5B"."""
    if n_params < 999_500_000:
        return f"{round(n_params / 1e6)}M"
    return f"{round(n_params / 1e9, 1):g}B" if n_params < 9.95e9 else f"{round(n_params / 1e9)}B"


def _lm_studio_config(subject: CardSubject) -> dict[str, Any]:
    fields: list[dict[str, Any]] = []
    for name, value in _app_sampling(subject).items():
        _, key, has_box = _SAMPLING[name]
        plain = int(value) if value == int(value) else value
        written = {"checked": True, "value": plain} if has_box else plain
        fields.append({"key": f"llm.prediction.{key}", "value": written})
    if stops := _app_stop_texts(subject):
        fields.append({"key": "llm.prediction.stopStrings", "value": stops})
    tokens = _app_context_tokens(subject)
    load = {"load": {"fields": [{"key": "llm.load.contextLength", "value": tokens}]}} if tokens else {}
    return ({"operation": {"fields": fields}} if fields else {}) | load
