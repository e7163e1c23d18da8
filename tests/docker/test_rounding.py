"""The stage `rounding` with the ggml of each engine: what the image's tools are linked with, llama-cpp-python's."""

from __future__ import annotations

import json
from pathlib import Path

from quantyard.hub.client import HubAccess
from quantyard.protocol.builder import RoundingRequest
from quantyard.sources.resolve import find_source
from quantyard.store.hash_cache import HashCache
from quantyard.tune.type_errors import LADDER
from tests.docker.test_calibrate import Yard
from tests.rounding import check_errors, write_model


def test_each_engine_finds_the_errors_that_another_implementation_finds(tmp_path: Path, engine: str) -> None:
    write_model(tmp_path / "model.gguf")
    access, hashes = HubAccess(None, None), HashCache(tmp_path / ".hashes.json")
    source = find_source(str(tmp_path / "model.gguf"), access, hashes, allow_pickle=False, gguf_file=None)
    yard = Yard(engine, source, tmp_path / "artifacts")
    step = yard.step("rounding", RoundingRequest(source_file=yard.base.path, types=LADDER))
    check_errors(json.loads((yard.run([step]).output("rounding") / "rounding.json").read_text()))
