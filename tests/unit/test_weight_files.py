"""Which files are the model: those that the index names, else those that the converter reads; all others are refused
with the one sentence that helps.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from quantyard.errors import BadSource
from quantyard.hub.files import Selection, select_hub_files
from quantyard.protocol.base import FileEntry

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SINGLE = "model.safetensors"


def index_of(*files: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": {f"t{i}": name for i, name in enumerate(files)}}).encode()


def choose(*names: str, title: str = "/models/x", allow_pickle: bool = False, **texts: bytes) -> Selection:
    """A folder of these names; `index` is the text of its index."""
    files = tuple(FileEntry(path=name, size_bytes=10) for name in ("config.json", *names))
    read: Callable[[str], bytes] = lambda _name: texts["index"]  # noqa: E731
    return select_hub_files(title, files, read, allow_pickle=allow_pickle)


def weights(selection: Selection) -> list[str]:
    return [file.path for file in selection.files if file.path.endswith((".safetensors", ".bin"))]


def refused(*names: str, **texts: bytes) -> str:
    with pytest.raises(BadSource) as caught:
        choose(*names, **texts)
    return f"{caught.value.message} | {caught.value.hint}"


# ---- an index ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        SHARDS,
        ("model.safetensors-00001-of-00014.safetensors", "model.safetensors-00014-of-00014.safetensors"),  # Qwen3.5
        ("model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors"),  # DeepSeek-R1-Distill
        ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"),  # the third would be empty
        ("layers-0.safetensors", "layers-1.safetensors", "outside.safetensors"),
        (SINGLE,),
        ("model-00001-of-00002.safetensors", "model_mtp.safetensors"),
        ("consolidated.safetensors",),
    ],
    ids=["usual", "qwen3.5", "six-digits", "fewer-than-counted", "own-names", "one-file", "an-extra", "consolidated"],
)
def test_what_the_index_names_is_the_model_whatever_the_names_are(names: tuple[str, ...]) -> None:
    chosen = choose(*names, INDEX, "tokenizer.json", index=index_of(*names))
    assert weights(chosen) == sorted(names)
    assert INDEX in {file.path for file in chosen.files} and chosen.note == ""


@pytest.mark.parametrize(
    "beside",
    [
        SINGLE,
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "model-00001-of-00003.safetensors",
        "ema.safetensors",
    ],
)
def test_what_the_index_does_not_name_is_left_out_and_named_in_the_plan(beside: str) -> None:
    chosen = choose(*SHARDS, beside, INDEX, index=index_of(*SHARDS))
    assert weights(chosen) == sorted(SHARDS) and f"left out: {beside}." in chosen.note


def test_a_single_file_beside_indexed_shards_may_be_newer_and_the_plan_says_what_to_do() -> None:
    assert "If model.safetensors is the newer save" in choose(*SHARDS, SINGLE, INDEX, index=index_of(*SHARDS)).note


@pytest.mark.parametrize(
    "there", [(SINGLE,), SHARDS, ("model.fp16.safetensors",), ("model.safetensors-00001-of-00001.safetensors",)]
)
def test_a_stale_index_is_called_stale_with_its_files_and_the_remedy(there: tuple[str, ...]) -> None:
    said = refused(*there, INDEX, index=index_of("model-00001-of-00004.safetensors"))
    assert f"{INDEX} of /models/x is stale" in said and there[0] in said and f"rm {INDEX}" in said
    assert "model-00001-of-00004.safetensors" in said


@pytest.mark.parametrize("there", [SHARDS[:1], ("model-00001-of-00005.safetensors",), (*SHARDS[:1], SINGLE)])
def test_missing_shards_of_an_index_are_counted_and_named(there: tuple[str, ...]) -> None:
    said = refused(*there, INDEX, index=index_of(*there[:1], "a.safetensors", "b.safetensors"))
    assert "lacks 2 of the 3 files" in said and "a.safetensors, b.safetensors" in said


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 23950\n", "a Git LFS pointer for"),
        (b"\xef\xbb\xbf{}", "byte order mark"), ("{}  ".encode("utf-16"), "UTF-16"), (b"<!DOCTYPE html>", "a web page"),
        (b"", "empty"), (b"{", "cannot be read"), (b"{}", "no weight_map"),
        (index_of("../x.safetensors"), "not a file of this folder"), (index_of("sub/x.safetensors"), "not a file of"),
        (index_of("x.bin"), "not a file of"),
    ],
)  # fmt: skip
def test_an_index_that_cannot_be_read_is_named_with_its_fault(text: bytes, fact: str) -> None:
    said = refused(*SHARDS, INDEX, index=text)
    assert INDEX in said and fact in said


def test_the_only_index_of_another_name_counts_too() -> None:
    names = ("weights-00001-of-00002.safetensors", "weights-00002-of-00002.safetensors")
    assert weights(choose(*names, "weights.safetensors.index.json", index=index_of(*names))) == sorted(names)


def test_pickle_shards_follow_their_index_too() -> None:
    names = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    chosen = choose(
        *names, "pytorch_model.bin.index.json", "training_args.bin", allow_pickle=True, index=index_of(*names)
    )
    assert weights(chosen) == sorted(names)


# ---- no index ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((SINGLE, "model.fp16.safetensors"), [SINGLE]), (("model.fp16.safetensors",), ["model.fp16.safetensors"]),
        ((*SHARDS, "consolidated.safetensors"), list(SHARDS)), ((SINGLE, *SHARDS), [SINGLE]),
        (("model.bf16-00001-of-00001.safetensors",), ["model.bf16-00001-of-00001.safetensors"]),
        ((SINGLE, "adapter_model.safetensors", "optimizer.safetensors"), [SINGLE]),
        (("model.safetensors-00001-of-00001.safetensors",), ["model.safetensors-00001-of-00001.safetensors"]),
        (("model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors"),
         ["model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors"]),
        ((SINGLE, "checkpoint-10/model.safetensors", "checkpoint-10/optimizer.pt"), [SINGLE]),
    ],
)  # fmt: skip
def test_without_an_index_the_model_is_what_the_converter_reads(names: tuple[str, ...], expected: list[str]) -> None:
    assert weights(choose(*names)) == expected


@pytest.mark.parametrize(
    "names",
    [
        ("model.fp16.safetensors", "model.bf16.safetensors"),
        ("model_a.safetensors", "model_b.safetensors"),
        (*SHARDS, "model-00001-of-00001.safetensors"),
    ],
)
def test_two_forms_of_which_none_is_plainly_the_model_are_refused(names: tuple[str, ...]) -> None:
    said = refused(*names)
    assert "2 forms of its weights" in said and "model.safetensors" in said


# ---- not a model -------------------------------------------------------------------------------------


NOT_A_MODEL = {
    "peft": (["adapter_config.json", "adapter_model.safetensors"], "make lora ADAPTER=/models/x"),
    "peft-pickle": (["adapter_config.json", "adapter_model.bin", "tokenizer.json"], "make lora ADAPTER=/models/x"),
    "trainer": (["checkpoint-500/model.safetensors", "checkpoint-1500/model.safetensors", "checkpoint-1500/a.pt"],
                "MODEL=/models/x/checkpoint-1500"),
    "trainer-of-adapters": (["checkpoint-20/adapter_config.json", "checkpoint-3/adapter_config.json"],
                            "make lora ADAPTER=/models/x/checkpoint-20"),
    "trainer-of-shards": (["checkpoint-7/model-00001-of-00002.safetensors"], "MODEL=/models/x/checkpoint-7"),
    "deepspeed": (["zero_to_fp32.py", "global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt"], "zero_to_fp32.py ."),
    "fsdp": (["pytorch_model_fsdp_0/__0_0.distcp"], "accelerate merge-weights"),
    "diffusion": (["model_index.json", "unet/model.safetensors"], "a diffusion pipeline"),
    "mistral": (["consolidated.safetensors", "params.json", "tekken.json"], "its publisher's own format"),
    "meta": (["consolidated.00.pth", "params.json", "tokenizer.model"], "its publisher's own format"),
    "own-name": (["gemma.safetensors"], "rename the file"),
    "tensorflow": (["tf_model.h5"], "another framework"), "flax": (["flax_model.msgpack"], "another framework"),
    "onnx": (["onnx/model.onnx"], "another framework"), "mlx": (["weights.npz"], "another framework"),
    "projector": (["mmproj-F16.gguf"], "no GGUF that is a whole model"),
    "nested": (["transformer/model.safetensors"], "no whole model at its top"),
    "optimizer": (["optimizer.pt", "scheduler.pt", "rng_state.pth"], "a trainer's state"),
    "nothing": (["tokenizer.json"], "no weights that could be converted"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_A_MODEL)
def test_each_kind_of_folder_that_is_not_a_model_gets_the_sentence_that_helps(kind: str) -> None:
    names, said = NOT_A_MODEL[kind]
    assert said in refused(*names)


def test_a_checkpoint_inside_a_repo_of_the_hub_is_downloaded_first() -> None:
    with pytest.raises(BadSource) as caught:
        choose("checkpoint-9/model.safetensors", title="org/name")
    assert "hf download org/name --include 'checkpoint-9/*'" in caught.value.hint


def test_an_adapter_beside_a_whole_model_is_left_alone() -> None:
    assert weights(choose(SINGLE, "adapter_config.json", "adapter_model.safetensors")) == [SINGLE]
