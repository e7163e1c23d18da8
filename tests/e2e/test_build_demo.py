"""The demo model through every stage, on both engines.

One build per engine is shared by all tests here, and lends its conversion to those of the other modules.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGUFReader
from rich.console import Console

from quantyard.cli.request import read_command_request
from quantyard.engines.registry import choose_engine
from quantyard.execution.progress import LineReporter
from quantyard.formats.gguf import TensorInfo, read_gguf_model
from quantyard.formats.safetensors import SafetensorsTensor, read_safetensors_file
from quantyard.paths import REPO_DIR, read_pins
from quantyard.protocol.runner import file_sha256
from quantyard.workflows.demo import workflow_demo_folder
from tests.conftest import DEMO_QUANTS, Demo, run, run_json

# ggml's name of each tensor of a layer of a llama in Hugging Face format.
LAYER_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
PERMUTED = ("attn_q.weight", "attn_k.weight")  # the converter reorders their rows for llama.cpp's rotary embedding
pytestmark = [pytest.mark.both_engines, pytest.mark.quick]


@pytest.fixture
def demo(engine: str, built_demo: Callable[[str], Demo]) -> Demo:
    """The build of this engine."""
    return built_demo(engine)


def test_a_build_runs_every_stage_that_the_plan_names(demo: Demo) -> None:
    stages = ["convert", "quantize Q4_K_M", "verify Q4_K_M", "quantize Q8_0", "verify Q8_0"]
    assert [s["label"] for s in demo.plan["stages"]] == stages
    assert {s["state"] for s in demo.plan["stages"]} == {"to run"}
    assert demo.made["ran"] == stages


def test_a_build_ends_with_files_whose_header_another_parser_reads(demo: Demo) -> None:
    reader = GGUFReader(demo.file("Q4_K_M"))  # seconds: it keeps every token
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["general.name"].contents() == demo.model.name
    ours = {quant: read_gguf_model(demo.file(quant)) for quant in ("Q4_K_M", "Q8_0")}
    assert {quant: model.file_type for quant, model in ours.items()} == {"Q4_K_M": 15, "Q8_0": 7}
    sizes = {tensor.name: tensor.n_bytes for tensor in reader.tensors}
    assert sizes == {tensor.name: tensor.size_bytes for tensor in ours["Q4_K_M"].tensors} and len(sizes) == 272


def test_sizes_are_within_two_percent_of_the_plan(demo: Demo) -> None:
    planned = {f["quant"]: f["size_bytes"] for f in demo.plan["files"]}
    for file in demo.made["files"]:
        assert abs(planned[file["quant"]] / file["size_bytes"] - 1) < 0.02
    converted = demo.manifest["stages"]["convert"]["outputs"]
    size_bytes = next(f["size_bytes"] for f in converted if f["path"] == "model.gguf")
    assert abs(demo.plan["stages"][0]["size_bytes"] / size_bytes - 1) < 0.02


def test_the_manifest_holds_the_hash_and_size_of_every_file(demo: Demo) -> None:
    quants = demo.manifest["quants"]
    for file in demo.made["files"]:
        path, record = Path(file["path"]), quants[file["quant"]]
        assert file_sha256(path) == record["sha256"] == file["sha256"]
        assert path.stat().st_size == record["size_bytes"] == file["size_bytes"]
        assert path.name == record["file"]
        assert record["made_by"] in demo.manifest["stages"] and record["verified_by"] in demo.manifest["stages"]


def test_the_manifest_names_every_file_of_the_source_by_its_hash(demo: Demo) -> None:
    source = demo.manifest["source"]
    recorded = {f["path"]: f["sha256"] for f in source["files"]}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= recorded.keys()
    assert recorded["config.json"] == hashlib.sha256((demo.model / "config.json").read_bytes()).hexdigest()
    assert source["commit"] == demo.made["commit"]


def test_the_manifest_says_of_every_stage_what_ran_and_on_what(demo: Demo) -> None:
    stages = demo.manifest["stages"]
    assert list(stages) == demo.made["ran"]
    for label, stage in stages.items():
        assert stage["tools"] and "unknown" not in stage["tools"].values(), label
        assert stage["ran_by"]["engine"] == demo.engine and stage["cpu"] and stage["duration_s"] > 0
        assert stage["inputs"] and stage["request"]["stage"] == label.split()[0]
        if demo.engine == "docker":
            assert stage["ran_by"]["base_digest"].startswith("sha256:") and stage["ran_by"]["builder_image"]
        else:
            assert "llama_cpp_python==" in stage["ran_by"]["packages"].replace("-", "_")


def test_the_manifest_has_the_command_line_of_every_tool(demo: Demo) -> None:
    argvs = {label: stage["argv"] for label, stage in demo.manifest["stages"].items()}
    assert "convert_hf_to_gguf.py" in " ".join(argvs["convert"][0])
    assert [label for label, argv in argvs.items() if not argv] == []
    assert "Q4_K_M" in argvs["quantize Q4_K_M"][0] and "Q8_0" in argvs["quantize Q8_0"][0]
    if demo.engine == "docker":
        assert argvs["quantize Q8_0"][0][0].endswith("llama-quantize")


def test_files_are_verified_against_the_original_tokenizer_and_by_running_them(demo: Demo) -> None:
    for quant in ("Q4_K_M", "Q8_0"):
        facts = demo.manifest["stages"][f"verify {quant}"]["facts"]
        assert facts["probes"] >= 200 and facts["running_text_tokens"] >= 5000 and facts["chats"] > 0
        assert facts["reference"].startswith("tokenizer.json (tokenizers ") and facts["nonfinite_blocks"] == 0
        assert facts["tensors"] == 272 and facts["logits"] >= 2


def test_the_same_build_again_runs_nothing_and_changes_no_file(demo: Demo) -> None:
    before = _times(demo.artifacts)
    again = demo.again()
    assert again["ran"] == []
    assert again["files"] == demo.made["files"]
    assert _times(demo.artifacts) == before


def test_a_further_quant_runs_its_own_two_stages_alone(demo: Demo) -> None:
    stages = demo.artifacts.rglob("stages/*")
    before = {path: path.stat().st_mtime_ns for path in stages}
    made = demo.again(QUANT=f"{DEMO_QUANTS},Q6_K")
    assert made["ran"] == ["quantize Q6_K", "verify Q6_K"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {"Q4_K_M", "Q8_0", "Q6_K"} <= demo.manifest["quants"].keys()


def test_the_type_the_model_was_converted_to_needs_no_quantizing(demo: Demo) -> None:
    made = demo.again(QUANT="BF16")
    assert made["ran"] in (["verify BF16"], [])  # [] when another test asked for it before
    path = Path(made["files"][0]["path"])
    assert path.samefile(_converted(demo)), "the conversion itself is published, not a copy of it"


def test_json_is_one_object_on_stdout_and_nothing_else(demo: Demo) -> None:
    done = run(
        "build", MODEL=str(demo.model), QUANT=DEMO_QUANTS, ENGINE=demo.engine, ARTIFACTS=str(demo.artifacts), JSON="1"
    )
    value, end = json.JSONDecoder().raw_decode(done.stdout)
    assert done.returncode == 0 and isinstance(value, dict)
    assert done.stdout[end:].strip() == ""
    assert "to run" in done.stderr or "done" in done.stderr, "the plan is for people, so it goes to stderr"


def test_a_failure_in_json_is_one_object_too(demo: Demo) -> None:
    done = run(
        "build", MODEL=str(demo.model), QUANT="Q4_KM", ENGINE=demo.engine, ARTIFACTS=str(demo.artifacts), JSON="1"
    )
    error = json.loads(done.stdout)["error"]
    assert done.returncode == error["exit_code"] == 2
    assert "Q4_KM" in error["message"] and error["hint"]


def test_without_json_stdout_is_the_paths_alone(demo: Demo) -> None:
    done = run("build", MODEL=str(demo.model), QUANT=DEMO_QUANTS, ENGINE=demo.engine, ARTIFACTS=str(demo.artifacts))
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f["path"] for f in demo.made["files"]]


def test_a_gguf_file_is_built_from_without_converting_and_gives_the_same_bytes(demo: Demo, tmp_path: Path) -> None:
    made = run_json("build", MODEL=str(_converted(demo)), QUANT="Q8_0", ENGINE=demo.engine, ARTIFACTS=str(tmp_path))
    assert made["ran"] == ["quantize Q8_0", "verify Q8_0"]
    assert made["files"][0]["sha256"] == next(f["sha256"] for f in demo.made["files"] if f["quant"] == "Q8_0")


def test_a_quantized_gguf_is_quantized_again_only_on_request(demo: Demo, tmp_path: Path) -> None:
    asked = {"MODEL": str(demo.file("Q8_0")), "QUANT": "Q4_0", "ENGINE": demo.engine, "ARTIFACTS": str(tmp_path)}
    refused = run("build", **asked)
    assert refused.returncode == 2
    assert "quantized already" in refused.stderr and "ALLOW_REQUANTIZE=1" in refused.stderr
    assert not list(tmp_path.rglob("stages/*"))
    made = run_json("build", **asked, ALLOW_REQUANTIZE="1")
    assert made["ran"] == ["quantize Q4_0", "verify Q4_0"]
    assert read_gguf_model(Path(made["files"][0]["path"])).is_quantized


def test_converting_loses_no_bit_of_any_weight(demo: Demo) -> None:
    source = read_safetensors_file(demo.model / "model.safetensors")
    converted = read_gguf_model(_converted(demo))
    tensors = {tensor.name: tensor for tensor in converted.tensors}
    names = {_ggml_name(name): tensor for name, tensor in source.tensors.items()}
    assert names.keys() == tensors.keys()
    lost = [name for name, tensor in names.items() if not _same_bits(source.path, tensor, tensors[name])]
    assert lost == []


@pytest.mark.parametrize("engine", ["local"], indirect=True)
def test_every_file_is_the_same_to_the_byte_whichever_engine_makes_it(
    demo: Demo, built_demo: Callable[[str], Demo], docker_client: object
) -> None:
    files = [[_converted(each), each.file("Q4_K_M"), each.file("Q8_0")] for each in (demo, built_demo("docker"))]
    assert [file_sha256(path) for path in files[0]] == [file_sha256(path) for path in files[1]]


def _converted(demo: Demo) -> Path:
    """The 16-bit GGUF that the quants were made of."""
    return next(demo.artifacts.rglob("stages/convert-*/files/model.gguf"))


def _times(folder: Path) -> dict[Path, int]:
    """Of all but the locks, and the book of rates: a plan reads in it what the manifests of the store tell."""
    own = (".lock", ".rates")
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if not path.name.startswith(own)}


def _ggml_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`."""
    stem, _, kind = name.rpartition(".")
    if stem in TOP_NAMES:
        return f"{TOP_NAMES[stem]}.{kind}"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{LAYER_NAMES[part]}.{kind}"


def _same_bits(path: Path, before: SafetensorsTensor, after: TensorInfo) -> bool:
    """Whether a tensor holds exactly the bits of the source's; where it was widened to f32, with zeros behind them."""
    assert before.dtype == "BF16" and after.type.name in ("BF16", "F32")
    assert tuple(reversed(before.shape)) == after.shape
    old = np.memmap(path, "<u2", "r", before.start, before.shape)
    new: npt.NDArray[Any]
    if after.type.name == "F32":
        new = np.memmap(after.path, "<u4", "r", after.offset, before.shape)
        return bool(np.array_equal(old.astype(np.uint32) << 16, new))
    new = np.memmap(after.path, "<u2", "r", after.offset, before.shape)
    return _sorted_rows(old) == _sorted_rows(new) if after.name.endswith(PERMUTED) else bool(np.array_equal(old, new))


def _sorted_rows(matrix: npt.NDArray[Any]) -> list[bytes]:
    return sorted(row.tobytes() for row in matrix)


@pytest.mark.slow
def test_the_demos_weights_are_the_same_to_the_byte_whichever_engine_makes_them(
    demo_source: Path, local_tools: None, tmp_path: Path
) -> None:
    gguf = demo_source.parent / Path(read_pins(REPO_DIR / "versions.env")["DEMO_FILE"]).name
    (tmp_path / "demo").mkdir()
    shutil.copy(gguf, tmp_path / "demo")  # it need not be downloaded again
    settings = read_command_request(argparse.Namespace(), os.environ | {"ENGINE": "local", "ARTIFACTS": str(tmp_path)})
    engine, _ = choose_engine(settings.engine, settings.environment, settings.images)
    again = workflow_demo_folder(settings, engine, LineReporter(Console(stderr=True)))
    # The tokenizer's files are as the engine's transformers writes them.
    assert file_sha256(demo_source / "model.safetensors") == file_sha256(again / "model.safetensors")
    assert {path.name for path in demo_source.iterdir()} == {path.name for path in again.iterdir()}
