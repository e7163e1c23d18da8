"""What a matrix cannot be made of, through the command line: refused before anything runs, with what to type."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quantyard import cli
from quantyard.protocol.base import ExitCode
from quantyard.workflows import planning
from tests.gguf_files import TensorSpec, gguf
from tests.hub_server import HubServer
from tests.unit.fake_engine import FakeEngine

WEIGHTS = b'\x40\x00\x00\x00\x00\x00\x00\x00{"a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}         ' + bytes(8)
T5 = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True}
RECIPE = "name: mine\nbase: Q4_K_M\ndescription: a trial\ntensors:\n  {}: Q8_0\n"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.add_repo("google/flan-t5-xl", _files(T5))
        server.add_repo("org/llama", _files({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
        yield server


def _files(config: dict[str, object]) -> dict[str, bytes]:
    text = json.dumps(config).encode()
    return {"config.json": text, "tokenizer.json": b"{}", "model.safetensors": WEIGHTS, "README.md": b"#"}


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine()
    monkeypatch.setattr(planning, "choose_engine", lambda *_: (fake, "asked for"))
    return fake


@pytest.fixture
def run(hub: HubServer, engine: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command on this model; its exit code and what it said."""

    def go(command: str, model: str, *argv: str) -> tuple[int, str, str]:
        options = [f"--model={model}", f"--artifacts={tmp_path / 'artifacts'}", f"--hf-endpoint={hub.endpoint}"]
        with pytest.raises(SystemExit) as ended:
            cli.main([command, *options, *argv])
        return int(ended.value.code or 0), *capsys.readouterr()

    return go


# ---- models that cannot be measured ------------------------------------------------------------------


@pytest.mark.commands
@pytest.mark.parametrize(
    ("option", "is_calibrated"),
    [("--quant=Q8_0", False), ("--quants=Q4_K_M", True), ("--suite=smoke", False), ("--imatrix=auto", True)],
)
@pytest.mark.parametrize("model", ["google/flan-t5-xl", "FLAN-T5-XL"])
def test_an_encoder_decoder_is_planned_as_any_model(option: str, is_calibrated: bool, model: str, run: Run) -> None:
    code, out, err = run("plan", model, option)
    assert code == 0, err
    assert ("calibrate" in out) == is_calibrated, out


def test_a_gguf_of_an_encoder_is_measured_by_its_embeddings(run: Run, tmp_path: Path, engine: FakeEngine) -> None:
    path = tmp_path / "encoder.gguf"
    path.write_bytes(gguf({"general.architecture": "t5encoder", "general.file_type": 0}, [TensorSpec("t", (32, 2))]))
    run("eval", str(path), "--quant=Q8_0")
    assert engine.ran[-1].startswith("similarity") and not any(stage.startswith("evaluate") for stage in engine.ran)


# ---- QUANTS and RECIPE -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fact", "advice"),
    [
        (("--quants=Q4_K_M,IQ2_XS,IQ1_S", "--imatrix=none"),
         "IQ2_XS, IQ1_S cannot be made without an importance matrix",
         "IMATRIX=auto; give one: IMATRIX=file.gguf; or choose another quant: make quants"),
        (("--quants=Q4_K_M,Q9_X",), "Unknown quant 'Q9_X'", "make quants"),
        (("--quants=,",), "QUANTS is empty", "QUANTS=Q4_K_M"),
        (("--quants=Q4_K_M", "--imatrix=none", "--calibration=x.txt"), "IMATRIX=none does not", "IMATRIX=auto"),
        (("--quants=Q4_K_M", "--imatrix=nowhere.gguf"), "is not a file", "IMATRIX=auto"),
        (("--quants=Q4_K_M", "--imatrix=auto", "--calibration=nowhere.txt"), "cannot be read", "leave CALIBRATION out"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_exit_code_2_with_what_to_type(
    options: tuple[str, ...], fact: str, advice: str, run: Run, engine: FakeEngine
) -> None:
    code, _out, err = run("matrix", "org/llama", *options)
    assert (code, engine.ran) == (ExitCode.BAD_REQUEST, [])
    assert fact in err and advice in err


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"", "is empty"), (b"Far too short.", "two chunks need"), (b"\0" * 5000, "is binary"),
        (b"\xff\xfe" * 900, "is not UTF-8"),
        (b"Mine. " * 500 + b"The bridge at Harrow Bottom had been broken since", "shares words with the evaluation"),
    ],
)  # fmt: skip
def test_a_calibration_text_that_cannot_be_used_ends_a_matrix_before_it_begins(
    content: bytes, fact: str, run: Run, engine: FakeEngine, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_bytes(content)
    asked = ("--quants=Q4_K_M", "--imatrix=auto", f"--calibration={tmp_path / 'mine.txt'}")
    code, _out, err = run("matrix", "org/llama", *asked)
    assert (code, engine.ran) == (ExitCode.BAD_REQUEST, []) and fact in err


def _planned(run: Run, *options: str) -> list[str]:
    code, out, err = run("plan", "org/llama", "--suite=smoke", "--json", *options)
    assert code == 0, err
    return [stage["label"] for stage in json.loads(out)["stages"] if stage["label"].startswith("quantize")]


def test_a_quant_that_is_named_twice_in_whatever_spelling_is_made_once(run: Run) -> None:
    assert _planned(run, "--quants=Q4_K_M,q4_k_m, Q4_K,Q8_0,Q4_K_M") == ["quantize Q4_K_M", "quantize Q8_0"]


@pytest.mark.commands
def test_a_recipe_of_ones_own_stands_in_a_matrix_whether_quants_names_it_or_not(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE.format("ffn_down"))
    recipe = f"--recipe={tmp_path / 'mine.yaml'}"
    assert _planned(run, "--quants=Q8_0", recipe) == ["quantize Q8_0", "quantize mine"]
    assert _planned(run, "--quants=mine,Q8_0", recipe) == ["quantize mine", "quantize Q8_0"]


def test_a_recipe_whose_rules_contradict_each_other_is_refused_with_both(
    run: Run, engine: FakeEngine, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE.format('"blk.0.*"') + "  ffn_down: Q6_K\n")
    code, _out, err = run("matrix", "org/llama", "--quants=mine", f"--recipe={tmp_path / 'mine.yaml'}")
    assert (code, engine.ran) == (ExitCode.BAD_REQUEST, [])
    assert "'blk.0.*' (Q8_0) and 'ffn_down' (Q6_K)" in err and "docs/how-to/tune.md" in err
