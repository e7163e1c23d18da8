"""The edge: argv and environment become one frozen request, or a clear error."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from pipeline.errors import BadRequest
from pipeline.settings import BuildRequest, add_options, read_request


def _read(*argv: str, **environment: str) -> BuildRequest:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return read_request(parser.parse_args(argv), environment)


def test_make_variables_and_options_meet_in_the_same_setting() -> None:
    assert _read("--quant", "Q8_0").quants == _read(QUANT="Q8_0").quants


def test_an_option_wins_over_the_environment() -> None:
    assert _read("--threads", "3", THREADS="5").threads == 3


def test_the_defaults_are_a_complete_request() -> None:
    request = _read()
    assert [q.name for q in request.quants] == ["Q4_K_M"]
    assert (request.engine, request.outtype, request.workers) == ("auto", "auto", 4)
    assert request.images.base == "ghcr.io/ggml-org/llama.cpp:full"


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
    ],
)
def test_a_value_that_cannot_be_is_named_with_what_to_type(name: str, value: str, says: str) -> None:
    with pytest.raises(BadRequest) as error:
        _read(**{name: value})
    assert says in error.value.message and error.value.hint


@pytest.mark.parametrize(("text", "size_bytes"), [("16GiB", 16 * 2**30), ("1.5g", 3 * 2**29), ("512M", 2**29)])
def test_memory_is_read_as_people_write_it(text: str, size_bytes: int) -> None:
    assert _read(MEMORY=text).surroundings.memory_bytes == size_bytes


def test_the_token_is_never_an_option() -> None:
    with pytest.raises(SystemExit):
        _read("--hf-token", "hf_secret")


def test_another_base_image_can_be_named() -> None:
    request = _read(LLAMA_CPP_IMAGE="registry.example/llama.cpp", LLAMA_CPP_TAG="full-b9999")
    assert request.images.base == "registry.example/llama.cpp:full-b9999"


def test_an_extra_ca_joins_the_systems_own(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n")
    bundle = _read(EXTRA_CA=str(ca), ARTIFACTS=str(tmp_path / "artifacts")).surroundings.ca_bundle
    assert bundle is not None
    text = bundle.read_text()
    assert "ours" in text and text.count("BEGIN CERTIFICATE") > 1


def test_a_ca_that_the_environment_names_already_reaches_the_containers_too(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n")
    request = _read(SSL_CERT_FILE=str(ca), ARTIFACTS=str(tmp_path / "artifacts"))
    assert request.images.extra_ca == ca
