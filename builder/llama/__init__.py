"""llama.cpp's tools, server and bindings."""
