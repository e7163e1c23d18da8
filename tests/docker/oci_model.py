"""What the tests of publishing to a registry share: a GGUF of more than one chunk, and what they need installed."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from quantyard.protocol.runner import file_sha256
from quantyard.publish.files import kept_release_file, made_release_file
from quantyard.publish.registry.artifact import OciModel, OciReference, make_oci_model, parse_oci_reference
from quantyard.publish.registry.upload import CHUNK_BYTES
from tests.docker.registry import Registry
from tests.manifests import manifest_of


def needs(program: str | None, name: str) -> None:
    """Skips, or fails where everything has to be there."""
    if program is None and os.environ.get("REQUIRE_DOCKER") == "1":
        pytest.fail(f"REQUIRE_DOCKER=1, but there is no {name}. Type: apt-get install {name}")
    if program is None:
        pytest.skip(f"no {name} here: apt-get install {name}")


def gguf_model(folder: Path) -> OciModel:
    """A real GGUF that takes two chunks, and a licence."""
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    noise = np.random.default_rng(1).integers(-128, 127, CHUNK_BYTES + 999_999, np.int8)
    writer.add_tensor("weights", noise)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part = kept_release_file("Lagoon-1B-Instruct-Q4_K_M.gguf", path, file_sha256(path))
    return make_oci_model(
        manifest_of(), "Q4_K_M", "standard", (part,), (made_release_file("LICENSE", "Apache License\n"),)
    )


def at(store: Registry, name: str) -> OciReference:
    """A place in this registry."""
    return parse_oci_reference(f"{store.address}/{name}")


def silent(_path: str, _done: int, _total: int) -> None:
    """No progress wanted."""
