"""What the small files and headers of a repo tell before its weights are downloaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from quantyard.errors import BadSource
from quantyard.formats.sentencepiece import BEGINNING_BYTES
from quantyard.hub.client import HubAccess
from quantyard.paths import REPO_DIR
from quantyard.protocol.base import ExitCode
from quantyard.sources.resolve import Source, find_source
from quantyard.store.hash_cache import HashCache
from tests.gguf_files import SMALL_METADATA, TensorSpec, gguf
from tests.hub_server import HubServer
from tests.socks_proxy import socks_proxy
from tests.tiny_model import zero_safetensors as zeros

INDEX = "model.safetensors.index.json"
SHARDS = ("model.safetensors-00001-of-00002.safetensors", "model.safetensors-00002-of-00002.safetensors")
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 6, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES = {
    "model.embed_tokens.weight": (6, 4), "model.norm.weight": (4,), "model.layers.0.mlp.down_proj.weight": (4, 8),
}  # fmt: skip


def repo(**changed: bytes) -> dict[str, bytes]:
    """A model in two shards with the names of Qwen3.5's; `b""` leaves a file out, `__` is a dot."""
    first, second = dict(list(SHAPES.items())[:1]), dict(list(SHAPES.items())[1:])
    index = {name: SHARDS[0 if name in first else 1] for name in SHAPES}
    files = {
        "config.json": json.dumps(CONFIG).encode(), "tokenizer.json": b"{}", "tokenizer_config.json": b"{}",
        SHARDS[0]: zeros(first), SHARDS[1]: zeros(second), INDEX: json.dumps({"weight_map": index}).encode(),
    }  # fmt: skip
    files |= {name.replace("__", "."): text for name, text in changed.items()}
    return {name: text for name, text in files.items() if text}


def find(hub_server: HubServer, tmp_path: Path, files: dict[str, bytes]) -> Source:
    hub_server.add_repo("org/name", files)
    return find_source(
        "org/name", HubAccess(hub_server.endpoint), HashCache(tmp_path / "hashes"), allow_pickle=False, gguf_file=None
    )


def refused(hub_server: HubServer, tmp_path: Path, files: dict[str, bytes]) -> str:
    with pytest.raises(BadSource) as caught:
        find(hub_server, tmp_path, files)
    return f"{caught.value.message} | {caught.value.hint}"


def test_the_index_of_a_repo_names_its_weights_and_no_weight_is_downloaded(
    hub_server: HubServer, tmp_path: Path
) -> None:
    source = find(hub_server, tmp_path, repo() | {"model.safetensors": zeros(SHAPES)})
    chosen = [file.path for file in source.files if file.path.endswith(".safetensors")]
    assert chosen == list(SHARDS) and "left out: model.safetensors" in source.notes[0]
    assert {tensor.name for tensor in source.tensors or ()} == set(SHAPES)


def test_a_wrappers_prefix_is_told_from_the_headers(hub_server: HubServer, tmp_path: Path) -> None:
    renamed = {f"_orig_mod.{name}": shape for name, shape in SHAPES.items()}
    source = find(hub_server, tmp_path, repo(model__safetensors=zeros(renamed), **{INDEX.replace(".", "__"): b""}))
    assert any("'_orig_mod.'" in note for note in source.notes)
    assert {tensor.name for tensor in source.tensors or ()} == set(SHAPES)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"general.type": "imatrix"}, "an importance matrix"), ({"general.type": "adapter"}, "a LoRA adapter"),
        ({"general.architecture": "clip"}, "a projector"),
    ],
)
def test_a_gguf_of_the_hub_that_is_not_a_model_is_told_by_its_metadata(
    metadata: dict[str, str], says: str, hub_server: HubServer, tmp_path: Path
) -> None:
    content = gguf({**metadata, "tokenizer.ggml.tokens": ["word"] * 30_000}, [TensorSpec("t", (4096, 8))])
    said = refused(hub_server, tmp_path, {"m-F16.gguf": content, "README.md": b"#"})
    assert f"m-F16.gguf of org/name is {says}" in said


def test_a_gguf_of_the_hub_that_is_a_model_passes(hub_server: HubServer, tmp_path: Path) -> None:
    content = gguf({**SMALL_METADATA, "a": ["word"] * 30_000}, [TensorSpec("t", (4096, 8))])
    assert find(hub_server, tmp_path, {"m-F16.gguf": content}).gguf_file == "m-F16.gguf"
    assert find(hub_server, tmp_path, {"m-F16.gguf": b"not a GGUF, which a stage will tell"}).kind == "gguf"


FAULTS = {
    "stale-index": ({INDEX: b'{"weight_map": {"a": "model-1.safetensors"}}'}, "is stale"),
    "missing-shard": ({SHARDS[1]: b""}, "lacks 1 of the 2 files"),
    "index-pointer": ({INDEX: b"version https://git-lfs.github.com/spec/v1\n"}, "a Git LFS pointer"),
    "utf-16-config": ({"tokenizer_config.json": "{}".encode("utf-16")}, "tokenizer_config.json of org/name is UTF-16"),
    "bom": ({"generation_config.json": b"\xef\xbb\xbf{}"}, "generation_config.json of org/name is UTF-8 with a byte"),
    "cut-json": ({"special_tokens_map.json": b'{"a'}, "special_tokens_map.json of org/name is not valid JSON"),
    "no-tokenizer": ({"tokenizer.json": b""}, "has no tokenizer"),
    "pointer-of-weights": ({SHARDS[0]: b"version https://git-lfs.github.com/spec/v1\nsize 99\n"}, "a Git LFS pointer"),
    "other-vocabulary": ({"config.json": json.dumps(CONFIG | {"vocab_size": 7}).encode()}, "vocab_size = 7"),
    "missing-layers": ({"config.json": json.dumps(CONFIG | {"num_hidden_layers": 2}).encode()}, "lacks 1 of 2 layers"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_of_a_repo_is_told_before_the_download(kind: str, hub_server: HubServer, tmp_path: Path) -> None:
    changed, says = FAULTS[kind]
    assert says in refused(hub_server, tmp_path, repo(**changed))


def test_a_sentencepiece_tokenizer_without_its_own_file_is_told_from_the_beginning_of_tokenizer_json(
    hub_server: HubServer, tmp_path: Path
) -> None:
    model = {"type": "BPE", "byte_fallback": True, "vocab": {f"▁{n}": n for n in range(60_000)}, "merges": []}
    text = json.dumps({"pre_tokenizer": {"type": "Metaspace"}, "model": model}).encode()
    assert len(text) > BEGINNING_BYTES
    said = refused(hub_server, tmp_path, repo(tokenizer__json=text))
    assert "no tokenizer.model" in said and "Copy tokenizer.model" in said
    find(hub_server, tmp_path, repo(tokenizer__json=text, tokenizer__model=b"\n\x0e"))


@pytest.mark.commands
@pytest.mark.parametrize("proxy", ["socks4a://me:pa55@127.0.0.1:9", "socks4://me:pa55@127.0.0.1:9"])
def test_a_proxy_that_no_client_can_be_made_for_is_said_without_its_password(proxy: str, tmp_path: Path) -> None:
    run = _plan_through(proxy, "https://hub.example", tmp_path)
    assert run.returncode == ExitCode.NETWORK and "hub.example was not asked" in run.stderr
    assert "HTTPS_PROXY=http://" in run.stderr and "socks5h://" in run.stderr and "pa55" not in run.stderr


@pytest.mark.commands
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_the_hub_is_asked_through_a_socks_proxy_with_its_password(
    scheme: str, hub_server: HubServer, tmp_path: Path
) -> None:
    hub_server.add_repo("org/x", repo())
    hub = f"http://hub.example:{urlsplit(hub_server.endpoint).port}"
    with socks_proxy(("me", "pa55")) as proxy:
        run = _plan_through(f"{scheme}://me:pa55@127.0.0.1:{proxy.port}", hub, tmp_path)
    assert run.returncode == 0, run.stderr
    assert set(proxy.hosts) == {"hub.example"}


def _plan_through(proxy: str, hub: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: a client is made once."""
    code = "from quantyard import cli; cli.main(['plan', '--model=org/x', '--quant=Q8_0'])"
    environment = {name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"ALL_PROXY": proxy, "HF_HOME": str(folder), "HF_ENDPOINT": hub, "ARTIFACTS": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPO_DIR, env=environment, capture_output=True, text=True, timeout=60
    )
