"""Parses model ids, and selects the files that a build needs. Uses no network."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NoReturn

from quantyard.errors import BadSource, NeedsPermission
from quantyard.protocol.base import FileEntry

# To let one more small file through: add a pattern (fnmatch, from the repo's top; `*` does not cross a `/`).
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
    "*quant*_config.json",  # how a pre-quantized checkpoint is to be read
    "modules.json",  # sentence-transformers: which pooling the converter records
    "1_Pooling/config.json",
    "tokenizer.model*",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
    "*.jinja",
    "additional_chat_templates/*.jinja",
)

# To let one more text about terms or use through: add a pattern. These come with a GGUF too.
LEGAL_FILES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*", "README.md")

# To exclude one more kind of file that is not a model, whatever its ending: add a pattern (of the name alone).
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
)

# To prefer another naming of whole-model weights: add a row; the first that the repo has wins.
# (single file, pattern of shards, index)
SAFETENSORS_SETS = (
    ("model.safetensors", r"model-\d{5}-of-\d{5}\.safetensors", "model.safetensors.index.json"),
    ("consolidated.safetensors", r"consolidated-\d{5}-of-\d{5}\.safetensors", "consolidated.safetensors.index.json"),
)
PICKLE_SETS = (("pytorch_model.bin", r"pytorch_model-\d{5}-of-\d{5}\.bin", "pytorch_model.bin.index.json"),)
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt")

# To rank one more unquantized type: add its words, in file names, where it belongs (best first).
UNQUANTIZED = (("F32", "FP32"), ("BF16",), ("F16", "FP16"))

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.)")
_NAME_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+#=-]{0,254}")
_LISTED_AT_MOST = 12
_LONGEST_NAME = 120  # characters of a file's name in a message


@dataclass(frozen=True)
class Selection:
    """The files to work with. `gguf_file` is the one to open: the first of a split model."""

    kind: Literal["huggingface", "gguf"]
    files: tuple[FileEntry, ...]
    gguf_file: str | None
    note: str

    @property
    def size_bytes(self) -> int:
        """What a download of them all transfers."""
        return sum(f.size_bytes for f in self.files)


def parse_hub_repo_id(text: str) -> tuple[str, str | None]:
    """Split `org/name[@revision]`.

    Raises:
        BadSource: it is anything else.
    """
    if "://" in text:
        found = re.match(r"(?:hf://|https?://[^/]*/)([^/\s]+/[^/\s@?#]+)", text.strip())
        bare = found[1] if found and _is_repo_id(found[1]) else "org/name"
        raise BadSource(f"{text!r} is an address, not a model id.", f"Type org/name: make build MODEL={bare}")
    repo_id, at, revision = text.partition("@")
    if not _is_repo_id(repo_id):
        raise BadSource(f"{text!r} is not a model id: {_fault(repo_id)}.", "Type org/name: make build MODEL=org/name")
    if at and not is_hub_revision(revision):
        message = f"{text!r} does not name a valid git revision: {revision!r}."
        raise BadSource(message, f"A branch, tag or commit follows the @: make build MODEL={repo_id}@main")
    return repo_id, revision if at else None


def _is_repo_id(text: str) -> bool:
    parts = text.split("/")
    legal = all(_NAME_PART.fullmatch(p) and "--" not in p and ".." not in p for p in parts)
    return len(parts) == 2 and legal and not text.endswith(".git") and len(text) <= 96


def is_hub_revision(text: str) -> bool:
    """Whether git could have a branch, tag or commit of this name, and a shell takes it as it is."""
    clean = not any(bad in text for bad in ("..", "//", "/.")) and not text.endswith(("/", ".", ".lock"))
    return clean and _REVISION.fullmatch(text) is not None


def _fault(repo_id: str) -> str:
    """What is wrong with it, in a few words."""
    parts = repo_id.split("/")
    if repo_id.startswith(("/", "./", "../", "~")) or ".." in parts:
        return "it is a path, and no folder or file of that name can be used"
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
    return "letters, digits, '_', '.' and '-' make a name, with no '-' or '.' at its ends and no '--' or '..' inside"


def select_hub_files(
    title: str, files: tuple[FileEntry, ...], *, allow_pickle: bool = False, gguf_file: str | None = None
) -> Selection:
    """Choose what a build needs of all the files of a repo or folder.

    safetensors win over pickle, and both over GGUF, unless `gguf_file` asks for one.

    Args:
        title: what to call the repo or folder in an error.

    Raises:
        NeedsPermission: its only weights are pickle files, and `allow_pickle` is not set.
        BadSource: it holds no weights, not all of them, no config.json, or several GGUF models.
    """
    names = {f.path: f for f in files}
    ggufs = [n for n in names if n.lower().endswith(".gguf") and _may_be_weights(n)]
    if gguf_file:
        return _gguf(title, names, ggufs, gguf_file)
    weights = [n for n in names if "/" not in n and n.endswith(".safetensors") and _may_be_weights(n)]
    if weights:
        return _checkpoint(title, names, weights, SAFETENSORS_SETS)
    pickles = [n for n in names if n.endswith(PICKLE_ENDINGS) and _may_be_weights(n)]
    if pickles and not ggufs:
        if not allow_pickle:
            message = f"The only weights of {title} are pickle files, which can run code when read: {_list(pickles)}."
            raise NeedsPermission(message, "Allow it for a source you trust: ALLOW_PICKLE=1")
        return _checkpoint(title, names, [n for n in pickles if "/" not in n], PICKLE_SETS)
    if ggufs:
        return _gguf(title, names, ggufs, None)
    _refuse_no_weights(title, names)


def _may_be_weights(path: str) -> bool:
    return not any(fnmatchcase(path.rsplit("/", 1)[-1].lower(), pattern) for pattern in NOT_WEIGHTS)


def _matching(names: Iterable[str], patterns: tuple[str, ...]) -> set[str]:
    return {n for n in names for p in patterns if n.count("/") == p.count("/") and fnmatchcase(n, p)}


def _checkpoint(
    title: str, names: dict[str, FileEntry], weights: list[str], sets: tuple[tuple[str, str, str], ...]
) -> Selection:
    if "config.json" not in names:
        hint = "Name a repo of a whole model in Hugging Face format; a LoRA adapter or a diffusion model is not one."
        raise BadSource(f"{title} holds weights but no config.json: {_list(weights)}.", hint)
    chosen, index = _weight_set(weights, sets)
    if not chosen:
        hint = f"The converter reads {' or '.join(single for single, _, _ in sets)}, or shards named after it."
        raise BadSource(f"{title} holds no weights of a name the converter reads: {_list(weights)}.", hint)
    _refuse_missing_shards(title, chosen)
    wanted = {*chosen, *_matching(names, SIDE_FILES), *_matching(names, LEGAL_FILES)} | ({index} & names.keys())
    left = len(weights) - len(chosen)
    note = f"{_count(chosen)} of weights" + (f"; {left} more left out: another form of the same" if left else "")
    return Selection("huggingface", _entries(names, wanted), None, note)


def _weight_set(weights: list[str], sets: tuple[tuple[str, str, str], ...]) -> tuple[list[str], str]:
    """The weight files of the first set that is there, and the name of their index."""
    for single, shards, index in sets:
        if single in weights:
            return [single], ""
        if several := sorted(n for n in weights if re.fullmatch(shards, n)):
            return several, index
    return [], ""


def _refuse_missing_shards(title: str, shards: list[str]) -> None:
    parts = [(int(m[1]), int(m[2])) for n in shards if (m := _SHARD.search(n))]
    missing = sorted(set(range(1, max(total for _, total in parts) + 1)) - {i for i, _ in parts}) if parts else []
    if missing:
        message = f"{title} lacks {len(missing)} of {parts[0][1]} shards, the first of them number {missing[0]}."
        raise BadSource(message, "The upload is not complete: try another revision, or tell the owner.")


def _gguf(title: str, names: dict[str, FileEntry], ggufs: list[str], asked: str | None) -> Selection:
    models: dict[str, list[str]] = {}
    for name in sorted(ggufs):
        models.setdefault(_SHARD.sub("", name), []).append(name)
    model, why = _asked_gguf(title, models, asked) if asked else _best_gguf(title, models)
    shards = models[model]
    _refuse_missing_shards(title, shards)
    files = _entries(names, {*shards, *_matching(names, LEGAL_FILES)})
    return Selection("gguf", files, shards[0], f"{shards[0]}: {why}")


def _asked_gguf(title: str, models: dict[str, list[str]], asked: str) -> tuple[str, str]:
    """The model of this file name: whole, of any shard, or without its folder."""
    for model, shards in models.items():
        if asked in (model, *shards, *(n.rsplit("/", 1)[-1] for n in (model, *shards))):
            return model, "asked for"
    near = difflib.get_close_matches(asked, models, n=3, cutoff=0.5)
    message = f"{title} holds no GGUF model {asked!r}." + (f" Did you mean {_list(near)}?" if near else "")
    raise BadSource(message, f"It holds: {_list(models) or 'none'}. Name one: GGUF_FILE=<name>")


def _best_gguf(title: str, models: dict[str, list[str]]) -> tuple[str, str]:
    for words in UNQUANTIZED:
        found = [m for m in models if set(re.split(r"[^A-Z0-9]", m.rsplit("/", 1)[-1].upper())) & set(words)]
        if len(found) == 1:
            return found[0], f"{words[0]}, the best unquantized one"
        if found:
            _refuse_several(title, found)
    if len(models) == 1:
        return next(iter(models)), "the only one"
    _refuse_several(title, list(models))


def _refuse_several(title: str, models: list[str]) -> NoReturn:
    message = f"{title} holds {len(models)} GGUF models and none that stands out: {_list(sorted(models))}."
    raise BadSource(message, f"Choose one: GGUF_FILE={shlex.quote(min(models))}")


def _refuse_no_weights(title: str, names: Iterable[str]) -> NoReturn:
    nested = [n for n in names if n.endswith(".safetensors")]
    if nested:
        hint = "Such a repo is not a language model in Hugging Face format, or a LoRA adapter: name the model itself."
        raise BadSource(f"{title} holds no whole model at its top, only {_list(nested)}.", hint)
    message = f"{title} holds no weights that could be converted: {_list(sorted(names)) or 'no files'}."
    raise BadSource(message, "Name a repo with *.safetensors and a config.json, or with *.gguf.")


def _entries(names: dict[str, FileEntry], wanted: set[str]) -> tuple[FileEntry, ...]:
    return tuple(names[n] for n in sorted(wanted))


def _count(items: list[str]) -> str:
    return "1 file" if len(items) == 1 else f"{len(items)} files"


def _list(items: Iterable[str]) -> str:
    """The first of them, and how many more there are."""
    shown = [item if len(item) <= _LONGEST_NAME else f"{item[:_LONGEST_NAME]}…" for item in items]
    more = len(shown) - _LISTED_AT_MOST
    return ", ".join(shown[:_LISTED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
