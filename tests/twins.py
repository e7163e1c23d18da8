"""Configs of real models as their authors published them, cut to the fields that decide what they compute."""

from __future__ import annotations

from typing import Any, Final

Config = dict[str, Any]

LLAMA: Final[Config] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
}  # fmt: skip
MISTRAL: Final[Config] = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096,
    "vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
STARCODER2: Final[Config] = {
    "architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2", "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30, "num_attention_heads": 24,
    "num_key_value_heads": 2, "max_position_embeddings": 16384, "norm_epsilon": 1e-5, "norm_type": "layer_norm",
    "rope_theta": 999999.4420358813, "sliding_window": 4096, "use_bias": True, "mlp_type": "default",
    "vocab_size": 49152, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
DEEPSEEK_V3: Final[Config] = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_act": "silu",
    "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "first_k_dense_replace": 3, "moe_intermediate_size": 2048, "moe_layer_freq": 1,
    "n_group": 8, "topk_group": 4, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "max_position_embeddings": 163840, "rms_norm_eps": 1e-6,
    "rope_theta": 10000, "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
    "tie_word_embeddings": False, "vocab_size": 49152, "bos_token_id": 0, "eos_token_id": 1,
    "quantization_config": {"quant_method": "fp8"},
}  # fmt: skip
DEEPSEEK_V3_SILENT: Final[Config] = {key: value for key, value in DEEPSEEK_V3.items() if key != "scoring_func"}
EXAONE4: Final[Config] = {
    "architectures": ["Exaone4ForCausalLM"], "model_type": "exaone4", "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 4096, "num_hidden_layers": 30, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 64, "layer_types": ["full_attention"] * 30, "sliding_window": None, "sliding_window_pattern": None,
    "max_position_embeddings": 65536, "rms_norm_eps": 1e-5, "rope_theta": 1000000, "rope_scaling": {
        "factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": True, "vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
T5_TIED: Final[Config] = {
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_ff": 2048, "d_kv": 64, "d_model": 512,
    "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "relu",
    "is_encoder_decoder": True, "layer_norm_epsilon": 1e-6, "num_heads": 8, "num_layers": 6, "pad_token_id": 0,
    "relative_attention_num_buckets": 32, "vocab_size": 600,
}  # fmt: skip
FLAN_T5: Final[Config] = T5_TIED | {
    "d_ff": 1024, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 8, "num_layers": 8, "num_heads": 6,
    "tie_word_embeddings": False,
}  # fmt: skip
GEMMA3_4B: Final[Config] = {
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "eos_token_id": [1, 106],
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
    "vision_config": {
        "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
    },
}  # fmt: skip
