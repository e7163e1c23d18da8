"""llama.cpp called from Python, through its shared library."""
