"""What Ollama and LM Studio read beside the files of a release: Modelfile and model.yaml."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from quantyard.card.render import card_app_files, render_card
from quantyard.formats.gguf import gguf_strings, read_gguf_header
from quantyard.hub.foreign_manifest import parse_hub_manifest
from quantyard.protocol.base import FileEntry
from quantyard.publish.use import with_release_use
from quantyard.store.manifest import Manifest, ProjectorRecord, UseRecord
from tests.cards import CONTEXT
from tests.gguf_files import gguf
from tests.manifests import manifest_of, sha256_of
from tests.released import REPO, Yard

USE = UseRecord(
    context_tokens=131_072, sampling={"temp": 0.6, "top_k": 20.0, "top_p": 0.95, "min_p": 0.0, "penalty_repeat": 1.05},
    stop=["<|im_end|>", "<|endoftext|>"],
)
_PARAMETERS = {
    "num_ctx": int, "temperature": float, "top_k": int, "top_p": float, "min_p": float, "repeat_penalty": float,
}  # fmt: skip
NAME = "lagoon-1b-instruct"
_TEXT = {"type": "string"}
# As packages/lms-shared-types/src/VirtualModelDefinition.ts of lmstudio-js defines it; nothing else is allowed.
_FIELDS = {
    "type": "object", "required": ["fields"], "additionalProperties": False,
    "properties": {"fields": {"type": "array", "minItems": 1, "items": {
        "type": "object", "required": ["key", "value"], "properties": {"key": {"type": "string"}, "value": True},
        "additionalProperties": False,
    }}},
}  # fmt: skip
MODEL_YAML = Draft202012Validator({
    "type": "object", "required": ["model", "base"], "additionalProperties": False,
    "properties": {
        "model": {"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*/[a-z0-9]+([-.][a-z0-9]+)*$"},
        "base": {"type": "array", "minItems": 1, "items": {
            "type": "object", "required": ["key", "sources"], "additionalProperties": False,
            "properties": {"key": {"type": "string"}, "sources": {"type": "array", "items": {
                "type": "object", "required": ["type", "user", "repo"], "additionalProperties": False,
                "properties": {"type": {"const": "huggingface"}, "user": _TEXT, "repo": _TEXT},
            }}},
        }},
        "metadataOverrides": {"type": "object", "additionalProperties": False, "properties": {
            "domain": {"enum": ["llm", "embedding"]},
            "architectures": {"type": "array", "items": {"type": "string"}},
            "compatibilityTypes": {"const": ["gguf"]},
            "paramsStrings": {"type": "array", "items": {"type": "string", "pattern": r"^\d+(\.\d)?[MB]$"}},
            "minMemoryUsageBytes": {"type": "integer"},
            "contextLengths": {"type": "array", "items": {"type": "integer"}},
            "vision": {"type": "boolean"},
        }},
        "config": {
            "type": "object", "properties": {"load": _FIELDS, "operation": _FIELDS}, "additionalProperties": False,
        },
    },
})  # fmt: skip
_NUMBERS = {"temperature", "topKSampling"}  # the others have a check box: {checked, value}


def with_facts(manifest: Manifest, **facts: Any) -> Manifest:
    """The manifest, `verify` having found this of every file."""
    stages = dict(manifest.stages)
    for label in manifest.quants:
        record = stages[f"verify {label}"]
        stages[f"verify {label}"] = record.model_copy(update={"facts": {"bits_per_weight": 4.9, **facts}})
    return manifest.model_copy(update={"stages": stages})


def in_parts(manifest: Manifest) -> Manifest:
    """Every file in two parts."""
    quants = {}
    for label, record in manifest.quants.items():
        names = [f"{label}-0000{number}-of-00002.gguf" for number in (1, 2)]
        parts = [FileEntry(path=name, size_bytes=9, sha256=sha256_of(name)) for name in names]
        quants[label] = record.model_copy(update={"parts": parts})
    return manifest.model_copy(update={"quants": quants})


def with_projector(manifest: Manifest) -> Manifest:
    files = [FileEntry(path=f"mmproj-{kind}.gguf", size_bytes=9, sha256=sha256_of(kind)) for kind in ("F16", "Q8_0")]
    projector = ProjectorRecord(media=["vision"], files=files, made_by="projector")
    return manifest.model_copy(update={"projector": projector})


CHAT = with_facts(manifest_of(), chat_template=True).model_copy(update={"use": USE})
BASE = with_facts(CHAT, chat_template=False).model_copy(update={"use": USE.model_copy(update={"sampling": {}})})
EMBEDS = with_facts(CHAT, purpose="embed", pooling="mean", architecture="bert")
RANKS = with_facts(CHAT, purpose="rerank", pooling="rank", architecture="bert")
T5 = with_facts(CHAT, architecture="t5")


def modelfile(text: str) -> list[tuple[str, str]]:
    """The instructions of a Modelfile, as Ollama's parser takes this subset of it: one on a line."""
    found = []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, value = line.partition(" ")
        assert name in ("FROM", "PARAMETER", "TEMPLATE"), line
        if name == "PARAMETER":
            name, _, value = value.partition(" ")
        if value.startswith('"'):
            assert len(value) >= 2 and value.endswith('"') and '"' not in value[1:-1], line
            value = value[1:-1]
        else:
            assert " " not in value, line
        found.append((name, value))
    assert any(name == "FROM" for name, _ in found)
    for name, value in found:
        if name in _PARAMETERS:
            _PARAMETERS[name](value)
        else:
            assert name in ("FROM", "TEMPLATE", "stop"), name
    return found


def files_of(manifest: Manifest, **changes: Any) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Both files, checked against what their programs take."""
    made = card_app_files(manifest, replace(CONTEXT, **changes))
    definition = yaml.safe_load(made["model.yaml"])
    MODEL_YAML.validate(definition)
    return modelfile(made["Modelfile"]), definition


@pytest.mark.parametrize("manifest", [CHAT, BASE, EMBEDS, in_parts(CHAT), with_projector(CHAT)],
                         ids=["chat", "base", "embeds", "in parts", "reads pictures"])  # fmt: skip
def test_both_files_of_every_kind_of_model_are_what_their_programs_take(manifest: Manifest) -> None:
    said, definition = files_of(manifest)
    assert ("num_ctx", "8192") in said
    assert definition["metadataOverrides"]["contextLengths"] == [131_072]
    assert definition["base"][0]["sources"] == [{"type": "huggingface", "user": "me", "repo": "Lagoon-GGUF"}]
    assert definition["model"] == "me/lagoon"


def test_a_chat_model_brings_its_sampling_and_its_stops_and_no_template() -> None:
    said, definition = files_of(CHAT)
    wanted = {"temperature": "0.6", "top_k": "20", "top_p": "0.95", "min_p": "0", "repeat_penalty": "1.05"}
    assert wanted.items() <= dict(said).items() and "TEMPLATE" not in dict(said)
    assert [value for name, value in said if name == "stop"] == USE.stop
    fields = {row["key"].rpartition(".")[2]: row["value"] for row in definition["config"]["operation"]["fields"]}
    boxes = {"topPSampling": 0.95, "minPSampling": 0, "repeatPenalty": 1.05}
    assert fields == {
        "temperature": 0.6, "topKSampling": 20, "stopStrings": USE.stop,
        **{key: {"checked": True, "value": value} for key, value in boxes.items()},
    }  # fmt: skip
    assert {key for key, value in fields.items() if isinstance(value, int | float)} == _NUMBERS
    assert definition["config"]["load"]["fields"] == [{"key": "llm.load.contextLength", "value": 8192}]


def test_from_names_the_file_that_the_card_takes_and_the_others_are_told() -> None:
    text = card_app_files(CHAT, CONTEXT)["Modelfile"]
    (path,) = (value for name, value in modelfile(text) if name == "FROM")
    card = render_card(CHAT, CONTEXT)
    assert f"]({path.removeprefix('./')})" in card.partition("**Take ")[2].partition("\n")[0]
    others = {record.file for record in CHAT.quants.values()} - {path.removeprefix("./")}
    (told,) = (line for line in text.splitlines() if line.startswith("# FROM may name another of these files: "))
    assert set(told.partition(": ")[2].split(", ")) == others != set()


def test_a_base_model_writes_the_bare_prompt_and_stops_by_itself() -> None:
    said, definition = files_of(BASE)
    assert ("TEMPLATE", "{{ .Prompt }}") in said and "stop" not in dict(said)
    assert "operation" not in definition["config"]


def test_an_embedding_model_has_a_context_and_nothing_that_generates() -> None:
    said, definition = files_of(EMBEDS)
    assert [name for name, _ in said] == ["FROM", "num_ctx"]
    assert definition["metadataOverrides"]["domain"] == "embedding" and "config" not in definition
    assert "vision" not in definition["metadataOverrides"]


def test_a_model_in_parts_names_each_of_them_in_order() -> None:
    said, _definition = files_of(in_parts(CHAT))
    parts = [value for name, value in said if name == "FROM"]
    assert [part[-19:] for part in parts] == ["-00001-of-00002.gguf"[-19:], "-00002-of-00002.gguf"[-19:]]


def test_what_reads_pictures_is_named_beside_the_model() -> None:
    said, definition = files_of(with_projector(CHAT))
    assert [value for name, value in said if name == "FROM"][1:] == ["./mmproj-F16.gguf"]
    assert definition["metadataOverrides"]["vision"] is True


@pytest.mark.parametrize("manifest", [RANKS, T5], ids=["a reranker", "an encoder-decoder"])
def test_what_neither_program_can_run_has_no_file(manifest: Manifest) -> None:
    assert card_app_files(manifest, CONTEXT) == {}


def test_without_a_repo_there_is_nothing_that_lm_studio_could_fetch() -> None:
    assert list(card_app_files(CHAT, replace(CONTEXT, repo_id=""))) == ["Modelfile"]


def test_a_model_that_says_nothing_of_its_use_gets_no_settings() -> None:
    said, definition = files_of(CHAT.model_copy(update={"use": None}))
    assert [name for name, _ in said] == ["FROM"] and "config" not in definition


def test_a_file_name_that_would_be_another_instruction_gets_no_modelfile() -> None:
    quants = {label: r.model_copy(update={"file": f"a b-{label}.gguf"}) for label, r in CHAT.quants.items()}
    assert "Modelfile" not in card_app_files(CHAT.model_copy(update={"quants": quants}), CONTEXT)


def test_the_card_says_how_the_files_are_used() -> None:
    entry = [FileEntry(path=name, size_bytes=9, sha256=sha256_of(name)) for name in ("Modelfile", "model.yaml")]
    for manifest, run in ((CHAT, f"ollama run {NAME}"), (BASE, f"ollama run {NAME}"), (EMBEDS, "/api/embed")):
        card = render_card(manifest.model_copy(update={"app_files": entry}), CONTEXT)
        assert f"ollama create {NAME} -f Modelfile" in card and run in card
        assert "ollama create" not in render_card(manifest, CONTEXT)


# ---- from the file itself ----------------------------------------------------------------------------


def test_stops_are_the_texts_of_the_tokens_that_end_an_answer(tmp_path: Any) -> None:
    tokens = ["<unk>", "</s>", "a", "<|im_end|>", "ein „zitat“", 'a "quote"', "x" * 200, "two\nlines"]
    for ends, wanted in (
        ({"eos": 1}, ["</s>"]), ({"eos": 3, "eot": 3}, ["<|im_end|>"]),
        ({"eos": 1, "eot": 3, "eom": 4}, ["</s>", *tokens[3:5]]),
        ({"eos": 5}, []), ({"eos": 6}, []), ({"eos": 7}, []), ({"eos": 99}, []), ({}, []),
    ):  # fmt: skip
        metadata = {f"tokenizer.ggml.{name}_token_id": number for name, number in ends.items()}
        path = tmp_path / "model.gguf"
        path.write_bytes(gguf({"general.architecture": "llama", "tokenizer.ggml.tokens": tokens, **metadata}, []))
        manifest = with_release_use(manifest_of(), tmp_path, dict.fromkeys(manifest_of().quants, path))
        assert manifest.use is not None and manifest.use.stop == wanted, ends
        assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_strings_of_an_array_are_read_by_their_index(tmp_path: Any) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf({"a": ["null", "", "zwei"], "b": [1, 2], "c": "text"}, []))
    header = read_gguf_header(path)
    assert gguf_strings(header, "a", {0, 2}) == {0: "null", 2: "zwei"}
    assert gguf_strings(header, "a", {1, 7}) == {1: ""} and gguf_strings(header, "a", ()) == {}
    assert gguf_strings(header, "b", {0}) == gguf_strings(header, "c", {0}) == gguf_strings(header, "d", {0}) == {}


def test_a_manifest_from_elsewhere_names_no_other_file_as_one_of_them() -> None:
    for name, is_allowed in (("Modelfile", True), ("model.yaml", True), ("id_rsa", False), ("a/Modelfile", False)):
        entry = FileEntry(path=name, size_bytes=9, sha256=sha256_of(name))
        text = CHAT.model_copy(update={"app_files": [entry]}).model_dump_json().encode()
        with nullcontext() if is_allowed else pytest.raises(ValueError, match="neither Modelfile nor"):
            parse_hub_manifest(text, "manifest.json")


# ---- in a release ------------------------------------------------------------------------------------


@pytest.mark.commands
def test_a_release_has_both_files_and_its_manifest_their_hashes(yard: Yard) -> None:
    yard.publish()
    published = yard.published()
    manifest = Manifest.model_validate_json(published["manifest.json"])
    assert [entry.path for entry in manifest.app_files] == ["Modelfile", "model.yaml"]
    for entry in manifest.app_files:
        assert len(published[entry.path]) == entry.size_bytes
    modelfile(published["Modelfile"].decode())
    MODEL_YAML.validate(yaml.safe_load(published["model.yaml"]))


@pytest.mark.commands
def test_verify_compares_them_in_a_folder_and_in_a_repo(yard: Yard) -> None:
    yard.publish()
    for said in (yard.verify(f"--file={yard.release}", "--json"), yard.verify(f"--repo={REPO}", "--json")):
        states = {check["what"]: check["state"] for check in said.json["checks"]}
        assert states["Modelfile"] == states["model.yaml"] == "ok"
    (yard.release / "Modelfile").write_text("FROM ./another.gguf\n")
    (yard.release / "model.yaml").unlink()
    states = {c["what"]: c["state"] for c in yard.verify(f"--file={yard.release}", "--json").json["checks"]}
    assert states["Modelfile"] == states["model.yaml"] == "failed"
