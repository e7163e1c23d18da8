"""Folders of this machine: snapshots of the Hub's cache have the name and revision of their repo, and a folder that is
not a model is called by what it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from quantyard.errors import BadSource
from quantyard.hub.client import HubAccess
from quantyard.sources.resolve import Source, find_source
from quantyard.store.hash_cache import HashCache
from tests.tiny_model import write_safetensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "plain"
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": (8, 4)})
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "architectures": ["XForCausalLM"]}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def find(model: Path, tmp_path: Path) -> Source:
    access, hashes = HubAccess(), HashCache(tmp_path / "hashes")
    return find_source(str(model), access, hashes, allow_pickle=False, gguf_file=None)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _as_git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def cached(model: Path, cache: Path, name: Callable[[bytes], str] = _sha256, repo: str = "acme--tiny") -> Path:
    """The model as the Hub's cache keeps it."""
    root = cache / f"models--{repo}"
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for file in model.iterdir():
        blob = root / "blobs" / name(file.read_bytes())
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.mark.parametrize("parents", [".cache/huggingface/hub", "hub", ".a/.b"])
@pytest.mark.parametrize("name", [_sha256, _as_git])
def test_a_snapshot_is_the_model_of_the_hub_at_its_commit(
    parents: str, name: Callable[[bytes], str], model: Path, tmp_path: Path
) -> None:
    source = find(cached(model, tmp_path / parents, name), tmp_path)
    assert (source.model.org, source.model.name, source.model.commit) == ("acme", "tiny", COMMIT)
    assert (source.repo_id, source.revision, source.title) == ("acme/tiny", COMMIT, "acme/tiny at 0123456789ab")
    assert source.local is not None and any("Hub's cache" in note for note in source.notes)


def test_a_cached_repo_without_an_organisation_has_its_name_alone(model: Path, tmp_path: Path) -> None:
    source = find(cached(model, tmp_path, repo="gpt2"), tmp_path)
    assert (source.model.org, source.model.name, source.revision, source.repo_id) == ("local", "gpt2", COMMIT, "")


@pytest.mark.parametrize("repo", ["acme--tiny--more", "-acme--tiny"])
def test_a_cache_that_names_no_repo_of_the_hub_is_an_ordinary_folder(repo: str, model: Path, tmp_path: Path) -> None:
    source = find(cached(model, tmp_path, repo=repo), tmp_path)
    assert source.repo_id == "" and source.model.org == "local" and source.revision == ""


def test_a_blob_without_the_hash_of_its_name_is_damaged(model: Path, tmp_path: Path) -> None:
    snapshot = cached(model, tmp_path)
    with (snapshot / "tokenizer.json").resolve().open("a") as blob:
        blob.write(" ")
    with pytest.raises(BadSource, match=r"tokenizer\.json is damaged") as caught:
        find(snapshot, tmp_path)
    assert f"hf download acme/tiny --revision {COMMIT}" in caught.value.hint


def test_files_that_are_copies_have_the_name_but_do_not_prove_the_commit(model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--acme--tiny" / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    model.rename(snapshot)
    source = find(snapshot, tmp_path)
    assert (source.model.org, source.model.name, source.revision) == ("acme", "tiny", COMMIT)
    assert source.repo_id == "" and source.model.commit != COMMIT


def refused(folder: Path, tmp_path: Path) -> str:
    with pytest.raises(BadSource) as caught:
        find(folder, tmp_path)
    return f"{caught.value.message} | {caught.value.hint}"


def test_the_folder_of_a_cached_repo_names_its_snapshot(model: Path, tmp_path: Path) -> None:
    snapshot = cached(model, tmp_path)
    assert f"MODEL={snapshot}" in refused(snapshot.parents[1], tmp_path)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "make lora ADAPTER="),
        (["checkpoint-5/config.json", "checkpoint-5/model.safetensors", "trainer_state.json"], "checkpoint-5"),
        (["m-Q8_0.gguf", "README.md"], "m-Q8_0.gguf"),
        (["notes.txt"], "Give the folder that holds config.json"),
        (["model.safetensors", "tokenizer.json"], "no config.json"),
        (["latest", "zero_to_fp32.py", "global_step1/mp_rank_00_model_states.pt"], "zero_to_fp32.py"),
    ],
)
def test_a_folder_without_config_json_is_called_by_what_it_is(files: list[str], says: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_text("")
    assert says in refused(tmp_path / "x", tmp_path)


def test_an_index_that_disagrees_with_its_files_is_not_called_damage(model: Path, tmp_path: Path) -> None:
    weight_map = {"model.embed_tokens.weight": "model.safetensors", "lm_head.weight": "model.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    said = refused(model, tmp_path)
    assert "lacks the tensor 'lm_head.weight'" in said and "different saves" in said
