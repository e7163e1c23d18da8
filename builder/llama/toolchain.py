"""Locates llama.cpp's tools and converter in this image or on this host."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantyard.protocol.runner import Stage

_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class LlamaTools:
    """The programs that the builder's stages run."""

    llama_bin: Path | None  # the folder of llama-quantize and llama-server; None: use llama-cpp-python
    converter: Path  # convert_hf_to_gguf.py
    lora_converter: Path  # convert_lora_to_gguf.py; a stand-in for the base image may lack it
    converter_python: Path  # a Python with the converter's dependencies
    transformers4: Path | None  # a folder of packages with transformers 4.57, which the converter was made for
    clean_env: Mapping[str, str]  # a tool's whole environment: without our PYTHONPATH, tokens or proxies


def llama_tools(stage: Stage) -> LlamaTools:
    """The tools, as the stage's environment names them."""
    environment = stage.environment
    llama_bin = environment.get("LLAMA_BIN")
    return LlamaTools(
        llama_bin=Path(llama_bin) if llama_bin else None,
        converter=Path(environment.get("LLAMA_CONVERTER", "/app/convert_hf_to_gguf.py")),
        lora_converter=Path(environment.get("LLAMA_LORA_CONVERTER", "/app/convert_lora_to_gguf.py")),
        converter_python=Path(environment.get("CONVERTER_PYTHON", sys.executable)),
        transformers4=_llama_tool_folder(environment.get("CONVERTER_PACKAGES", "")),
        clean_env={name: environment[name] for name in _PASSED_ON if name in environment} | _OFFLINE,
    )


def _llama_tool_folder(name: str) -> Path | None:
    return Path(name) if name and Path(name).is_dir() else None
