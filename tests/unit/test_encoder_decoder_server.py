"""The server of encoder-decoders, without a model: what it reads of a request, how it cuts texts, what it is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from quantyard.paths import REPO_DIR
from server.encoder_decoder.answers import AnswerForm, Metrics, answer_usage
from server.encoder_decoder.asked import BadBody, parse_json_object, read_asked
from server.encoder_decoder.image import BadSetting, read_image_settings
from server.encoder_decoder.models import ServedModels
from server.encoder_decoder.written import WrittenText
from server.limits.model_names import UnknownModel
from tests.gguf_files import TensorSpec, gguf

if TYPE_CHECKING:
    from quantyard.llama.library import LlamaLibrary


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([{"role": "user", "content": "Translate: hello"}], "Translate: hello"),
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}], "Be brief.\nHello"),
        ([{"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]}], "AB"),
        ([{"role": "assistant", "content": None}, {"role": "user", "content": "Hello"}], "Hello"),
    ],
)
def test_a_chat_is_the_plain_text_of_its_messages(messages: list[dict[str, Any]], prompt: str) -> None:
    assert read_asked({"messages": messages}, is_chat=True).prompt == prompt


@pytest.mark.parametrize(
    ("body", "is_chat", "why"),
    [
        ({"prompt": 3}, False, "prompt"),
        ({"prompt": ["a", "b"]}, False, "one text"),
        ({"prompt": "a", "max_tokens": "many"}, False, "max_tokens must be a number"),
        ({"prompt": "a", "temperature": -1}, False, "temperature must be a number from 0"),
        ({"prompt": "a", "temperature": float("nan")}, False, "temperature"),
        ({"prompt": "a", "stop": [1]}, False, "stop"),
        ({"prompt": "a", "n": 2}, False, "n must be a number from 1 to 1"),
        ({"prompt": "a", "grammar": "root ::= x"}, False, "grammar is not supported"),
        ({"prompt": "a", "logprobs": 3}, False, "logprobs is not supported"),
        ({"messages": "Hello"}, True, "messages"),
        ({"messages": []}, True, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, True, "content must be text"),
        ({"messages": [{"content": "a"}], "tools": [{}]}, True, "tools is not supported"),
        ({"messages": [{"content": "a"}], "response_format": {"type": "json_object"}}, True, "response_format"),
    ],
)
def test_what_it_cannot_do_is_refused_and_never_ignored(body: dict[str, Any], is_chat: bool, why: str) -> None:
    with pytest.raises(BadBody, match=why):
        read_asked(body, is_chat=is_chat)


def test_without_settings_it_samples_as_llama_server_does() -> None:
    asked = read_asked({"prompt": "a"}, is_chat=False)
    assert (asked.sampling.temperature, asked.sampling.top_k, asked.sampling.top_p) == (0.8, 40, 0.95)
    assert asked.max_tokens > 10_000 and not asked.stream
    assert read_asked({"prompt": "a", "seed": -1}, is_chat=False).sampling.seed == 0xFFFFFFFF


@pytest.mark.parametrize("data", [b"", b"[]", b'{"a": ', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(BadBody):
        parse_json_object(data)


def _all(written: WrittenText, *pieces: bytes) -> list[str]:
    given = [text for piece in pieces if (text := written.add(piece))]
    return [*given, *([text] if (text := written.end()) else [])]


def test_a_stop_string_across_tokens_never_leaks() -> None:
    written = WrittenText(["END"])
    assert _all(written, b"one E", b"N", b"D two") == ["one "]
    assert written.is_stopped


def test_what_only_looked_like_a_stop_string_is_given_later() -> None:
    written = WrittenText(["END"])
    assert "".join(_all(written, b"one E", b"N", b"ow")) == "one ENow" and not written.is_stopped
    assert "".join(_all(WrittenText(["END"]), b"one EN")) == "one EN"


def test_characters_are_given_whole() -> None:
    assert _all(WrittenText([]), "é".encode()[:1], "é".encode()[1:]) == ["é"]
    assert _all(WrittenText([]), b"\xff") == ["�"]


def test_answers_have_the_forms_of_the_api() -> None:
    usage = answer_usage(3, 2)
    chat, text = AnswerForm("m", is_chat=True), AnswerForm("m", is_chat=False)
    assert chat.whole("Hi", "stop", usage)["choices"][0]["message"] == {"role": "assistant", "content": "Hi"}
    assert text.whole("Hi", "stop", usage)["choices"][0]["text"] == "Hi" and text.first() is None
    assert chat.piece("H")["choices"][0]["delta"] == {"content": "H"}
    assert chat.usage(usage)["usage"]["total_tokens"] == 5
    assert "llamacpp:tokens_predicted_total 7" in Metrics(written_tokens=7).text()


# ---- the program of the container --------------------------------------------------------------------


def _settings(tmp_path: Path, architecture: str = "t5", **variables: str) -> Any:
    path, key = tmp_path / "flan.gguf", tmp_path / "key"
    path.write_bytes(gguf({"general.architecture": architecture}, [TensorSpec("t", (32, 2))]))
    key.write_text("# a comment\none\n\ntwo\n")
    return read_image_settings({"MODEL": str(tmp_path), "API_KEY_FILE": str(key), "THREADS": "1", **variables})


def test_the_container_serves_what_is_mounted_with_every_key(tmp_path: Path) -> None:
    found = _settings(tmp_path)
    assert (list(found.models), found.keys, found.port, found.n_ctx) == (["flan"], ("one", "two"), 8080, 0)
    assert _settings(tmp_path, CONTEXT_SIZE="4096", PARALLEL="2").n_ctx == 2048
    named = _settings(tmp_path, MODEL=str(tmp_path / "flan.gguf"), MODEL_FILE="./my/own.gguf")
    assert list(named.models) == ["own"]


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"PARALLEL": "x"}, "PARALLEL=x"), ({"LORA": "/lora.gguf"}, "adapter"),
        ({"API_KEY_FILE": "/nowhere"}, "/nowhere"), ({"API_KEY": "off", "BIND_ADDRESS": "10.0.0.1"}, "API_KEY=off"),
        ({"MODEL": "/nowhere.gguf"}, "cannot be read"),
        ({"architecture": "llama"}, "docker compose -f compose.yaml up"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_served_says_what_to_type(
    variables: dict[str, str], why: str, tmp_path: Path
) -> None:
    with pytest.raises(BadSetting, match=why):
        _settings(tmp_path, **variables)


def test_no_key_is_possible_on_loopback_alone(tmp_path: Path) -> None:
    assert _settings(tmp_path, API_KEY="off").keys == ()


def test_a_model_that_is_not_served_is_refused_and_without_a_name_the_first_answers() -> None:
    paths = {name: Path(f"/models/{name}.gguf") for name in ("flan", "madlad")}
    models = ServedModels(cast("LlamaLibrary", None), paths, "it 1.2")
    assert [models.name_of(asked) for asked in ("", "default", "madlad")] == ["flan", "flan", "madlad"]
    for names in (("flan", "madlad"), ("flan",)):
        models.paths = {name: paths[name] for name in names}
        with pytest.raises(UnknownModel, match=f"'gpt-4o' is not served here. Name one of these: {', '.join(names)};"):
            models.name_of("gpt-4o")


@pytest.mark.commands
def test_the_server_ends_to_be_started_anew_when_its_folder_holds_other_files(tmp_path: Path) -> None:
    (tmp_path / "flan.gguf").write_bytes(b"GGUF")
    os.utime(tmp_path / "flan.gguf", (0, 0))  # one that was written just now may still be written
    code = (
        "import threading, time\n"
        "from server.encoder_decoder import image\n"
        "image._WATCH_S = 0.1\n"
        "listed = image._image_model_listing()\n"
        "threading.Thread(target=image._watch_image_model_files, args=(listed,), daemon=True).start()\n"
        "print('watching', flush=True)\n"
        "time.sleep(30)\n"
    )
    argv, given = [sys.executable, "-c", code], {**os.environ, "MODEL": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=REPO_DIR, env=given, stdout=pipe, stderr=pipe, text=True) as running:
        assert running.stdout is not None and running.stdout.readline() == "watching\n"
        (tmp_path / "flan.gguf").rename(tmp_path / "madlad.gguf")
        _out, said = running.communicate(timeout=25)
    assert running.returncode == 0 and "other files are served from now on" in said
