"""Files that other people made are found, each under a label of its own; what is not such a file is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from quantyard.errors import BadRequest, BadSource, HubError
from quantyard.hub.client import HubAccess
from quantyard.requests import ForeignRequest
from quantyard.sources.foreign_files import ForeignFiles, find_foreign_files, foreign_base_quant, foreign_quant
from quantyard.sources.ollama_store import OllamaName
from quantyard.store.hash_cache import HashCache
from tests.gguf_files import SMALL_METADATA, TensorSpec, gguf
from tests.hub_server import HubServer

MODEL = gguf(SMALL_METADATA, [TensorSpec("token_embd.weight", (32, 4))])


def find(tmp_path: Path, *places: str | Path, wanted: str = "all", endpoint: str | None = None) -> ForeignFiles:
    asked = ForeignRequest(tuple(map(str, places)), tuple(wanted.split(",")), tmp_path / "ollama")
    return find_foreign_files(asked, HubAccess(endpoint), HashCache(tmp_path / "hashes.json"), _no_registry)


def _no_registry(name: OllamaName) -> Path:
    raise AssertionError(f"{name} is not asked for")


@pytest.mark.parametrize(("file", "quant", "base"), [
    ("SmolLM2-135M-Instruct-Q4_K_M.gguf", "Q4_K_M", "Q4_K_M"),
    ("Llama-3.2-1B-Instruct-UD-Q4_K_XL.gguf", "UD-Q4_K_XL", "Q4_K_XL"),
    ("model.i1-IQ2_XXS.gguf", "i1-IQ2_XXS", "IQ2_XXS"),
    ("Qwen3-0.6B-IQ4_XS.gguf", "IQ4_XS", "IQ4_XS"),
    ("gemma.f16.gguf", "f16", "F16"),
    ("gpt-oss-20b-mxfp4.gguf", "mxfp4", "MXFP4"),
    ("BF16/Model-BF16-00001-of-00002.gguf", "BF16", "BF16"),
    ("Q3-coder.gguf", "Q3", "Q3"),
    ("coder.gguf", "", ""),
])  # fmt: skip
def test_the_quant_is_read_off_the_name_as_makers_write_it(file: str, quant: str, base: str) -> None:
    assert foreign_quant(file) == quant and foreign_base_quant(quant) == base


def test_every_file_of_a_folder_and_of_a_repo_has_a_label_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "them"
    folder.mkdir()
    for name in ("m-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf", "mmproj-F16.gguf", "m.imatrix.gguf"):
        (folder / name).write_bytes(MODEL)
    with HubServer() as hub:
        for repo in ("them/a-GGUF", "them/b-GGUF"):
            hub.add_repo(repo, files={"m-Q4_K_M.gguf": MODEL})
        found = find(tmp_path, folder, "them/a-GGUF", "them/b-GGUF", endpoint=hub.endpoint)
    assert [file.label for file in found.files] == ["Q4_K_M@them", "UD-Q4_K_XL@them", "Q4_K_M@them-2", "Q4_K_M@them-3"]
    assert not found.failures
    assert [bool(file.revision) for file in found.files] == [False, False, True, True]
    assert found.files[2].source.files[0].sha256 == hashlib.sha256(MODEL).hexdigest()


@pytest.mark.parametrize(("wanted", "names"), [
    ("Q4_K_M", ["m-i1-Q4_K_M.gguf"]), ("q4_k_xl", ["m-UD-Q4_K_XL.gguf"]), ("UD-Q4_K_XL", ["m-UD-Q4_K_XL.gguf"]),
    ("*IQ4*", ["m-IQ4_XS.gguf"]), ("m-IQ4_XS.gguf,Q4_K_M", ["m-IQ4_XS.gguf", "m-i1-Q4_K_M.gguf"]),
])  # fmt: skip
def test_files_are_chosen_by_quants_and_patterns(tmp_path: Path, wanted: str, names: list[str]) -> None:
    folder = tmp_path / "them"
    folder.mkdir()
    for name in ("m-i1-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf", "m-IQ4_XS.gguf"):
        (folder / name).write_bytes(MODEL)
    assert [file.file for file in find(tmp_path, folder, wanted=wanted).files] == names


def test_what_cannot_be_used_is_named_and_the_others_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "them"
    folder.mkdir()
    (folder / "a-Q4_K_M.gguf").write_bytes(MODEL)
    (folder / "b-Q5_K_M.gguf").write_bytes(MODEL[:-40])  # truncated
    (folder / "c-Q6_K-00001-of-00002.gguf").write_bytes(MODEL)
    secret = tmp_path / "secret.gguf"
    secret.write_bytes(MODEL)
    (folder / "d-Q8_0.gguf").symlink_to(secret)
    (tmp_path / "empty").mkdir()
    with HubServer() as hub:
        places = (folder, tmp_path / "empty", "them/none-GGUF", "./nowhere", "ollama:none")
        found = find(tmp_path, *places, endpoint=hub.endpoint)
    assert [file.label for file in found.files] == ["Q4_K_M@them", "Q6_K@them"]
    assert isinstance(found.failures["Q5_K_M@them"], BadSource)
    assert "leads out of its folder" in found.failures["Q8_0@them"].message
    assert "does not hold any GGUF" in found.failures[str(tmp_path / "empty")].message
    assert isinstance(found.failures["them/none-GGUF"], HubError) and isinstance(found.failures["./nowhere"], BadSource)
    assert "ollama pull none" in found.failures["none@ollama"].hint


def test_a_quant_that_nobody_made_is_refused_with_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "them"
    folder.mkdir()
    (folder / "m-IQ4_XS.gguf").write_bytes(MODEL)
    error = find(tmp_path, folder, wanted="Q4_K_M").failures[str(folder)]
    assert "m-IQ4_XS.gguf" in error.message and "FILES=" in error.hint
    with pytest.raises(BadRequest, match="REPOS is not given"):
        find(tmp_path)


def ollama_store(store: Path, *, content: bytes = MODEL, kinds: tuple[str, ...] = ("model",)) -> Path:
    """A store with one model, as `ollama pull` leaves it; returns the model's blob."""
    digest = hashlib.sha256(MODEL).hexdigest()
    layers = [{"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}"} for kind in kinds]
    manifest = store / "manifests" / "registry.ollama.ai" / "library" / "smollm2" / "135m"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    blob = store / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir()
    blob.write_bytes(content)
    return blob


def test_a_model_of_ollamas_store_is_its_blob(tmp_path: Path) -> None:
    blob = ollama_store(tmp_path / "ollama", kinds=("model", "template", "adapter"))
    (file,) = find(tmp_path, "ollama:smollm2:135m").files
    assert file.source.local is not None and file.source.local.place_of(blob.name) == blob
    assert [found.kind for found in file.findings] == ["served-template", "adapter-beside"]
    assert file.label == "smollm2-135m@ollama"


def test_a_damaged_blob_a_wrong_manifest_and_a_path_are_refused(tmp_path: Path) -> None:
    blob = ollama_store(tmp_path / "ollama", content=MODEL[:-1] + b"x")
    assert "damaged" in find(tmp_path, "ollama:smollm2:135m").failures["smollm2-135m@ollama"].message
    blob.unlink()
    assert "is missing" in find(tmp_path, "ollama:smollm2:135m").failures["smollm2-135m@ollama"].message
    manifest = next((tmp_path / "ollama" / "manifests").rglob("135m"))
    for text in ("{}", '{"layers": [{"mediaType": "x", "digest": "sha256:../../x"}]}', '{"layers": []}', "[]"):
        manifest.write_text(text)
        assert isinstance(find(tmp_path, "ollama:smollm2:135m").failures["smollm2-135m@ollama"], BadSource)
    for name in ("ollama:../../../etc/passwd", "ollama:a/b/c/d", "ollama:", "ollama:..:.."):
        (error,) = find(tmp_path, name).failures.values()
        assert "is not a model of Ollama" in error.message
