"""Runs llama.cpp's converter on a model whose tensors have other names than the architecture gives them.

    python renamed_converter.py names.json convert_hf_to_gguf.py FOLDER --outfile …

names.json: the name in the file → the name to convert it by. llama.cpp's own code reads the headers; what it finds
is given the other names, and the weights are read from where they are. Runs in the converter's Python: standard library
and llama.cpp's gguf only.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Rename, then become the converter."""
    names: dict[str, str] = json.loads(Path(sys.argv[1]).read_text())
    sys.argv = sys.argv[2:]
    folder = Path(sys.argv[0]).resolve().parent
    sys.path[0] = str(folder)  # in place of our own
    if (folder / "gguf-py").is_dir():  # as the converter does
        sys.path.insert(1, str(folder / "gguf-py"))
    _rename_converter_tensors(names)
    runpy.run_path(sys.argv[0], run_name="__main__")


def _rename_converter_tensors(names: dict[str, str]) -> None:
    import gguf.utility

    reader: Any = gguf.utility.SafetensorsLocal
    read = reader.__init__

    def read_renamed(self: Any, *arguments: Any, **options: Any) -> None:
        read(self, *arguments, **options)
        self.tensors = {names.get(name, name): tensor for name, tensor in self.tensors.items()}

    reader.__init__ = read_renamed


if __name__ == "__main__":
    main()
