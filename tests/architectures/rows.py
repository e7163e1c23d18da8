"""The architectures of the sweep: a config.json of each as it stands on the Hub, at its original size, in configs/.

To add one: put its config.json into configs/NAME.json and add a row; then `python -m tests.architectures.sweep NAME`
writes what works of it into results.json, and `make reference` writes the table of the docs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent
_GLM: Final = ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>",
               "<|assistant|>", "<|observation|>")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One model of a family.

    Attributes:
        tokenizer: a kind of tiny.py; the model's own is not at hand, and not what is tested here.
        tokenizer_class: of tokenizer_config.json, where the converter goes by it; "": the kind's own.
        extra: special tokens that the converter asks for by name.
    """

    name: str
    repo: str
    tokenizer: str
    tokenizer_class: str = ""
    extra: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        found: dict[str, Any] = json.loads((FOLDER / "configs" / f"{self.name}.json").read_bytes())
        return found

    @property
    def architecture(self) -> str:
        """The class that it names."""
        return str(self.config["architectures"][0])


ROWS: Final = (
    Row("llama-2", "meta-llama/Llama-2-7b-chat-hf", "spm"),
    Row("tinyllama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "spm"),
    Row("llama-3", "meta-llama/Meta-Llama-3-8B-Instruct", "bpe"),
    Row("llama-3.1", "meta-llama/Llama-3.1-8B-Instruct", "bpe"),
    Row("llama-3.2", "meta-llama/Llama-3.2-1B-Instruct", "bpe"),
    Row("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", "bpe"),
    Row("smollm3", "HuggingFaceTB/SmolLM3-3B", "bpe"),
    Row("mistral-v0.1", "mistralai/Mistral-7B-v0.1", "spm"),
    Row("mistral-v0.3", "mistralai/Mistral-7B-Instruct-v0.3", "spm"),
    Row("mixtral", "mistralai/Mixtral-8x7B-Instruct-v0.1", "spm"),
    Row("arctic", "Snowflake/snowflake-arctic-instruct", "spm"),
    Row("qwen2", "Qwen/Qwen2-0.5B-Instruct", "bpe"),
    Row("qwen2.5", "Qwen/Qwen2.5-7B-Instruct", "bpe"),
    Row("deepseek-r1-distill-qwen", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "bpe"),
    Row("qwen2-moe", "Qwen/Qwen1.5-MoE-A2.7B-Chat", "bpe"),
    Row("qwen3", "Qwen/Qwen3-0.6B", "bpe"),
    Row("qwen3-embedding", "Qwen/Qwen3-Embedding-0.6B", "bpe"),
    Row("qwen3-moe", "Qwen/Qwen3-30B-A3B", "bpe"),
    Row("qwen3-next", "Qwen/Qwen3-Next-80B-A3B-Instruct", "bpe"),
    Row("phi-2", "microsoft/phi-2", "bpe"),
    Row("phi-3-mini", "microsoft/Phi-3-mini-4k-instruct", "spm", extra=("<|endoftext|>",)),
    Row("phi-3.5-moe", "microsoft/Phi-3.5-MoE-instruct", "spm", extra=("<|endoftext|>",)),
    Row("phi-4-mini", "microsoft/Phi-4-mini-instruct", "bpe", tokenizer_class="GPT2Tokenizer"),
    Row("gemma", "google/gemma-2b-it", "spm-bare"),
    Row("gemma-2", "google/gemma-2-2b-it", "spm-bare"),
    Row("gemma-3-1b", "google/gemma-3-1b-it", "spm-bare"),
    Row("gemma-3-4b", "google/gemma-3-4b-it", "spm-bare"),
    Row("gemma-3n", "google/gemma-3n-E2B-it", "spm-bare"),
    Row("gpt2", "openai-community/gpt2", "bpe"),
    Row("pythia", "EleutherAI/pythia-160m", "bpe"),
    Row("dolly-v2", "databricks/dolly-v2-3b", "bpe"),
    Row("redpajama-incite", "togethercomputer/RedPajama-INCITE-Chat-3B-v1", "bpe"),
    Row("gpt-j", "EleutherAI/gpt-j-6b", "bpe"),
    Row("opt", "facebook/opt-125m", "bpe"),
    Row("falcon-7b", "tiiuae/falcon-7b-instruct", "bpe"),
    Row("falcon-40b", "tiiuae/falcon-40b-instruct", "bpe"),
    Row("bloom", "bigscience/bloomz-560m", "bpe"),
    Row("mpt", "mosaicml/mpt-7b-instruct", "bpe"),
    Row("starcoder", "bigcode/tiny_starcoder_py", "bpe"),
    Row("starcoder2", "bigcode/starcoder2-3b", "bpe"),
    Row("command-r", "CohereForAI/c4ai-command-r-v01", "bpe"),
    Row("command-r7b", "CohereForAI/c4ai-command-r7b-12-2024", "bpe"),
    Row("olmo", "allenai/OLMo-1B-hf", "bpe"),
    Row("olmo-2", "allenai/OLMo-2-0425-1B", "bpe"),
    Row("olmoe", "allenai/OLMoE-1B-7B-0924", "bpe"),
    Row("deepseek-moe", "deepseek-ai/deepseek-moe-16b-base", "bpe"),
    Row("deepseek-v2-lite", "deepseek-ai/DeepSeek-V2-Lite-Chat", "bpe"),
    Row("deepseek-v3", "deepseek-ai/DeepSeek-V3", "bpe"),
    Row("granite", "ibm-granite/granite-3.3-2b-instruct", "bpe"),
    Row("granite-moe", "ibm-granite/granite-3.1-1b-a400m-instruct", "bpe"),
    Row("granite-4-hybrid", "ibm-granite/granite-4.0-h-tiny", "bpe"),
    Row("mamba", "state-spaces/mamba-130m-hf", "bpe"),
    Row("mamba-2", "mistralai/Mamba-Codestral-7B-v0.1", "spm"),
    Row("falcon-mamba", "tiiuae/falcon-mamba-7b-instruct", "bpe"),
    Row("falcon-h1", "tiiuae/Falcon-H1-0.5B-Instruct", "bpe"),
    Row("jamba", "ai21labs/AI21-Jamba-Mini-1.6", "spm"),
    Row("lfm2", "LiquidAI/LFM2-350M", "bpe"),
    Row("rwkv-6", "RWKV/v6-Finch-1B6-HF", "rwkv"),
    Row("stablelm-2", "stabilityai/stablelm-2-1_6b-chat", "bpe"),
    Row("internlm2", "internlm/internlm2_5-7b-chat", "spm"),
    Row("internlm3", "internlm/internlm3-8b-instruct", "spm"),
    Row("baichuan", "baichuan-inc/Baichuan2-7B-Chat", "spm"),
    Row("chatglm3", "THUDM/chatglm3-6b", "spm"),
    Row("glm-4", "THUDM/glm-4-9b-chat-hf", "bpe", extra=_GLM),
    Row("glm-4-0414", "THUDM/GLM-4-9B-0414", "bpe", extra=_GLM),
    Row("glm-4.5-air", "zai-org/GLM-4.5-Air", "bpe", extra=_GLM),
    Row("exaone", "LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct", "bpe"),
    Row("exaone-4", "LGAI-EXAONE/EXAONE-4.0-1.2B", "bpe"),
    Row("minicpm", "openbmb/MiniCPM-2B-sft-bf16", "spm"),
    Row("minicpm3", "openbmb/MiniCPM3-4B", "spm"),
    Row("ernie-4.5", "baidu/ERNIE-4.5-0.3B-PT", "spm"),
    Row("ernie-4.5-moe", "baidu/ERNIE-4.5-21B-A3B-PT", "spm"),
    Row("hunyuan-dense", "tencent/Hunyuan-0.5B-Instruct", "bpe"),
    Row("nemotron", "nvidia/Minitron-4B-Base", "spm"),
    Row("dbrx", "databricks/dbrx-instruct", "bpe"),
    Row("bitnet", "microsoft/bitnet-b1.58-2B-4T-bf16", "bpe"),
    Row("gpt-oss", "openai/gpt-oss-20b", "bpe"),
    Row("plamo", "pfnet/plamo-13b", "spm"),
    Row("xverse", "xverse/XVERSE-7B-Chat", "bpe"),
    Row("orion", "OrionStarAI/Orion-14B-Chat", "spm"),
    Row("apertus", "swiss-ai/Apertus-8B-Instruct-2509", "bpe"),
    Row("seed-oss", "ByteDance-Seed/Seed-OSS-36B-Instruct", "bpe"),
    Row("t5", "google-t5/t5-small", "unigram"),
    Row("flan-t5", "google/flan-t5-xl", "unigram"),
    Row("mt5", "google/mt5-small", "unigram"),
    Row("bert", "sentence-transformers/all-MiniLM-L6-v2", "wordpiece"),
    Row("xlm-roberta", "BAAI/bge-m3", "xlmr"),
    Row("nomic-bert", "nomic-ai/nomic-embed-text-v1.5", "wordpiece"),
    Row("jina-bert-v2", "jinaai/jina-embeddings-v2-base-en", "wordpiece"),
)
