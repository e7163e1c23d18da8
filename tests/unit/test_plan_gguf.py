"""The plan of a GGUF reads that file's own header: sizes from its tensors, the cache from its metadata, on this machine
and on the Hub; a file that was trained to be quantized is the original of what is made of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantyard.forecast.cost import SERVE_CONTEXT_TOKENS
from quantyard.hub.client import HubAccess
from quantyard.quants.catalog import find_quant
from quantyard.quants.file_size import TensorShape, quant_gguf_bytes, sized_model
from quantyard.sources import hub_source as hub_source_module
from quantyard.sources.resolve import Source, find_source
from quantyard.store.hash_cache import HashCache
from tests.gguf_files import TensorSpec, gguf
from tests.hub_server import HubServer
from tests.unit.conftest import MakeMeasured
from tests.unit.fake_engine import FakeEngine

H, F, V, LAYERS = 256, 768, 4000, 4
QUANTS = ("Q2_K", "Q3_K_L", "Q4_K_M", "Q5_K_S", "Q6_K", "Q8_0", "F16")
_NAMES = {
    "attn_q": ("self_attn.q_proj", H, H), "attn_k": ("self_attn.k_proj", H, H // 2),
    "attn_v": ("self_attn.v_proj", H, H // 2), "attn_output": ("self_attn.o_proj", H, H),
    "ffn_gate": ("mlp.gate_proj", H, F), "ffn_up": ("mlp.up_proj", H, F), "ffn_down": ("mlp.down_proj", F, H),
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": H, "intermediate_size": F, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip


def content(file_type: int = 32, kind: str = "BF16", **metadata: Any) -> bytes:
    """A llama whose matrices have this type."""
    said = {
        "general.architecture": "llama", "general.file_type": file_type, "llama.block_count": LAYERS,
        "llama.embedding_length": H, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.context_length": 2048, "tokenizer.ggml.tokens": [f"word{i}" for i in range(99)], **metadata,
    }  # fmt: skip
    tensors = [TensorSpec("token_embd.weight", (H, V), kind), TensorSpec("output_norm.weight", (H,))]
    for layer in range(LAYERS):
        tensors += [TensorSpec(f"blk.{layer}.attn_norm.weight", (H,)), TensorSpec(f"blk.{layer}.ffn_norm.weight", (H,))]
        tensors += [TensorSpec(f"blk.{layer}.{name}.weight", (i, o), kind) for name, (_, i, o) in _NAMES.items()]
    return gguf(said, tensors)


def hf_tensors() -> list[TensorShape]:
    found = [TensorShape("model.embed_tokens.weight", (V, H), "BF16"), TensorShape("model.norm.weight", (H,), "BF16")]
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        found += [TensorShape(f"{layer}{name}.weight", (o, row), "BF16") for name, row, o in _NAMES.values()]
        found += [TensorShape(f"{layer}{name}.weight", (H,), "BF16") for name in ("input_layernorm", "post_norm")]
    return found


def local(tmp_path: Path, data: bytes, name: str = "m-BF16.gguf") -> Source:
    (tmp_path / name).write_bytes(data)
    asked = str(tmp_path / name)
    return find_source(asked, HubAccess(), HashCache(tmp_path / "hashes"), allow_pickle=False, gguf_file=None)


def remote(hub: HubServer, tmp_path: Path, files: dict[str, bytes]) -> Source:
    hub.add_repo("org/name", files)
    access, hashes = HubAccess(hub.endpoint), HashCache(tmp_path / "hashes")
    return find_source("org/name", access, hashes, allow_pickle=False, gguf_file=None)


@pytest.mark.parametrize("quant", QUANTS)
def test_the_sizes_are_those_of_its_own_tensors(quant: str, tmp_path: Path) -> None:
    source, asked = local(tmp_path, content()), find_quant(quant)
    of_config = quant_gguf_bytes(sized_model(hf_tensors(), CONFIG), asked)
    assert abs(source.quant_size_bytes(asked) / of_config - 1) < 0.02
    assert source.type_counts(asked).keys() >= {source.main_type(asked), "F32"}


SAME = [("BF16", 32, "BF16"), ("Q8_0", 7, "Q8_0"), ("COPY", 2, "Q4_0")]


@pytest.mark.parametrize(("quant", "file_type", "kind"), SAME)
def test_what_it_is_already_has_its_own_size(quant: str, file_type: int, kind: str, tmp_path: Path) -> None:
    data = content(file_type, kind)
    assert abs(local(tmp_path, data).quant_size_bytes(find_quant(quant)) - len(data)) < 64


def test_the_cache_of_a_context_is_known_from_its_metadata(tmp_path: Path) -> None:
    source = local(tmp_path, content())
    assert source.kv_cache_bytes(SERVE_CONTEXT_TOKENS) == 2 * 2 * LAYERS * (H // 2) * SERVE_CONTEXT_TOKENS
    unknown = local(tmp_path, content(**{"general.architecture": "unheard-of"}), "other.gguf")
    assert unknown.kv_cache_bytes(SERVE_CONTEXT_TOKENS) is None


def test_on_the_hub_its_header_tells_the_same_as_here(hub: HubServer, tmp_path: Path) -> None:
    there, here = remote(hub, tmp_path, {"m-BF16.gguf": content(), "README.md": b"#"}), local(tmp_path, content())
    for quant in map(find_quant, QUANTS):
        assert there.quant_size_bytes(quant) == here.quant_size_bytes(quant)
    assert there.kv_cache_bytes(512) == here.kv_cache_bytes(512) and there.n_params == here.n_params
    assert there.trained_tokens == 2048 and there.config == here.config


@pytest.mark.parametrize(("first", "second", "is_known"), [(1000, 10**6, True), (1000, 1500, False)])
def test_a_header_longer_than_the_first_request_is_asked_for_again(
    first: int, second: int, is_known: bool, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_source_module, "_GGUF_HEADER_BYTES", (first, second))
    source = remote(hub, tmp_path, {"m-BF16.gguf": content()})
    assert (source.gguf is not None) == is_known and source.quant_size_bytes(find_quant("Q8_0")) > 0


@pytest.mark.parametrize(("kind", "is_kept"), [("MXFP4", True), ("Q4_0", False)])
def test_a_gguf_of_mxfp4_experts_is_asked_for_only_where_they_change(kind: str, is_kept: bool, tmp_path: Path) -> None:
    source = local(tmp_path, content(38, kind), "m.gguf")
    assert source.keeps(find_quant("MXFP4_MOE")) == is_kept
    assert not source.keeps(find_quant("Q4_K_M")) and source.keeps(find_quant("COPY"))


QAT = {
    "the file": ("gemma-3-4b-it-qat-q4_0.gguf", {}),
    "its name": ("model.gguf", {"general.name": "Gemma 3 4b It Qat Q4_0 Unquantized"}),
    "its tuning": ("model.gguf", {"general.finetune": "it-qat"}),
}  # fmt: skip


@pytest.mark.parametrize("where", QAT)
def test_a_file_that_was_trained_to_be_quantized_is_what_others_are_compared_with(
    where: str, tmp_path: Path, measured: MakeMeasured
) -> None:
    name, metadata = QAT[where]
    source = local(tmp_path, content(2, "Q4_0", **metadata), name)
    assert "trained to be used as Q4_0 (QAT)" in source.notes[0]
    plan = measured(source, FakeEngine(), "Q2_K").plan
    assert plan.measuring is not None and plan.measuring.labels == ("Q4_0", "Q2_K")


@pytest.mark.parametrize("name", ["m-Q4_0.gguf", "qatar-Q4_0.gguf", "squat.gguf"])
def test_other_quantized_files_are_not_called_so(name: str, tmp_path: Path) -> None:
    assert not any("QAT" in note for note in local(tmp_path, content(2, "Q4_0"), name).notes)
