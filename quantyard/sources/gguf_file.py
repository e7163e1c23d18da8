"""A GGUF file given as MODEL: a whole model, or something else that is kept in this format. Its metadata tells.

Importance matrices, adapters, projectors, vocabularies and parts of a split model are all GGUF files.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from quantyard.errors import BadSource
from quantyard.formats.gguf import (
    GgufError,
    GgufHeader,
    MetadataValue,
    read_gguf_header,
    read_gguf_model,
)
from quantyard.memory.layers import ModelLayers, read_cache_layers
from quantyard.quants.catalog import QUANTS
from quantyard.sources.chat_template import gguf_chat_notes
from quantyard.sources.purpose import gguf_model_use

_PARTS_OF_CAT: Final = re.compile(r"(?i)(?:\.gguf-split-[a-z]+|\.gguf\.?part\d+(?:of\d+)?|\.gguf\.\d{3})$")
_OLD_MATRIX: Final = re.compile(r"(?i)(?:imatrix.*\.(?:dat|gguf)|\.imatrix)$")
_QAT: Final = re.compile(r"(?i)(?<![a-z])qat(?![a-z])")
_NEIGHBOURS_AT_MOST: Final = 200  # files of a folder that are looked at for parts of the same model


def read_model_gguf(path: Path) -> GgufHeader:
    """The header of a GGUF that is a whole model, all its parts together.

    Raises:
        BadSource: it is something else, or a part is missing, misnamed or damaged; the hint names the command that
            takes such a file.
    """
    try:
        first = read_gguf_header(path)
    except GgufError as error:
        raise BadSource(f"{path.name} is not a usable GGUF: {error}", _unreadable_source_gguf_hint(path)) from error
    refuse_other_gguf(path.name, str(path), first.metadata, len(first.tensors))
    _refuse_part_as_source(path, first)
    try:
        return read_gguf_model(path)
    except GgufError as error:
        raise BadSource(f"{path.name} is not a usable GGUF: {error}", "Download or copy it again.") from error


def _unreadable_source_gguf_hint(path: Path) -> str:
    if _PARTS_OF_CAT.search(path.name):
        stem = _PARTS_OF_CAT.sub(".gguf", path.name)
        return f"It is a piece of a file that was cut by bytes. Join the pieces in order: cat {stem}* > {stem}"
    if _OLD_MATRIX.search(path.name):
        return f"An importance matrix goes with a model: make build MODEL=org/name IMATRIX={_quoted_gguf(path)}"
    return "Download or copy it again."


def refuse_other_gguf(name: str, path: str, metadata: Mapping[str, MetadataValue], n_tensors: int) -> None:
    """Refuse a GGUF that is not a model, by its metadata.

    Args:
        name: of the file, for the message.
        path: how the file is named in the commands of hints.

    Raises:
        BadSource: what it is, and the command that takes it.
    """
    kind = str(metadata.get("general.type", ""))
    if kind == "model" or not kind:
        kind = _kind_of_source_gguf(metadata, n_tensors)
    if kind in _KINDS:
        what, hint = _KINDS[kind]
        raise BadSource(f"{name} is {what}, not a model.", hint(shlex.quote(path)))


def _kind_of_source_gguf(metadata: Mapping[str, MetadataValue], n_tensors: int) -> str:
    """For files of writers that set no `general.type`, and of vocabularies, which pass for models."""
    if metadata.get("general.architecture") == "controlvector":
        return "control vector"
    if metadata.get("general.architecture") == "clip":
        return "mmproj"
    if "imatrix.chunk_count" in metadata:
        return "imatrix"
    if "adapter.type" in metadata:
        return "adapter"
    if not n_tensors and metadata.get("split.count", 1) == 1:
        return "vocabulary" if "tokenizer.ggml.model" in metadata else "empty"
    return "model"


# To recognize one more kind: its `general.type` (or the name that `_kind_of_source_gguf` gives), what it is, and what
# to do.
_KINDS: Final[dict[str, tuple[str, Callable[[str], str]]]] = {
    "imatrix": (
        "an importance matrix",
        lambda path: f"It goes with the model that it was made for: make build MODEL=org/name IMATRIX={path}",
    ),
    "adapter": (
        "a LoRA adapter",
        lambda path: f"It is served with the model that it was made for: LORA_FILE={path} docker compose up",
    ),
    "mmproj": (
        "a projector, the part of a model that reads pictures or sound",
        lambda _path: "Give the GGUF of its language model: make build MODEL=model.gguf",
    ),
    "control vector": ("a control vector", lambda _path: "Give the GGUF of the model that it steers."),
    "vocabulary": (
        "a vocabulary without weights (0 tensors)",
        lambda _path: "Give a GGUF that holds the weights; converters write this one with --vocab-only.",
    ),
    "empty": ("a header without weights (0 tensors)", lambda _path: "Download or copy it again."),
}  # fmt: skip


def _refuse_part_as_source(path: Path, header: GgufHeader) -> None:
    """Refuse a part of a split model that is not the first, or that is joined or named in a way no tool reads."""
    number, count = header.metadata.get("split.no"), header.split_count
    if count == 1 or not isinstance(number, int):
        return
    if _has_source_gguf_more_behind(path, header):
        message = f"{path.name} is {count} parts of a split model joined by cat, which cannot be read."
        hint = "Give the parts as they were: MODEL=<name>-00001-of-0000N.gguf, or join them: llama-gguf-split --merge"
        raise BadSource(message, hint)
    if hint := _all_source_parts_hint(path, header):
        message = f"{path.name} is part {number + 1} of {count} of a split model, under a name that does not say so."
        raise BadSource(message, hint)
    if number > 0:
        message = f"{path.name} is part {number + 1} of {count} of a split model."
        first = re.sub(r"-\d{5}-of-", "-00001-of-", path.name)
        named = first if first != path.name else f"<name>-00001-of-{count:05}.gguf"
        hint = f"Give the first part: MODEL={_quoted_gguf(path.with_name(named))}"
        raise BadSource(message, hint)


def _has_source_gguf_more_behind(path: Path, header: GgufHeader) -> bool:
    """Whether another GGUF begins where this one's tensors end."""
    end = max((t.offset + t.size_bytes for t in header.tensors), default=header.data_offset)
    with path.open("rb") as stream:
        stream.seek(end)
        return b"GGUF" in stream.read(header.alignment + 4)


def _all_source_parts_hint(path: Path, header: GgufHeader) -> str:
    """The commands that give all parts the names that llama.cpp wants; "" where they have them, or not all are there.

    Parts know their numbers, whatever they are called now.
    """
    count = header.split_count
    if count == 1 or re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        return ""
    parts = _source_gguf_parts_beside(path, header)
    if sorted(parts) != list(range(count)):
        return ""
    stem = re.sub(r"(?i)[-_.]?(?:part)?[-_.]?\d+(?:[-_.]?of[-_.]?\d+)?$", "", path.stem) or "model"
    moves = (
        f"mv {_quoted_gguf(parts[i])} {_quoted_gguf(path.with_name(_source_gguf_part_name(stem, i, count)))}"
        for i in range(count)
    )
    shown = " && ".join(moves) if count <= 4 else f"<name>-00001-of-{count:05}.gguf and so on"
    return f"Give the parts the names that llama.cpp reads: {shown}"


def _source_gguf_part_name(stem: str, number: int, count: int) -> str:
    return f"{stem}-{number + 1:05}-of-{count:05}.gguf"


def _source_gguf_parts_beside(path: Path, header: GgufHeader) -> dict[int, Path]:
    """Files of the same folder that say they are parts of so many, by their number."""
    found: dict[int, Path] = {}
    total = header.metadata.get("split.tensors.count")
    for other in sorted(path.parent.glob("*.gguf"))[:_NEIGHBOURS_AT_MOST]:
        try:
            metadata = read_gguf_header(other).metadata if other.is_file() else {}
        except (GgufError, OSError):
            continue
        number = metadata.get("split.no")
        same = metadata.get("split.count") == header.split_count and metadata.get("split.tensors.count") == total
        if same and isinstance(number, int) and found.setdefault(number, other) != other:
            return {}  # parts of two models
    return found


def _quoted_gguf(path: Path) -> str:
    return shlex.quote(str(path))


def gguf_config(header: GgufHeader) -> dict[str, object]:
    """What a plan reads of config.json, from a GGUF's metadata: widths of the model and of its vocabulary."""
    embeddings = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    vocab = embeddings.shape[1] if embeddings and len(embeddings.shape) > 1 else None
    found = {"hidden_size": header.metadata.get(f"{header.architecture}.embedding_length"), "vocab_size": vocab}
    return {key: value for key, value in found.items() if isinstance(value, int)}


def gguf_cache_layers(header: GgufHeader) -> ModelLayers | None:
    """The layers that take memory for a context; None where the architecture is not known, or is hard to read."""
    try:
        return read_cache_layers(header)
    except OSError:
        return None


def gguf_notes(name: str, header: GgufHeader) -> tuple[str, ...]:
    """What the plan says of a model in one GGUF."""
    trained = header.is_quantized and is_trained_quantized(name, header)
    about = (*gguf_model_use(header).notes, *gguf_chat_notes(header))
    return (*((trained_quantized_note(header),) if trained else ()), *about)


def is_trained_quantized(name: str, header: GgufHeader | None) -> bool:
    """Whether a quantized file was trained to be one (QAT), by its name or its metadata."""
    keys = ("general.name", "general.basename", "general.finetune")
    said = [name, *(str(header.metadata.get(key, "")) for key in keys if header)]
    return any(_QAT.search(text) for text in said)


def trained_quantized_note(header: GgufHeader) -> str:
    """What the plan says of a model that was trained to be used in few bits."""
    own = gguf_quant_name(header)
    return (
        f"The model was trained to be used as {own} (QAT): this file is the original here, and evaluations compare "
        f"with it. Any other quant is made from its {own} weights."
    )


def gguf_quant_name(header: GgufHeader) -> str:
    """The quant that a file says it is; "its type" where no quant has that number."""
    return next((quant.name for quant in QUANTS if quant.ftype == header.file_type), "its type")
