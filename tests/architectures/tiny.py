"""Makes a small random model of a row: its config.json shrunk by the twin's own code, and a tokenizer that is at hand.

Two forms of config.json: `hub`, the row's own fields, and `written`, as the transformers of the weights saves it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from gguf import GGUFReader

from quantyard.paths import REPO_DIR
from tests.architectures.rows import Row

Form = Literal["hub", "written"]
_SCRIPT: Final = REPO_DIR / "builder" / "twin_model" / "random_weights.py"
_TEXT: Final = REPO_DIR / "builder" / "calibration" / "text.jsonl"
_SPM: Final = {
    "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>",
    "eos_token": "</s>", "unk_token": "<unk>", "legacy": True, "model_max_length": 4096,
}  # fmt: skip
_T5: Final = {
    "tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": 100,
}
_TRAIN: Final = """
import sys, sentencepiece
text, target, kind = sys.argv[1:]
more = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
if kind != "unigram":
    more = dict(byte_fallback=True, add_dummy_prefix=kind == "spm")
sentencepiece.SentencePieceTrainer.train(
    input=text, model_prefix=target, model_type="unigram" if kind == "unigram" else "bpe", num_threads=1,
    vocab_size=1000 if kind == "unigram" else 4096, max_sentence_length=100000, minloglevel=2, **more)
"""
# The tokenizer.json that lies beside a tokenizer.model on the Hub, as transformers 4 makes it.
_BESIDE: Final = """
import sys
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import LlamaTokenizerFast
folder = sys.argv[1]
own = LlamaTokenizerFast(vocab_file=f"{folder}/tokenizer.model", legacy=True, add_bos_token=True, add_eos_token=False)
backend = own.backend_tokenizer
first = [normalizers.Prepend("▁")] if sys.argv[2] == "spm" else []
backend.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
backend.add_special_tokens(sys.argv[3:])
if "<|endoftext|>" in sys.argv:  # of a Phi-3, as llama.cpp knows it
    backend.add_special_tokens([AddedToken("</s>", rstrip=True, special=True)])
backend.pre_tokenizer = pre_tokenizers.Sequence([])
backend.save(f"{folder}/tokenizer.json")
"""
_BERT: Final = """
import sys
from tokenizers import BertWordPieceTokenizer
from transformers import PreTrainedTokenizerFast
own = BertWordPieceTokenizer(f"{sys.argv[1]}/vocab.txt", lowercase=True)
named = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
PreTrainedTokenizerFast(tokenizer_object=own._tokenizer, model_max_length=512, **named).save_pretrained(sys.argv[1])
"""
# An evaluation starts with a self-check: the word that was read last must not be the likeliest to follow. So embeddings
# are made large beside what the layers add, and the output takes them with the other sign.
_CHECKED: Final = """
import re, sys
from safetensors.torch import load_file, save_file
path = f"{sys.argv[1]}/model.safetensors"
tensors = load_file(path)
size = int(sys.argv[2])
wide = {name: t for name, t in tensors.items() if t.dim() == 2 and t.shape[0] >= size}
inputs = r"embed_tokens|wte|word_embeddings|embed_in|embeddings?\\.weight|shared"
given = next((name for name in wide if re.search(inputs, name)), "")
heads = [n for n in wide if n != given and re.search("lm_head|embed_out|output", n)]
heads = [name for name in heads if wide[name].shape == wide[given].shape]
if given:
    own = tensors[given].clone()
    tensors[given] = own * 6
    for name in heads:
        tensors[name] = -own
    last = r"(model\\.norm|final_layer_?norm|ln_f|norm_f|final_norm|embedding_norm)\\.weight$"
    for name in [] if heads else [n for n in tensors if re.search(last, n)]:
        tensors[name] = -tensors[name] - (2 if "gemma" in sys.argv[3] else 0)
    save_file(tensors, path, {"format": "pt"})
"""
_LENGTHS: Final = ("sliding_window", "max_position_embeddings", "original_max_position_embeddings")
_WRITTEN: Final = """
import sys, transformers
folder = sys.argv[1]
transformers.AutoConfig.from_pretrained(folder, local_files_only=True).save_pretrained(folder)
"""


class NotMade(Exception):
    """No small model can be made of the row; the message says why."""


class Kitchen:
    """Makes the models of rows in a folder, with the converter's Python.

    Args:
        bpe: a folder with a byte-level tokenizer.json that llama.cpp knows, such as the demo model's.
    """

    def __init__(self, folder: Path, python: Path, bpe: Path) -> None:
        self._folder, self._python, self._bpe = folder, python, bpe

    def make(self, row: Row, form: Form = "hub") -> Path:
        """The model's folder.

        Raises:
            NotMade: Transformers has no class for it, or cannot build it small.
        """
        place = self._folder / f"{row.name}-{form}"
        shutil.rmtree(place, ignore_errors=True)
        given, model, out = (place / name for name in ("given", row.name, "out"))
        for part in (given, model, out):
            part.mkdir(parents=True)
        size = self._write_tokenizer(row, model)
        (given / "config.json").write_text(json.dumps(with_vocabulary(row.config, size)))
        folders = ("--source", str(given), "--twin", str(model), "--out", str(out))
        made = self._run(str(_SCRIPT), *folders, "--threads", "1")
        if made.returncode != 0:
            raise NotMade((made.stdout.splitlines() or made.stderr.splitlines() or ["no reason"])[-1])
        self._run("-c", _CHECKED, str(model), str(size), row.name)
        self._as_on_the_hub(row, model)
        if form == "written" and self._run("-c", _WRITTEN, str(model)).returncode != 0:
            raise NotMade("Transformers does not write its config.json")
        return model

    def _run(self, *argv: str, packages: Path | None = None) -> subprocess.CompletedProcess[str]:
        env = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(self._folder)}
        env |= {"PYTHONPATH": str(packages)} if packages else {}
        return subprocess.run(
            [str(self._python), *argv], env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )

    def _as_on_the_hub(self, row: Row, model: Path) -> None:
        """What shrinking changes of the file, and the stages read: who wrote it, that the repo has code of its own, and
        how long texts may be. No weight depends on these.
        """
        config = _with_lengths(json.loads((model / "config.json").read_bytes()), row.config)
        kept = {name: row.config[name] for name in ("transformers_version", "auto_map") if name in row.config}
        (model / "config.json").write_text(json.dumps({**config, **kept}, indent=1))

    def _write_tokenizer(self, row: Row, model: Path) -> int:
        """Write the tokenizer's files; returns how many tokens it has."""
        if row.tokenizer == "bpe":
            return self._write_bpe(row, model)
        if row.tokenizer in ("spm", "spm-bare"):
            return self._trained(row, model / "tokenizer", model, _SPM, 4096)
        if row.tokenizer == "unigram":
            return self._trained(row, model / "spiece", model, _T5, 1100)
        if row.tokenizer == "wordpiece":
            return self._write_wordpiece(model)
        raise NotMade(f"no tokenizer of the kind {row.tokenizer} is at hand")

    def _trained(self, row: Row, target: Path, model: Path, config: Mapping[str, object], size: int) -> int:
        done = self._run("-c", _TRAIN, str(_TEXT), str(target), row.tokenizer)
        assert done.returncode == 0, done.stderr
        target.with_suffix(".vocab").unlink()
        if row.tokenizer != "unigram":
            packages = self._python.parents[1] / "share" / "transformers-4.57"
            done = self._run("-c", _BESIDE, str(model), row.tokenizer, *row.extra, packages=packages)
            assert done.returncode == 0, done.stderr
        (model / "tokenizer_config.json").write_text(json.dumps(config))
        return size + len(row.extra)

    def _write_wordpiece(self, model: Path) -> int:
        """BERT's own vocabulary, which llama.cpp's sources carry as a GGUF."""
        tokens = _bert_tokens(self._folder)
        (model / "vocab.txt").write_text("\n".join(tokens) + "\n")
        made = self._run("-c", _BERT, str(model))
        assert made.returncode == 0, made.stderr
        return len(tokens)

    def _write_bpe(self, row: Row, model: Path) -> int:
        tokenizer = json.loads((self._bpe / "tokenizer.json").read_bytes())
        config = json.loads((self._bpe / "tokenizer_config.json").read_bytes())
        size = len(tokenizer["model"]["vocab"])
        for token in row.extra:
            if token not in tokenizer["model"]["vocab"]:
                own = {"id": size, "content": token, "single_word": False, "lstrip": False, "rstrip": False}
                tokenizer["added_tokens"].append({**own, "normalized": False, "special": True})
                size += 1
        kept = {name: value for name, value in config.items() if name.endswith("_token")}
        kept |= {"tokenizer_class": row.tokenizer_class or "PreTrainedTokenizerFast", "model_max_length": 4096}
        (model / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
        (model / "tokenizer_config.json").write_text(json.dumps(kept))
        return size


def with_vocabulary(config: dict[str, Any], size: int) -> dict[str, Any]:
    """The config with so many tokens, and every id of a token below them."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found[name] = with_vocabulary(value, size)
        elif name in ("vocab_size", "padded_vocab_size", "vocab_size_per_layer_input"):
            found[name] = size
        elif name.endswith(("token_id", "token_index")):
            ids = value if isinstance(value, list) else [value]
            small = [number if number is None or number < size else size - 1 - i for i, number in enumerate(ids)]
            found[name] = small if isinstance(value, list) else small[0]
        else:
            found[name] = value
    return found


@cache
def _bert_tokens(folder: Path) -> list[str]:
    """BERT's word pieces: a GGUF marks those that begin a word, the original those that do not."""
    command = [REPO_DIR / "scripts" / "wheels.sh", "--cached"]
    wheels = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    found = sorted(Path(wheels or ".").glob("llama_cpp_python-*.tar.gz"))
    if not found:
        raise NotMade("llama.cpp's sources, with BERT's vocabulary, are not here")
    name = f"{found[0].name.removesuffix('.tar.gz')}/vendor/llama.cpp/models/ggml-vocab-bert-bge.gguf"
    with tarfile.open(found[0]) as archive:
        archive.extract(name, folder, filter="data")
    fields = GGUFReader(folder / name).fields
    tokens = [str(token) for token in fields["tokenizer.ggml.tokens"].contents()]
    return [t if t.startswith("[") and t.endswith("]") else t[1:] if t.startswith("▁") else f"##{t}" for t in tokens]


def _with_lengths(small: dict[str, Any], original: Mapping[str, Any]) -> dict[str, Any]:
    """The small config with the original's window and contexts."""
    found = dict(small)
    for name, value in small.items():
        if isinstance(value, dict) and isinstance(original.get(name), dict):
            found[name] = _with_lengths(value, original[name])
        elif name in _LENGTHS and name in original:
            found[name] = original[name]
    return found
