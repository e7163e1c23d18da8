"""The stage `dequantize`: converts a GGUF back to a Hugging Face folder (`make demo` starts from one).

transformers does the work, in the converter's Python. It restores the tensors and the vocabulary, but guesses the
rest of the tokenizer, and each version guesses differently. The GGUF names its pre-tokenizer in `tokenizer.ggml.pre`,
so the stage restores that one where it is in `PRE_TOKENIZERS`.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any, Final, NoReturn

from pydantic import JsonValue

from builder.llama.run_tool import refuse_exhausted_tool, run_llama_tool
from builder.llama.toolchain import llama_tools
from quantyard.formats.gguf import GgufError, GgufHeader, read_gguf_model
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import DequantizeRequest
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage

_BYTE_LEVEL: Final = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_EACH_DIGIT: Final = {"type": "Digits", "individual_digits": True}

# To add a tokenizer: add its `tokenizer.ggml.pre` and the `pre_tokenizer` of the original model's tokenizer.json.
PRE_TOKENIZERS: Final[dict[str, dict[str, Any]]] = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [_EACH_DIGIT, _BYTE_LEVEL]},
}

# `tokenizer.ggml.<key>_token_id` of a GGUF → key of tokenizer_config.json.
SPECIAL_TOKENS: Final = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}

# Runs in the converter's Python. transformers' own `from_pretrained(gguf_file=…)` needs accelerate, which neither
# llama.cpp's image nor Debian's has, so the script calls its two steps itself; transformers 4.x and 5.x have both.
_SCRIPT: Final = """
import sys, gguf
if not hasattr(gguf, "__version__"):
    gguf.__version__ = "0.10.0"  # Debian's package has none, and transformers requires one
import torch, transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
folder, file, target = sys.argv[1:]
config = transformers.AutoConfig.from_pretrained(folder, gguf_file=file, local_files_only=True)
torch.set_default_dtype(torch.bfloat16)
model = transformers.AutoModelForCausalLM.from_config(config)
weights = load_gguf_checkpoint(f"{folder}/{file}", return_tensors=True, model_to_load=model)["tensors"]
missing = set(model.load_state_dict(weights, strict=False).missing_keys)
if missing - ({"lm_head.weight"} if config.tie_word_embeddings else set()):
    sys.exit(f"the GGUF lacks {sorted(missing)}")
config.dtype = torch.bfloat16
model.save_pretrained(target)
transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file, local_files_only=True).save_pretrained(target)
print("transformers", transformers.__version__)
"""


def dequantize(stage: Stage, request: DequantizeRequest) -> StageOutcome:
    """Write the GGUF at `/in/source` as a Hugging Face folder (bf16 safetensors) to `/out/files`.

    Raises:
        StageFailure: 2 if the file is not a GGUF, 3 if transformers cannot read this architecture from a GGUF.
    """
    source = stage.in_dir / "source" / request.source_file
    header = _read_gguf_to_dequantize(source)
    argv = (
        str(llama_tools(stage).converter_python),
        "-c",
        _SCRIPT,
        str(source.parent),
        source.name,
        str(stage.files_dir),
    )
    version = _run_dequantizer(stage, argv)
    is_restored = restore_dequantized_tokenizer(stage.files_dir, header)
    if not is_restored:
        pre = _pre_tokenizer_name(header)
        stage.log(f"the tokenizer is as transformers guessed it: no pre-tokenizer is known for {pre!r}")
    (stage.files_dir / "README.md").write_text(dequantized_readme(header))
    for path in stage.files_dir.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    facts: dict[str, JsonValue] = {
        "architecture": header.architecture, "n_params": header.n_params, "tokenizer_restored": is_restored,
    }  # fmt: skip
    return StageOutcome(facts=facts, tools={"transformers": version}, argv=((*argv[:2], "…", *argv[3:]),))


def dequantized_readme(header: GgufHeader) -> str:
    """A model card that keeps the licence named in the GGUF.

    The value is written as JSON, which is also YAML, so no character in it can break the front matter.
    """
    licence = header.metadata.get("general.license")
    said = [f"license: {json.dumps(licence)}"] if isinstance(licence, str) else []
    return "\n".join(["---", *said, "---", "", "Made from a GGUF file.", ""])


def restore_dequantized_tokenizer(folder: Path, header: GgufHeader) -> bool:
    """Correct the tokenizer files that transformers wrote, so that they match the GGUF.

    Returns:
        False if the tokenizer is not a byte-level BPE or its pre-tokenizer is not in `PRE_TOKENIZERS`: then the files
        stay as transformers wrote them.
    """
    path = folder / "tokenizer.json"
    wanted = PRE_TOKENIZERS.get(_pre_tokenizer_name(header))
    if header.metadata.get("tokenizer.ggml.model") != "gpt2" or wanted is None or not path.is_file():
        return False
    tokenizer = json.loads(path.read_bytes())
    tokenizer |= {"normalizer": None, "pre_tokenizer": wanted, "decoder": _BYTE_LEVEL}
    tokenizer["model"] |= {"byte_fallback": False, "fuse_unk": False, "unk_token": None}
    _write_dequantized_json(path, tokenizer)
    _restore_special_tokens(folder / "tokenizer_config.json", tokenizer, header)
    return True


def _restore_special_tokens(path: Path, tokenizer: dict[str, Any], header: GgufHeader) -> None:
    names = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    config = json.loads(path.read_bytes())
    for key, name in SPECIAL_TOKENS.items():
        if (token := names.get(header.metadata.get(f"tokenizer.ggml.{key}_token_id"))) is not None:
            config[name] = token
        config.pop(f"{name}_id", None)
    _write_dequantized_json(path, config)


def _write_dequantized_json(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")
    partial.replace(path)


def _pre_tokenizer_name(header: GgufHeader) -> str:
    return str(header.metadata.get("tokenizer.ggml.pre", "default"))


def _read_gguf_to_dequantize(source: Path) -> GgufHeader:
    try:
        return read_gguf_model(source)
    except (GgufError, FileNotFoundError) as error:
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-gguf", f"{error}.", "Give a GGUF file.") from error


def _run_dequantizer(stage: Stage, argv: tuple[str, ...]) -> str:
    """Run the script; returns the version of transformers."""
    lines: deque[str] = deque(maxlen=1)
    env = dict(llama_tools(stage).clean_env) | {"TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1"}
    run = run_llama_tool(argv, env, lines.append)
    if run.exit_code != 0:
        refuse_exhausted_tool(run, stage.out_dir, "transformers")
        message = "transformers cannot turn this GGUF back into a Hugging Face model."
        hint = "Build from the original Hugging Face model instead."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "dequantize-failed", message, hint, run.words)
    return lines[-1].rpartition(" ")[2] if lines else "unknown"


def main() -> NoReturn:
    """Run the stage as this process."""
    run_stage(DequantizeRequest, dequantize)


if __name__ == "__main__":
    main()
