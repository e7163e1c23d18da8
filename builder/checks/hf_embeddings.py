"""Computes with Transformers what an embedding model or a reranker itself answers, and writes it as JSON.

    python builder/checks/hf_embeddings.py --source DIR --asked asked.json --out embeddings.json

A script, not a stage: it runs in the converter's Python, which has torch and transformers (4.57 to 5.x). No code that
came with the model is run. `asked` has `purpose`, `pooling`, `max_tokens`, `dtype`, `texts`, `pairs`, and `template`,
in which a language model is asked whether a document answers a query. What is written is
`quantyard.protocol.embeddings.EmbeddingReference`.

Exit codes: 0; 3, Transformers does not run the model, and the last line says why.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, Final

NO_MODEL: Final = 3
_MOST_TOKENS: Final = 512  # of a text


def main() -> int:
    """Write the answers; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write what Transformers computes of texts.")
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--asked", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    own = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != own]
    try:
        _compute_hf_embeddings(args)
    except Exception as error:  # transformers raises whatever the files lead it to
        print(" ".join(f"Transformers does not run the model: {type(error).__name__}: {error}".split())[:400])
        return NO_MODEL
    return 0


def _compute_hf_embeddings(args: argparse.Namespace) -> None:
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    asked = json.loads(args.asked.read_bytes())
    own: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(args.source), **own)
    dtype = getattr(torch, asked["dtype"])
    model = (
        _hf_embedder_class(args.source, asked["purpose"]).from_pretrained(str(args.source), dtype=dtype, **own).eval()
    )
    limit = {"truncation": True, "max_length": min(asked["max_tokens"] or _MOST_TOKENS, _MOST_TOKENS)}
    for text in asked["texts"]:
        text["values"] = _hf_embedding(model, tokenizer(text["text"], return_tensors="pt", **limit), asked["pooling"])
    for pair in asked["pairs"]:
        pair["score"] = _hf_rerank_score(model, tokenizer, pair, limit, asked["template"])
    found = {name: asked[name] for name in ("purpose", "pooling", "texts", "pairs")}
    found["witness"] = f"{type(model).__name__} of transformers {transformers.__version__}, {asked['dtype']}"
    args.out.write_text(json.dumps(found, allow_nan=False), encoding="utf-8")


def _hf_embedder_class(source: Path, purpose: str) -> Any:
    """The class that computes it: without a head, with that of the classifier, or with that of a language model."""
    import transformers

    name = (json.loads((source / "config.json").read_bytes()).get("architectures") or [""])[0]
    if purpose == "embed":
        kind = getattr(transformers, name, None) if name.endswith("EncoderModel") else None
        return kind or transformers.AutoModel
    if name.endswith("ForSequenceClassification"):
        return transformers.AutoModelForSequenceClassification
    return transformers.AutoModelForCausalLM


def _hf_embedding(model: Any, encoded: Any, pooling: str) -> list[float]:
    states = model(**encoded).last_hidden_state[0].float()
    row = states.mean(dim=0) if pooling == "mean" else states[-1 if pooling == "last" else 0]
    return [float(number) for number in row]


def _hf_rerank_score(model: Any, tokenizer: Any, pair: dict[str, str], limit: dict[str, Any], template: str) -> float:
    if type(model).__name__.endswith("ForSequenceClassification"):
        encoded = tokenizer(pair["query"], pair["document"], return_tensors="pt", **limit)
        return float(model(**encoded).logits[0][0])
    prompt = template.replace("{query}", pair["query"]).replace("{document}", pair["document"])
    logits = model(**tokenizer(prompt, return_tensors="pt", add_special_tokens=False)).logits[0][-1]
    words = [tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")]
    return float(logits[words].float().softmax(dim=0)[0])


if __name__ == "__main__":
    sys.exit(main())
