"""Importance matrices: what they cover, whose they are, how the work is cut, and when a file is made with one."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pydantic import JsonValue

import quantyard
from builder.calibrate import calibration_legs
from builder.imatrix.matrix import check_imatrix_fits, imatrix_coverage, read_imatrix
from builder.quantize import quantize
from quantyard.engines import OnProgress
from quantyard.errors import BadRequest
from quantyard.execution.runner import PlanRunner
from quantyard.formats.gguf import GgufHeader, read_gguf_header
from quantyard.paths import REPO_DIR
from quantyard.plan import contamination
from quantyard.plan.build import BuildOptions, make_build_plan
from quantyard.plan.calibration_inputs import check_planned_calibration, plan_calibration
from quantyard.plan.contamination import plan_contaminating_files, plan_contamination
from quantyard.plan.evaluation import add_measuring_steps
from quantyard.plan.imatrix import (
    CALIBRATE,
    Calibration,
    plan_as_decided,
    plan_imatrix_decision,
    plan_imatrix_decisions,
    plan_imatrix_trial,
    plan_imatrix_trial_quants,
    plan_with_imatrix,
)
from quantyard.plan.notes import plan_notes
from quantyard.plan.steps import BuildPlan, ExternalInput, StageSpec, StepOutput
from quantyard.protocol.base import ExitCode, FileEntry, StageResult, stage_request_digest
from quantyard.protocol.builder import QuantizeRequest
from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.evaluation import DivergenceRequest, DivergenceSettings
from quantyard.protocol.runner import Stage, StageFailure, file_sha256
from quantyard.quants.catalog import QUANTS
from quantyard.quants.selection import parse_quants
from quantyard.sources.resolve import Source
from quantyard.store.artifact import Artifact, Workspace
from quantyard.store.hash_cache import HashCache
from quantyard.store.manifest import read_manifest
from quantyard.store.stages import ModelStore
from quantyard.workflows import planning
from tests.gguf_files import TensorSpec, Value, gguf
from tests.unit.conftest import OPTIONS, SUITE, Notes
from tests.unit.fake_engine import Behaviour, FakeEngine, writes

META: Mapping[str, Value] = {"general.architecture": "llama", "llama.context_length": 2048}
WEIGHTS = (
    TensorSpec("token_embd.weight", (32, 5), "F16"), TensorSpec("output_norm.weight", (32,), "F32"),
    TensorSpec("blk.0.attn_q.weight", (32, 8), "F16"), TensorSpec("blk.0.ffn_down_exps.weight", (16, 32, 4), "F16"),
    TensorSpec("blk.1.attn_q.weight", (32, 8), "F16"),
)  # fmt: skip
KNOWN = {
    "blk.0.attn_q.weight": (32, [512.0]), "blk.0.ffn_down_exps.weight": (16, [256.0, 256.0, 512.0, 9.0]),
    "blk.1.attn_q.weight": (32, [512.0]),
}  # fmt: skip
Known = Mapping[str, tuple[int, Sequence[float]]]  # weight → length of a row, what each of its matrices saw
IMATRIX_META: Mapping[str, Value] = {
    "general.type": "imatrix", "imatrix.chunk_count": 1, "imatrix.chunk_size": 512, "imatrix.datasets": ["a.txt"],
}  # fmt: skip


def _matrix_bytes(known: Known = KNOWN, value: float = 2.0, meta: Mapping[str, Value] = IMATRIX_META) -> bytes:
    tensors = []
    for name, (row, counts) in known.items():
        sums = struct.pack("<f", value) * (row * len(counts))
        tensors.append(TensorSpec(f"{name}.in_sum2", (row, len(counts)), "F32", sums))
        tensors.append(TensorSpec(f"{name}.counts", (1, len(counts)), "F32", struct.pack(f"<{len(counts)}f", *counts)))
    return gguf(meta, tensors)


def _matrix(tmp_path: Path, known: Known = KNOWN, value: float = 2.0, name: str = "imatrix.gguf") -> Path:
    path = tmp_path / name
    path.write_bytes(_matrix_bytes(known, value))
    return path


def _model(tmp_path: Path, weights: Sequence[TensorSpec] = WEIGHTS, **more: Value) -> GgufHeader:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf({**META, **more}, weights))
    return read_gguf_header(path)


# ---- how the work is cut -----------------------------------------------------------------------------


@pytest.mark.parametrize("n_tokens", [1024, 1025, 2047, 2048, 5119, 5120, 5121, 30_000, 119_394])
@pytest.mark.parametrize("n_chunks", [0, 1, 5, 12, 999])
@pytest.mark.parametrize("save_every", [1, 3, 20])
def test_legs_cover_every_chunk_once_and_each_can_be_started(n_tokens: int, n_chunks: int, save_every: int) -> None:
    found = calibration_legs(n_tokens, 512, n_chunks, save_every)
    whole = n_tokens // 512
    assert found[0][0] == 0 and found[-1][1] == min(n_chunks or whole, whole)
    assert all(before[1] == after[0] for before, after in pairwise(found))
    for start, end in found:
        assert start < end
        assert start == 0 or (start + 2) * 512 < n_tokens, "llama-imatrix would find too little left"
    assert all(end - start == save_every for start, end in found[:-1])


# ---- the matrix --------------------------------------------------------------------------------------


def test_a_matrix_of_the_model_fits_and_says_what_it_covers(tmp_path: Path) -> None:
    matrix, model = read_imatrix(_matrix(tmp_path)), _model(tmp_path)
    check_imatrix_fits(matrix, model)
    assert (matrix.n_chunks, matrix.chunk_tokens) == (1, 512)
    facts = imatrix_coverage(matrix, model)
    assert (facts["tensors"], facts["tensors_of_model"]) == (3, 4)
    assert facts["tensors_without"] == ["token_embd.weight"] and "experts_without" not in facts


def test_experts_that_saw_nothing_are_counted_and_explained(tmp_path: Path) -> None:
    known = KNOWN | {"blk.0.ffn_down_exps.weight": (16, [256.0, 0.0, 512.0, 0.0])}
    matrix = read_imatrix(_matrix(tmp_path, known))
    facts = imatrix_coverage(matrix, _model(tmp_path))
    assert facts["experts_without"] == {"blk.0.ffn_down_exps.weight": 2}
    assert "2 of 4 experts in blk.0.ffn_down_exps.weight saw no token" in str(facts["note"])


def test_importance_is_the_mean_square_and_one_where_nothing_was_seen(tmp_path: Path) -> None:
    known = {"blk.0.ffn_down_exps.weight": (16, [4.0, 0.0])}
    values = read_imatrix(_matrix(tmp_path, known, value=2.0)).entries["blk.0.ffn_down_exps.weight"].importance()
    assert values.dtype == np.float32 and values.tolist() == [0.5] * 16 + [1.0] * 16


@pytest.mark.parametrize(
    ("known", "says"),
    [
        (KNOWN | {"blk.7.attn_q.weight": (32, [5.0])}, "it covers blk.7.attn_q.weight, which the model does not have"),
        (KNOWN | {"blk.0.attn_q.weight": (48, [5.0])}, "it has 48 values for blk.0.attn_q.weight, and"),
        ({name: KNOWN[name] for name in list(KNOWN)[:2]}, "it covers no tensor of block 1"),
    ],
)
def test_the_matrix_of_another_model_is_refused_before_quantizing(known: Known, says: str, tmp_path: Path) -> None:
    stage = Stage("quantize", tmp_path / "in", tmp_path / "out", {})
    for name in ("source", "imatrix"):
        (stage.in_dir / name).mkdir(parents=True)
    (stage.in_dir / "source" / "model.gguf").write_bytes(gguf(META, WEIGHTS))
    _matrix(stage.in_dir / "imatrix", known)
    with pytest.raises(StageFailure, match="belongs to another model") as failed:
        quantize(stage, QuantizeRequest(quant="IQ2_XS", ftype=20, imatrix_file="imatrix.gguf"))
    assert failed.value.exit_code == 2 and says in failed.value.error.message and failed.value.error.hint
    assert not stage.out_dir.exists()


def test_blocks_that_predict_further_tokens_need_not_be_covered(tmp_path: Path) -> None:
    known = {name: KNOWN[name] for name in list(KNOWN)[:2]}
    check_imatrix_fits(read_imatrix(_matrix(tmp_path, known)), _model(tmp_path, **{"llama.nextn_predict_layers": 1}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_matrix_with_values_that_are_no_numbers_is_refused(value: float, tmp_path: Path) -> None:
    with pytest.raises(StageFailure, match=r"holds NaN or infinity for blk\.0\.attn_q\.weight"):
        read_imatrix(_matrix(tmp_path, value=value))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x01\0\0\0old", "not an importance matrix in GGUF format"),
        (gguf(META, WEIGHTS), "is a GGUF of type 'model'"),
        (gguf(IMATRIX_META, ()), "covers no tensor"),
        (gguf(IMATRIX_META, [TensorSpec("a.in_sum2", (4,), "F32")]), "no usable counts for a"),
        (_matrix_bytes()[:-64], "not an importance matrix in GGUF format"),
    ],
)
def test_what_is_no_matrix_is_refused(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(StageFailure, match=says) as failed:
        read_imatrix(tmp_path / "x.gguf")
    assert failed.value.exit_code == 2 and failed.value.error.hint


# ---- requests ----------------------------------------------------------------------------------------


def test_a_request_without_a_matrix_keeps_the_key_it_had_before_there_were_any() -> None:
    plain = QuantizeRequest(quant="Q4_K_M", ftype=15)
    assert stage_request_digest(plain) == "6baba04aa9c52ab3449894e2c3849633dbc71657405902f387ad72e63e7003b1"
    given = QuantizeRequest(quant="Q4_K_M", ftype=15, imatrix_file="imatrix.gguf")
    assert stage_request_digest(given) != stage_request_digest(plain)
    assert QuantizeRequest.model_validate_json(plain.model_dump_json()) == plain
    assert QuantizeRequest.model_validate_json(given.model_dump_json()) == given


# ---- what the user gives -----------------------------------------------------------------------------

PLENTY = " ".join(f"word{number} stands here" for number in range(400))


@pytest.fixture
def hashes(tmp_path: Path) -> HashCache:
    return HashCache(tmp_path / "hashes.json")


def test_none_is_none_and_auto_makes_one_of_our_text(hashes: HashCache) -> None:
    assert plan_calibration("none", [], hashes, []) is None
    assert plan_calibration("auto", [], hashes, []) == Calibration()


def test_a_matrix_of_the_users_is_taken_as_it_is(tmp_path: Path, hashes: HashCache) -> None:
    found = plan_calibration(str(_matrix(tmp_path, name="mine.gguf")), [], hashes, [])
    assert found is not None and found.matrix is not None and not found.is_made
    assert [file.path for file in found.matrix.files] == ["mine.gguf"] and not found.matrix.whole_folder


def test_texts_in_several_folders_keep_their_order(tmp_path: Path, hashes: HashCache) -> None:
    for name in ("b/one.txt", "a/two.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(PLENTY + name)
    found = plan_calibration("auto", [tmp_path / "b/one.txt", tmp_path / "a/two.txt"], hashes, [])
    assert found is not None and found.text_files == ("b/one.txt", "a/two.txt")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "mine.txt is empty"), (b"  \n\n", "mine.txt is empty"), (b"tiny", "has 4 bytes of text"),
        (PLENTY.encode() + b"\0", "is binary: byte"), (b"\x89PNG" + PLENTY.encode(), "not UTF-8: byte 0 is 0x89"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(data)
    with pytest.raises(BadRequest, match=says) as error:
        check_planned_calibration([tmp_path / "mine.txt"], [])
    assert error.value.code == 2 and "CALIBRATION" in error.value.message + error.value.hint


@pytest.mark.parametrize(
    ("imatrix", "texts", "says"),
    [
        ("none", ["t.txt"], "CALIBRATION gives text for a new matrix, but IMATRIX=none"),
        ("gone.gguf", [], "gone.gguf is not a file"), ("t.txt", [], "is not an importance matrix in GGUF format"),
        ("model.gguf", [], "is a GGUF, but not an importance matrix"),
        ("auto", ["gone.txt"], "cannot be read: No such file"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_type(
    imatrix: str, texts: list[str], says: str, tmp_path: Path, hashes: HashCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text(PLENTY)
    (tmp_path / "model.gguf").write_bytes(gguf(META, WEIGHTS))
    with pytest.raises(BadRequest, match=says) as error:
        plan_calibration(imatrix, [Path(text) for text in texts], hashes, [])
    assert error.value.hint


# ---- overlap with the evaluation ---------------------------------------------------------------------

EIGHT = "The quick grey Heron: waits beside the river"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.jsonl", '{"a": {"b": ["the quick grey heron waits\\nbeside THE river."]}}\n'), ("q.txt", f"x. {EIGHT}!"),
        ("q.arrow", f"\0\1{EIGHT}\xff"), ("q.json", f'[{{"q": "{EIGHT}"}}]'),
    ],
)
def test_eight_words_in_a_row_are_found_in_every_form_of_data_set(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode("latin-1"))  # 0xff is no UTF-8
    found = plan_contamination(
        [f"Before. {EIGHT.upper()} after"], plan_contaminating_files(tmp_path / "store", tmp_path)
    )
    assert found is not None
    assert (found.words, found.file) == ("the quick grey heron waits beside the river", tmp_path / name)
    assert plan_contamination(["the quick grey heron waits beside the sea"], [tmp_path / name]) is None


def test_words_that_two_blocks_of_a_large_file_share_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contamination, "_BLOCK_CHARACTERS", 1500)
    (tmp_path / "large.txt").write_text("filler " * 210 + EIGHT + " more" * 300)
    assert plan_contamination([EIGHT], [tmp_path / "large.txt"]) is not None


def test_data_sets_in_the_store_count_as_evaluation(tmp_path: Path) -> None:
    folder = tmp_path / "org" / "name" / "abc" / "stages" / "datasets-12" / "files" / "sets"
    folder.mkdir(parents=True)
    (folder / "data-00000.arrow").write_text("x")
    assert folder / "data-00000.arrow" in plan_contaminating_files(tmp_path)


def test_a_text_with_a_question_of_ours_is_refused_and_the_words_are_named(tmp_path: Path) -> None:
    question = "Which carpet? " + "In which year did the Second World War end, and who was there? " + PLENTY
    (tmp_path / "mine.txt").write_text(question)
    with pytest.raises(BadRequest, match="“in which year did the second world war”") as error:
        check_planned_calibration([tmp_path / "mine.txt"], plan_contaminating_files(tmp_path / "store"))
    assert "questions.jsonl" in error.value.message and "mine.txt" in error.value.message


# ---- the plan ----------------------------------------------------------------------------------------


def _plan(source: Source, quants: str, *, imatrix: bool = True) -> BuildPlan:
    options = BuildOptions(
        quants=parse_quants(quants), outtype="auto", allow_pickle=False, allow_requantize=False, allow_mismatch=(),
        threads=1, workers=4, endpoint=None, imatrix=imatrix,
    )
    return make_build_plan(source, options)


def test_types_that_need_a_matrix_are_refused_without_one(local_source: Source) -> None:
    for quant in (q for q in QUANTS if q.needs_imatrix):
        with pytest.raises(BadRequest, match=f"{quant.name} cannot be made without") as error:
            _plan(local_source, quant.name, imatrix=False)
        assert "IMATRIX=auto" in error.value.hint
    assert _plan(local_source, "IQ2_XS").targets


def test_the_matrix_is_made_once_before_the_first_file_that_is_made_with_it(local_source: Source) -> None:
    plan = plan_with_imatrix(_plan(local_source, "Q8_0,Q4_K_M,IQ2_XS"), Calibration(), ["Q8_0", "Q4_K_M", "IQ2_XS"])
    labels = [step.label for step in plan.steps]
    assert labels == [
        "convert", "quantize Q8_0", "verify Q8_0", CALIBRATE, "quantize Q4_K_M", "verify Q4_K_M", "quantize IQ2_XS",
        "verify IQ2_XS",
    ]
    steps = dict(zip(labels, plan.steps, strict=True))
    assert steps[CALIBRATE].inputs == {"source": StepOutput("convert")} and steps[CALIBRATE].row.resumable
    assert steps["quantize Q4_K_M"].inputs["imatrix"] == StepOutput(CALIBRATE)
    assert "imatrix" not in steps["quantize Q8_0"].inputs


def test_a_given_matrix_needs_no_step(local_source: Source, tmp_path: Path, hashes: HashCache) -> None:
    given = plan_calibration(str(_matrix(tmp_path, name="mine.gguf")), [], hashes, [])
    assert given is not None and given.matrix is not None
    plan = plan_with_imatrix(_plan(local_source, "IQ2_XS"), given, ["IQ2_XS"])
    quantize_step = next(step for step in plan.steps if step.label == "quantize IQ2_XS")
    assert quantize_step.inputs["imatrix"] == ExternalInput(given.matrix)
    assert quantize_step.request.model_dump()["imatrix_file"] == "mine.gguf"
    assert CALIBRATE not in [step.label for step in plan.steps]


def test_the_trial_makes_and_measures_both_versions(local_source: Source) -> None:
    plan = _plan(local_source, "Q8_0,Q4_K_M,IQ2_XS")
    assert plan_imatrix_trial_quants(plan) == ("Q4_K_M",)
    trial = plan_imatrix_trial(plan, Calibration(threads=1))
    assert trial is not None and not trial.targets
    assert [step.label for step in trial.steps] == [
        "convert", CALIBRATE, "quantize Q4_K_M", "quantize-plain Q4_K_M", "divergence Q4_K_M",
        "divergence-plain Q4_K_M",
    ]
    requests = [step.request for step in trial.steps if isinstance(step.request, DivergenceRequest)]
    assert [(r.label, r.baseline_file, r.runtime.threads) for r in requests] == [
        ("Q4_K_M", "model.gguf", 1), ("Q4_K_M-plain", "model.gguf", 1),
    ]


def test_a_trial_reads_what_the_suite_reads_so_that_no_file_is_read_twice(local_source: Source) -> None:
    suite = SUITE.model_copy(update={"divergence": DivergenceSettings(n_chunks=3)})
    plan = add_measuring_steps(_plan(local_source, "Q4_K_M"), replace(OPTIONS, suite=suite))
    trial = plan_imatrix_trial(plan, Calibration())
    assert trial is not None
    tried = {step.label: step for step in trial.steps}
    given, plain = tried["divergence Q4_K_M"], tried["divergence-plain Q4_K_M"]
    asked = next(step for step in plan.steps if step.label == "divergence Q4_K_M")
    assert (given.request, given.inputs) == (asked.request, asked.inputs)
    assert isinstance(plain.request, DivergenceRequest) and plain.request.settings.n_chunks == 3


def test_with_nothing_to_choose_there_is_no_trial(local_source: Source) -> None:
    assert plan_imatrix_trial(_plan(local_source, "Q8_0,IQ2_XS"), Calibration()) is None


# ---- the choice --------------------------------------------------------------------------------------


def _found(label: str, kld: float, stderr: float, n_tokens: int = 6000) -> Divergence:
    return Divergence(
        label=label, text="prose", n_ctx=512, n_chunks=24, n_tokens=n_tokens,
        perplexity=Estimate(value=20, stderr=1), rolling_perplexity=20, mean_kld=Estimate(value=kld, stderr=stderr),
    )


@pytest.mark.parametrize(
    ("given", "plain", "keeps", "why"),
    [
        ((0.040, 0.001), (0.050, 0.001), True, "better with: mean KLD 0.0400"),
        ((0.050, 0.001), (0.040, 0.001), False, "worse with"),
        ((0.0490, 0.001), (0.0500, 0.001), False, "no significant difference"),
        ((0.04, 0.0), (0.04, 0.0), False, "no significant difference"),
    ],
)
def test_the_matrix_is_used_only_where_the_file_is_better_beyond_chance(
    given: tuple[float, float], plain: tuple[float, float], keeps: bool, why: str
) -> None:
    found = plan_imatrix_decision("Q4_K_M", _found("Q4_K_M", *given), _found("Q4_K_M-plain", *plain))
    assert (found.with_imatrix, found.reason.startswith(why)) == (keeps, True)
    assert found.difference is not None
    half = 1.959964 * (given[1] ** 2 + plain[1] ** 2) ** 0.5
    assert found.difference.value == pytest.approx(given[0] - plain[0])
    assert found.difference.high - found.difference.value == pytest.approx(half)


def _divergences(values: Mapping[str, float]) -> Behaviour:
    """A stage that finds these mean KLDs, of one file or of several in step."""

    def behave(spec: StageSpec, space: Workspace) -> StageResult:
        request = spec.request
        assert isinstance(request, DivergenceRequest)
        labels = [request.label, *(member.label for member in request.others)]
        names = {label: f"{label}/divergence.json" if request.is_joined else "divergence.json" for label in labels}
        for label, name in names.items():
            path = space.out_dir / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_found(label, values[label], 0.0001).model_dump_json())
        outputs = tuple(
            FileEntry(path=name, size_bytes=path.stat().st_size, sha256=file_sha256(path))
            for name in names.values() if (path := space.out_dir / "files" / name)
        )
        facts: dict[str, JsonValue] = {label: {"mean_kld": values[label]} for label in labels}
        return StageResult(stage="divergence", exit_code=ExitCode.DONE, outputs=outputs, facts=facts)

    return behave


class _Trial(FakeEngine):
    """Whatever its label, a divergence finds these values."""

    def __init__(self, values: Mapping[str, float]) -> None:
        super().__init__(behaviours={CALIBRATE: writes("imatrix.gguf", "calibration.txt")})
        self.measure = _divergences(values)

    def run(
        self, spec: StageSpec, space: Workspace, inputs: Mapping[str, Artifact], on_progress: OnProgress
    ) -> StageResult:
        if spec.row.name == "divergence":
            self.behaviours[spec.label] = self.measure
        return super().run(spec, space, inputs, on_progress)


VALUES = {"Q4_K_M": 0.04, "Q4_K_M-plain": 0.05, "Q6_K": 0.004, "Q6_K-plain": 0.0041}


def _decided(source: Source, engine: FakeEngine, store: ModelStore, notes: Notes) -> tuple[BuildPlan, dict[str, bool]]:
    """Run the trial; the plan that follows, and which files get the matrix."""
    plan = _plan(source, "Q4_K_M,Q6_K,IQ2_XS,Q8_0")
    trial = plan_imatrix_trial(plan, Calibration())
    assert trial is not None
    runner = PlanRunner(trial, engine, store, REPO_DIR)
    assert runner.run(notes) == []
    found = plan_imatrix_decisions(plan, runner.output)
    return plan_as_decided(plan, Calibration(), found), {
        name: decision.with_imatrix for name, decision in found.items()
    }


def test_auto_keeps_the_better_of_both_and_runs_nothing_of_the_trial_again(
    local_source: Source, notes: Notes, tmp_path: Path
) -> None:
    engine, store = _Trial(VALUES), ModelStore(tmp_path / "artifacts", local_source.model)
    plan, found = _decided(local_source, engine, store, notes)
    assert found == {"Q4_K_M": True, "Q6_K": False, "IQ2_XS": True}
    given = [step.label for step in plan.steps if "imatrix" in step.inputs]
    assert given == ["quantize Q4_K_M", "quantize IQ2_XS"]
    engine.ran.clear()
    built = PlanRunner(plan, engine, store, REPO_DIR).run(notes)
    assert [file.quant for file in built] == ["Q4_K_M", "Q6_K", "IQ2_XS", "Q8_0"]
    assert not {"convert", CALIBRATE, "quantize Q4_K_M", "quantize Q6_K"} & set(engine.ran)
    assert {"quantize IQ2_XS", "quantize Q8_0"} <= set(engine.ran)


def test_auto_a_second_time_runs_nothing(local_source: Source, notes: Notes, tmp_path: Path) -> None:
    engine, store = _Trial(VALUES), ModelStore(tmp_path / "artifacts", local_source.model)
    for _ in range(2):
        engine.ran.clear()
        plan, _ = _decided(local_source, engine, store, notes)
        PlanRunner(plan, engine, store, REPO_DIR).run(notes)
    assert engine.ran == []


def test_the_file_that_lost_is_recorded_beside_the_one_that_won(
    local_source: Source, notes: Notes, tmp_path: Path
) -> None:
    engine, store = _Trial(VALUES), ModelStore(tmp_path / "artifacts", local_source.model)
    plan, _ = _decided(local_source, engine, store, notes)
    PlanRunner(plan, engine, store, REPO_DIR).run(notes)
    manifest = read_manifest(store.folder / "manifest.json")
    assert manifest is not None
    assert {"divergence Q4_K_M", "divergence-plain Q4_K_M", CALIBRATE} <= manifest.stages.keys()
    kept = manifest.stages["quantize Q4_K_M"]
    assert "imatrix" in kept.inputs and kept.outputs[0].sha256 == manifest.quants["Q4_K_M"].sha256
    assert "imatrix" not in manifest.stages["quantize Q6_K"].inputs


# ---- without IMATRIX ---------------------------------------------------------------------------------


@pytest.mark.commands
def test_a_build_without_imatrix_keeps_the_files_that_were_made_with_a_matrix(
    local_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _Trial(VALUES)
    monkeypatch.setattr(planning, "_source_of_request", lambda _request: local_source)
    monkeypatch.setattr(planning, "choose_engine", lambda *_: (engine, "asked for"))
    names = ["Q4_K_M", "Q6_K", "IQ2_XS"]
    made = quantyard.build("tiny", quant=names, imatrix="auto", artifacts=tmp_path)
    kept = {file.quant: file.record.sha256 for file in made.files}
    engine.ran.clear()
    again = quantyard.build("tiny", quant=names, artifacts=tmp_path)
    assert engine.ran == [] and {file.quant: file.record.sha256 for file in again.files} == kept
    told = plan_notes(quantyard.plan("tiny", quant=names, artifacts=tmp_path).plan)
    assert told[-1] == "Made with an importance matrix: Q4_K_M, IQ2_XS; without one: Q6_K."
    quantyard.build("tiny", quant="Q4_K_M", imatrix="none", artifacts=tmp_path)
    assert read_manifest(again.manifest_path).quants["Q4_K_M"].imatrix is None  # type: ignore[union-attr]


def test_a_file_made_with_the_users_own_matrix_is_not_replaced_unasked(
    local_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine()
    monkeypatch.setattr(planning, "_source_of_request", lambda _request: local_source)
    monkeypatch.setattr(planning, "choose_engine", lambda *_: (engine, "asked for"))
    mine = _matrix(tmp_path, name="mine.gguf")
    quantyard.build("tiny", quant="Q4_K_M", imatrix=mine, artifacts=tmp_path / "a")
    engine.ran.clear()
    with pytest.raises(BadRequest, match="was made with the importance matrix") as error:
        quantyard.build("tiny", quant="Q4_K_M", artifacts=tmp_path / "a")
    assert "IMATRIX=none" in error.value.hint
    assert quantyard.build("tiny", quant="Q4_K_M", imatrix=mine, artifacts=tmp_path / "a").ran == ()
