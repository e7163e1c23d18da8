"""What MODEL names, resolved without a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from quantyard.errors import BadSource, NeedsPermission
from quantyard.hub.client import HubAccess
from quantyard.protocol.base import FileEntry
from quantyard.quants.catalog import find_quant
from quantyard.quants.selection import parse_quants
from quantyard.sources.resolve import Source, find_source, recall_source, refuse_quantized_source
from quantyard.store.hash_cache import HashCache
from tests.gguf_files import SMALL_METADATA, TensorSpec, gguf
from tests.unit.conftest import MakeRunner, Notes
from tests.unit.fake_engine import FakeEngine

COMMIT = "a" * 40


def _find(model: str, tmp_path: Path) -> Source:
    return find_source(model, HubAccess(), HashCache(tmp_path / "hashes"), allow_pickle=False, gguf_file=None)


def _hub_gguf(source: Source, *names: str) -> Source:
    files = tuple(FileEntry(path=name, size_bytes=1000) for name in names)
    return replace(source, kind="gguf", gguf_file=names[0], files=files, dtypes={})


def test_a_gguf_file_is_a_source_of_its_own_and_not_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "tiny-BF16.gguf"
    path.write_bytes(gguf(SMALL_METADATA, (TensorSpec("blk.0.ffn_up.weight", (256, 2), "BF16"),)))
    source = _find(str(path), tmp_path)
    assert (source.kind, source.model.name, source.gguf_file) == ("gguf", "tiny", "tiny-BF16.gguf")
    assert source.local is not None
    assert not source.local.whole_folder


@pytest.mark.parametrize("model", ["/no/such/place", "./missing", "missing.gguf", "--x", " ", "a\0b"])
def test_what_is_neither_a_path_nor_an_id_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(BadSource) as error:
        _find(model, tmp_path)
    assert error.value.hint


def test_a_changed_folder_is_another_model(tmp_path: Path, local_source: Source) -> None:
    assert local_source.local is not None
    folder = local_source.local.folder
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (folder / "tokenizer.json").write_text("{}")
    before = _find(str(folder), tmp_path).model.commit
    (folder / "config.json").write_text('{"vocab_size": 7}')
    assert _find(str(folder), tmp_path).model.commit != before


@pytest.mark.parametrize(
    ("name", "quant"), [("m-Q4_K_M.gguf", "Q4_K_M"), ("m.q8_0.gguf", "Q8_0"), ("m-BF16-00001-of-00002.gguf", "BF16")]
)
def test_a_gguf_on_the_hub_says_by_its_name_what_it_is(name: str, quant: str, hub_source: Source) -> None:
    assert _hub_gguf(hub_source, name).named_quant == find_quant(quant)


def test_a_quantized_gguf_on_the_hub_is_refused_before_it_is_downloaded(hub_source: Source) -> None:
    source = _hub_gguf(hub_source, "m-Q4_K_M.gguf")
    with pytest.raises(NeedsPermission, match=r"m-Q4_K_M\.gguf is quantized already; making Q8_0"):
        refuse_quantized_source(source, parse_quants("Q8_0"), "auto", allowed=False)
    refuse_quantized_source(source, parse_quants("Q4_K_M,COPY"), "auto", allowed=False)


def test_a_gguf_that_is_the_wanted_quant_already_is_verified_as_it_is(
    hub_source: Source, make_runner: MakeRunner
) -> None:
    builder = make_runner(_hub_gguf(hub_source, "m-Q4_K_M.gguf"), FakeEngine())
    assert [step.label for step in builder.plan.steps] == ["fetch", "verify Q4_K_M"]


def test_shards_are_joined_even_if_nothing_is_to_be_quantized(hub_source: Source, make_runner: MakeRunner) -> None:
    source = _hub_gguf(hub_source, "m-BF16-00001-of-00002.gguf", "m-BF16-00002-of-00002.gguf")
    builder = make_runner(source, FakeEngine(), "BF16")
    assert [step.label for step in builder.plan.steps] == ["fetch", "quantize BF16", "verify BF16"]


def test_a_build_of_a_whole_commit_is_remembered_without_the_hub(
    hub_source: Source, make_runner: MakeRunner, notes: Notes, tmp_path: Path
) -> None:
    make_runner(hub_source, FakeEngine()).run(notes)
    known = recall_source(tmp_path / "artifacts", f"org/tiny@{COMMIT}")
    assert known is not None
    engine = FakeEngine()
    make_runner(known, engine).run(notes)
    assert engine.ran == []


@pytest.mark.parametrize("model", ["org/tiny", "org/tiny@main", f"org/other@{COMMIT}", f"org/tiny@{'b' * 40}"])
def test_anything_less_exact_is_not_remembered(
    model: str, hub_source: Source, make_runner: MakeRunner, notes: Notes, tmp_path: Path
) -> None:
    make_runner(hub_source, FakeEngine()).run(notes)
    assert recall_source(tmp_path / "artifacts", model) is None
