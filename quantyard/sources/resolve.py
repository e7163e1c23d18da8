"""Resolves MODEL: its files, its commit, and the facts that a plan needs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from quantyard.errors import BadSource, NeedsPermission
from quantyard.files.own_files import (
    find_file,
    kind_of_path,
    leads_out_of_folder,
    list_files,
    read_named_file,
    typed_file_path,
)
from quantyard.formats.file_kinds import HEAD_BYTES
from quantyard.formats.gguf import GgufHeader, why_gguf_cannot_generate
from quantyard.formats.names import name_format_fault, safe_file_name, shown_name
from quantyard.formats.safetensors import (
    MAX_INDEX_BYTES,
    SafetensorsError,
    StaleIndexError,
    read_safetensors_folder,
)
from quantyard.hub.client import (
    CONFIG_LIMIT_BYTES,
    HubAccess,
    HubRepo,
    hub_tensor_shapes,
    parse_hub_repo_id,
    read_hub_config,
    read_hub_file,
    read_hub_files,
    resolve_hub_repo,
)
from quantyard.hub.files import LEGAL_FILES, PICKLE_ENDINGS, Selection, select_hub_files
from quantyard.hub.model_card import hub_card_of_gguf, hub_card_of_readme
from quantyard.memory.from_config import kv_cache_bytes
from quantyard.protocol.base import FileEntry, files_digest
from quantyard.protocol.builder import OutType
from quantyard.protocol.runner import file_sha256
from quantyard.quants.catalog import QUANTS, UNQUANTIZED, Quant, find_quant
from quantyard.quants.file_size import (
    TensorShape,
    quant_gguf_bytes,
    quant_main_type,
    quant_outtype_for,
    quant_rough_bytes,
    quant_type_counts,
)
from quantyard.quants.model_config import TRAINED, model_config_number, model_text_config
from quantyard.quants.narrow_rows import gguf_type_counts
from quantyard.sources.chat_template import BASE_MODEL_NOTE, base_model_notes, source_chat_template
from quantyard.sources.gguf_file import read_model_gguf
from quantyard.sources.local_folder import CachedRepo, cached_hub_repo, no_model_folder
from quantyard.sources.presets import Preset, find_preset, refuse_unsupported_preset, split_preset_name
from quantyard.sources.side_files import (
    check_local_files,
    parse_side_json,
    refuse_missing_tokenizer,
    refuse_spoiled_text,
    refuse_spoiled_weights,
)
from quantyard.sources.tensor_faults import refuse_faulty_tensors, unwrapped_tensors
from quantyard.store.artifact import Artifact, ModelId
from quantyard.store.hash_cache import HashCache
from quantyard.store.manifest import SourceCard, read_manifest

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
HUB_JSON_BYTES = 256 * 2**10  # of a file of a repo that a plan reads; tokenizers are larger
_TEXT_LIMIT = 16 * 2**20  # bytes of a README or a licence
SIDE_LIMIT = 512 * 2**20  # bytes of a tokenizer; the largest have some 50 MB
_WEIGHTS = (".safetensors", ".gguf", *PICKLE_ENDINGS)


@dataclass(frozen=True)
class Source:
    """A model to build from. Sizes are in bytes."""

    model: ModelId
    kind: Literal["huggingface", "gguf"]
    title: str
    files: tuple[FileEntry, ...]
    repo_id: str = ""
    revision: str = ""
    license: str | None = None
    local: Artifact | None = None
    gguf_file: str | None = None
    gguf: GgufHeader | None = None
    dtypes: Mapping[str, int] = field(default_factory=dict)  # dtype → number of weights
    tensors: tuple[TensorShape, ...] | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    card: SourceCard = field(default_factory=SourceCard)
    preset: Preset | None = None  # if it was named by a preset
    notes: tuple[str, ...] = ()  # what the plan says of it, a sentence each
    has_chat_template: bool | None = None  # None: not known before it is here

    @property
    def size_bytes(self) -> int:
        """Size of the files that are downloaded, or read in place."""
        return sum(f.size_bytes for f in self.files)

    @property
    def n_params(self) -> int:
        """Number of weights; from the file sizes (two bytes each) where nothing better is known."""
        if self.gguf is not None:
            return self.gguf.n_params
        return sum(self.dtypes.values()) or self.size_bytes // 2

    @property
    def named_quant(self) -> Quant | None:
        """The quant that the file name of a GGUF on the Hub claims; `verify` checks it later."""
        words = re.split(r"[^A-Z0-9_]+", (self.gguf_file or "").upper())
        return next((quant for quant in QUANTS if quant.name in words), None)

    @property
    def is_quantized(self) -> bool:
        """Whether it is a quantized GGUF, as far as that can be known without downloading it."""
        if self.gguf is not None:
            return self.gguf.is_quantized
        return self.named_quant is not None and self.named_quant.name not in UNQUANTIZED

    def outtype(self, asked: OutType) -> tuple[OutType, str]:
        """The type to convert to, and why. `auto` if only the conversion can tell."""
        if asked != "auto":
            return asked, "asked for"
        if not self.dtypes:
            return "auto", "decided by the weights' own type when they are here"
        return quant_outtype_for(self.dtypes)

    def is_already(self, quant: Quant, outtype: OutType) -> bool:
        """Whether the conversion, or the GGUF itself, has this quant already, so that quantizing is not needed."""
        if quant.recipe is not None:
            return False
        if self.kind == "gguf" and (quant.name == "COPY" or sum(f.path.endswith(".gguf") for f in self.files) > 1):
            return False  # shards are joined
        if self.gguf is not None:
            return self.gguf.file_type == quant.ftype
        if self.gguf_file:
            return self.named_quant == quant
        return self.kind == "huggingface" and outtype == quant.name.lower()

    def converted_size_bytes(self, outtype: OutType) -> int:
        """Expected size of the conversion."""
        return self.quant_size_bytes(find_quant("BF16" if outtype == "auto" else outtype))

    def quant_size_bytes(self, quant: Quant) -> int:
        """Expected size of a GGUF of this quant."""
        if self.tensors is not None:
            return quant_gguf_bytes(self.tensors, self.config, quant)
        return quant_rough_bytes(self.n_params, quant)

    def main_type(self, quant: Quant) -> str:
        """The tensor type that most of its weights have in a GGUF of this quant; "" where their shapes are unknown."""
        return quant_main_type(self.tensors, self.config, quant) if self.tensors else ""

    def type_counts(self, quant: Quant) -> Mapping[str, int]:
        """Tensor type → how many weights of a GGUF of this quant have it; empty where the shapes are unknown."""
        if self.gguf is not None:
            return gguf_type_counts(self.gguf, quant)
        return quant_type_counts(self.tensors, self.config, quant) if self.tensors else {}

    @property
    def trained_tokens(self) -> int | None:
        """The longest context that the model was trained for; None where it is not known."""
        if self.gguf is not None:
            return self.gguf.context_length
        return model_config_number(model_text_config(self.config), *TRAINED)

    def kv_cache_bytes(self, context_tokens: int) -> int | None:
        """Size of the KV cache at this context; None if the configuration does not tell."""
        return kv_cache_bytes(self.config, context_tokens)


def find_source(
    model: str, access: HubAccess, hashes: HashCache, *, allow_pickle: bool, gguf_file: str | None
) -> Source:
    """Resolve MODEL: a GGUF file, a folder, a Hub repo id, or the name of a preset.

    A path wins over a repo id only if it says that it is one (`./`, `/`, `~`, `.gguf`) or is a folder with
    a config.json. A name that is not a path and has no slash is a preset.

    Raises:
        BadSource, NeedsPermission: the local source cannot be built from, or no preset has this name.
        HubError: the Hub said no.
    """
    if "\0" in model or not model.strip() or model.startswith("-"):
        raise BadSource(f"{shown_name(model)} is not a model.", "Name one: make build MODEL=org/name")
    path = typed_file_path(model)
    kind = kind_of_path(path)
    if kind == "folder" and (is_source_path(model) or kind_of_path(path / "config.json")):
        return _folder(path.absolute(), hashes, allow_pickle=allow_pickle, gguf_file=gguf_file)
    if kind == "file":
        return _gguf(path.absolute(), hashes)
    if is_source_path(model) and not (model.startswith("..") and model.count("/") == 1):
        hint = "Give a path that exists, or a Hub id: MODEL=org/name"
        raise BadSource(f"There is no file or folder {shown_name(model, 300)}.", hint)
    repo, preset = _on_hub(model)
    wanted = gguf_file or (preset.gguf_file if preset else None)
    return replace(_hub(repo, access, allow_pickle=allow_pickle, gguf_file=wanted), preset=preset)


def _on_hub(model: str) -> tuple[str, Preset | None]:
    """The repo and revision, and the preset if its name was typed."""
    if "/" in model:
        return model, None
    name, typed = split_preset_name(model)
    preset = find_preset(name)
    refuse_unsupported_preset(preset)
    revision = preset.revision if typed is None else typed
    return preset.repo if revision is None else f"{preset.repo}@{revision}", preset


def is_source_path(model: str) -> bool:
    """Whether the text is written like a path."""
    return model.startswith(("/", "./", "../", "~")) or model.endswith(".gguf")


def _folder(path: Path, hashes: HashCache, *, allow_pickle: bool, gguf_file: str | None) -> Source:
    if not kind_of_path(path / "config.json") and not gguf_file:
        raise no_model_folder(path)  # before walking the folder, which may be the whole disk
    chosen = select_hub_files(
        str(path), list_files(path), lambda name: _small_file(path, name), allow_pickle=allow_pickle,
        gguf_file=gguf_file,
    )
    places = {file.path: find_file(path, file.path, source_file_limit(file.path)) for file in chosen.files}
    if chosen.kind == "gguf" and chosen.gguf_file:
        return _gguf(path / chosen.gguf_file, hashes)
    # Check the headers before reading many GB for their hashes.
    config = _config(path)
    notes = [chosen.note] if chosen.note else []
    weights = [name for name in places if name.endswith(".safetensors")]
    for name in weights:
        refuse_spoiled_weights(str(path), name, places[name])
    tensors, renamed = unwrapped_tensors(_local_tensors(path, list(places)) if weights else None)
    refuse_faulty_tensors(str(path), config, tensors or ())
    notes += [renamed] if renamed else []
    notes += check_local_files(str(path), places, config, tensors or ())
    files = hashed_source_files(places, hashes)
    digest = files_digest(files)
    license_, card = hub_card_of_readme(_readme(places.get("README.md")))
    chats = source_chat_template(places, lambda name: read_named_file(places[name], SIDE_LIMIT))
    source = Source(
        model=ModelId("local", safe_file_name(path.name), digest), kind="huggingface", title=str(path), files=files,
        license=license_, local=Artifact(digest, files, path, whole_folder=False, places=places),
        dtypes=_dtypes(tensors or ()), tensors=tensors, config=config, card=card,
        notes=(*notes, *base_model_notes(chats, config)), has_chat_template=chats,
    )
    return _named_by_cache(source, path, cached_hub_repo(path, files, places))


def _named_by_cache(source: Source, path: Path, cached: CachedRepo | None) -> Source:
    """The source by the name and revision of its repo. A proven snapshot is the very model of the Hub."""
    if cached is None:
        return source
    notes = (*source.notes, f"It is read from the Hub's cache, {path}.")
    if not cached.is_proven:
        model = ModelId(cached.org or "local", cached.name, source.model.commit)
        return replace(source, model=model, revision=cached.commit, notes=notes)
    return replace(
        source, model=ModelId(cached.org, cached.name, cached.commit), title=cached.title, repo_id=cached.repo_id,
        revision=cached.commit, notes=notes,
    )


def _small_file(folder: Path, name: str) -> bytes:
    """An index of weights."""
    place = find_file(folder, name, MAX_INDEX_BYTES)
    try:
        return read_named_file(place, MAX_INDEX_BYTES)
    except (OSError, ValueError) as error:
        raise BadSource(f"{folder / name} cannot be read: {error}.", "Download or copy it again.") from error


def hashed_source_files(places: Mapping[str, Path], hashes: HashCache) -> tuple[FileEntry, ...]:
    """The files of a local source, with their real paths."""
    return tuple(
        FileEntry(path=name, size_bytes=place.stat().st_size, sha256=hashes.sha256(place, file_sha256))
        for name, place in places.items()
    )


def source_file_limit(name: str) -> int | None:
    """The size limit of this file of a model, bytes; None for weights."""
    if name.endswith(_WEIGHTS):
        return None
    if name == "config.json":
        return CONFIG_LIMIT_BYTES
    return _TEXT_LIMIT if any(fnmatchcase(name, pattern) for pattern in LEGAL_FILES) else SIDE_LIMIT


def _readme(place: Path | None) -> str:
    return read_named_file(place, _TEXT_LIMIT).decode(errors="replace") if place else ""


def _gguf(path: Path, hashes: HashCache) -> Source:
    if fault := name_format_fault(path.name):
        raise BadSource(f"{shown_name(path.name)} cannot name a model's file: {fault}.", "Rename it.")
    gguf = read_model_gguf(path)
    places = {shard.name: _shard(path, shard) for shard in gguf.paths}
    files = hashed_source_files(places, hashes)
    digest = files_digest(files)
    name = re.sub(r"(?i)[-.](?:[a-z]*q\d\w*|bf16|f16|f32|fp16)(?:-\d+-of-\d+)?$", "", path.stem)
    license_, card = hub_card_of_gguf(gguf.metadata, path)
    local = Artifact(digest, files, path.parent, whole_folder=False, places=places)
    return Source(
        model=ModelId("local", safe_file_name(name), digest),
        kind="gguf",
        title=str(path),
        files=files,
        license=license_,
        local=local,
        gguf_file=path.name,
        gguf=gguf,
        card=card,
        notes=() if gguf.chat_template or why_gguf_cannot_generate(gguf) else (BASE_MODEL_NOTE,),
        has_chat_template=gguf.chat_template is not None,
    )


def _shard(first: Path, shard: Path) -> Path:
    """The real path of a file: the first may link anywhere, since the user named it; the others must be in its folder,
    or beside its target.
    """
    if shard == first or not leads_out_of_folder(first.resolve().parent, shard):
        return shard.resolve()
    return find_file(first.parent, shard.name)


def refuse_quantized_source(source: Source, quants: tuple[Quant, ...], outtype: OutType, *, allowed: bool) -> None:
    """Refuse to quantize an already quantized file, or one converted with such an OUTTYPE, unless the user allows it.

    Raises:
        NeedsPermission: ALLOW_REQUANTIZE is not set.
    """
    if allowed or not (source.is_quantized or (source.kind == "huggingface" and outtype == "q8_0")):
        return
    if again := [q.name for q in quants if q.name != "COPY" and not source.is_already(q, outtype)]:
        what = source.gguf_file or "With OUTTYPE=q8_0 the conversion"
        message = f"{what} is quantized already; making {', '.join(again)} of it loses more quality than usual."
        raise NeedsPermission(message, "Start from the 16-bit model, or allow it: ALLOW_REQUANTIZE=1")


def _hub(model: str, access: HubAccess, *, allow_pickle: bool, gguf_file: str | None) -> Source:
    repo_id, revision = parse_hub_repo_id(model)
    repo = resolve_hub_repo(access, repo_id, revision)
    sizes = {file.path: file.size_bytes for file in repo.files}
    read = lambda name: read_hub_file(access, repo, name, min(sizes[name], MAX_INDEX_BYTES))  # noqa: E731
    chosen = select_hub_files(repo.repo_id, repo.files, read, allow_pickle=allow_pickle, gguf_file=gguf_file)
    org, name = repo.repo_id.split("/", 1)
    is_hf = chosen.kind == "huggingface"
    config = read_hub_config(access, repo) if is_hf else {}
    chats = source_chat_template({file.path for file in chosen.files}, read) if is_hf else None
    tensors, renamed = unwrapped_tensors(hub_tensor_shapes(access, repo, chosen.files) if is_hf else None)
    if is_hf:
        _check_hub_files(access, repo, chosen)
        refuse_missing_tokenizer(repo.repo_id, [file.path for file in chosen.files], config)
        refuse_faulty_tensors(repo.repo_id, config, tensors or ())
    notes = (note for note in (chosen.note, renamed) if note and is_hf)
    return Source(
        model=ModelId(org, name, repo.commit), kind=chosen.kind, title=source_title(repo), files=chosen.files,
        repo_id=repo.repo_id, revision=revision or "main", license=repo.license, gguf_file=chosen.gguf_file,
        dtypes=repo.dtypes, tensors=tensors, config=config, card=repo.card, has_chat_template=chats,
        notes=(*notes, *base_model_notes(chats, config)),
    )


def _check_hub_files(access: HubAccess, repo: HubRepo, chosen: Selection) -> None:
    """Refuse small files of the repo that are not what their names say, before the large ones are downloaded."""
    small = [f.path for f in chosen.files if f.path.endswith(".json") and f.size_bytes <= HUB_JSON_BYTES]
    for name, text in read_hub_files(access, repo, small).items():
        if not name.endswith(".index.json"):
            parse_side_json(repo.repo_id, name, text)
    for file in chosen.files:
        if file.path.endswith(".safetensors") and file.size_bytes < HEAD_BYTES:
            head = read_hub_files(access, repo, [file.path]).get(file.path, b"-")
            refuse_spoiled_weights(repo.repo_id, file.path, head)


def recall_source(artifacts: Path, model: str) -> Source | None:
    """The source that an earlier build recorded, for `org/name@<full commit>` or a preset with a full commit; otherwise
    None.
    """
    repo, preset = _on_hub(model)
    repo_id, commit = parse_hub_repo_id(repo)
    if commit is None or not _COMMIT.match(commit):
        return None
    org, name = repo_id.split("/", 1)
    model_id = ModelId(org, name, commit)
    manifest = read_manifest(artifacts / model_id.folder / "manifest.json")
    if manifest is None or manifest.source.commit != commit:
        return None
    known = manifest.source
    return Source(
        model=model_id, kind=known.kind, title=f"{known.title}, as recorded (the Hub is out of reach)",
        files=tuple(known.files), repo_id=repo_id, revision=commit, license=known.license, gguf_file=known.gguf_file,
        dtypes=known.dtypes, card=known.card, preset=preset,
    )


def source_title(repo: HubRepo) -> str:
    """The title of a repo at its commit."""
    return f"{repo.repo_id} at {repo.commit[:12]}"


def _local_tensors(path: Path, names: Sequence[str]) -> tuple[TensorShape, ...]:
    try:
        files = read_safetensors_folder(path, names)
    except StaleIndexError as error:
        hint = "The index and the files are of different saves. Remove the index if the files are whole, or fetch both."
        raise BadSource(f"{error}.", hint) from error
    except SafetensorsError as error:
        raise BadSource(str(error), "Download or copy it again: the file is damaged.") from error
    return tuple(TensorShape(name, tuple(t.shape), t.dtype) for file in files for name, t in file.tensors.items())


def _dtypes(tensors: tuple[TensorShape, ...]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for tensor in tensors:
        size = 1
        for length in tensor.shape:
            size *= length
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + size
    return counts


def _config(path: Path) -> Mapping[str, object]:
    try:
        text = read_named_file(path / "config.json", CONFIG_LIMIT_BYTES)
        refuse_spoiled_text(str(path), "config.json", text)
        config = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: brackets nested thousands deep
        raise BadSource(f"{path / 'config.json'} is not valid JSON: {error}", "Download the model again.") from error
    if not isinstance(config, dict):
        raise BadSource(f"{path / 'config.json'} holds no JSON object.", "Download the model again.")
    return config
