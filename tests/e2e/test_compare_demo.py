"""`make compare` on the demo model: files as other people publish them, made by the real llama-quantize."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from quantyard.paths import REPO_DIR, read_pins
from tests.conftest import Demo, run
from tests.hub_server import HubServer
from tests.outputs import check_output
from tests.tiny_gguf import write_tiny

pytestmark = pytest.mark.slow
SUITE = "divergence: {n_chunks: 1, weights_chunks: 0}\nspeed: null\ntasks: []\nneeds_network: false\n"
NAME = "SmolLM2-135M-Instruct"


def llama(folder: Path, tool: str, *argv: str) -> None:
    """Run a tool of the base image in this folder."""
    pins = read_pins(REPO_DIR / "versions.env")
    image = f"{pins['LLAMA_CPP_IMAGE']}:{pins['LLAMA_CPP_TAG']}"
    command = ["docker", "run", "--rm", "--network=none", f"--volume={folder}:/w", "--workdir=/w"]
    subprocess.run([*command, f"--entrypoint=/app/{tool}", image, *argv], check=True, capture_output=True)


def copied(source: Path, path: Path, template: str = "", merged: bool = False) -> None:
    """A copy with another chat template, or with an adapter merged into its feed-forward weights."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = template if template and name.endswith("chat_template") else field.contents()
        writer.add_key_value(name, value, kind, inner)
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        if merged and "ffn_up" in tensor.name:
            floats = gguf.quants.dequantize(data, tensor.tensor_type)
            rng = np.random.default_rng(1)
            floats += np.outer(rng.standard_normal(len(floats)), rng.standard_normal(floats.shape[1])) * 0.1
            data = gguf.quants.quantize(floats.astype(np.float32), tensor.tensor_type)
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def them(docker_client: Any, built_demo: Callable[[str], Demo], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that others may have made."""
    del docker_client
    (base,) = built_demo("docker").artifacts.glob("local/*/*/stages/convert-*/files/model.gguf")
    work, folder = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("them") / "them"
    folder.mkdir()
    copied(base, work / "plain.gguf")
    copied(base, work / "template.gguf", template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    copied(base, work / "merged.gguf", merged=True)
    for source, name, quant in (
        ("template", "UD-Q4_K_XL", "Q4_K_M"), ("plain", "i1-Q4_K_M", "Q4_K_M"), ("plain", "IQ4_NL", "IQ4_NL"),
        ("merged", "merged-Q8_0", "Q8_0"), ("plain", "Q8_0", "Q8_0"),
    ):
        llama(work, "llama-quantize", f"{source}.gguf", f"{NAME}-{name}.gguf", quant)
        (work / f"{NAME}-{name}.gguf").rename(folder / f"{NAME}-{name}.gguf")
    (folder / f"{NAME}-Q8_0.gguf").rename(work / "whole.gguf")
    llama(work, "llama-gguf-split", "--split-max-size", "80M", "whole.gguf", f"{NAME}-Q8_0")
    for part in work.glob(f"{NAME}-Q8_0-*.gguf"):
        part.rename(folder / part.name)
    content = (folder / f"{NAME}-IQ4_NL.gguf").read_bytes()
    (folder / f"{NAME}-Q5_K_M.gguf").write_bytes(content[: len(content) // 2])
    write_tiny(None, folder / "tiny-F32.gguf")
    return folder


def test_files_of_a_folder_and_a_repo_are_checked_and_measured_beside_ours(
    them: Path, built_demo: Callable[[str], Demo], tmp_path: Path
) -> None:
    demo = built_demo("docker")
    demo.lend(tmp_path / "artifacts", "convert", "quantize", "verify")
    (tmp_path / "tiny.yaml").write_text(SUITE)
    with HubServer() as hub:
        hub.add_repo("others/name-GGUF", files={f"{NAME}-IQ4_NL.gguf": them / f"{NAME}-IQ4_NL.gguf"})  # type: ignore[dict-item]
        done = run(
            "compare", MODEL=str(demo.model), REPOS=f"{them},others/name-GGUF", FILES="all", QUANT="Q4_K_M", JSON="1",
            SUITE=str(tmp_path / "tiny.yaml"), ENGINE="docker", ARTIFACTS=str(tmp_path / "artifacts"),
            HF_ENDPOINT=hub.endpoint,
        )
    said = json.loads(done.stdout)
    check_output("compare", said)
    assert done.returncode == 2, done.stderr
    found = {file["label"]: file for file in said["files"]}
    assert set(found) == {
        "Q4_K_M", "UD-Q4_K_XL@them", "i1-Q4_K_M@them", "IQ4_NL@them", "Q8_0@them", "IQ4_NL@others",
    }  # fmt: skip
    kinds = {label: {finding["kind"] for finding in file["findings"]} for label, file in found.items()}
    assert kinds["UD-Q4_K_XL@them"] == {"other-template"} and kinds["i1-Q4_K_M@them"] == set()
    assert len(found["Q8_0@them"]["parts"]) > 1 and found["Q8_0@them"]["sha256"] is None
    assert found["IQ4_NL@others"]["parts"] == found["IQ4_NL@them"]["parts"] and found["IQ4_NL@others"]["revision"]
    refused = {out["label"]: out["kind"] for out in said["not_compared"]}
    assert refused == {
        "Q5_K_M@them": "bad-source", "F32@them": "foreign-other-vocabulary", "Q8_0@them-2": "foreign-other-weights",
    }  # fmt: skip
    by_label = {m["file"]["label"]: m for m in said["report"]["measurements"]}
    same = [by_label[label]["divergence"]["mean_kld"]["value"] for label in ("Q4_K_M", "i1-Q4_K_M@them")]
    assert same[0] == pytest.approx(same[1], rel=1e-6), "the same weights, under another name"
