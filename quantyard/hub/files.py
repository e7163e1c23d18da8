"""Parses model ids, and selects the files that a build needs. Uses no network."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final, Literal, NoReturn

from quantyard.errors import BadSource, NeedsPermission
from quantyard.formats.names import shown_names
from quantyard.hub.no_model import no_model_error
from quantyard.hub.weight_files import (
    PICKLE,
    SAFETENSORS,
    ReadFile,
    WeightFormat,
    choose_weight_files,
    weight_index_name,
)
from quantyard.protocol.base import FileEntry
from quantyard.records import dataclass

HUB_URL: Final = "https://huggingface.co"
Closed = Literal["", "private", "gated"]  # why a repo is read with a token only
_PLAIN_BEGINNING: Final = re.compile(r"[^*?\[]*")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")

# To include one more small file: add a pattern (fnmatch, from the repo's top; `*` does not match a `/`).
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "chat_template*.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tekken.json",
    "*quant*_config.json",  # the format of a pre-quantized checkpoint
    "modules.json",  # sentence-transformers: which pooling the converter records
    "?_*/config.json",  # its further modules: pooling, dense layers
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "tokenizer.model*",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
    "*.jinja",
    "additional_chat_templates/*.jinja",
)

# To include one more text about terms or use: add a pattern. These are included with a GGUF too.
LEGAL_FILES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*", "README.md")

# To exclude one more kind of file that is not a model: add a pattern (of the file name, without its folder).
NOT_WEIGHTS = (
    "adapter_model.*",
    "optimizer*",
    "scheduler*",
    "training_args*",
    "rng_state*",
    "trainer_state*",
    "mmproj*.gguf",
    "*-mmproj*.gguf",
    "*imatrix*",
    "*_optim_states.*",
    "mp_rank_*",
    "pytorch_model_fsdp*",
    "scaler.pt",
)

PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt")

# To rank one more unquantized type: insert the words for it in file names (best first).
UNQUANTIZED = (("F32", "FP32"), ("BF16",), ("F16", "FP16"))

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.)")
_NAME_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")  # 96 characters, as huggingface_hub has
_LONGEST_PART = 96  # characters of each part
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+#=-]{0,254}")


@dataclass(frozen=True)
class HubPlace:
    """Where the files of a release lie: `repo_id` "": not known; `branch` "": main."""

    repo_id: str = ""
    branch: str = ""
    closed: Closed = ""


@dataclass(frozen=True)
class Selection:
    """The selected files. `gguf_file` is the one to open: the first of a split model. `note` names the files of a
    checkpoint that were left out, and the reason for a GGUF.
    """

    kind: Literal["huggingface", "gguf"]
    files: tuple[FileEntry, ...]
    gguf_file: str | None
    note: str

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(f.size_bytes for f in self.files)


def parse_hub_repo_id(text: str) -> tuple[str, str | None]:
    """Split `org/name[@revision]`.

    Raises:
        BadSource: the text has another form.
    """
    if "://" in text:
        found = re.match(r"(?:hf://|https?://[^/]*/)([^/\s]+/[^/\s@?#]+)", text.strip())
        bare = found[1] if found and _is_hub_repo_id(found[1]) else "org/name"
        raise BadSource(f"{text!r} is an address, not a model id.", f"Type org/name: make build MODEL={bare}")
    repo_id, at, revision = text.partition("@")
    if not _is_hub_repo_id(repo_id):
        raise BadSource(
            f"{text!r} is not a model id: {_hub_id_fault(repo_id)}.", "Type org/name: make build MODEL=org/name"
        )
    if at and not is_hub_revision(revision):
        message = f"{text!r} does not name a valid git revision: {revision!r}."
        raise BadSource(message, f"A branch, tag or commit follows the @: make build MODEL={repo_id}@main")
    return repo_id, revision if at else None


def _is_hub_repo_id(text: str) -> bool:
    parts = text.split("/")
    legal = all(_NAME_PART.fullmatch(p) and "--" not in p and ".." not in p for p in parts)
    return len(parts) == 2 and legal and not text.endswith(".git")


def hub_model_url(repo_id: str, commit: str) -> str:
    """The address of a model's page at a commit; "" if it is not a repo of the Hub."""
    if not _is_hub_repo_id(repo_id):
        return ""
    return f"{HUB_URL}/{repo_id}/tree/{commit}" if _COMMIT.fullmatch(commit) else f"{HUB_URL}/{repo_id}"


def is_hub_revision(text: str) -> bool:
    """Whether this is a valid name of a branch, tag or commit that a shell takes unquoted."""
    clean = not any(bad in text for bad in ("..", "//", "/.")) and not text.endswith(("/", ".", ".lock"))
    return clean and _REVISION.fullmatch(text) is not None


def _hub_id_fault(repo_id: str) -> str:
    """The reason why this is not a repo id."""
    parts = repo_id.split("/")
    if repo_id.startswith(("/", "./", "../", "~")) or ".." in parts:
        return "it is a path, and no usable folder or file has that name"
    if re.search(r"[\s\0-\x1f\x7f]", repo_id):
        return "it holds a space or a control character"
    if repo_id.startswith("-"):
        return "it begins like an option"
    if "" in parts:
        return "a part of it is empty"
    if len(parts) == 1:
        return "the organisation before the name is missing"
    if len(parts) > 2:
        return f"it has {len(parts)} parts, not two"
    if longest := max((part for part in parts if len(part) > _LONGEST_PART), key=len, default=""):
        return f"{longest[:20]}… has {len(longest)} characters, and a name has {_LONGEST_PART} at most"
    return "a name has letters, digits, '_', '.' and '-', without '-' or '.' at its ends and without '--' or '..'"


def select_hub_files(
    title: str, files: tuple[FileEntry, ...], read: ReadFile | None = None, *, allow_pickle: bool = False,
    gguf_file: str | None = None,
) -> Selection:
    """Choose what a build needs of all the files of a repo or folder.

    safetensors win over pickle, and both over GGUF, unless `gguf_file` asks for one.

    Args:
        title: what to call the repo or folder in an error.
        read: reads an index of weights; without it, the names alone decide.

    Raises:
        NeedsPermission: the only weights are pickle files, and `allow_pickle` is not set.
        BadSource: weights or config.json are missing or incomplete, or there are several GGUF models.
    """
    names = {f.path: f for f in files}
    ggufs = [n for n in names if n.lower().endswith(".gguf") and _may_be_hub_weights(n)]
    if gguf_file:
        return _hub_gguf_selection(title, names, ggufs, gguf_file)
    weights = [n for n in names if "/" not in n and n.endswith(".safetensors") and _may_be_hub_weights(n)]
    if weights:
        return _hub_checkpoint_selection(title, names, weights, SAFETENSORS, read)
    pickles = [n for n in names if "/" not in n and n.endswith(PICKLE_ENDINGS) and _may_be_hub_weights(n)]
    if pickles and not ggufs and "config.json" in names and _are_hub_weights_readable(names, pickles, PICKLE):
        if not allow_pickle:
            shown = shown_names(pickles)
            message = f"The only weights of {title} are pickle files, which can run code when read: {shown}."
            raise NeedsPermission(message, "Allow it for a source you trust: ALLOW_PICKLE=1")
        return _hub_checkpoint_selection(title, names, pickles, PICKLE, read)
    if ggufs:
        return _hub_gguf_selection(title, names, ggufs, None)
    raise no_model_error(title, names)


def _are_hub_weights_readable(names: Iterable[str], weights: list[str], form: WeightFormat) -> bool:
    """Whether the converter finds weights of this format, by an index or by their names."""
    return bool(weight_index_name(names, form)) or any(name.startswith(form.prefix) for name in weights)


def _may_be_hub_weights(path: str) -> bool:
    return not any(_is_name_like(path.rsplit("/", 1)[-1].lower(), pattern) for pattern in NOT_WEIGHTS)


def _is_name_like(name: str, pattern: str) -> bool:
    """As fnmatchcase, which compiles each pattern: most are told by their first letters."""
    return name.startswith(_PLAIN_BEGINNING.match(pattern)[0]) and fnmatchcase(name, pattern)  # type: ignore[index]


def _hub_files_matching(names: Iterable[str], patterns: tuple[str, ...]) -> set[str]:
    return {n for n in names for p in patterns if n.count("/") == p.count("/") and _is_name_like(n, p)}


def _hub_checkpoint_selection(
    title: str, names: dict[str, FileEntry], weights: list[str], form: WeightFormat, read: ReadFile | None
) -> Selection:
    if "config.json" not in names or not _are_hub_weights_readable(names, weights, form):
        raise no_model_error(title, names)
    chosen = choose_weight_files(title, names, weights, form, read)
    beside = _hub_files_matching(names, SIDE_FILES) | _hub_files_matching(names, LEGAL_FILES)
    wanted = {*chosen.files} | beside | ({chosen.index} - {""})
    return Selection("huggingface", _hub_entries_wanted(names, wanted), None, chosen.note if chosen.left_out else "")


def _refuse_missing_hub_parts(title: str, shards: list[str]) -> None:
    parts = [(int(m[1]), int(m[2])) for n in shards if (m := _SHARD.search(n))]
    missing = sorted(set(range(1, max(total for _, total in parts) + 1)) - {i for i, _ in parts}) if parts else []
    if missing:
        message = f"{title} lacks {len(missing)} of {parts[0][1]} shards, the first of them number {missing[0]}."
        raise BadSource(message, "The upload is not complete: try another revision, or tell the owner.")


def hub_gguf_models(names: Iterable[str]) -> dict[str, list[str]]:
    """Each model among the GGUF files of a repo or folder, by its name without numbers of shards: its files in order.
    Projectors, importance matrices and adapters are not models.
    """
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.lower().endswith(".gguf") and _may_be_hub_weights(name):
            models.setdefault(_SHARD.sub("", name), []).append(name)
    return models


def _hub_gguf_selection(title: str, names: dict[str, FileEntry], ggufs: list[str], asked: str | None) -> Selection:
    models = hub_gguf_models(ggufs)
    model, why = _asked_hub_gguf(title, models, asked) if asked else _best_hub_gguf(title, models)
    shards = models[model]
    _refuse_missing_hub_parts(title, shards)
    files = _hub_entries_wanted(names, {*shards, *_hub_files_matching(names, LEGAL_FILES)})
    return Selection("gguf", files, shards[0], f"{shards[0]}: {why}")


def _asked_hub_gguf(title: str, models: dict[str, list[str]], asked: str) -> tuple[str, str]:
    """The model with this file name: of the whole model or of any shard, with or without its folder."""
    for model, shards in models.items():
        if asked in (model, *shards, *(n.rsplit("/", 1)[-1] for n in (model, *shards))):
            return model, "asked for"
    near = difflib.get_close_matches(asked, models, n=3, cutoff=0.5)
    message = f"{title} holds no GGUF model {asked!r}." + (f" Did you mean {shown_names(near)}?" if near else "")
    raise BadSource(message, f"It holds: {shown_names(models) or 'none'}. Name one: GGUF_FILE=<name>")


def _best_hub_gguf(title: str, models: dict[str, list[str]]) -> tuple[str, str]:
    for words in UNQUANTIZED:
        found = [m for m in models if set(re.split(r"[^A-Z0-9]", m.rsplit("/", 1)[-1].upper())) & set(words)]
        if len(found) == 1:
            return found[0], f"{words[0]}, the best unquantized one"
        if found:
            _refuse_several_hub_ggufs(title, found)
    if len(models) == 1:
        return next(iter(models)), "the only one"
    _refuse_several_hub_ggufs(title, list(models))


def _refuse_several_hub_ggufs(title: str, models: list[str]) -> NoReturn:
    message = f"{title} holds {len(models)} GGUF models and none that stands out: {shown_names(sorted(models))}."
    raise BadSource(message, f"Choose one: GGUF_FILE={shlex.quote(min(models))}")


def _hub_entries_wanted(names: dict[str, FileEntry], wanted: set[str]) -> tuple[FileEntry, ...]:
    return tuple(names[n] for n in sorted(wanted))
