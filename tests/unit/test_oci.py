"""An artifact for a registry, before anything is sent: its name, its bytes, and what it says of itself."""

from __future__ import annotations

import json
from datetime import timedelta, timezone

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantyard.errors import BadRequest
from quantyard.metrics.intervals import ppl_change_interval
from quantyard.protocol.gate import BudgetResult, GateReport, Outcome
from quantyard.publish.files import made_release_file
from quantyard.publish.registry.artifact import (
    CONFIG_TYPE,
    GGUF_TYPE,
    LICENCE_TYPE,
    OciModel,
    OciReference,
    make_oci_model,
    oci_digest,
    oci_evaluation_annotations,
    oci_manifest,
    parse_oci_reference,
)
from quantyard.publish.registry.client import Registry, is_loopback_registry
from quantyard.publish.registry.errors import RegistryRefused
from quantyard.store.manifest import Manifest
from tests.manifests import COMMIT, manifest_of, sha256_of

SUITE = "standard"
PARTS = tuple(made_release_file(f"Lagoon-{n:05}-of-00002.gguf", f"part {n}") for n in (1, 2))
LICENCES = (made_release_file("LICENSE", "yours"), made_release_file("NOTICE", "and ours"))


def _model(manifest: Manifest | None = None) -> OciModel:
    return make_oci_model(manifest or manifest_of(), "Q4_K_M", SUITE, PARTS, LICENCES)


# ---- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "found"), [
    ("registry.example:5000/team/name", OciReference("registry.example:5000", "team/name")),
    ("registry.example/team/sub/name:v1", OciReference("registry.example", "team/sub/name", "v1")),
    ("localhost/name:Q4_K_M", OciReference("localhost", "name", "Q4_K_M")),
    ("127.0.0.1:5000/name", OciReference("127.0.0.1:5000", "name")),
    ("[::1]:5000/name", OciReference("[::1]:5000", "name")),
    ("box:5000/a.b__c-d/e", OciReference("box:5000", "a.b__c-d/e")),
    ("docker.io/me/name", OciReference("docker.io", "me/name")),
])  # fmt: skip
def test_a_place_in_a_registry_is_read(text: str, found: OciReference) -> None:
    assert parse_oci_reference(text) == found


@pytest.mark.parametrize(("text", "says"), [
    ("", "is not a repository"), ("me/name", "me is not a registry (Docker Hub is docker.io)"),
    ("registry.example/Team/Name", "names in a registry are in lower case"), ("registry.example/", "not a repo"),
    ("registry.example/a//b", "not a repo"), ("registry.example/../b", "not a repo"),
    ("registry.example/a b", "not a repo"),
    ("https://registry.example/a/b", "with a scheme"), ("registry.example/a@sha256:" + "0" * 64, "it names a digest"),
    ("registry.example/a:.tag", "not a repo"), ("registry.example/a:" + "t" * 129, "not a repo"),
    ("registry.example/a:b:c", "not a repo"), ("registry.example/a\n", "not a repo"),
    ("registry.example/ä", "not a repo"),
    ("registry.example/" + "a" * 300, "not a repo"), ("registry.example:70000/a", "not a repo"),
    ("user:pw@registry.example/a", "not a repo"),
])  # fmt: skip
def test_what_is_no_place_in_a_registry_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_oci_reference(text)
    assert says in caught.value.message and "OCI=registry.example/team/name" in caught.value.hint


@given(st.text(max_size=60))
def test_any_text_is_a_name_or_is_refused(text: str) -> None:
    try:
        found = parse_oci_reference(f"registry.example/{text}")
    except BadRequest:
        return
    assert found.registry == "registry.example" and found.repository == found.repository.lower()


def test_the_tag_is_the_quants_name_unless_one_is_given() -> None:
    assert parse_oci_reference("registry.example/a").tag_of("Q4_K_M") == "Q4_K_M"
    assert parse_oci_reference("registry.example/a:mine").tag_of("Q4_K_M") == "mine"


@pytest.mark.parametrize(("netloc", "local"), [
    ("localhost", True), ("localhost:5000", True), ("127.0.0.1:1", True), ("127.9.9.9", True), ("[::1]:5000", True),
    ("registry.example", False), ("10.0.0.1:5000", False), ("localhost.example", False), ("", False),
    ("localhost@registry.example", False),
])  # fmt: skip
def test_plain_http_is_for_this_machine_alone(netloc: str, local: bool) -> None:
    assert is_loopback_registry(netloc) == local


def test_docker_hubs_api_is_not_where_its_name_says() -> None:
    assert Registry("docker.io", "me/name", None).address == "https://registry-1.docker.io/v2"
    assert Registry("registry.example:5000", "a", None).address == "https://registry.example:5000/v2"
    assert Registry("[::1]:5000", "a", None).address == "http://[::1]:5000/v2"


@pytest.mark.parametrize(("said", "goes_to"), [
    ("/v2/a/blobs/uploads/1?x=1", "https://registry.example/v2/a/blobs/uploads/1?x=1"),
    ("http://registry.example/up/1", "https://registry.example/up/1"),  # behind a proxy it thinks so
    ("https://bytes.example/1?sig=2", "https://bytes.example/1?sig=2"),
])  # fmt: skip
def test_an_upload_goes_where_the_registry_says(said: str, goes_to: str) -> None:
    assert Registry("registry.example", "a", None).location(_told(said)) == goes_to


@pytest.mark.parametrize(
    "said", ["http://bytes.example/1", "http://registry.example:5000/1", "ftp://localhost/1", "https://b.example:99999/"]
)
def test_an_upload_goes_nowhere_that_is_not_safe(said: str) -> None:
    with pytest.raises(RegistryRefused, match="which is not safe"):
        Registry("registry.example", "a", None).location(_told(said))


def _told(location: str) -> httpx2.Response:
    asked = httpx2.Request("POST", "https://registry.example/v2/a/blobs/uploads/")
    return httpx2.Response(202, headers={"Location": location}, request=asked)


# ---- the artifact ------------------------------------------------------------------------------------


def test_the_layers_are_the_very_files_in_their_order() -> None:
    manifest = json.loads(oci_manifest(_model())[1])
    assert [layer["digest"] for layer in manifest["layers"]] == [f"sha256:{f.sha256}" for f in PARTS + LICENCES]
    assert [layer["mediaType"] for layer in manifest["layers"]] == [GGUF_TYPE] * 2 + [LICENCE_TYPE] * 2
    assert [layer["size"] for layer in manifest["layers"]] == [f.size_bytes for f in PARTS + LICENCES]
    names = [layer["annotations"]["org.cncf.model.filepath"] for layer in manifest["layers"]]
    assert names == [f.path for f in PARTS + LICENCES]


def test_the_configuration_is_what_model_runner_reads() -> None:
    config_bytes, manifest_bytes = oci_manifest(_model())
    config, described = json.loads(config_bytes), json.loads(manifest_bytes)["config"]
    assert described == {"mediaType": CONFIG_TYPE, "size": len(config_bytes), "digest": f"sha256:{_sha(config_bytes)}"}
    assert config["config"] == {"format": "gguf", "format_version": "3", "quantization": "Q4_K_M",
                                "architecture": "llama", "parameters": "134.52M", "size": "12B"}
    assert config["rootfs"] == {"type": "rootfs", "diff_ids": [f"sha256:{f.sha256}" for f in PARTS + LICENCES]}
    assert [file["diffID"] for file in config["files"]] == config["rootfs"]["diff_ids"]
    assert config["descriptor"] == {"created": "2026-11-20T12:00:00Z"}


def test_nothing_in_it_looks_like_the_other_format_of_model_runner() -> None:
    config = json.loads(oci_manifest(_model())[0])
    assert "createdAt" not in config["descriptor"] and "paramSize" not in config["config"] and "modelfs" not in config


def test_the_same_file_and_numbers_give_the_same_digest() -> None:
    model = _model()
    turned = OciModel(**{**vars(model), "annotations": dict(reversed(model.annotations.items())),
                         "created": model.created.astimezone(timezone(timedelta(hours=9)))})  # fmt: skip
    assert oci_digest(model) == oci_digest(turned) == oci_digest(_model())
    other = OciModel(**{**vars(model), "annotations": {**model.annotations, "quantyard.ppl": "1"}})
    assert oci_digest(other) != oci_digest(model)


# ---- what it says of itself --------------------------------------------------------------------------


def _gated(manifest: Manifest, suite: str = SUITE, **outcomes: Outcome) -> Manifest:
    results = tuple(
        BudgetResult(quant=quant, budget="max_mean_kld", limit=0.1, outcome=outcome, finding="…")
        for quant, outcome in outcomes.items()
    )
    gate = GateReport(budgets="default", sha256="0" * 64, suite=suite, results=results)
    return manifest.model_copy(update={"gate": gate})


def test_it_says_where_it_is_from() -> None:
    said = oci_evaluation_annotations(manifest_of(), "Q4_K_M", SUITE)
    assert said["org.opencontainers.image.source"] == "https://huggingface.co/lagoon/Lagoon-1B-Instruct"
    assert said["org.opencontainers.image.revision"] == COMMIT
    assert said["org.opencontainers.image.licenses"] == "apache-2.0"
    assert said["org.opencontainers.image.title"] == "Lagoon-1B-Instruct-Q4_K_M"
    assert said["org.opencontainers.image.created"] == "2026-11-20T12:00:00Z"
    assert said["quantyard.sha256"] == sha256_of("Q4_K_M")


def test_every_number_is_the_manifests() -> None:
    manifest = manifest_of()
    found = next(m for m in manifest.evaluations[SUITE].measurements if m.file.label == "Q4_K_M")
    said = oci_evaluation_annotations(manifest, "Q4_K_M", SUITE)
    divergence, speed = found.divergence, found.speed
    change = ppl_change_interval(divergence)
    assert divergence and divergence.mean_kld and divergence.top1_agreement and change and speed
    numbers = {
        "ppl": divergence.perplexity.value, "mean-kld": divergence.mean_kld.value,
        "p99-kld": divergence.kld_percentiles["99"], "top1-agreement": divergence.top1_agreement.value,
        "ppl-change": change.value, "generated-tokens-per-s": speed.generated_tokens_per_s,
        "prompt-tokens-per-s": speed.prompt_tokens_per_s, "peak-memory-bytes": speed.peak_memory_bytes,
    }
    for name, value in numbers.items():
        assert float(said[f"quantyard.{name}"].split()[0]) == pytest.approx(value, rel=1e-3), name
    for task in found.comparisons:
        name = f"quantyard.task.{task.task}.{task.metric}"
        assert float(said[name]) == pytest.approx(task.value, rel=1e-3)
        low, high = said[f"{name}.delta"].partition("[")[2].partition("]")[0].split(", ")
        assert (float(low), float(high)) == pytest.approx((task.delta.low, task.delta.high), rel=1e-3, abs=1e-9)
    assert said["quantyard.contract"] == "passed" and said["quantyard.schema-rate"].startswith("1 [0.94, 1]")


def test_what_was_not_measured_has_no_key() -> None:
    manifest = manifest_of()
    report = manifest.evaluations[SUITE]
    nothing = {"divergence": None, "speed": None, "comparisons": ()}
    bare = tuple(m.model_copy(update=nothing) for m in report.measurements)
    empty = manifest.model_copy(
        update={"evaluations": {SUITE: report.model_copy(update={"measurements": bare})}, "contracts": {}}
    )
    said = oci_evaluation_annotations(empty, "Q4_K_M", SUITE)
    assert not [key for key in said if "ppl" in key or "task" in key or "tokens" in key or "contract" in key]
    assert "quantyard.gate" not in said


def test_the_gates_word_is_that_of_this_file_and_this_suite() -> None:
    failed = _gated(manifest_of(), Q4_K_M="failed", Q8_0="passed")
    assert oci_evaluation_annotations(failed, "Q4_K_M", SUITE)["quantyard.gate"] == "failed"
    assert oci_evaluation_annotations(failed, "Q8_0", SUITE)["quantyard.gate"] == "passed"
    elsewhere = _gated(manifest_of(), "smoke", Q4_K_M="passed")
    assert "quantyard.gate" not in oci_evaluation_annotations(elsewhere, "Q4_K_M", SUITE)


@pytest.mark.parametrize(("quant", "suite", "says"), [
    ("Q2_K", SUITE, "The manifest does not have Q2_K"),
    ("Q4_K_M", "smoke", "has not been measured by the suite smoke"),
])  # fmt: skip
def test_a_file_without_an_evaluation_is_refused(quant: str, suite: str, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        oci_evaluation_annotations(manifest_of(), quant, suite)


def test_an_evaluation_of_another_file_is_refused() -> None:
    manifest = manifest_of()
    record = manifest.quants["Q4_K_M"].model_copy(update={"sha256": "0" * 64})
    with pytest.raises(BadRequest, match="has measured another"):
        oci_evaluation_annotations(manifest.model_copy(update={"quants": {"Q4_K_M": record}}), "Q4_K_M", SUITE)


def test_hostile_words_stay_one_short_line_of_plain_text() -> None:
    said = oci_evaluation_annotations(manifest_of(license='x\n"}\x1b[2J' + "y" * 5000), "Q4_K_M", SUITE)
    assert all(value.isprintable() and len(value) <= 300 for value in said.values())
    assert json.loads(oci_manifest(_model(manifest_of(license='"}],')))[1])["layers"]


def test_a_folder_of_this_machine_is_not_told() -> None:
    manifest = manifest_of()
    source = manifest.source.model_copy(update={"repo_id": "", "title": "/home/me/secret/model"})
    said = oci_evaluation_annotations(manifest.model_copy(update={"source": source}), "Q4_K_M", SUITE)
    assert "secret" not in json.dumps(said) and "org.opencontainers.image.source" not in said


def _sha(content: bytes) -> str:
    return sha256_of(content.decode())
