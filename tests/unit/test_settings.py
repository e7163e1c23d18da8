"""The edge: argv and environment become one frozen request, or a clear error."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from quantyard.cli.commands import MEASURING
from quantyard.cli.parser import add_command_options
from quantyard.cli.request import read_command_request
from quantyard.cli.values import mismatch_setting, token_setting
from quantyard.errors import BadRequest
from quantyard.quants.catalog import find_quant
from quantyard.requests import BuildRequest, MeasureRequest


def _read(*argv: str, **environment: str) -> BuildRequest:
    parser = argparse.ArgumentParser()
    add_command_options(parser)
    return read_command_request(parser.parse_args(argv), environment)


def test_make_variables_and_options_meet_in_the_same_setting() -> None:
    assert _read("--quant", "Q8_0").quants == _read(QUANT="Q8_0").quants


def test_an_option_wins_over_the_environment() -> None:
    assert _read("--threads", "3", THREADS="5").threads == 3


def test_the_defaults_are_a_complete_request() -> None:
    request = _read()
    assert [q.name for q in request.quants] == ["Q4_K_M"]
    assert (request.engine, request.outtype, request.workers) == ("auto", "auto", 4)
    assert request.images.bases["builder"] == "ghcr.io/ggml-org/llama.cpp:full"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ENGINE", "podman", "ENGINE=podman is not one of auto, docker, local"),
        ("OUTTYPE", "int8", "OUTTYPE=int8"),
        ("THREADS", "-1", "THREADS=-1"),
        ("THREADS", "many", "whole number from 0 to 1024"),
        ("WORKERS", "0", "from 1 to 32"),
        ("MEMORY", "lots", "MEMORY=lots"),
        ("MEMORY", "1MiB", "at least 256 MiB"),
        ("ALLOW_PICKLE", "perhaps", "neither on nor off"),
        ("QUANT", "Q4_KM", "Did you mean 'Q4_K_M'"),
        ("EXTRA_CA", "/no/such/file", "EXTRA_CA=/no/such/file is not a PEM file"),
        ("BASELINE", "BF61", "BASELINE=BF61: Unknown quant 'BF61'"),
        ("LIMIT", "0", "LIMIT=0 is not a whole number from 1"),
        ("LIMIT", "all", "LIMIT=all"),
        ("NUM_FEWSHOT", "-1", "NUM_FEWSHOT=-1"),
        ("SEED", "x", "SEED=x"),
        ("DATASETS", "/no/such/folder", "DATASETS=/no/such/folder is not a folder"),
        ("ALLOW_UNSAFE_CODE", "perhaps", "neither on nor off"),
        ("N_GPU_LAYERS", "-2", "from -1 to"),
        ("MAX_LENGTH", "-1", "MAX_LENGTH=-1"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_what_to_type(name: str, value: str, says: str) -> None:
    with pytest.raises(BadRequest) as error:
        _read(**{name: value})
    assert says in error.value.message and error.value.hint


@pytest.mark.parametrize(("text", "size_bytes"), [("16GiB", 16 * 2**30), ("1.5g", 3 * 2**29), ("512M", 2**29)])
def test_memory_is_read_as_people_write_it(text: str, size_bytes: int) -> None:
    assert _read(MEMORY=text).environment.memory_bytes == size_bytes


@pytest.mark.parametrize(("text", "size_bytes"), [("105MB", 105 * 10**6), ("4g", 4 * 10**9), ("1.5GiB", 3 * 2**29)])
def test_the_size_of_a_file_is_read_as_tables_show_it(text: str, size_bytes: int) -> None:
    assert _read(TARGET_SIZE=text).tune.target_bytes == size_bytes
    assert _read(SPLIT_ABOVE=text).publish.split_above_bytes == size_bytes


def test_the_token_is_never_an_option() -> None:
    with pytest.raises(SystemExit):
        _read("--hf-token", "hf_secret")


def test_another_base_image_can_be_named_for_each_image() -> None:
    request = _read(LLAMA_CPP_IMAGE="registry.example/llama.cpp", LLAMA_CPP_TAG="full-b9999")
    assert request.images.bases["builder"] == "registry.example/llama.cpp:full-b9999"
    assert "registry.example" not in request.images.bases["eval"]
    assert _read(EVAL_BASE_IMAGE="registry.example/python", EVAL_BASE_TAG="3.14").images.bases["eval"].endswith(":3.14")


def test_an_extra_ca_joins_the_systems_own(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n")
    bundle = _read(EXTRA_CA=str(ca), ARTIFACTS=str(tmp_path / "artifacts")).environment.ca_bundle
    assert bundle is not None
    text = bundle.read_text()
    assert "ours" in text and text.count("BEGIN CERTIFICATE") > 1


def test_a_ca_that_the_environment_names_already_reaches_the_containers_too(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n")
    request = _read(SSL_CERT_FILE=str(ca), ARTIFACTS=str(tmp_path / "artifacts"))
    assert request.images.extra_ca == ca


def test_what_is_to_be_measured_is_read_from_options_and_variables_alike(tmp_path: Path) -> None:
    request = _read(
        "--suite", "standard", "--tasks", "piqa, arc_easy,piqa", BASELINE="q8_0", LIMIT="50", SEED="0",
        DATASETS=str(tmp_path), ALLOW_UNSAFE_CODE="1", N_GPU_LAYERS="-1", MAX_LENGTH="2048",
    )
    assert request.measure == MeasureRequest(
        suite="standard", baseline=find_quant("Q8_0"), tasks=("piqa", "arc_easy"), limit=50, num_fewshot=None, seed=0,
        datasets=tmp_path, allow_unsafe_code=True, n_gpu_layers=-1, max_length=2048,
    )


def test_what_is_not_said_of_a_measuring_is_left_to_the_suite() -> None:
    assert _read().measure == MeasureRequest()


def test_a_command_that_does_not_measure_does_not_read_what_only_measuring_needs() -> None:
    parser = argparse.ArgumentParser()
    add_command_options(parser, ("MODEL", "QUANT"))
    assert read_command_request(parser.parse_args([]), dict.fromkeys(MEASURING, "nonsense")).measure is None


@pytest.mark.parametrize("value", ["1", "yes", "hebrew", "script:", "plain-text,nothing"])
def test_a_mismatch_is_permitted_by_naming_its_kind(value: str) -> None:
    with pytest.raises(BadRequest, match="is not a kind of mismatch") as refused:
        mismatch_setting("ALLOW_MISMATCH", {"ALLOW_MISMATCH": value})
    assert "plain-text" in refused.value.hint and "script:hebrew" in refused.value.hint


def test_kinds_of_mismatch_are_read_once_each_in_any_case() -> None:
    value = {"ALLOW_MISMATCH": "script:Hebrew, normalization,script:hebrew"}
    assert mismatch_setting("ALLOW_MISMATCH", value) == ("script:hebrew", "normalization")
    assert mismatch_setting("ALLOW_MISMATCH", {"ALLOW_MISMATCH": ""}) == ()


# ---- tokens and homes as they come -------------------------------------------------------------------


@pytest.mark.parametrize("given", [
    "hf_abc\n", "hf_abc\r\n", "  hf_abc ", "\thf_abc", "\ufeffhf_abc", "hf_abc\u200b", '"hf_abc"', "'hf_abc'\n",
    "hf_abc\0",
])  # fmt: skip
def test_a_token_is_taken_without_what_a_file_or_variable_puts_around_it(given: str) -> None:
    assert token_setting("HF_TOKEN", given) == "hf_abc"


@pytest.mark.parametrize("given", ["\n", " ", '""', "\r\n"])
def test_a_token_of_nothing_else_is_none(given: str) -> None:
    assert token_setting("HF_TOKEN", given) is None


@pytest.mark.parametrize("given", ["hf_abc\nhf_def", "hf_abc def", "hf_äbc", "hf_abc\x1b"])
def test_a_token_that_no_header_may_hold_is_refused_and_never_shown(given: str) -> None:
    with pytest.raises(BadRequest) as caught:
        token_setting("HF_TOKEN", given)
    assert "hf_" not in caught.value.message + caught.value.hint
