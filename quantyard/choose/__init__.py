"""`make choose`: which of the files that were built and measured is the one for this memory and this speed.

- `kv_layers`: what the GGUF's metadata says of each layer's cache
- `kv_cache`: its bytes at a context, as llama.cpp allocates them
- `candidates`: the files that were measured: memory at the wanted context, quality, speed
- `pick`: the best within the budget, the runner-up, and what is missed where nothing fits
- `remedies`: what would help then
- `words`: all of it for people and for programs
"""
