"""The quantization types and recipes."""
