"""What reads pictures or sound: which models have such a part, what the plan says, and whose values it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from builder.checks.projector_values import q8_0_error, trace_projector
from builder.projector import Q8_0_BOUND, full_projector_names
from quantyard.errors import UnsupportedModel
from quantyard.formats.gguf import GgufHeader, read_gguf_header
from quantyard.formats.safetensors import SafetensorsFile, SafetensorsTensor, read_safetensors_file
from quantyard.paths import REPO_DIR
from quantyard.quants.file_size import TensorShape
from quantyard.serve.served_files import fits_projector, served_files, served_projector
from quantyard.sources.projector import (
    converter_projectors,
    find_projector,
    known_projectors,
    projector_note,
    projector_tensors,
    text_model_tensors,
)
from tests.tiny_model import write_safetensors

_SEES: dict[str, Any] = {"architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {"hidden_size": 8}}
_TENSORS = (
    TensorShape("language_model.model.embed_tokens.weight", (100, 8), "BF16"),
    TensorShape("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", (16, 8), "BF16"),
    TensorShape("multi_modal_projector.mm_input_projection_weight", (8, 8), "BF16"),
)


def _nobody() -> None:
    return None


@pytest.mark.parametrize(
    ("config", "media"),
    [
        (_SEES, ("vision",)),
        ({"architectures": ["Qwen2AudioForConditionalGeneration"], "audio_config": {}}, ("audio",)),
        ({"architectures": ["Gemma3nForConditionalGeneration"], "vision_config": {}, "audio_config": {}},
         ("vision", "audio")),
        ({"architectures": ["Qwen2_5OmniModel"], "thinker_config": {"vision_config": {}, "audio_config": {}}},
         ("vision", "audio")),
    ],
)  # fmt: skip
def test_a_model_says_in_its_config_what_it_reads_besides_text(config: dict[str, Any], media: tuple[str, ...]) -> None:
    found = find_projector(config, None, "all", _nobody)
    assert found is not None and found.media == media and not found.left_out


def test_a_text_model_has_no_projector_nor_has_one_whose_config_alone_speaks_of_pictures() -> None:
    assert find_projector({"architectures": ["LlamaForCausalLM"]}, _TENSORS, "all", _nobody) is None
    assert find_projector(_SEES, _TENSORS[:1], "all", _nobody) is None


def test_its_size_is_that_of_its_tensors_and_the_text_model_is_the_others() -> None:
    found = find_projector(_SEES, _TENSORS, "all", _nobody)
    assert found is not None and found.size_bytes == 2 * (16 * 8 + 8 * 8)
    assert projector_tensors(_TENSORS) == [*_TENSORS[1:]]
    assert text_model_tensors(_SEES, _TENSORS) == _TENSORS[:1]
    assert text_model_tensors({}, _TENSORS) == _TENSORS


def test_what_is_left_out_is_said_with_the_reason() -> None:
    asked = find_projector(_SEES, _TENSORS, "text", _nobody)
    assert asked is not None and projector_note(asked) == "PARTS=text leaves out what reads pictures."
    unknown = find_projector({**_SEES, "architectures": ["NewVLForConditionalGeneration"]}, _TENSORS, "all", _nobody)
    assert unknown is not None and "makes no projector for NewVLForConditionalGeneration" in projector_note(unknown)


def test_a_model_for_pictures_alone_is_refused_where_the_converter_makes_no_projector() -> None:
    config = {**_SEES, "architectures": ["NewOCRForCausalLM"]}
    with pytest.raises(UnsupportedModel, match="its text model alone answers nothing"):
        find_projector(config, _TENSORS, "all", _nobody)
    assert find_projector(config, _TENSORS, "text", _nobody) is not None


def test_a_newer_converter_may_know_more_projectors() -> None:
    text = 'MMPROJ_MODEL_MAP: dict[str, str] = {\n    "NewOCRForCausalLM": "new",\n}\n'
    assert converter_projectors(text) == {"NewOCRForCausalLM"}
    found = find_projector({**_SEES, "architectures": ["NewOCRForCausalLM"]}, _TENSORS, "all", lambda: text)
    assert found is not None and not found.left_out


def test_the_list_is_that_of_the_converter_beside_it() -> None:
    converter = REPO_DIR / ".venv-local" / "share" / "llama.cpp" / "conversion" / "__init__.py"
    if not converter.is_file():
        pytest.skip("no converter: make images ENGINE=local")
    assert known_projectors() == converter_projectors(converter.read_text())


def test_names_that_transformers_5_shortened_are_given_back() -> None:
    tensor = SafetensorsTensor("BF16", (1,), 0, 2)
    short = SafetensorsFile(Path("m"), {"vision_tower.encoder.layers.0.mlp.fc1.bias": tensor, "lm_head": tensor}, 0)
    assert full_projector_names((short,)) == {
        "vision_tower.encoder.layers.0.mlp.fc1.bias": "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
    }
    full = SafetensorsFile(Path("m"), {"vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias": tensor}, 0)
    assert full_projector_names((full,)) == {}


# ---- values ------------------------------------------------------------------------------------------


def _source(folder: Path) -> tuple[SafetensorsFile, dict[str, np.ndarray[Any, Any]]]:
    """A file of weights, and its values."""
    shapes = {"qkv": (96, 32), "plain": (64, 32), "film": (32, 3, 2, 4, 4)}
    write_safetensors(folder / "model.safetensors", shapes)
    file, values = read_safetensors_file(folder / "model.safetensors"), {}
    for name, tensor in file.tensors.items():
        held = np.fromfile(file.path, "<u2", (tensor.end - tensor.start) // 2, offset=tensor.start)
        values[name] = (held.astype("<u4") << 16).view("<f4").reshape(tensor.shape)
    return file, values


def _gguf(path: Path, tensors: dict[str, np.ndarray[Any, Any]], kind: str = "f16") -> GgufHeader:
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_uint32("clip.vision.projection_dim", 64)
    for name, values in tensors.items():
        if kind == "q8_0":
            packed = gguf.quants.quantize(values.astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values.astype(np.float16)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_gguf_header(path)


def test_values_are_found_whatever_their_names_and_order(tmp_path: Path) -> None:
    file, values = _source(tmp_path)
    made = _gguf(tmp_path / "p.gguf", {
        "v.plain": values["plain"], "v.turned": values["plain"].T, "v.q": values["qkv"][:32],
        "v.k": values["qkv"][32:64],
        "v.frame": values["film"][:, :, 1], "v.other": values["plain"] + 1,
    })  # fmt: skip
    traced = trace_projector(made, (file,))
    assert set(traced.same) == {"v.plain", "v.q", "v.k", "v.frame"}
    assert traced.moved == ("v.turned",) and traced.computed == ("v.other",)
    n_held = 2 * 64 * 32 + 2 * 32 * 32 + 32 * 3 * 4 * 4
    assert traced.share == pytest.approx(n_held / (n_held + 64 * 32))


def test_one_wrong_value_is_found(tmp_path: Path) -> None:
    file, values = _source(tmp_path)
    values["plain"][3, 3] += 0.01
    assert trace_projector(_gguf(tmp_path / "p.gguf", {"v.plain": values["plain"]}), (file,)).computed == ("v.plain",)


def test_8_bits_are_as_good_for_ordinary_weights_and_not_beside_a_giant(tmp_path: Path) -> None:
    _, values = _source(tmp_path)
    plain = values["plain"]
    error, worst = q8_0_error(*(_gguf(tmp_path / f"{kind}.gguf", {"a": plain}, kind) for kind in ("f16", "q8_0")))
    assert worst == "a" and 0.002 < error < Q8_0_BOUND
    bad = np.where(np.arange(32) == 0, 12 * plain.std(), plain)
    error, _ = q8_0_error(*(_gguf(tmp_path / f"bad-{kind}.gguf", {"a": bad}, kind) for kind in ("f16", "q8_0")))
    assert error > Q8_0_BOUND


# ---- serving -----------------------------------------------------------------------------------------


def test_a_projector_is_served_with_the_models_whose_vectors_are_as_wide(tmp_path: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    projector = folder / "mmproj-m-F16.gguf"
    _gguf(projector, {"a": np.ones((32, 32))})
    for name, width in (("m-Q8_0", 64), ("other-Q8_0", 32)):
        writer = gguf.GGUFWriter(folder / f"{name}.gguf", "llama")
        writer.add_embedding_length(width)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    models = served_files(tmp_path, None)
    assert [path.name for path in models] == ["m-Q8_0.gguf", "other-Q8_0.gguf"]
    found = served_projector(tmp_path, None, None)
    assert found == projector and [fits_projector(path, found) for path in models] == [True, False]
