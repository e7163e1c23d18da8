"""Fuzzers with fixed seeds: bytes of others, changed at random, end in a value or in an error of ours, and soon.

Each seed is a valid file. What a round changes follows from its number alone, so that a failure is repeated by its
number.
"""

from __future__ import annotations

import json
import random
import resource
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from builder.checks.lora_adapter import read_lora_config
from builder.checks.nonfinite import find_nonfinite_tensors
from quantyard.card.check import _metadata_on_card
from quantyard.errors import BadRequest
from quantyard.formats.gguf import GgufError, read_gguf_model
from quantyard.formats.safetensors import SafetensorsError, read_safetensors_folder, safetensors_dtype
from quantyard.formats.strict_yaml import YamlProblem, load_strict_yaml
from quantyard.gate.budgets import load_gate_budgets
from quantyard.hub.model_card import hub_card_of_gguf, hub_card_of_readme
from quantyard.paths import REPO_DIR
from quantyard.plan.suites import find_suite
from quantyard.protocol.reference import AddedToken, Passage, ProbeBatch, Reference
from quantyard.protocol.runner import StageFailure
from quantyard.quants.recipe_files import read_quant_recipe
from quantyard.sandbox.bounded_process import OverLimit
from quantyard.sandbox.chat_template import ChatRefused, ChatTemplate
from quantyard.store.manifest import parse_manifest
from tests.gguf_files import SMALL
from tests.hostile.sampling import rounds
from tests.manifests import manifest_of

SECONDS: Final = 5.0  # for one input
MEMORY_BYTES: Final = 1 << 30  # more than the process has at the start
_NUMBERS: Final = (
    0, 1, 2, 7, 8, 9, 127, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
_WORDS: Final = (
    b"\x00", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xae", b"\x1b[31m", b"../", b"/", b"[", b"{", b'"', b":", b"\n",
    b"&a ", b"*a", b"!!", b"<<: ", b"---\n", b".nan", b"NaN", b"1e999", b"9" * 400, b"null", b"true", b"[]", b"{}",
    b"-1", b"{{", b"}}", b"{%", b"%}", b"|", b"{% for a in range(9) %}", b"[" * 200, b"\\ud800",
)  # fmt: skip


def mutated(rng: random.Random, seed: bytes) -> bytes:
    """A few changes of one to eight bytes, words that mean something, pieces repeated, moved, or gone."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 2, 8, 64)))
        match rng.randrange(7):
            case 0:
                data[at:end] = rng.randbytes(end - at)
            case 1:
                size = rng.choice((1, 4, 8))
                data[at : at + size] = (rng.choice(_NUMBERS) % (1 << 8 * size)).to_bytes(size, "little")
            case 2:
                data[at:at] = rng.choice(_WORDS)
            case 3:
                data[at:end] = rng.choice(_WORDS)
            case 4:
                data[at:at] = bytes(data[at:end]) * rng.choice((1, 3, 50))
            case 5:
                del data[at:end]
            case _:
                del data[at:]
    return bytes(data)


@contextmanager
def limited_memory() -> Iterator[None]:
    """What asks for more than `MEMORY_BYTES` ends in MemoryError, which is no error of ours."""
    used = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + MEMORY_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def fuzz(name: str, seeds: list[bytes], n: int, read: Callable[[bytes], object], *ours: type[Exception]) -> None:
    """Read `n` inputs made of the seeds.

    Raises:
        AssertionError: one took too long, or ended in an error that is none of `ours`.
    """
    with limited_memory():
        for number in range(n):
            rng = random.Random(f"{name} {number}")
            data = mutated(rng, rng.choice(seeds))
            started = time.monotonic()
            try:
                read(data)
            except ours as error:
                str(error).encode()
            except Exception as error:
                what = f"{type(error).__name__}: {error}"
                raise AssertionError(f"{name}, round {number}: {what}; input {data[:200]!r}") from error
            took_s = time.monotonic() - started
            assert took_s < SECONDS, f"{name}, round {number}: {took_s:.1f} s"


# ---- weights -------------------------------------------------------------------------------------------------------


def test_gguf_headers(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        header = read_gguf_model(path)
        hub_card_of_gguf(header.metadata, path)
        assert all(tensor.offset + tensor.size_bytes <= len(data) for tensor in header.tensors)

    fuzz("gguf", [SMALL], rounds(sample=600, whole=20_000), read, GgufError, FileNotFoundError)


def _safetensors() -> list[bytes]:
    first = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}
    second = {"dtype": "F32", "shape": [], "data_offsets": [12, 16]}
    only = {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}
    headers = [(_json({"a": first, "b": second}), 16), (_json({"__metadata__": {"format": "pt"}, "a": only}), 8)]
    return [struct.pack("<Q", len(text)) + text + bytes(size) for text, size in headers]


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def test_safetensors_headers(tmp_path: Path) -> None:
    def read(data: bytes) -> None:
        (tmp_path / "model.safetensors").write_bytes(data)
        files = read_safetensors_folder(tmp_path)
        safetensors_dtype(files)
        find_nonfinite_tensors(files)

    fuzz("safetensors", _safetensors(), rounds(sample=600, whole=20_000), read, SafetensorsError)


def test_an_index_of_safetensors(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(_safetensors()[0])
    index = {"metadata": {"total_size": 16}, "weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}

    def read(data: bytes) -> None:
        (tmp_path / "model.safetensors.index.json").write_bytes(data)
        read_safetensors_folder(tmp_path)

    fuzz("index", [_json(index)], rounds(sample=500, whole=10_000), read, SafetensorsError)


def test_adapter_configurations(tmp_path: Path) -> None:
    config = {
        "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "base_model_name_or_path": "a/b",
        "bias": "none", "modules_to_save": None, "use_rslora": False, "alpha_pattern": {}, "rank_pattern": {},
    }  # fmt: skip

    def read(data: bytes) -> None:
        (tmp_path / "adapter_config.json").write_bytes(data)
        read_lora_config(tmp_path)

    fuzz("adapter", [_json(config)], rounds(sample=500, whole=10_000), read, StageFailure)


# ---- records -------------------------------------------------------------------------------------------------------


def test_manifests() -> None:
    text = manifest_of().model_dump_json().encode()

    def read(data: bytes) -> None:
        parse_manifest(data, "manifest.json").model_dump_json().encode()

    fuzz("manifest", [text], rounds(sample=500, whole=10_000), read, ValueError, BadRequest)


def test_references() -> None:
    reference = Reference(
        tokenizer_class="A", witness="tokenizer.json", disagreements=["A adds none"], bos_token="<s>",
        probe_ids={"a": [1]}, probe_ids_with_special={"a": [0, 1]},
        passages=[Passage(name="a", script="latin", text="a", ids=[1])],
        added_tokens=[AddedToken(
            id=0, content="<s>", special=True, lstrip=False, rstrip=False, single_word=False, normalized=False,
        )],
        added_batches=[ProbeBatch(tokens=["<s>"], texts=["a<s>"], ids=[[1, 0]], joined_ids=[1, 0])],
        chat_template=True, chats=[], refused_chats={"user": "no"},
    )  # fmt: skip
    fuzz("reference", [reference.model_dump_json().encode()], rounds(sample=500, whole=10_000),
         Reference.model_validate_json, ValueError)  # fmt: skip


# ---- YAML ----------------------------------------------------------------------------------------------------------


def _yaml_files() -> list[bytes]:
    folders = ("eval/suites", "quantyard/gate", "quantyard/quants/recipes", "docs/examples/own-questions")
    return [path.read_bytes() for folder in folders for path in sorted((REPO_DIR / folder).rglob("*.yaml"))]


def test_yaml() -> None:
    def read(data: bytes) -> None:
        json.dumps(load_strict_yaml(data), allow_nan=False)
        load_strict_yaml(data, typed=False)

    small = [data for data in _yaml_files() if len(data) < 3000]
    fuzz("yaml", small, rounds(sample=250, whole=5000), read, YamlProblem)


@pytest.mark.parametrize("name", ["suite", "budgets", "recipe"])
def test_yaml_files_of_ours(tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine.yaml"
    readers: dict[str, tuple[str, Callable[[], object]]] = {
        "suite": ("eval/suites/quick.yaml", lambda: find_suite(str(path))),
        "budgets": ("quantyard/gate/default.yaml", lambda: load_gate_budgets(path)),
        "recipe": ("quantyard/quants/recipes", lambda: read_quant_recipe(path)),
    }
    place, read_file = readers[name]
    seed = next(iter(sorted((REPO_DIR / place).glob("*.yaml")))) if (REPO_DIR / place).is_dir() else REPO_DIR / place

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_file()

    fuzz(name, [seed.read_bytes()], rounds(sample=60, whole=2000), read, BadRequest)


def test_model_cards() -> None:
    card = b"---\nlicense: apache-2.0\nlanguage: [en, no]\ntags:\n- chat\nbase_model: a/b\n---\n# A\n---\n"

    def read(data: bytes) -> None:
        text = data.decode(errors="replace")
        hub_card_of_readme(text)
        _metadata_on_card(text)

    fuzz("card", [card], rounds(sample=500, whole=10_000), read)


# ---- chat templates ------------------------------------------------------------------------------------------------

_TEMPLATE: Final = (
    "{%- set ns = namespace(n=0) %}{%- for message in messages %}{%- if message['role'] == 'user' %}\n"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content']|trim + '<|im_end|>\\n' }}"
    "{%- set ns.n = ns.n + 1 %}"
    "{%- else %}{{ raise_exception('no ' ~ message.role) }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' ~ [1, 2]|tojson ~ 'a' * 3 }}{%- endif %}"
)


def test_templates() -> None:
    def read(data: bytes) -> None:
        template = ChatTemplate(data.decode(errors="replace"), "<s>", "</s>", cpu_s=1)
        try:
            template.render([{"role": "user", "content": "hi"}], add_generation_prompt=True).encode()
        finally:
            template.close()

    fuzz("template", [_TEMPLATE.encode()], rounds(sample=10, whole=300), read, OverLimit, ChatRefused, StageFailure)


