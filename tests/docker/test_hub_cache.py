"""A model as the Hub's cache keeps it, a folder of links, is built on both engines."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tests.conftest import run, run_json


def cached(model: Path, cache: Path) -> Path:
    """The snapshot of a model in a cache of this layout."""
    repo = cache / "models--org--tiny"
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for file in sorted(model.iterdir()):
        content = file.read_bytes()
        blob = repo / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def test_a_snapshot_of_the_hubs_cache_is_built_and_a_link_that_leads_out_of_it_is_refused(
    engine: str, tiny_model: Path, tmp_path: Path
) -> None:
    snapshot = cached(tiny_model, tmp_path / ".cache" / "hub")
    asked = {"ENGINE": engine, "MODEL": str(snapshot), "QUANT": "Q8_0", "ARTIFACTS": str(tmp_path / "artifacts")}
    made = run_json("build", **asked)
    assert made["ran"] == ["convert", "quantize Q8_0", "verify Q8_0"]
    assert (tmp_path / "artifacts" / "org" / "tiny" / ("a" * 12) / "tiny-Q8_0.gguf").exists()
    (tmp_path / "secret").write_text("nobody's business")
    (snapshot / "LICENSE").symlink_to(tmp_path / "secret")
    done = run("build", **asked)
    assert done.returncode == 2 and "leads out of its folder" in done.stderr
