"""Bad input through the command line: each gets its exit code, a message that names the fact, and what to type
next; nothing is left under a final name.

Most of it is found out before any stage runs.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantyard.paths import REPO_DIR
from tests.conftest import run, run_here, start
from tests.gguf_files import SMALL, SMALL_METADATA, TensorSpec, gguf, preamble, string, tensor_info, value

NOWHERE = "http://127.0.0.1:9"  # nothing listens: whoever asks the Hub for a bad name gets exit code 4


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be spoiled."""
    return Path(shutil.copytree(tiny_model, tmp_path / "spoiled"))


Done = subprocess.CompletedProcess[str]
Refused = Callable[..., str]


@pytest.fixture
def refused(some_engine: str, tmp_path: Path) -> Refused:
    """Builds what must be refused, with this exit code and these words; returns what was said. `command=run` types
    it as a user does, once for each way that a command ends.
    """

    def build(
        model: Path | str, *words: str, code: int = 2, command: Callable[..., Done] = run_here, **variables: str
    ) -> str:
        artifacts = tmp_path / "artifacts"
        surroundings = {"ENGINE": some_engine, "ARTIFACTS": str(artifacts), "HF_ENDPOINT": NOWHERE, "QUANT": "Q8_0"}
        done = command("build", **{**surroundings, "MODEL": str(model), **variables})
        _assert_refused(done, code, *words)
        _assert_nothing_kept(artifacts)
        return done.stderr

    return build


def _assert_refused(done: Done, code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "error: " in done.stderr and "Traceback" not in done.stderr and done.stdout == ""
    assert [word for word in words if word not in done.stderr] == [], done.stderr


def _assert_nothing_kept(artifacts: Path) -> None:
    assert [*artifacts.rglob("stages/*"), *artifacts.rglob("*.gguf"), *artifacts.rglob("manifest.json")] == []


# ---- what is asked for -----------------------------------------------------------------------------


def test_no_model_at_all_names_the_way_to_give_one(refused: Refused) -> None:
    refused("", "MODEL is not given", "make build MODEL=org/name", "make demo", command=run)


@pytest.mark.parametrize(("asked", "nearest"), [("Q4_KM", "Q4_K_M"), ("q8-0", "Q8_0"), ("Q4_K_M,IQ4XS", "IQ4_XS")])
def test_an_unknown_quant_gets_the_nearest_name(asked: str, nearest: str, refused: Refused, model: Path) -> None:
    refused(model, "nknown quant", nearest, "make quants", QUANT=asked)


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("../x", "it is a path"), ("../../etc/x", "There is no file or folder"),
        ("/no/such", "There is no file or folder"), ("~/no-such-folder", "There is no file or folder"),
        ("no-such.gguf", "There is no file or folder"),
        ("/etc/passwd", "passwd is not a usable GGUF"), ("/etc", "no config.json"), ("--x", "is not a model"),
        ("-rf", "is not a model"), ("a/b/c", "it has 3 parts"), ("a/b/", "a part of it is empty"),
        ("/", "no config.json"),
        ("org/my model", "it holds a space"), ("org /name", "it holds a space"), (" ", "is not a model"),
        ("name", "is not a model folder, a file or a preset"), ("org/..", "it is a path"), ("org/na..me", "'..'"),
        ("org/name\n", "an unprintable character"), ("org/name.git", "is not a model id"),
        ("org/name@", "not name a valid git revision"), ("org/name@../x", "not name a valid git revision"),
        ("org/name@a b", "not name a valid git revision"),
        ("org/name@--upload-pack=x", "not name a valid git revision"),
        ("https://huggingface.co/org/name", "MODEL=org/name"),
        ("org/name?x=1", "is not a model id"), ("org/%2e%2e", "is not a model id"),
        ("org\\name", "is not a model folder, a file or a preset"),
        ("ｏｒｇ/name", "is not a model id"), ("o" * 100 + "/name", "is not a model id"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_model_is_refused_before_the_hub_is_asked(name: str, fact: str, refused: Refused) -> None:
    said = refused(name, fact)
    assert "MODEL=" in said or "Give the folder that holds" in said or "Download or copy" in said


def test_option_like_names_on_the_command_line_are_refused_too(some_engine: str, tmp_path: Path) -> None:
    done = run("build", "--model=--x", ENGINE=some_engine, ARTIFACTS=str(tmp_path))
    _assert_refused(done, 2, "'--x' is not a model", "MODEL=org/name")
    swallowed = run("build", "--model", "--x", ENGINE=some_engine, ARTIFACTS=str(tmp_path))
    assert swallowed.returncode == 2 and "expected one argument" in swallowed.stderr
    _assert_nothing_kept(tmp_path)


# ---- folders ---------------------------------------------------------------------------------------


def test_a_folder_without_config_json_is_no_model(refused: Refused, model: Path) -> None:
    (model / "config.json").unlink()
    refused(model, "holds weights but no config.json: model.safetensors", "as save_pretrained writes it")


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        (b"{", "not valid JSON"), (b"", "is empty"), (b"\xff\xfe{", "UTF-16 text"), (b"[]", "no JSON object"),
        (b"[" * 100_000, "not valid JSON"), (b'{"n": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
    ids=["cut", "empty", "no-text", "a-list", "nested", "a-long-number"],
)  # fmt: skip
def test_a_config_that_is_no_json_object_is_named(text: bytes, fact: str, refused: Refused, model: Path) -> None:
    (model / "config.json").write_bytes(text)
    refused(model, "config.json", fact)


@pytest.mark.parametrize(
    ("name", "number"),
    [("num_hidden_layers", 3_000_000_000), ("vocab_size", 10**400), ("hidden_size", 10**400), ("head_dim", -(10**400))],
    ids=["layers", "words", "width", "below-zero"],
)
def test_absurd_numbers_in_a_config_cost_a_plan_neither_memory_nor_its_temper(
    name: str, number: int, some_engine: str, model: Path, tmp_path: Path
) -> None:
    _change_config(model, **{name: number})
    code = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30));"
        "sys.argv[0] = 'quantyard'; runpy.run_module('quantyard', run_name='__main__')"
    )
    options = ["--model", str(model), "--engine", some_engine, "--artifacts", str(tmp_path / "artifacts")]
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", *options], cwd=REPO_DIR, capture_output=True, text=True, timeout=120,
        check=False,
    )
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr[-2000:]


def test_an_unsupported_architecture_is_exit_code_3_and_named(refused: Refused, model: Path) -> None:
    _change_config(model, architectures=["NoSuchForCausalLM"])
    words = ("does not know the architecture NoSuchForCausalLM", "LLAMA_CPP_TAG=")
    refused(model, *words, code=3)


@pytest.mark.parametrize(
    "changes",
    [{"architectures": None}, {"architectures": []}, {"architectures": [7]}, {"architectures": "LlamaForCausalLM"},
     {"architectures": None, "text_config": None}],
    ids=["null", "empty", "a-number", "a-string", "no-text-config-either"],
)  # fmt: skip
def test_a_config_that_names_no_architecture_is_exit_code_3(
    changes: dict[str, Any], refused: Refused, model: Path
) -> None:
    _change_config(model, **changes)
    refused(model, "names no architecture", "language model", code=3)


def test_pickle_weights_are_refused_and_the_way_to_allow_them_is_named(refused: Refused, model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    refused(model, "pickle files", "pytorch_model.bin", "ALLOW_PICKLE=1")


def test_a_folder_without_weights_says_so(refused: Refused, model: Path) -> None:
    (model / "model.safetensors").unlink()
    refused(model, "holds no weights", "*.safetensors")


def test_a_missing_shard_is_counted(refused: Refused, model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00003.safetensors")
    refused(model, "lacks 2 of 3 shards", "another revision")


def test_a_model_without_its_tokenizer_is_refused(refused: Refused, model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()
    refused(model, "has no tokenizer", "tokenizer.save_pretrained")


# ---- safetensors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 5, 8, 500, -1])
def test_a_truncated_safetensors_file_is_named(keep: int, refused: Refused, model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    refused(model, "model.safetensors is truncated", "Download or copy it again")


def test_a_safetensors_file_with_bytes_behind_its_end_is_named(refused: Refused, model: Path) -> None:
    with (model / "model.safetensors").open("ab") as stream:
        stream.write(b"more")
    refused(model, "model.safetensors is too long", "Download or copy it again")


@pytest.mark.parametrize(
    "at", [b'{"model', b'"dtype', b"BF16", b'"shape', b"data_offsets", b"[0,", b"}}"], ids=lambda at: at.decode()
)
def test_a_flipped_bit_in_the_safetensors_header_is_found(at: bytes, refused: Refused, model: Path) -> None:
    _flip_bit(model / "model.safetensors", at)
    refused(model, "model.safetensors", "Download or copy it again")


def test_a_flipped_bit_in_the_name_of_a_tensor_is_a_tensor_that_is_missing(refused: Refused, model: Path) -> None:
    _flip_bit(model / "model.safetensors", b"norm.weight")
    refused(model, "lacks a tensor of its model: norm.weight")


@pytest.mark.parametrize(
    "bits",
    [pytest.param(0x7FC0, id="nan"), pytest.param(0x7F80, id="inf", marks=pytest.mark.slow),
     pytest.param(0xFF80, id="-inf", marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_weight_that_is_not_finite_is_found_and_its_tensor_named(bits: int, refused: Refused, model: Path) -> None:
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    start = 8 + struct.unpack_from("<Q", data)[0]
    at = start + json.loads(data[8:start])["model.layers.0.mlp.up_proj.weight"]["data_offsets"][0]
    data[at + 10 : at + 12] = struct.pack("<H", bits)
    weights.write_bytes(data)
    refused(model, "NaN or infinite", "model.layers.0.mlp.up_proj.weight", "download it again")


def test_a_header_longer_than_its_file_is_not_believed(refused: Refused, model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", 1 << 40) + weights.read_bytes()[8:])
    refused(model, "model.safetensors", str(1 << 40), "Download or copy it again")


def test_a_header_longer_than_the_format_allows_is_not_read(refused: Refused, model: Path) -> None:
    length = 100_000_001
    with (model / "model.safetensors").open("r+b") as stream:
        stream.write(struct.pack("<Q", length))
        stream.truncate(length + 100)  # a hole: it takes no disk
    refused(model, f"has a header of {length} bytes", "the format allows")


def test_a_damaged_file_is_found_by_its_header_before_its_terabyte_is_hashed(
    some_engine: str, model: Path, tmp_path: Path
) -> None:
    with (model / "model.safetensors").open("r+b") as stream:
        stream.write(struct.pack("<Q", 1 << 39))
        stream.truncate(1 << 40)
    process = start("plan", MODEL=str(model), ENGINE=some_engine, ARTIFACTS=str(tmp_path / "artifacts"))
    try:
        _out, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 2 and "the format allows" in said


# ---- GGUF ------------------------------------------------------------------------------------------

_KEY = string("general.architecture") + value("llama")
HOSTILE = {
    "magic": (b"GGML" + SMALL[4:], "not a GGUF file"),
    "version": (preamble(0, 0, version=9), "GGUF version 9"),
    "big-endian": (preamble(0, 0, version=3 << 24), "big-endian"),
    "tensor-count": (preamble(1 << 60, 0) + bytes(64), "tensors, more than"),
    "key-count": (preamble(0, (1 << 64) - 1) + bytes(64), "metadata keys, more than"),
    "string-length": (preamble(0, 1) + struct.pack("<Q", 1 << 63) + bytes(64), "bytes for a metadata key"),
    "array-length": (
        preamble(0, 1) + string("a") + struct.pack("<IIQ", 9, 8, 1 << 61) + bytes(64), "elements in 'a'",
    ),
    "nested-array": (preamble(0, 1) + string("a") + struct.pack("<IIQ", 9, 9, 1) + bytes(64), "nests an array"),
    "value-type": (preamble(0, 1) + string("a") + struct.pack("<I", 99) + bytes(64), "unknown value type 99"),
    "same-key-twice": (preamble(0, 2) + _KEY + _KEY, "repeats the metadata key"),
    "alignment": (gguf({**SMALL_METADATA, "general.alignment": 3}, ()), "the alignment 3"),
    "dimensions": (preamble(1, 1) + _KEY + tensor_info("t", [1] * 9, 0, 0) + bytes(64), "9 dimensions"),
    "shape-overflow": (preamble(1, 1) + _KEY + tensor_info("t", [1 << 40] * 3, 0, 0) + bytes(64), "impossible shape"),
    "tensor-type": (preamble(1, 1) + _KEY + tensor_info("t", [32], 9999, 0) + bytes(64), "unknown type 9999"),
    "offset": (preamble(1, 1) + _KEY + tensor_info("t", [32], 0, 1 << 50) + bytes(256), "ends at byte"),
    "path-in-a-name": (gguf(SMALL_METADATA, [TensorSpec("../" * 40, (32,))]), "a tensor's name of 120 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_gguf_header_is_refused_with_its_reason(kind: str, refused: Refused, tmp_path: Path) -> None:
    data, reason = HOSTILE[kind]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    refused(path, "hostile.gguf is not a usable GGUF", reason, "Download or copy it again")


@pytest.mark.parametrize("keep", [0, 3, 20, 100, len(SMALL) // 2, len(SMALL) - 40])
def test_a_truncated_gguf_is_refused(keep: int, refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(SMALL[:keep])
    refused(path, "cut.gguf is not a usable GGUF", "Download or copy it again")


def test_a_missing_shard_of_a_gguf_is_named(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-00002.gguf"
    path.write_bytes(gguf({**SMALL_METADATA, "split.no": 0, "split.count": 2}, ()))
    refused(path, "m-00002-of-00002.gguf is missing", "Download or copy it again")


def test_a_well_formed_gguf_that_is_no_model_is_exit_code_3(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.write_bytes(gguf({"general.architecture": "llama", "general.file_type": 0}, [TensorSpec("t", (32, 2))]))
    refused(path, "Its last output says why", code=3)


def _change_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _flip_bit(path: Path, at: bytes) -> None:
    """Flip the second-lowest bit of the first byte of `at` in the file's header."""
    data = bytearray(path.read_bytes())
    data[data.index(at)] ^= 0b10
    path.write_bytes(data)
