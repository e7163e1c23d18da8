"""The stage `random_model`: writes a language model with random weights in Hugging Face format, to time other stages.

How long a stage takes depends on the shapes and types of the weights, not on their values, so a random model, made in
seconds, is timed like a real one. Its tokenizer is trained on the calibration text, because the time of an evaluation
grows with the number of tokens in its questions.

The model must pass the self-check of an evaluation (eval/analysis/self_check.py), which requires that a text continues
with another token than its last. So input and output share one embedding, which is large compared with what the layers
add, and the last norm is negative: the token read last becomes the least likely next one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from builder.imatrix.calibration_text import OUR_TEXT
from builder.llama.run_tool import refuse_exhausted_tool, run_llama_tool
from builder.llama.toolchain import llama_tools
from quantyard.formats.finite_json import dump_finite_json
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import RandomModelRequest
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage

HEAD: Final = 64  # width of an attention head, as in most small models
_SCALE: Final = 0.02  # the usual standard deviation of initial weights
_EMBEDDING_SCALE: Final = 0.2  # ten layers of the other weights add about as much to the residual stream
_LAST_NORM: Final = "model.norm.weight"
_CONTEXT: Final = 4096  # tokens

# Runs in the converter's Python, which has sentencepiece on both engines.
_SCRIPT: Final = """
import sys, sentencepiece
text, target, size = sys.argv[1:]
sentencepiece.SentencePieceTrainer.train(
    input=text, model_prefix=target, model_type="bpe", vocab_size=int(size), byte_fallback=True, num_threads=1,
    max_sentence_length=100000, minloglevel=2)
"""


def random_model(stage: Stage, request: RandomModelRequest) -> StageOutcome:
    """Write the model to `/out/files`: bf16 safetensors, tokenizer, configuration. The same request, the same weights.

    Raises:
        StageFailure: 70 if a tokenizer of that size cannot be trained, 5 if disk or memory ran out.
    """
    _write_random_tokenizer(stage, request.vocab_size)
    (stage.files_dir / "config.json").write_text(dump_finite_json(_random_model_config(request), indent=2) + "\n")
    count = _write_random_weights(stage.files_dir / "model.safetensors", request)
    return StageOutcome(facts={"n_params": count})


def _write_random_tokenizer(stage: Stage, size: int) -> None:
    """Write `tokenizer.model` and the `tokenizer_config.json` that transformers needs."""
    scratch, target = stage.scratch_dir / "text.txt", stage.files_dir / "tokenizer"
    scratch.write_text("\n".join(_random_tokenizer_lines()), encoding="utf-8")
    tools = llama_tools(stage)
    argv = (str(tools.converter_python), "-c", _SCRIPT, str(scratch), str(target), str(size))
    run = run_llama_tool(argv, tools.clean_env, lambda _line: None)
    if run.exit_code != 0:
        refuse_exhausted_tool(run, stage.out_dir, "sentencepiece")
        message = f"sentencepiece could not train a vocabulary of {size:,} tokens on the calibration text."
        raise StageFailure(ExitCode.BUG, "tokenizer", message, "Please report this.", run.words)
    target.with_suffix(".vocab").unlink()
    said = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (stage.files_dir / "tokenizer_config.json").write_text(dump_finite_json(said, indent=2) + "\n")


def _random_tokenizer_lines() -> Iterator[str]:
    for line in OUR_TEXT.read_text(encoding="utf-8").splitlines():
        document = json.loads(line)
        texts = [m["content"] for m in document["messages"]] if "messages" in document else [document["text"]]
        yield from (part for text in texts for part in text.splitlines() if part.strip())


def _random_model_config(request: RandomModelRequest) -> dict[str, Any]:
    heads = request.width // HEAD
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": request.width, "intermediate_size": 3 * request.width, "num_hidden_layers": request.layers,
        "num_attention_heads": heads, "num_key_value_heads": heads // 2, "vocab_size": request.vocab_size,
        "max_position_embeddings": _CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def random_model_shapes(request: RandomModelRequest) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the checkpoint; a shape has its rows first."""
    width, wide, keys = request.width, 3 * request.width, request.width // HEAD // 2 * HEAD
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (request.vocab_size, width)}
    for layer in range(request.layers):
        name = f"model.layers.{layer}."
        found |= {f"{name}{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")}
        attention = {"q": (width, width), "k": (keys, width), "v": (keys, width), "o": (width, width)}
        found |= {f"{name}self_attn.{part}_proj.weight": shape for part, shape in attention.items()}
        feed = {"gate": (wide, width), "up": (wide, width), "down": (width, wide)}
        found |= {f"{name}mlp.{part}_proj.weight": shape for part, shape in feed.items()}
    return found | {_LAST_NORM: (width,)}


def _write_random_weights(path: Path, request: RandomModelRequest) -> int:
    """The safetensors file: length of the header, header, tensors. Returns the number of weights."""
    found, header, at = random_model_shapes(request), dict[str, Any](), 0
    for name, shape in found.items():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = dump_finite_json(header).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        _write_random_tensors(stream, found, request.seed)
    return at // 2


def _write_random_tensors(stream: IO[bytes], found: dict[str, tuple[int, ...]], seed: int) -> None:
    random = np.random.default_rng(seed)
    for name, shape in found.items():
        if len(shape) == 1:
            weights = np.full(shape, -1 if name == _LAST_NORM else 1, np.float32)
        else:
            spread = np.float32(_EMBEDDING_SCALE if "embed" in name else _SCALE)
            weights = random.standard_normal(shape, np.float32) * spread
        stream.write(random_model_bf16(weights).tobytes())


def random_model_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """bfloat16 by truncation: the upper half of each float32."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def main() -> None:
    """Entry point of the stage."""
    run_stage(RandomModelRequest, random_model)


if __name__ == "__main__":
    main()
