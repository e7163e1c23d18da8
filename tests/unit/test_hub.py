"""What the Hub answers, in our words; what a model is called; which of its files a build needs."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from quantyard.errors import (
    BadSource,
    HubError,
    HubUnreachable,
    NeedsPermission,
    QuantyardError,
    RepoEmpty,
    RepoGated,
    RepoNotFound,
    RepoRenamed,
    RevisionNotFound,
)
from quantyard.hub import client as hub
from quantyard.hub.client import HubAccess, parse_hub_repo_id, resolve_hub_repo, select_hub_files
from quantyard.hub.files import Selection
from quantyard.protocol.base import FileEntry
from tests.hub_server import HubServer
from tests.tiny_model import zero_safetensors


def safetensors(**shapes: tuple[int, ...]) -> bytes:
    """A BF16 file of zeros with these tensors."""
    return zero_safetensors(shapes)


CONFIG = b'{"model_type": "llama"}'
MODEL = {"config.json": CONFIG, "model.safetensors": safetensors(a=(4, 8), b=(3,)), "README.md": b"#"}


@pytest.fixture
def fake_hub(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setattr("quantyard.hub.client.time.sleep", lambda seconds: None)
    return hub_server


def visitor(server: HubServer) -> HubAccess:
    return HubAccess(server.endpoint)


def words(error: QuantyardError) -> str:
    return f"{error.message} {error.hint}"


# ---- Resolving ---------------------------------------------------------------------------------------------------


def test_a_repo_is_resolved_to_its_commit_files_hashes_licence_and_dtypes(fake_hub: HubServer) -> None:
    repo = fake_hub.add_repo("org/name", MODEL, license="apache-2.0")
    found = resolve_hub_repo(visitor(fake_hub), "org/name")
    sizes = {f.path: (f.size_bytes, f.sha256) for f in found.files}
    assert found.commit == repo.commit
    assert sizes["model.safetensors"] == (len(MODEL["model.safetensors"]), repo.files["model.safetensors"].sha256)
    assert sizes["config.json"] == (len(MODEL["config.json"]), None)
    assert (found.license, found.dtypes, found.gated, found.private) == ("apache-2.0", {"BF16": 35}, False, False)


def test_resolving_takes_one_request_and_downloads_nothing(fake_hub: HubServer) -> None:
    fake_hub.add_repo("org/name", MODEL)
    resolve_hub_repo(visitor(fake_hub), "org/name")
    assert [r.path for r in fake_hub.requests] == ["/api/models/org/name"]


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/1", "main"])
def test_a_branch_tag_or_pull_request_becomes_a_commit(fake_hub: HubServer, revision: str) -> None:
    repo = fake_hub.add_repo("org/name", MODEL, branches=("main", "refs/pr/1"), tags=("v1.0",))
    found = resolve_hub_repo(visitor(fake_hub), "org/name", revision)
    assert (found.commit, found.revision) == (repo.commit, revision)


def test_an_endpoint_with_a_slash_at_its_end_works(fake_hub: HubServer) -> None:
    fake_hub.add_repo("org/name", MODEL)
    assert resolve_hub_repo(HubAccess(fake_hub.endpoint + "/"), "org/name").commit


def test_a_file_whose_name_leads_out_of_its_folder_is_never_listed(fake_hub: HubServer) -> None:
    fake_hub.add_repo("org/name", MODEL | {"../../evil.json": b"{}", "/etc/config.json": b"{}"})
    assert {f.path for f in resolve_hub_repo(visitor(fake_hub), "org/name").files} == set(MODEL)


def test_a_gated_repo_names_the_page_where_its_terms_are_accepted(fake_hub: HubServer) -> None:
    fake_hub.add_repo("org/name", MODEL, gated=True)
    with pytest.raises(RepoGated) as caught:
        resolve_hub_repo(visitor(fake_hub), "org/name")
    assert f"{fake_hub.endpoint}/org/name" in caught.value.hint
    assert "HF_TOKEN" in caught.value.hint


def test_a_gated_repo_tells_the_owner_of_a_token_without_access_to_accept_the_terms(fake_hub: HubServer) -> None:
    fake_hub.add_repo("org/name", MODEL, gated=True)
    with pytest.raises(RepoGated, match="gated") as caught:
        resolve_hub_repo(HubAccess(fake_hub.endpoint, fake_hub.stranger), "org/name")
    assert "has no access yet" in caught.value.hint
    assert fake_hub.stranger not in words(caught.value)


def test_a_gated_repo_opens_to_a_token_with_access(fake_hub: HubServer) -> None:
    fake_hub.add_repo("org/name", MODEL, gated=True)
    assert resolve_hub_repo(HubAccess(fake_hub.endpoint, fake_hub.token), "org/name").gated


def test_a_missing_repo_and_a_private_one_are_told_as_the_same(fake_hub: HubServer) -> None:
    fake_hub.add_repo("org/secret", MODEL, private=True)
    for name in ("org/secret", "org/nothing"):
        with pytest.raises(RepoNotFound, match="missing, or private") as caught:
            resolve_hub_repo(visitor(fake_hub), name)
        assert "set HF_TOKEN" in caught.value.hint


def test_a_private_repo_is_worded_differently_for_the_owner_of_a_token(fake_hub: HubServer) -> None:
    fake_hub.add_repo("org/secret", MODEL, private=True)
    with pytest.raises(RepoNotFound, match="for the token in HF_TOKEN: it is missing, or private to others"):
        resolve_hub_repo(HubAccess(fake_hub.endpoint, fake_hub.stranger), "org/secret")
    assert resolve_hub_repo(HubAccess(fake_hub.endpoint, fake_hub.token), "org/secret").private


def test_a_token_the_hub_does_not_know_has_its_own_words(fake_hub: HubServer) -> None:
    fake_hub.add_repo("org/name", MODEL)
    with pytest.raises(HubError, match="does not accept the token") as caught:
        resolve_hub_repo(HubAccess(fake_hub.endpoint, "hf_wrong"), "org/name")
    assert "hf_wrong" not in words(caught.value)


@pytest.mark.parametrize(("revision", "command"), [(None, "MODEL=org/new"), ("v1", "MODEL=org/new@v1")])
def test_a_renamed_repo_gives_the_command_with_the_new_name(
    fake_hub: HubServer, revision: str | None, command: str
) -> None:
    fake_hub.add_repo("org/new", MODEL, tags=("v1",))
    fake_hub.rename("org/old", "org/new")
    with pytest.raises(RepoRenamed) as caught:
        resolve_hub_repo(visitor(fake_hub), "org/old", revision)
    assert caught.value.hint.endswith(f"make build {command}")


@pytest.mark.parametrize("files", [{}, {".gitattributes": b"*", "README.md": b"# soon"}])
def test_a_repo_without_a_model_in_it_is_empty(fake_hub: HubServer, files: dict[str, bytes]) -> None:
    fake_hub.add_repo("org/name", files)
    with pytest.raises(RepoEmpty):
        resolve_hub_repo(visitor(fake_hub), "org/name")


def test_an_unknown_revision_gets_the_nearest_and_the_list(fake_hub: HubServer) -> None:
    fake_hub.add_repo("org/name", MODEL, branches=("main", "beta"), tags=("v1.0.0",))
    with pytest.raises(RevisionNotFound, match=r"Did you mean 'v1\.0\.0'") as caught:
        resolve_hub_repo(visitor(fake_hub), "org/name", "v1.0")
    assert "main, beta, v1.0.0" in caught.value.hint
    assert "make build MODEL=org/name@v1.0.0" in caught.value.hint


def test_a_disabled_repo_is_said_to_be_disabled(fake_hub: HubServer) -> None:
    fake_hub.add_repo("org/name", MODEL, disabled=True)
    with pytest.raises(HubError, match="has disabled org/name"):
        resolve_hub_repo(visitor(fake_hub), "org/name")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_fails_for_a_moment_is_asked_again(fake_hub: HubServer, status: int) -> None:
    fake_hub.add_repo("org/name", MODEL)
    fake_hub.fail("/api/models/org/name", status=status, times=2, retry_after=1)
    assert resolve_hub_repo(visitor(fake_hub), "org/name").commit
    assert len(fake_hub.requests) == 3


def test_a_hub_that_keeps_failing_is_given_up(fake_hub: HubServer) -> None:
    fake_hub.add_repo("org/name", MODEL)
    fake_hub.fail("/api/models/org/name", status=503, times=None)
    with pytest.raises(HubUnreachable, match="answers 503"):
        resolve_hub_repo(visitor(fake_hub), "org/name")
    assert len(fake_hub.requests) == hub.TRIES


def test_a_wait_longer_than_anybody_watches_is_not_waited(fake_hub: HubServer) -> None:
    fake_hub.add_repo("org/name", MODEL)
    fake_hub.fail("/api/models/org/name", status=429, times=None, retry_after=3600)
    with pytest.raises(HubUnreachable, match="to be asked again in 3600 s"):
        resolve_hub_repo(visitor(fake_hub), "org/name")
    assert len(fake_hub.requests) == 1


@pytest.mark.usefixtures("fake_hub")
def test_a_closed_port_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(HubUnreachable, match="cannot be reached") as caught:
        resolve_hub_repo(HubAccess(f"http://127.0.0.1:{port}"), "org/name")
    assert "HF_ENDPOINT" in caught.value.hint


def test_a_server_that_is_no_hub_is_told_apart(fake_hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.add_repo("org/name", MODEL)
    monkeypatch.setattr("tests.hub_server.model_info", lambda repo: {"status": "a login page"})
    with pytest.raises(HubUnreachable, match="not as a Hub does"):
        resolve_hub_repo(visitor(fake_hub), "org/name")


def test_the_token_is_not_in_the_repr_of_an_access() -> None:
    assert "hf_secret" not in repr(HubAccess("http://hub", "hf_secret"))


def test_importing_the_module_does_not_import_huggingface_hub() -> None:
    import subprocess

    code = "import sys, quantyard.hub.client; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


# ---- Shapes and configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignore_range", [False, True])
def test_tensor_shapes_come_from_the_headers_alone(fake_hub: HubServer, ignore_range: bool) -> None:
    weights = safetensors(a=(1000, 1000), b=(7,))
    fake_hub.add_repo("org/name", MODEL | {"model.safetensors": weights})
    if ignore_range:
        fake_hub.fail("model.safetensors", ignore_range=True)
    repo = resolve_hub_repo(visitor(fake_hub), "org/name")
    found = hub.hub_tensor_shapes(visitor(fake_hub), repo, repo.files)
    assert found is not None
    assert [(t.name, t.shape, t.dtype) for t in found] == [("a", (1000, 1000), "BF16"), ("b", (7,), "BF16")]
    if not ignore_range:
        assert sum(r.body_bytes for r in fake_hub.requests) < len(weights) / 4


def test_a_header_larger_than_the_first_read_is_read_to_its_end(fake_hub: HubServer) -> None:
    many = safetensors(**{f"model.layers.{i}.mlp.gate_proj.weight": (1, 1) for i in range(3000)})
    fake_hub.add_repo("org/name", MODEL | {"model.safetensors": many})
    repo = resolve_hub_repo(visitor(fake_hub), "org/name")
    assert len(hub.hub_tensor_shapes(visitor(fake_hub), repo, repo.files) or ()) == 3000


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, (10).to_bytes(8, "little") + b"not json at all"])
def test_shapes_that_cannot_be_read_are_none_and_never_an_error(fake_hub: HubServer, content: bytes) -> None:
    fake_hub.add_repo("org/name", MODEL | {"model.safetensors": content})
    repo = resolve_hub_repo(visitor(fake_hub), "org/name")
    assert hub.hub_tensor_shapes(visitor(fake_hub), repo, repo.files) is None


def test_the_configuration_is_read_at_the_commit_and_empty_when_there_is_none(fake_hub: HubServer) -> None:
    fake_hub.add_repo("org/name", MODEL)
    fake_hub.add_repo("org/bare", {"model.gguf": b"GGUF"})
    read = [
        hub.read_hub_config(visitor(fake_hub), resolve_hub_repo(visitor(fake_hub), name))
        for name in ("org/name", "org/bare")
    ]
    assert read == [{"model_type": "llama"}, {}]


# ---- Names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", ("org/name", None)),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", ("HuggingFaceTB/SmolLM2-135M-Instruct", None)),
        ("org/name.v1_2@main", ("org/name.v1_2", "main")),
        ("org/name@refs/pr/1", ("org/name", "refs/pr/1")),
        ("o/n@" + "a" * 40, ("o/n", "a" * 40)),
    ],
)
def test_a_model_id_is_split_from_its_revision(text: str, expected: tuple[str, str | None]) -> None:
    assert parse_hub_repo_id(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "name", "a/b/c", "org/", "/name", "org//name", "../name", "org/..", "./x", "/etc/passwd", "~/x",
        "org/na me", "org/name ", "org/na\0me", "org/name\n", "--x", "--help/x", "-org/name", "org/-name", "org/name-",
        "org/.hidden", "org/a..b", "org/a--b", "org/name.git", "örg/name", "org/näme", "org\\name", "org/" + "x" * 97,
        "org/name@", "org/name@..", "org/name@a..b", "org/name@-x", "org/name@/main", "org/name@a b", "org/name@a\0",
        "org/name@main/", "org/name@a//b", "org/name@x@y", "@main", "org/name@main\n", "org/name@a/.b",
    ],
)  # fmt: skip
def test_whatever_is_no_model_id_is_refused(text: str) -> None:
    with pytest.raises(BadSource) as caught:
        parse_hub_repo_id(text)
    assert "make build MODEL=" in caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/org/name", "http://huggingface.co/org/name/tree/main", "https://hf.co/org/name?x=1",
        "hf://org/name", "https://huggingface.co/org/name/",
    ],
)  # fmt: skip
def test_an_address_gets_the_id_to_type_instead(url: str) -> None:
    with pytest.raises(BadSource, match="is an address") as caught:
        parse_hub_repo_id(url)
    assert caught.value.hint.endswith("make build MODEL=org/name")


# ---- Files -------------------------------------------------------------------------------------------------------


def choose(*names: str, allow_pickle: bool = False, gguf_file: str | None = None) -> Selection:
    files = tuple(FileEntry(path=n, size_bytes=10) for n in names)
    return select_hub_files("org/name", files, allow_pickle=allow_pickle, gguf_file=gguf_file)


def chosen(*names: str, allow_pickle: bool = False, gguf_file: str | None = None) -> set[str]:
    return {f.path for f in choose(*names, allow_pickle=allow_pickle, gguf_file=gguf_file).files}


NEEDED = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "qwen.tiktoken",
    "chat_template.jinja", "additional_chat_templates/tools.jinja", "LICENSE", "LICENSE.md", "NOTICE.txt",
    "USE_POLICY.md", "README.md", "preprocessor_config.json",
}  # fmt: skip
NOT_NEEDED = {
    ".gitattributes", "onnx/model.onnx", "onnx/config.json", "tf_model.h5", "flax_model.msgpack", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "original/consolidated.00.pth", "original/params.json", "consolidated.safetensors",
    "logo.png", "training_args.bin", "optimizer.pt", "trainer_state.json", "model.fp16.safetensors", "modeling_x.py",
    "runs/events.out", "model-f16.gguf", "adapter_model.safetensors", "checkpoint-10/model.safetensors",
}  # fmt: skip


def test_only_what_conversion_needs_is_selected() -> None:
    assert chosen(*NEEDED, *NOT_NEEDED) == NEEDED


def test_shards_come_with_their_index() -> None:
    shards = {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)} | {"model.safetensors.index.json"}
    assert chosen("config.json", "consolidated.safetensors", *shards) == shards | {"config.json"}


def test_a_missing_shard_is_found_before_the_download() -> None:
    with pytest.raises(BadSource, match="lacks 1 of 3 shards, the first of them number 2"):
        choose("config.json", "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors")


def test_weights_without_a_configuration_are_no_model() -> None:
    with pytest.raises(BadSource, match=r"no config\.json"):
        choose("model.safetensors")


def test_pickle_needs_permission_and_the_error_names_the_files() -> None:
    with pytest.raises(NeedsPermission, match=r"pytorch_model\.bin") as caught:
        choose("config.json", "pytorch_model.bin", "training_args.bin")
    assert "ALLOW_PICKLE=1" in caught.value.hint
    assert "training_args" not in caught.value.message


def test_pickle_is_selected_when_allowed() -> None:
    shards = {f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)} | {"pytorch_model.bin.index.json"}
    assert chosen("config.json", "rng_state_0.pth", *shards, allow_pickle=True) == shards | {"config.json"}


def test_pickle_in_a_folder_only_cannot_be_converted() -> None:
    with pytest.raises(BadSource, match="no weights of a name"):
        choose("config.json", "original/consolidated.00.pth", allow_pickle=True)


@pytest.mark.parametrize("names", [["model.onnx"], ["unet/model.safetensors"], ["adapter_model.safetensors"], []])
def test_a_repo_without_weights_of_a_language_model_is_refused(names: list[str]) -> None:
    with pytest.raises(BadSource):
        choose("config.json", *names)


def test_the_best_unquantized_gguf_is_chosen() -> None:
    found = choose("m-Q4_K_M.gguf", "m-F16.gguf", "m-BF16.gguf", "mmproj-F32.gguf", "imatrix.gguf", "README.md")
    assert (found.kind, found.gguf_file, len(found.files)) == ("gguf", "m-BF16.gguf", 2)


@pytest.mark.parametrize("asked", [None, "BF16/m-BF16-00002-of-00002.gguf", "m-BF16.gguf", "BF16/m-BF16.gguf"])
def test_a_split_gguf_comes_with_all_its_shards(asked: str | None) -> None:
    shards = {f"BF16/m-BF16-0000{i}-of-00002.gguf" for i in (1, 2)}
    found = choose("m-q4_0.gguf", *shards, gguf_file=asked)
    assert {f.path for f in found.files} == shards
    assert found.gguf_file == "BF16/m-BF16-00001-of-00002.gguf"


def test_a_single_gguf_is_the_model_whatever_its_type() -> None:
    assert choose("m-Q8_0.gguf", "m-mmproj-f16.gguf").gguf_file == "m-Q8_0.gguf"


@pytest.mark.parametrize("names", [("a-Q4_0.gguf", "a-Q8_0.gguf"), ("a-f16.gguf", "b-f16.gguf")])
def test_several_equal_ggufs_need_a_choice(names: tuple[str, ...]) -> None:
    with pytest.raises(BadSource, match="2 GGUF models") as caught:
        choose(*names)
    assert caught.value.hint == f"Choose one: GGUF_FILE={names[0]}"


def test_a_gguf_asked_for_wins_over_safetensors() -> None:
    assert choose("config.json", "model.safetensors", "m-Q8_0.gguf", gguf_file="m-Q8_0.gguf").kind == "gguf"


def test_an_unknown_gguf_gets_the_nearest_name() -> None:
    with pytest.raises(BadSource, match=r"Did you mean m-Q4_K_M\.gguf") as caught:
        choose("m-Q4_K_M.gguf", "x.gguf", gguf_file="m-Q4_KM.gguf")
    assert "GGUF_FILE=<name>" in caught.value.hint
