"""Small models of random weights that see or hear, in Hugging Face format, with the demo's tokenizer: about 7 MB each.

The configs have the fields of the models on the Hub, with small numbers. transformers makes and names the weights, in a
Python that has it: `python -m tests.tiny_vision FAMILY FOLDER DEMO_MODEL`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from quantyard.paths import REPO_DIR, local_venv_path

WIDTH, PICTURE, PATCH, VOCABULARY = 64, 56, 14, 49181
_TEXT: Final[dict[str, Any]] = {
    "hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "vocab_size": VOCABULARY, "max_position_embeddings": 2048,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "rope_theta": 10000.0,
}  # fmt: skip
_EYE: Final[dict[str, Any]] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": PICTURE,
    "patch_size": PATCH, "num_channels": 3,
}  # fmt: skip
_EAR: Final[dict[str, Any]] = {
    "d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "num_mel_bins": 128,
    "max_source_positions": 1500,
}  # fmt: skip
_HALF: Final = [0.5, 0.5, 0.5]
_PICTURES: Final[dict[str, Any]] = {"image_mean": _HALF, "image_std": _HALF, "size": {"longest_edge": PICTURE}}
# What llama.cpp puts around a picture or a sound.
SPECIAL: Final = (
    "<fake_token_around_image>", "<global-img>", "<image>", "<row_1_col_1>", "<start_of_image>", "<end_of_image>",
    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>",
)  # fmt: skip
# Family → config.json, preprocessor_config.json.
FAMILIES: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "smolvlm": (
        {
            "architectures": ["SmolVLMForConditionalGeneration"], "model_type": "smolvlm", "scale_factor": 2,
            "image_token_id": 49151,
            "text_config": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **_TEXT},
            "vision_config": {"model_type": "smolvlm_vision", **_EYE},
        },
        {"image_processor_type": "SmolVLMImageProcessor", "max_image_size": {"longest_edge": PICTURE}, **_PICTURES},
    ),
    "gemma3": (
        {
            "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "mm_tokens_per_image": 4,
            "boi_token_index": 49149, "eoi_token_index": 49150, "image_token_index": 49151,
            "text_config": {"model_type": "gemma3_text", "sliding_window": 1024, **_TEXT},
            "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **_EYE},
        },
        {"image_processor_type": "Gemma3ImageProcessor", "image_seq_length": 4, **_PICTURES},
    ),
    "qwen2-vl": (
        {
            "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "image_token_id": 49151,
            "vision_start_token_id": 49149, "vision_end_token_id": 49150, "video_token_id": 49148, **_TEXT,
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
            "vision_config": {
                "model_type": "qwen2_vl", "depth": 3, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "in_channels": 3,
                "hidden_size": WIDTH, "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2,
            },
        },
        {
            "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12544, "merge_size": 2,
            "patch_size": PATCH, **_PICTURES,
        },
    ),
    "qwen2-audio": (
        {
            "architectures": ["Qwen2AudioForConditionalGeneration"], "model_type": "qwen2_audio",
            "audio_token_index": 49151, "text_config": {"model_type": "qwen2", **_TEXT},
            "audio_config": {"model_type": "qwen2_audio_encoder", **_EAR},
        },
        {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 128, "sampling_rate": 16000},
    ),
}  # fmt: skip


def write_tiny_vision(folder: Path, family: str, demo_model: Path) -> Path:
    """Write a model of this family, by the Python of ENGINE=local."""
    argv = [str(local_venv_path({}) / "bin" / "python"), "-m", "tests.tiny_vision", family, str(folder)]
    subprocess.run([*argv, str(demo_model)], check=True, cwd=REPO_DIR, timeout=300, capture_output=True)
    return folder


def _write(family: str, folder: Path, demo_model: Path) -> None:
    import tokenizers
    import torch
    import transformers

    config, preprocessor = FAMILIES[family]
    torch.manual_seed(7)
    read = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(config)
    model = getattr(transformers, config["architectures"][0])._from_config(read)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.normal_(0.0, 0.05)
            if "norm" in name and name.endswith("weight"):
                weights.add_(1.0)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16", **config}, indent=2))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (demo_model / name).exists():
            shutil.copy(demo_model / name, folder / name)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    _write(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
