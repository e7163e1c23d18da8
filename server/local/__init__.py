"""The server of ENGINE=local: llama.cpp's own in a process of its own, behind limits."""
