"""The server of ENGINE=local: llama-cpp-python's own, behind limits."""
