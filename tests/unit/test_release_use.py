"""What a release says of the use of its files, from the files themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantyard.memory.kv_cache import ContextUse, context_bytes
from quantyard.memory.layers import Layer, ModelLayers
from quantyard.publish.use import with_release_use
from quantyard.store.manifest import Manifest
from quantyard.store.stages import stored_stage_folder
from tests.gguf_files import Value, gguf
from tests.manifests import manifest_of

LLAMA: dict[str, Value] = {
    "general.architecture": "llama", "llama.block_count": 3, "llama.embedding_length": 64,
    "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
}  # fmt: skip
LAYERS = ModelLayers((Layer(32, 32, in_blocks=False),) * 3)  # 2 heads of 64 / 4


def released(folder: Path, trained: int, **more: Value) -> Manifest:
    """The release of two files whose header says this."""
    manifest, content = manifest_of(), gguf({**LLAMA, "llama.context_length": trained, **more}, [])
    paths = {quant: folder / record.file for quant, record in manifest.quants.items()}
    for path in paths.values():
        path.write_bytes(content)
    return with_release_use(manifest, folder, paths)


def chats(manifest: Manifest, folder: Path, *found: dict[str, Any]) -> None:
    """What `convert` recorded of the chat template."""
    files = stored_stage_folder(folder, "convert", manifest.stages["convert"].key) / "files"
    files.mkdir(parents=True)
    (files / "reference.json").write_text(json.dumps({"chats": found}))


@pytest.mark.parametrize(("trained", "contexts"), [(131072, [8192, 32768]), (8192, [8192]), (2048, [2048])])
def test_the_memory_of_a_context_is_known_as_far_as_the_model_was_trained(
    tmp_path: Path, trained: int, contexts: list[int]
) -> None:
    manifest = released(tmp_path, trained)
    assert manifest.use is not None and manifest.use.context_tokens == trained
    speed = manifest.evaluations["standard"].measurements[1].speed
    assert speed is not None
    for record in manifest.quants.values():
        assert record.context is not None and list(record.context.served) == contexts
        for tokens in contexts:
            grown = context_bytes(LAYERS, ContextUse(tokens)) - context_bytes(LAYERS, ContextUse(speed.n_ctx))
            assert record.context.memory_bytes(1 << 30, speed.n_ctx, tokens) == (1 << 30) + grown
        assert record.context.memory_bytes(1 << 30, speed.n_ctx, 12345) is None
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_an_architecture_whose_cache_is_not_known_has_no_memory_at_a_context(tmp_path: Path) -> None:
    manifest = released(tmp_path, 8192, **{"general.architecture": "unheard-of"})
    assert {record.context for record in manifest.quants.values()} == {None}


def test_sampling_is_what_the_converter_wrote_from_the_models_own_settings(tmp_path: Path) -> None:
    manifest = released(tmp_path, 8192, **{
        "general.sampling.temp": 0.5, "general.sampling.top_k": 20, "general.sampling.sequence": "top_k;temp",
        "general.sampling.evil": 1,
    })  # fmt: skip
    assert manifest.use is not None and manifest.use.sampling == {"temp": 0.5, "top_k": 20}


def test_the_prompt_is_a_conversation_that_the_template_took_and_a_short_one(tmp_path: Path) -> None:
    long = {"name": "system-user", "text": "x" * 5000}
    chats(manifest_of(), tmp_path, {"name": "user", "text": "<|user|>Hi"}, long)
    manifest = released(tmp_path, 8192)
    assert manifest.use is not None and manifest.use.prompt == "<|user|>Hi"


def test_without_a_reference_or_a_readable_file_the_card_only_says_less(tmp_path: Path) -> None:
    manifest = released(tmp_path, 8192)
    assert manifest.use is not None and manifest.use.prompt == ""
    paths = {"Q8_0": tmp_path / "gone.gguf"}
    assert with_release_use(manifest_of(), tmp_path, paths) == manifest_of()
