"""Other runtimes of the same GGUF, each in a process of its own environment."""
