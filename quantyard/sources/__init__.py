"""Where a model comes from: Hub, folder, GGUF file, preset."""
