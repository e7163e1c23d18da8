"""File formats: GGUF, safetensors, ggml types, strict JSON and YAML, names."""
