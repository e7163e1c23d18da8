"""A Hub that lies: every lie ends as an error of ours with exit code 4, soon, in little memory, and without the token.

Each lie is told over real HTTP in the place of one answer of the small Hub of the tests, to the product's functions.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from quantyard.cli import main
from quantyard.errors import HubError, QuantyardError
from quantyard.hub.client import HubAccess, hub_tensor_shapes, hub_whoami, read_hub_config, resolve_hub_repo
from quantyard.hub.download import download_hub_release
from quantyard.network import bounded_http
from quantyard.network.bounded_http import HttpBounds
from quantyard.publish.files import PublishedFile, made_release_file
from quantyard.publish.hub.commit import HubTarget, preview_hub_publication, publish_to_hub
from quantyard.publish.hub.there import look_there
from tests import hub_server
from tests.hostile import liar
from tests.hostile.liar import QUICK, SOON_S, Lie, error_of, says
from tests.hostile.sampling import rounds, sampled
from tests.hub_repo import model_info
from tests.hub_server import HubServer
from tests.manifests import manifest_of
from tests.unit.test_hub import MODEL

REPO, MINE = "org/name", "me/name-GGUF"
INFO = rf"/api/models/{REPO}(/revision/main)?"
LITTLE_BYTES = 60_000_000
Change = Callable[[Any], Any]


@dataclass
class Stage:
    """Where lies are told: of requests whose path fits `where`, `lie` answers; `change` is done to all other JSON."""

    hub: HubServer
    where: str = ""
    lie: Lie | None = None
    change: Change | None = None
    asked: list[str] = field(default_factory=list)

    def access(self) -> HubAccess:
        return HubAccess(self.hub.endpoint, self.hub.writer)

    def tell(self, where: str, lie: Lie) -> None:
        self.where, self.lie = where, lie


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture
def stage(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> Stage:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between two tries
    monkeypatch.setattr("quantyard.network.transfer.FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("quantyard.hub.client.REQUEST_TIMEOUT_S", 1.0)
    monkeypatch.setattr(bounded_http, "BOUNDS", QUICK)
    server.heal()
    server.repos.clear()
    server.add_repo(REPO, MODEL, license="apache-2.0")
    server.add_repo(MINE, {"README.md": b"# old"})
    stage = Stage(server)
    answer, as_json = hub_server._Handler._answer, hub_server._Handler._json

    def lying(handler: Any, path: str) -> None:
        stage.asked.append(f"{handler.command} {handler.path}")
        if stage.lie is not None and re.fullmatch(stage.where, path):
            stage.lie.tell(handler)
        else:
            answer(handler, path)

    def changed(handler: Any, status: int, value: Any, headers: Any = None) -> None:
        as_json(handler, status, stage.change(value) if stage.change else value, headers)

    monkeypatch.setattr(hub_server._Handler, "_answer", lying)
    monkeypatch.setattr(hub_server._Handler, "_json", changed)
    return stage


def refused(stage: Stage, call: Callable[[], object], *, may_pass: bool = False) -> QuantyardError | None:
    """The error of ours that the call ends with: soon, short, and without the token."""
    seen = error_of(call, QuantyardError, may_pass=may_pass)
    if seen is None:
        return None
    words = f"{seen.message} {seen.hint} {seen.detail}"
    assert stage.hub.writer not in words and len(seen.message) < 1500 and seen.hint, words[:3000]
    assert "Traceback" not in words
    return seen


def by_the_hub(stage: Stage, call: Callable[[], object], *, may_pass: bool = False) -> None:
    error = refused(stage, call, may_pass=may_pass)
    assert error is None or (isinstance(error, HubError) and error.code == 4), repr(error)


# ---- Lies about a model ------------------------------------------------------------------------------------------


def of_model(name: str, *keys: str | int, value: Any, is_harmless: bool = False) -> Lie:
    """The true answer with one value in the place of another."""

    def tell(handler: Any) -> None:
        info = json.loads(json.dumps(model_info(handler.hub.repos[REPO])))
        at = info
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
        says(name, info).tell(handler)

    return Lie(name, tell, is_harmless)


def _fields(place: tuple[str | int, ...], values: tuple[Any, ...], *, is_harmless: bool = False) -> list[Lie]:
    shown = ".".join(map(str, place))
    return [of_model(f"{shown} = {str(v)[:30]!r} ({type(v).__name__})", *place, value=v, is_harmless=is_harmless)
            for v in values]  # fmt: skip


FIRST = ("siblings", 0)
LFS = {"size": 1, "sha256": "a" * 64, "pointerSize": 1}
OF_MODEL = [
    *_fields(("id",), (None, 7, [], {}, "", "a/b/c", "x; rm -rf ~", "a" * 5000, "org/\x1b[2J", "other/name", True)),
    *_fields(("sha",), (7, "../../", "a" * 39, "A" * 40, "a" * 41, [], {"a": 1}, "\x00" * 40, True)),
    *_fields(("siblings",), (7, "a", {}, [7], [[]], [None], [{}], [{"rfilename": "a" * 20}] * 2)),
    *_fields(("siblings",), ([{"rfilename": f"{n}", "size": 1} for n in range(20_001)],)),
    *_fields((*FIRST, "rfilename"), (None, 7, [], "", "a" * 5000)),
    *_fields((*FIRST, "size"), (None, -1, 1.5, "12", True, 2**63, 10**300, [], {})),
    *_fields((*FIRST, "lfs"), (7, "a", [1], {"size": 1}, LFS | {"sha256": "x"}, LFS | {"size": -1})),
    *_fields((*FIRST, "lfs"), (LFS | {"size": "1"}, LFS | {"pointerSize": []}, LFS | {"sha256": None})),
    *_fields(("private",), ("yes", 1, [])), *_fields(("gated",), ("perhaps", 7, {"a": 1}, [])),
    *_fields(("disabled",), ("no", 0, [])), *_fields(("tags",), ({}, "a", [7], [None], ["a" * 5000], ["a"] * 10_001)),
    *_fields(("cardData",), ([], "a", 7)), *_fields(("pipeline_tag",), (7, [], "a" * 5000)),
    *_fields(("safetensors",), ([], 7, {}, {"parameters": []}, {"parameters": {"F32": -1}, "total": 1})),
    *_fields(("safetensors",), ({"parameters": {"F32": "many"}, "total": 1}, {"parameters": {"F32": 1.5}})),
    *_fields((*FIRST, "rfilename"), ("../../etc/passwd", "/etc/passwd", "a\x1b[2J", "a\\b"), is_harmless=True),
    *_fields(("cardData", "license"), ({"a": 1}, ["\x1b[2J"], 7, "a" * 5000, [[]]), is_harmless=True),
    *_fields(("lastModified",), ("yesterday", 7, {"a": 1}, "9999-99-99T99:99:99.000Z"), is_harmless=True),
    *_fields(("evalResults",), (7, [7], [{}]), is_harmless=True),
    *_fields(("inferenceProviderMapping",), (7, [7], {"a": 7}), is_harmless=True),
    *_fields(("transformersInfo",), (7, [7], {"a": 7}), is_harmless=True),
]  # fmt: skip
ANY = [*liar.any_text(), *liar.any_body(), *liar.any_location(302), *liar.any_wait(429), *liar.any_wait(503),
       *liar.any_error(404), *liar.any_error(500), *liar.any_error(403)]  # fmt: skip
NOT_MODELS = [lie for lie in ANY if lie.name != "Location ''"]


def test_there_are_enough_lies() -> None:
    assert len(OF_MODEL) + len(ANY) > 200


@pytest.mark.parametrize("lie", sampled(OF_MODEL, 25), ids=str)
def test_a_false_word_about_a_model_is_refused(stage: Stage, lie: Lie) -> None:
    stage.tell(INFO, lie)
    by_the_hub(stage, lambda: resolve_hub_repo(stage.access(), REPO), may_pass=lie.is_harmless)


@pytest.mark.parametrize("lie", sampled(ANY, 30), ids=str)
def test_whatever_a_hub_answers_a_plan_ends_soon_and_by_its_name(stage: Stage, lie: Lie) -> None:
    stage.tell(INFO, lie)
    by_the_hub(stage, lambda: resolve_hub_repo(stage.access(), REPO))


@pytest.mark.parametrize("lie", sampled([*ANY, *OF_MODEL], 12), ids=str)
def test_a_plan_does_without_a_configuration_and_headers_that_lie(stage: Stage, lie: Lie) -> None:
    repo = resolve_hub_repo(stage.access(), REPO)
    begun = time.monotonic()
    stage.tell(r".*/config\.json", lie)
    read_hub_config(stage.access(), repo)
    stage.tell(r".*/model\.safetensors", lie)
    hub_tensor_shapes(stage.access(), repo, repo.files)
    assert time.monotonic() - begun < 2 * SOON_S


@pytest.mark.parametrize("lie", sampled([*ANY, *OF_MODEL], 6), ids=str)
def test_the_command_line_ends_with_code_4_and_without_a_traceback(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, lie: Lie
) -> None:
    for name in ("EXTRA_CA", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)  # with one set, the command would set others for this process
    for name, value in {"HF_ENDPOINT": stage.hub.endpoint, "HF_TOKEN": stage.hub.writer, "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    stage.tell(INFO, lie)
    with pytest.raises(SystemExit) as ended:
        main(["plan", f"--model={REPO}", "--quant=Q8_0", f"--artifacts={tmp_path}"])
    out, err = capsys.readouterr()
    assert ended.value.code == 4 or (lie.is_harmless and ended.value.code != 70), err[-2000:]
    assert "Traceback" not in err and stage.hub.writer not in out + err and len(err) < 5000
    assert all(c.isprintable() or c == "\n" for c in err)

@pytest.mark.parametrize("header", [
    {"a": {"shape": ["x"], "dtype": "F32"}}, {"a": {"shape": [-1], "dtype": "F32"}}, {"a": {"shape": [1], "dtype": 7}},
    {"a": {"shape": 7, "dtype": "F32"}}, {"a": []}, [], {"a": {"shape": [2**70], "dtype": "F32"}},
    {"a": {"shape": [True], "dtype": "F32"}}, {"a": None},
])  # fmt: skip
def test_shapes_that_cannot_be_are_none(stage: Stage, header: Any) -> None:
    text = json.dumps(header).encode()
    repo = resolve_hub_repo(stage.access(), REPO)
    stage.tell(r".*/model\.safetensors", says("header", len(text).to_bytes(8, "little") + text))
    assert hub_tensor_shapes(stage.access(), repo, repo.files) is None


@pytest.mark.parametrize("lie", sampled([
    *ANY, *(says(f"whoami {v!r}", v) for v in ({}, {"name": 7}, {"name": ""}, {"name": "a" * 5000}, {"name": None})),
], 10), ids=str)  # fmt: skip
def test_who_one_is_is_not_believed_in_any_form(stage: Stage, lie: Lie) -> None:
    stage.tell("/api/whoami-v2", lie)
    by_the_hub(stage, lambda: hub_whoami(stage.access()))


@pytest.mark.parametrize("refs", [
    {"branches": 7}, {"branches": [7]}, {"branches": [{"name": 7}]}, {}, [],
    {"branches": [{"name": "main; rm -rf ~", "ref": "r", "targetCommit": "c"}]},
])  # fmt: skip
def test_branches_that_lie_are_not_offered(stage: Stage, refs: Any) -> None:
    stage.tell(f"/api/models/{REPO}/refs", says("refs", refs))
    error = refused(stage, lambda: resolve_hub_repo(stage.access(), f"{REPO}", "mian"))
    assert error and "rm -rf" not in f"{error.message} {error.hint}"
    assert error.hint.endswith(f"make build MODEL={REPO}@main")


# ---- Lies to who publishes and downloads -------------------------------------------------------------------------

FILES: tuple[PublishedFile, ...] = (
    made_release_file("README.md", "---\nlicense: mit\n---\n# Name\n"),
    made_release_file("name-Q4_K_M.gguf", b"GGUF\0" + b"x" * 50_000),
)  # fmt: skip
BATCH = rf"/{MINE}\.git/info/lfs/objects/batch"
_SHA256, _SIZE = FILES[1].sha256, FILES[1].size_bytes


def _batch(**changes: Any) -> dict[str, Any]:
    return {"transfer": "basic", "objects": [{"oid": _SHA256, "size": _SIZE, **changes}]}


def _put(href: Any, **more: Any) -> dict[str, Any]:
    return {"upload": {"href": href, **more}}


SAID: list[tuple[str, Any]] = [
    (BATCH, _batch(oid=7)), (BATCH, _batch(size=-1)), (BATCH, _batch(actions=7)),
    (BATCH, _batch(actions={"upload": 7})),
    (BATCH, _batch(actions=_put(7))), (BATCH, _batch(actions=_put("file:///etc/passwd"))),
    (BATCH, _batch(actions=_put("http://[::1"))), (BATCH, _batch(actions=_put("http://x:99999/"))),
    (BATCH, _batch(actions=_put("http://127.0.0.1:9/", header=7))),
    (BATCH, _batch(actions=_put("http://127.0.0.1:9/", header={"chunk_size": "²"}))),
    (BATCH, _batch(actions=_put("http://127.0.0.1:9/", header={"chunk_size": "0"}))),
    (BATCH, _batch(actions=_put("http://127.0.0.1:9/", header={"chunk_size": "9" * 5000}))),
    (BATCH, _batch(error=7)), (BATCH, _batch(error={"code": "x", "message": []})), (BATCH, {"objects": 7}), (BATCH, []),
    (r".*/preupload/main", {"files": 7}), (r".*/preupload/main", {"files": [{"path": 7}]}), (r".*/preupload/main", {}),
    (r".*/preupload/main", {"files": [{"path": "README.md", "uploadMode": "post", "shouldIgnore": False}]}),
    (r".*/commit/main", {}), (r".*/commit/main", {"commitOid": 7, "commitUrl": "u"}), (r".*/commit/main", []),
    (r".*/commit/main", {"commitOid": "../../", "commitUrl": "http://x/commit/y"}),
    (r".*/commit/main", {"commitOid": "a" * 40, "commitUrl": "javascript:x"}),
    (r".*/paths-info/.*", 7), (r".*/paths-info/.*", [7]), (r".*/paths-info/.*", [{"type": "file", "path": 7}]),
    (r".*/paths-info/.*", [{"type": "file", "path": "README.md", "size": "1", "oid": "a"}]),
    (r".*/paths-info/.*", [{"type": "file", "path": "README.md", "size": 10**300, "oid": "a"}]),
    ("/api/whoami-v2", {"name": "me", "auth": 7}), ("/api/whoami-v2", {"name": "me", "auth": {"accessToken": []}}),
    ("/api/repos/create", {"url": 7}), ("/api/repos/create", {}), ("/api/repos/create", {"url": "file:///"}),
]  # fmt: skip
TOLD = [(where, says(f"{where[-22:]} {json.dumps(body)[:60]}", body)) for where, body in SAID]
PLACES = ("/api/whoami-v2", rf"/api/models/{MINE}/revision/.*", r".*/paths-info/.*", r".*/preupload/main", BATCH,
          r".*/commit/main", "/upload/.*", r".*/objects/verify", "/api/validate-yaml")  # fmt: skip
EVERYWHERE = [(where, lie) for where in PLACES for lie in ANY]


def _publish(stage: Stage, *, is_new: bool = False, offer: bool = False) -> object:
    if is_new:
        stage.hub.repos.pop(MINE, None)
    target = HubTarget(MINE, pull_request=offer)
    return publish_to_hub(stage.access(), target, FILES, "Publish name", lambda *_: None)


@pytest.mark.parametrize(("where", "lie"), sampled(TOLD, 14), ids=str)
def test_a_false_word_while_publishing_is_refused(stage: Stage, where: str, lie: Lie) -> None:
    stage.tell(where, lie)
    by_the_hub(stage, lambda: _publish(stage, is_new="create" in where))


@pytest.mark.parametrize(("where", "lie"), sampled(EVERYWHERE, 25), ids=str)
def test_whatever_is_answered_while_publishing_it_ends_soon(stage: Stage, where: str, lie: Lie) -> None:
    stage.tell(where, lie)
    by_the_hub(stage, lambda: _publish(stage), may_pass=where in PLACES[-3:])  # their bodies are not read


def test_the_token_is_not_sent_where_the_upload_goes(stage: Stage) -> None:
    seen: list[str] = []
    with _elsewhere(seen) as address:
        actions = {"upload": {"href": f"{address}/put"}, "verify": {"href": f"{address}/verify"}}
        stage.tell(BATCH, says("verify elsewhere", _batch(actions=actions)))
        error = refused(stage, lambda: _publish(stage))
    assert error and "wants the token sent to" in error.message
    assert not seen


def test_the_token_is_not_sent_where_a_redirect_leads(stage: Stage) -> None:
    seen: list[str] = []
    with _elsewhere(seen) as address:
        moved = liar.ok(f"Location: {address}/", "Content-Length: 0", status="302 Found")
        stage.tell(INFO, liar.raw("elsewhere", moved))
        refused(stage, lambda: resolve_hub_repo(stage.access(), REPO))
    assert seen == [""]


@pytest.mark.parametrize("path", [INFO, "/api/whoami-v2"])
def test_a_token_that_the_hub_says_back_is_not_shown(stage: Stage, path: str) -> None:
    token = stage.hub.writer
    lies = [says("back", {"error": f"no {token}"}, 403, X_Error_Message=f"no {token}"),
            liar.raw("back", liar.ok(f"Location: ftp://{token}/", status="302 Found")),
            says("back", {token: 1, "id": token, "name": token})]  # fmt: skip
    for lie in lies:
        stage.tell(path, lie)
        refused(stage, lambda: resolve_hub_repo(stage.access(), REPO) if path == INFO else hub_whoami(stage.access()))


@pytest.mark.parametrize("page", [
    {"discussions": [], "count": 10**9, "start": 0}, {"discussions": 7, "count": 1, "start": 0}, {"count": 1}, [],
    {"discussions": [], "count": 10**400, "start": 0}, {"discussions": [{"num": "1"}], "count": 1, "start": 0},
])  # fmt: skip
def test_pull_requests_without_an_end_are_refused(stage: Stage, page: Any) -> None:
    stage.tell(r".*/discussions", says("pages", page))
    by_the_hub(stage, lambda: _publish(stage, offer=True))
    assert len(stage.asked) < 20


def test_a_list_of_pull_requests_is_read_as_far_as_it_is_looked_into(stage: Stage) -> None:
    each = {"title": "t", "num": 1, "author": {"name": "me"}, "status": "open", "isPullRequest": True,
            "createdAt": "2026-01-01T00:00:00.000Z", "repo": {"name": MINE, "type": "model"}}  # fmt: skip
    stage.tell(r".*/discussions", says("pages", {"discussions": [each], "count": 10**9, "start": 0}))
    refused(stage, lambda: _publish(stage, offer=True), may_pass=True)
    assert sum("/discussions?" in asked for asked in stage.asked) < 100


def test_an_old_file_of_another_size_is_not_read_back(stage: Stage) -> None:
    """Its record says a size; the Hub may send as much."""
    entry = {"type": "file", "path": "README.md", "size": 2**59, "oid": "a" * 40}
    stage.tell(r".*/paths-info/.*", says("huge", [entry]))
    by_the_hub(stage, lambda: _publish(stage))
    assert not [asked for asked in stage.asked if "/resolve/" in asked]


@pytest.mark.parametrize("lie", sampled([*ANY, *OF_MODEL], 12), ids=str)
def test_previews_and_what_is_published_end_soon(stage: Stage, lie: Lie) -> None:
    target = HubTarget(MINE)
    stage.tell(rf"/api/models/{MINE}/revision/.*", lie)
    refused(
        stage, lambda: preview_hub_publication(stage.access(), target, FILES), may_pass=True
    )  # it says "unknown" then
    refused(stage, lambda: look_there(stage.access(), target), may_pass=True)
    for path in (rf"/api/models/{MINE}/tree/.*", r".*/resolve/.*"):
        stage.tell(path, lie)
        refused(stage, lambda: look_there(stage.access(), target), may_pass=True)


@pytest.mark.parametrize(("where", "lie"), sampled(
    [(where, lie) for where in (rf"/api/models/{MINE}", ".*/manifest.json", r".*\.gguf") for lie in ANY], 15
), ids=str)  # fmt: skip
def test_a_release_is_not_downloaded_from_a_liar(stage: Stage, tmp_path: Path, where: str, lie: Lie) -> None:
    manifest = manifest_of()
    names = [entry.path for record in manifest.quants.values() for entry in record.files]
    stage.hub.add_repo(MINE, {"manifest.json": manifest.model_dump_json().encode(), **dict.fromkeys(names, b"x" * 999)})
    stage.tell(where, lie)
    error = refused(stage, lambda: download_hub_release(stage.access(), MINE, tmp_path / "to"))
    assert error and error.code in (2, 4)  # 2: what is no manifest was not published by us
    there = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert all(name.removesuffix(".part") in {"README.md", "manifest.json", *names} for name in there)


# ---- Bounds, as they are -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lie", [
    liar.endless("endless", liar.ok()), liar.bomb("gzip", "gzip"), liar.bomb("gzip in gzip", "gzip, gzip"),
    says("values", b'{"id":[' + b"[]," * 5_000_000 + b"[]]}"),
    says("text", b'"' + "\U0001f600".encode() * 4_100_000 + b'"'),
], ids=str)  # fmt: skip
def test_no_answer_takes_much_memory_with_the_products_own_bounds(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, lie: Lie
) -> None:
    monkeypatch.setattr(bounded_http, "BOUNDS", HttpBounds())
    stage.tell(INFO, lie)
    tracemalloc.start()
    try:
        with pytest.raises(HubError):
            resolve_hub_repo(stage.access(), REPO)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * HttpBounds().answer_bytes


def test_a_deadline_moves_on_with_the_bytes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is large and slow is read; one that is small and slow is not."""
    body = json.dumps(model_info(stage.hub.repos[REPO])).encode().ljust(400_000)
    pieces = [body[at : at + 20_000] for at in range(0, len(body), 20_000)]
    monkeypatch.setattr(bounded_http, "BOUNDS", HttpBounds(answer_s=0.3, bytes_per_s=200_000))
    stage.tell(INFO, liar.sends("slow", liar.ok(), lambda: iter(pieces), 0.05))
    assert resolve_hub_repo(stage.access(), REPO).repo_id == REPO
    monkeypatch.setattr(bounded_http, "BOUNDS", HttpBounds(answer_s=0.3, bytes_per_s=10_000_000))
    by_the_hub(stage, lambda: resolve_hub_repo(stage.access(), REPO))


def test_every_page_of_a_list_is_at_the_same_host_and_there_is_a_last_one(stage: Stage) -> None:
    from huggingface_hub import HfApi

    from quantyard.network.hub_client import use_bounded_hub_client

    use_bounded_hub_client()
    api = HfApi(endpoint=stage.hub.endpoint, token=stage.hub.writer)
    seen: list[str] = []
    page = [{"type": "file", "path": "a", "size": 1, "oid": "a" * 40}]
    with _elsewhere(seen) as address:
        for link in (f"{address}/x", "ftp://x/", "http://[::1"):
            stage.tell(r".*/tree/.*", says("away", page, Link=f'<{link}>; rel="next"'))
            with pytest.raises(bounded_http.BadAnswer, match="names a next page on another host"):
                list(api.list_repo_tree(REPO, recursive=True))
    assert not seen
    following = f"{stage.hub.endpoint}/api/models/{REPO}/tree/main?cursor=x"
    stage.tell(r".*/tree/.*", says("more", page, Link=f'<{following}>; rel="next"'))
    with pytest.raises(bounded_http.BadAnswer, match="more than 200 pages"):
        list(api.list_repo_tree(REPO, recursive=True))


# ---- A fuzzer ----------------------------------------------------------------------------------------------------

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 2**63, 10**300, 1e308, "", "a", "../../x", "\x1b[2J", "a" * 5000, [], {}, [[]],
    [None], {"a": {"b": []}}, "²", "http://[::1", "9999-99-99",
)  # fmt: skip


def mutated(value: Any, rng: random.Random) -> Any:
    """The same JSON with one to three of its values dropped, repeated or replaced."""
    for _ in range(rng.randint(1, 3)):
        value = _once(value, rng)
    return value


def _once(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _once(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        if rng.random() < 0.1:
            return value[:at] + value[at + 1 :]
        return value[:at] + [_once(value[at], rng)] * rng.randint(1, 2) + value[at + 1 :]
    return rng.choice(STRANGE)


@pytest.mark.parametrize("seed", range(rounds(sample=6, whole=120)))
def test_answers_changed_at_random_never_end_in_an_error_that_is_not_ours(
    stage: Stage, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    stage.change = lambda value: mutated(value, rng) if rng.random() < 0.4 else value
    release = {"manifest.json": manifest_of().model_dump_json().encode(), "README.md": b"# a"}
    stage.hub.add_repo("org/release", release)
    calls: tuple[Callable[[], object], ...] = (
        lambda: resolve_hub_repo(stage.access(), REPO), lambda: resolve_hub_repo(stage.access(), REPO, "mian"),
        lambda: hub_whoami(stage.access()),
        lambda: _publish(stage, is_new=True), lambda: _publish(stage), lambda: _publish(stage, offer=True),
        lambda: download_hub_release(stage.access(), "org/release", tmp_path),
        lambda: preview_hub_publication(stage.access(), HubTarget(MINE), FILES),
    )  # fmt: skip
    for call in calls:
        error = refused(stage, call, may_pass=True)
        assert error is None or error.code in (2, 4), repr(error)
    assert not list(tmp_path.parent.glob("x")), "a name led out of its folder"


# ---- Another host ------------------------------------------------------------------------------------------------


class _elsewhere:  # noqa: N801 - read as a sentence
    """Another host; what it is authorized by is written down."""

    def __init__(self, seen: list[str]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append(self.headers.get("Authorization", ""))
                self.send_error(404)

            do_PUT = do_POST = do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
