"""The search for a mix: exact sizes, the knapsack against trying everything, and `make tune` on an engine whose model
diverges as the theory says, so that the right answer is known.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from quantyard import cli
from quantyard.engines import OnProgress
from quantyard.errors import BadRequest
from quantyard.formats.gguf import GgufHeader, read_gguf_header
from quantyard.formats.tensor_patterns import resolve_tensor_patterns, tensor_name_parts
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import ExitCode, FileEntry, StageResult
from quantyard.protocol.builder import QuantizeRequest, RoundingRequest
from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.evaluation import DivergenceRequest
from quantyard.protocol.runner import file_sha256
from quantyard.quants.catalog import find_quant
from quantyard.quants.exact_sizes import Sizes, nearest_stock_quant, stock_quant_sizes
from quantyard.quants.recipe_files import read_quant_recipe
from quantyard.requests import TuneRequest
from quantyard.sources.resolve import Source
from quantyard.store.artifact import Artifact, Workspace
from quantyard.tune.goal import HeldOutFile, TuningGoal, find_tuned_mix, tuning_gain, tuning_goal
from quantyard.tune.knapsack import TypeOption, tuned_mix_within_kld, tuned_mix_within_size, tuning_mix_front
from quantyard.tune.sensitivity import Sensitivity as Found
from quantyard.tune.sensitivity import tuned_recipe, tuning_fixed_bytes, tuning_options
from quantyard.tune.tensor_groups import tuning_tensor_groups
from quantyard.tune.type_errors import LADDER, distinct_tuning_types
from quantyard.workflows import planning
from quantyard.workflows import tune as tune_workflow
from tests.gguf_files import TensorSpec, gguf
from tests.unit.fake_engine import FakeEngine

pytestmark = pytest.mark.commands

LAYERS = 6
METADATA = {"general.architecture": "llama", "llama.block_count": LAYERS, "llama.attention.head_count": 4,
            "llama.attention.head_count_kv": 2}  # fmt: skip
SHAPES = {"attn_q": (256, 256), "attn_v": (256, 64), "ffn_down": (512, 256)}
# How much a weight of each kind matters; the first layers' matter twice as much as the others'.
MATTERS = {"attn_q": 1e-6, "attn_v": 2e-5, "ffn_down": 4e-6, "token_embd": 5e-7}


# Squared errors of normally distributed weights, as ggml rounds them.
ERROR = {
    "Q2_K": 8.8e-2, "Q3_K": 2.3e-2, "Q4_0": 7.4e-3, "Q4_1": 6.1e-3, "IQ4_XS": 5.9e-3, "IQ4_NL": 5.8e-3, "Q4_K": 5.1e-3,
    "Q5_0": 1.8e-3, "Q5_1": 1.4e-3, "Q5_K": 1.3e-3, "Q6_K": 3.2e-4, "Q8_0": 2.9e-5,
}  # fmt: skip


def errors_of(header: GgufHeader) -> dict[str, dict[str, float]]:
    return {tensor.name: ERROR for tensor in header.tensors}


def tensors_of(types: Mapping[str, str]) -> list[TensorSpec]:
    """The tensors of a small llama; those not in `types` are Q8_0."""
    shapes = {"token_embd.weight": (256, 512)}
    shapes |= {f"blk.{i}.{kind}.weight": shape for i in range(LAYERS) for kind, shape in SHAPES.items()}
    made = [TensorSpec(name, shape, types.get(name, "Q8_0")) for name, shape in shapes.items()]
    return [*made, TensorSpec("output_norm.weight", (256,))]


def write_model(path: Path, types: Mapping[str, str]) -> GgufHeader:
    path.write_bytes(gguf(METADATA, tensors_of(types)))
    return read_gguf_header(path)


@pytest.fixture
def made(tmp_path: Path) -> GgufHeader:
    return write_model(tmp_path / "q8.gguf", {})


def diverges_by(header: GgufHeader) -> float:
    """Mean KLD of a file of this model: each weight's part, by the error of its type."""
    parts = [
        MATTERS[tensor_name_parts(t.name)[1]]
        * (2 if tensor_name_parts(t.name)[0] in (0, 1) else 1)
        * t.n_params
        * ERROR[t.type.name]
        for t in header.tensors if len(t.shape) > 1
    ]  # fmt: skip
    return sum(parts)


# ---- groups and sizes --------------------------------------------------------------------------------


def test_every_tensor_that_can_be_quantized_is_in_one_group(made: GgufHeader) -> None:
    for parts in (1, 2, 3, 4, 6, 100):
        groups = tuning_tensor_groups(made, parts)
        names = [tensor.name for group in groups for tensor in group.tensors]
        assert sorted(names) == sorted(t.name for t in made.tensors if len(t.shape) > 1)
        assert len(groups) == 1 + 3 * min(parts, LAYERS)
    assert {group.name for group in tuning_tensor_groups(made) if group.kind == "attn_q"} == {
        "attn_q.0-1", "attn_q.2-3", "attn_q.4-5",
    }  # fmt: skip


def test_a_groups_pattern_names_its_tensors_and_no_other(made: GgufHeader) -> None:
    for group in tuning_tensor_groups(made):
        if group.layers is not None:
            assert set(resolve_tensor_patterns(made.tensors, {group.pattern: "Q4_0"})) == {
                tensor.name for tensor in group.tensors
            }


def test_sizes_are_those_of_the_files_to_the_byte(made: GgufHeader, tmp_path: Path) -> None:
    sizes, draw = Sizes(made), random.Random(5)
    for number in range(20):
        types = {t.name: draw.choice(LADDER) for t in made.tensors if len(t.shape) > 1 and draw.random() < 0.8}
        assert sizes.of_file(types) == write_model(tmp_path / f"{number}.gguf", types).file_size


def test_the_nearest_stock_quant_is_never_larger(made: GgufHeader) -> None:
    stock = stock_quant_sizes(Sizes(made))
    for size in stock.values():
        assert stock[nearest_stock_quant(stock, size) or ""] == size
        smaller = nearest_stock_quant(stock, size - 1)
        assert smaller is None or stock[smaller] < size
    assert nearest_stock_quant(stock, min(stock.values()) - 1) is None


def test_types_that_end_as_the_same_are_tried_once(made: GgufHeader) -> None:
    assert set(distinct_tuning_types(made.tensors[:1])) == set(LADDER)
    narrow = TensorSpec("blk.0.attn_q.weight", (96, 4), "Q8_0")
    path = made.paths[0].with_name("narrow.gguf")
    path.write_bytes(gguf(METADATA, [narrow]))
    ends = distinct_tuning_types(read_gguf_header(path).tensors)
    assert set(ends) == {"Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0"}


# ---- the knapsack ------------------------------------------------------------------------------------


def test_no_mix_is_better_than_the_one_that_is_chosen() -> None:
    draw = random.Random(3)
    for _ in range(30):
        groups = [_options(draw) for _ in range(4)]
        mixes = tuning_mix_front(groups, 1000)
        every = [(1000 + sum(o.size_bytes for o in c), sum(o.kld for o in c)) for c in itertools.product(*groups)]
        for size in range(min(s for s, _ in every), max(s for s, _ in every) + 100, 173):
            best = min(kld for s, kld in every if s <= size)
            chosen = tuned_mix_within_size(mixes, size)
            assert chosen is not None and chosen.size_bytes <= size
            assert chosen.kld == pytest.approx(best)
        for kld in (min(k for _, k in every), 0.3, 0.6, 1.1):
            fitting = [s for s, k in every if k <= kld + 1e-12]
            smallest = tuned_mix_within_kld(mixes, kld + 1e-12)
            assert (smallest and smallest.size_bytes) == (min(fitting) if fitting else None)


def _options(draw: random.Random) -> list[TypeOption]:
    return [TypeOption(f"T{i}", draw.randrange(100, 900), draw.random() / 2) for i in range(4)]


def test_the_knapsack_is_near_the_best_where_mixes_are_too_many_to_try() -> None:
    """All groups the same: how many have which type is all there is to find."""
    low, mid, high = ("low", 1_000_003, 8.0), ("mid", 1_300_007, 2.0), ("high", 2_000_011, 0.1)
    groups = [[TypeOption(*option) for option in (low, mid, high)]] * 40
    mixes = tuning_mix_front(groups, 0)
    counts = [(a, b, 40 - a - b) for a in range(41) for b in range(41 - a)]
    for budget in (41_000_000, 52_000_000, 70_000_000):
        fitting = [c for c in counts if 1_000_003 * c[0] + 1_300_007 * c[1] + 2_000_011 * c[2] <= budget]
        best = min(8.0 * a + 2.0 * b + 0.1 * c for a, b, c in fitting)
        chosen = tuned_mix_within_size(mixes, budget)
        assert chosen is not None and chosen.kld <= best * 1.02


def test_a_recipe_of_a_mix_gives_each_group_its_type(made: GgufHeader) -> None:
    groups = tuning_tensor_groups(made)
    draw = random.Random(9)
    for _ in range(20):
        types = [draw.choice(LADDER) for _ in groups]
        recipe = tuned_recipe("X", groups, types, "drawn")
        found = resolve_tensor_patterns(made.tensors, recipe.tensors, recipe.output, recipe.token_embedding)
        assert found == {t.name: kind for group, kind in zip(groups, types, strict=True) for t in group.tensors}


# ---- goals -------------------------------------------------------------------------------------------


def test_a_goal_that_no_mix_reaches_is_told_the_nearest_and_that_one_is_reached(made: GgufHeader) -> None:
    sizes, groups = Sizes(made), tuning_tensor_groups(made)
    options = [tuning_options(Found(group, 0.01, 0.0), sizes, errors_of(made)) for group in groups]
    mixes = tuning_mix_front(options, tuning_fixed_bytes(groups, sizes))
    for goal in (TuningGoal(size_bytes=1000), TuningGoal(kld=1e-9)):
        with pytest.raises(BadRequest, match=r"No mix reaches .*the nearest has") as refused:
            find_tuned_mix(mixes, goal)
        value = refused.value.hint.partition("=")[2]
        reached = TuningGoal(size_bytes=int(value)) if goal.size_bytes else TuningGoal(kld=float(value))
        assert find_tuned_mix(mixes, reached)


def test_a_stock_quants_name_is_the_size_it_has(made: GgufHeader) -> None:
    stock = stock_quant_sizes(Sizes(made))
    assert tuning_goal(TuneRequest(target_quant="Q4_K_M"), stock) == TuningGoal(size_bytes=stock["Q4_K_M"])
    with pytest.raises(BadRequest, match="cannot be used: this model cannot be quantized to it"):
        tuning_goal(TuneRequest(target_quant="IQ2_XS"), stock)


def divergence(label: str, kld: float, stderr: float = 1e-6, text: str = "prose") -> Divergence:
    return Divergence(
        label=label, text=text, n_ctx=512, n_chunks=4, n_tokens=1024, rolling_perplexity=9.0,
        perplexity=Estimate(value=9.0, stderr=0.1), mean_kld=Estimate(value=kld, stderr=stderr),
        kld_percentiles={"99": 10 * kld}, top1_agreement=Estimate(value=0.9, stderr=0.01),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kld", "stderr", "verdict"),
    [(0.02, 0.001, "better"), (0.06, 0.001, "worse"), (0.039, 0.01, "no significant difference")],
)
def test_a_gain_is_claimed_only_where_its_interval_leaves_zero_out(kld: float, stderr: float, verdict: str) -> None:
    gain = tuning_gain(
        HeldOutFile("T", 100, divergence("T", kld, stderr)),
        HeldOutFile("Q4_K_M", 110, divergence("Q4_K_M", 0.04, 0.001)),
    )
    half = 1.959964 * (stderr**2 + 0.001**2) ** 0.5
    assert gain.verdict.startswith(verdict)
    assert (gain.difference.low, gain.difference.high) == pytest.approx((kld - 0.04 - half, kld - 0.04 + half))
    assert gain.relative.value == pytest.approx(kld / 0.04 - 1)


# ---- make tune ---------------------------------------------------------------------------------------


@dataclass
class Yard(FakeEngine):
    """Makes files whose header is true, and whose divergence is known."""

    asked: list[QuantizeRequest] = field(default_factory=list)

    def run(
        self, spec: StageSpec, space: Workspace, inputs: Mapping[str, Artifact], on_progress: OnProgress
    ) -> StageResult:
        if isinstance(spec.request, QuantizeRequest):
            self.behaviours[spec.label] = self._quantize
        elif isinstance(spec.request, RoundingRequest):
            self.behaviours[spec.label] = self._round
        elif isinstance(spec.request, DivergenceRequest):
            self.behaviours[spec.label] = lambda spec, space: self._diverge(spec, space, inputs)
        return super().run(spec, space, inputs, on_progress)

    def _quantize(self, spec: StageSpec, space: Workspace) -> StageResult:
        request = spec.request
        assert isinstance(request, QuantizeRequest)
        self.asked.append(request)
        plain = write_model(space.out_dir / "plain.gguf", {})
        stock = {t.name: kind for t, kind in Sizes(plain)._stock_types(find_quant(request.quant))}
        told = resolve_tensor_patterns(
            plain.tensors, request.tensor_types, request.output_type, request.token_embedding_type
        )
        (space.out_dir / "files").mkdir(exist_ok=True)
        write_model(space.out_dir / "files" / "model.gguf", stock | told)
        return self._left(spec, space, ["model.gguf"])

    def _round(self, spec: StageSpec, space: Workspace) -> StageResult:
        (space.out_dir / "files").mkdir(exist_ok=True)
        plain = write_model(space.out_dir / "plain.gguf", {})
        (space.out_dir / "files" / "rounding.json").write_text(json.dumps(errors_of(plain)))
        return self._left(spec, space, ["rounding.json"])

    def _diverge(self, spec: StageSpec, space: Workspace, inputs: Mapping[str, Artifact]) -> StageResult:
        request = spec.request
        assert isinstance(request, DivergenceRequest)
        of = {request.label: "model"} | {m.label: f"model-{m.label}" for m in request.others}
        names = []
        for label, name in of.items():
            path = f"{label}/divergence.json" if request.is_joined else "divergence.json"
            (space.out_dir / "files" / path).parent.mkdir(parents=True, exist_ok=True)
            kld = diverges_by(read_gguf_header(inputs[name].folder / "model.gguf"))
            text = request.settings.text or "prose"
            (space.out_dir / "files" / path).write_text(divergence(label, kld, text=text).model_dump_json())
            names.append(path)
        return self._left(spec, space, names).model_copy(update={"facts": {label: {} for label in of}})

    @staticmethod
    def _left(spec: StageSpec, space: Workspace, names: list[str]) -> StageResult:
        paths = [(name, space.out_dir / "files" / name) for name in names]
        entries = tuple(FileEntry(path=n, size_bytes=p.stat().st_size, sha256=file_sha256(p)) for n, p in paths)
        return StageResult(stage=spec.row.name, exit_code=ExitCode.DONE, outputs=entries)


Run = Callable[..., int]


@pytest.fixture
def run(local_source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `tune` on this engine; returns its exit code."""
    monkeypatch.setattr(planning, "_source_of_request", lambda _request: local_source)
    # What overlaps is the subject of another test.
    monkeypatch.setattr(tune_workflow, "plan_contaminating_files", lambda *_: [])

    def go(engine: FakeEngine, *argv: str) -> int:
        monkeypatch.setattr(planning, "choose_engine", lambda *_: (engine, "asked for"))
        with pytest.raises(SystemExit) as ended:
            cli.main(["tune", "--model=x", f"--artifacts={tmp_path / 'artifacts'}", *argv])
        return int(ended.value.code or 0)

    return go


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_tuned_file_is_no_larger_than_asked_and_beats_the_stock_quant(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Yard(), "--target-size=Q4_K_M", "--json") == 0
    found = said(capsys)
    tuned, stock = (found["files"][name] for name in (found["recipe"]["name"], found["stock"]))
    assert tuned["size_bytes"] <= stock["size_bytes"] and found["verdict"] == "better"
    assert found["files"].keys() == {found["recipe"]["name"], found["stock"]}
    assert found["expected_kld"] == pytest.approx(tuned["mean_kld"]["value"], rel=0.02)
    ranked = sorted(found["groups"], key=lambda g: -g["kld_when_low"] / g["weights"])
    assert ranked[0]["name"] == "attn_v.0-1" and ranked[-1]["name"] == "token_embd"


def test_each_group_is_made_low_alone_and_all_are_read_in_one_run(run: Run) -> None:
    engine = Yard()
    assert run(engine, "--target-size=Q4_K_M") == 0
    probes = [request for request in engine.asked if request.recipe.startswith("probe ")]
    assert len(probes) == 10 and all(request.quant == "Q8_0" for request in probes)
    assert all(len(r.tensor_types) + bool(r.token_embedding_type) == 1 for r in probes)
    assert [label for label in engine.ran if label.startswith("divergence Q8_0, ")] != []
    assert sum(label.startswith("divergence") for label in engine.ran) == 2  # the search's text, and the held-out one


def test_a_run_of_very_many_files_has_a_name_that_a_folder_can_have(run: Run) -> None:
    engine = Yard()
    assert run(engine, "--target-size=Q4_K_M", "--depth-parts=6") == 0
    joined = next(label for label in engine.ran if label.startswith("divergence Q8_0, "))
    assert joined.endswith(" and 12 more") and len(joined) < 200


def test_typed_again_it_runs_nothing_and_another_size_only_makes_its_own_file(run: Run) -> None:
    first, again, other = Yard(), Yard(), Yard()
    assert run(first, "--target-size=Q4_K_M") == run(again, "--target-size=Q4_K_M") == 0
    assert again.ran == []
    assert run(other, "--target-size=Q5_K_M") == 0
    assert not [request for request in other.asked if request.recipe.startswith("probe ")]


def test_the_recipe_that_was_found_is_a_file_that_makes_the_same_again(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Yard(), "--target-size=Q4_K_M", "--json") == 0
    found = said(capsys)
    assert read_quant_recipe(Path(found["recipe_file"])).model_dump() == found["recipe"]


def test_a_divergence_as_the_goal_ends_with_a_file_that_keeps_it(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for target in (0.02, 0.005):
        assert run(Yard(), f"--target-kld={target}", "--json") == 0
        found = said(capsys)
        assert found["files"][found["recipe"]["name"]]["mean_kld"]["value"] <= target * 1.001
        assert found["files"][found["stock"]]["size_bytes"] <= found["files"][found["recipe"]["name"]]["size_bytes"]


def test_no_other_types_are_chosen_than_those_that_were_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(first := Yard(), "--target-size=Q4_K_M", "--json") == 0
    free = said(capsys)
    assert run(again := Yard(), "--target-size=Q4_K_M", "--types=q8_0,Q3_K,Q4_K", "--json") == 0
    named = said(capsys)
    assert {group["type"] for group in named["groups"]} <= {"Q3_K", "Q4_K", "Q8_0"}
    assert not {group["type"] for group in free["groups"]} <= {"Q3_K", "Q4_K", "Q8_0"}
    assert named["expected_kld"] > free["expected_kld"] and "of Q8_0, Q3_K, Q4_K" in named["recipe"]["description"]
    assert "rounding" in first.ran and "rounding" not in again.ran  # what was measured serves both


@pytest.mark.parametrize("goal", ["--target-size=1000", "--target-kld=0.0000001"])
def test_a_goal_that_no_mix_reaches_ends_with_the_nearest(
    goal: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Yard()
    assert run(engine, goal) == ExitCode.BAD_REQUEST
    nearest = "smallest possible mix" if "size" in goal else "nearest"
    assert "No mix reaches" in (err := capsys.readouterr().err) and nearest in err and "TARGET_" in err
    if "size" in goal:  # known from the header, before anything is measured
        assert engine.ran == ["twin", "convert", "quantize Q8_0"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "Neither TARGET_SIZE nor TARGET_KLD"), (("--target-size=1GiB", "--target-kld=1"), "both given"),
        (("--target-kld=0",), "unquantized"), (("--target-kld=-1",), "not a number"),
        (("--target-size=Q4_KM",), "Did you mean 'Q4_K_M'"), (("--target-size=0",), "not a size"),
        (("--target-size=1GiB", "--types=Q8_0,Q4_K_M"), "Did you mean Q4_K?"),
        (("--target-size=1GiB", "--depth-parts=0"), "DEPTH_PARTS=0"),
        (("--target-size=1GiB", "--chunks=-1"), "CHUNKS=-1"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_runs_nothing(
    argv: tuple[str, ...], says: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Yard()
    assert run(engine, *argv) == ExitCode.BAD_REQUEST
    assert says in capsys.readouterr().err and engine.ran == []
