"""The twin of a model: how its config is shrunk, when two computations are the same, and what a difference leads to."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import JsonValue

from builder import twin
from builder.llama.run_tool import ToolRun
from builder.twin_model.compare import TOLERANCE, TwinAgreement, compare_logits, join_agreements
from builder.twin_model.known import ignores_window, known_differences
from builder.twin_model.layers import first_wrong_layer, layer_sentence
from builder.twin_model.shrink import DEPTH_MATTERS, Shrunken, shrink_to_twin
from builder.twin_model.sides import LACKS_PACKAGE, NotComparedError, refuse_failed_side
from quantyard.card.render import render_card
from quantyard.cli.json_outputs.building import build_output
from quantyard.cli.render.build import terminal_built
from quantyard.paths import REPO_DIR
from quantyard.plan.build import BuildOptions, make_build_plan
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import ExitCode, StageResult
from quantyard.protocol.builder import Parity, TwinRequest
from quantyard.protocol.facts import TwinFacts
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome
from quantyard.quants.selection import parse_quants
from quantyard.report_page.sentences import page_facts
from quantyard.sources.resolve import Source
from quantyard.store.artifact import Workspace
from quantyard.workflows.results import built_result
from tests.cards import CONTEXT
from tests.manifests import manifest_of, with_twin
from tests.twins import (
    DEEPSEEK_V3,
    DEEPSEEK_V3_SILENT,
    EXAONE4,
    FLAN_T5,
    GEMMA3_4B,
    LLAMA,
    MISTRAL,
    STARCODER2,
    T5_TIED,
    Config,
)
from tests.unit.conftest import MakeRunner, Notes
from tests.unit.fake_engine import Behaviour, FakeEngine, writes

EVERY = (DEEPSEEK_V3, EXAONE4, FLAN_T5, GEMMA3_4B, LLAMA, MISTRAL, STARCODER2, T5_TIED)
_NAMES = [config["model_type"] + str(len(config)) for config in EVERY]


def _text(config: Config) -> Config:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


# ---- the small config --------------------------------------------------------------------------------


@pytest.mark.parametrize("config", EVERY, ids=_NAMES)
def test_no_key_comes_or_goes_but_what_a_quantizer_left_and_the_config_given_is_untouched(config: Config) -> None:
    before = copy.deepcopy(config)
    small = shrink_to_twin(config).config
    assert config == before
    assert set(config) - set(small) <= {"quantization_config", "torch_dtype", "auto_map", "dtype"}
    assert set(small) <= set(config)


@pytest.mark.parametrize("config", EVERY, ids=_NAMES)
def test_it_is_small_whatever_the_model_is(config: Config) -> None:
    part = _text(shrink_to_twin(config).config)
    assert max(part.get("hidden_size", 0), part.get("d_model", 0)) <= 192
    assert part.get("n_routed_experts", 0) <= 8


@pytest.mark.parametrize("config", EVERY, ids=_NAMES)
def test_what_decides_the_function_stays(config: Config) -> None:
    part, small = _text(config), _text(shrink_to_twin(config).config)
    for name in (
        "rope_theta", "rms_norm_eps", "norm_epsilon", "hidden_act", "tie_word_embeddings", "use_bias", "vocab_size",
        "scoring_func", "routed_scaling_factor", "norm_topk_prob", "feed_forward_proj", "architectures",
    ):  # fmt: skip
        assert small.get(name, None) == part.get(name, None), name


def test_a_key_that_the_file_leaves_out_stays_out_but_for_widths_that_transformers_would_give() -> None:
    defaults = {"hidden_size": 2304, "head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4,
                "query_pre_attn_scalar": 256, "scoring_func": "sigmoid"}  # fmt: skip
    small = _text(shrink_to_twin(GEMMA3_4B, {"text_config": defaults}).config)
    assert "scoring_func" not in small
    assert small["head_dim"] == 32 == small["query_pre_attn_scalar"], "a scale that is the head's width stays so"
    assert (small["num_attention_heads"], small["num_key_value_heads"]) == (4, 2)


def test_heads_keep_their_ratio_and_whether_they_are_a_power_of_two() -> None:
    def heads(**changes: int) -> tuple[int, int]:
        small = shrink_to_twin({**LLAMA, **changes}).config
        assert small["hidden_size"] % small["num_attention_heads"] == 0
        return small["num_attention_heads"], small["num_key_value_heads"]

    assert heads() == (8, 2)
    assert heads(num_key_value_heads=32) == (4, 4)
    assert heads(num_attention_heads=40, num_key_value_heads=40, hidden_size=5120) == (6, 6)
    assert heads(num_attention_heads=24, num_key_value_heads=8, hidden_size=3072) == (6, 2)
    assert heads(num_key_value_heads=1) == (4, 1)


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        ({"layer_types": ["sliding_attention", "full_attention"] * 16}, 2),
        ({"layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 6, "num_hidden_layers": 36}, 6),
        ({"layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 8}, 4),
        ({"full_attention_interval": 4}, 4),
        ({"sliding_window_pattern": 6}, 6),
        ({"attn_layer_period": 8, "expert_layer_period": 2}, 8),
        ({"full_attn_idxs": [2, 5, 8]}, 4),
        ({"no_rope_layers": [1, 1, 1, 0] * 8}, 4),
        ({}, 2),
    ],
)
def test_every_kind_of_layer_is_there(config: Config, kinds: int) -> None:
    found = shrink_to_twin({**LLAMA, **config})
    assert found.depth == found.config["num_hidden_layers"] == kinds
    for name in ("layer_types", "no_rope_layers"):
        if name in config:
            assert set(found.config[name]) == set(config[name]) and len(found.config[name]) == kinds


def test_layers_without_a_pattern_stay_all() -> None:
    types = ["full_attention"] * 32
    types[20] = "sliding_attention"
    assert shrink_to_twin({**LLAMA, "layer_types": types}).depth >= 21


def test_dense_layers_before_experts_are_of_both_kinds() -> None:
    small = shrink_to_twin(DEEPSEEK_V3).config
    assert small["first_k_dense_replace"] == 1 and small["num_hidden_layers"] == 3
    assert small["num_nextn_predict_layers"] == 0
    assert small["n_group"] <= small["n_routed_experts"] // 2, "two experts at least in a group"
    assert small["topk_group"] < small["n_group"]


@pytest.mark.parametrize("name", sorted(DEPTH_MATTERS))
def test_the_depth_stays_where_llama_cpp_decides_by_it(name: str) -> None:
    assert shrink_to_twin({**LLAMA, "architectures": [name]}).depth == 32


def test_all_layers_stay_if_that_is_asked_for() -> None:
    assert shrink_to_twin(LLAMA, full_depth=True).depth == 32


def test_a_window_gets_short_with_the_prompt_beyond_it() -> None:
    found = shrink_to_twin(MISTRAL)
    assert found.window == (32, 4096) and found.config["sliding_window"] == 32
    assert found.prompt_tokens > 2 * 32


@pytest.mark.parametrize(
    "changes", [{"sliding_window": None}, {"sliding_window": 32768}, {"use_sliding_window": False}]
)
def test_a_window_that_no_text_reaches_is_none(changes: Config) -> None:
    assert shrink_to_twin({**MISTRAL, **changes}).window is None


def test_the_context_of_a_scaled_rope_gets_short_with_the_prompt_beyond_it() -> None:
    found = shrink_to_twin(LLAMA)
    assert found.rope_context == (256, 8192)
    rope = found.config["rope_scaling"]
    assert rope["original_max_position_embeddings"] == 256 < found.prompt_tokens
    assert rope["factor"] == 8.0 and found.config["max_position_embeddings"] == 4096, "in proportion"
    assert shrink_to_twin(MISTRAL).rope_context is None


def test_a_factor_for_each_frequency_stays_one_for_each() -> None:
    factors = [1.0 + i / 48 for i in range(48)]
    config = LLAMA | {
        "hidden_size": 3072, "num_key_value_heads": 32, "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "longrope", "long_factor": factors, "short_factor": factors},
    }  # fmt: skip
    small = shrink_to_twin(config).config
    width = small["hidden_size"] // small["num_attention_heads"]
    assert len(small["rope_scaling"]["long_factor"]) == width // 2
    assert small["original_max_position_embeddings"] == 256


def test_the_part_of_a_head_that_a_rope_turns_stays_even() -> None:
    small = shrink_to_twin(
        {**LLAMA, "hidden_size": 2560, "num_key_value_heads": 32, "partial_rotary_factor": 0.4}
    ).config
    turned = small["hidden_size"] / small["num_attention_heads"] * 0.4
    assert turned == int(turned) and int(turned) % 2 == 0


def test_encoders_of_pictures_have_one_layer() -> None:
    assert shrink_to_twin(GEMMA3_4B).config["vision_config"]["num_hidden_layers"] == 1


# ---- the comparison ----------------------------------------------------------------------------------


def _logits(seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((4, 50)).astype(np.float32)


def test_equal_within_arithmetic_is_equal() -> None:
    logits = _logits()
    found = compare_logits(logits, logits + np.float32(1e-5), [0, 3, 7, 9])
    assert found.is_equal and found.same_top == 1.0 and found.mean_kld < 1e-9 and found.n_positions == 4


def test_the_first_position_that_differs_is_named_by_its_number() -> None:
    logits = _logits()
    other = logits.copy()
    other[2, 5] += 2 * TOLERANCE
    found = compare_logits(logits, other, [0, 3, 7, 9])
    assert not found.is_equal and found.first_wrong == 7


def test_logits_that_are_16_times_as_large_differ_though_the_top_token_is_the_same() -> None:
    found = compare_logits(_logits(), 16 * _logits(), [0, 1, 2, 3])
    assert found.same_top == 1.0 and found.first_wrong == 0 and found.relative > 10


def test_padding_of_a_vocabulary_is_not_compared() -> None:
    logits = _logits()
    assert compare_logits(logits, logits[:, :40], [0, 1, 2, 3]).is_equal


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_no_proof(broken: float) -> None:
    logits = _logits()
    logits[1, 1] = broken
    with pytest.raises(ValueError, match="finite"):
        compare_logits(logits, logits, [0, 1, 2, 3])


def test_agreements_join_to_the_worst_difference_and_the_mean_of_shares() -> None:
    logits, other = _logits(), _logits(1)
    parts = [compare_logits(logits, logits, [0, 1, 2, 3]), compare_logits(logits, other, [4, 5, 6, 7])]
    joined = join_agreements(parts)
    assert joined.n_positions == 8 and joined.first_wrong == 4 and joined.same_top >= 0.5


# ---- which layer ------------------------------------------------------------------------------------


def _write_layers(folder: Path, side: str, layers: Mapping[int, np.ndarray[Any, Any]]) -> None:
    np.savez(folder / f"{side}-layers-0.npz", **{str(number): rows for number, rows in layers.items()})


@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_the_first_layer_that_differs_is_named(tmp_path: Path, wrong: int) -> None:
    positions, whole = [1, 2, 5], {n: _logits(n)[[0, 1, 2, 3, 0, 1]] for n in range(4)}
    _write_layers(tmp_path, "hf", {n: rows[positions] for n, rows in whole.items()})
    ours = {n: rows + np.float32(n >= wrong) for n, rows in whole.items()}
    _write_layers(tmp_path, "llama", {**ours, 3: ours[3][positions]})  # of the last layer, what is asked for
    assert first_wrong_layer(tmp_path, [positions]) == wrong
    said = layer_sentence(wrong, 4)
    assert f"differs is layer {wrong} " in said and ("0 to 2 agree" in said) == (wrong == 3)


def test_what_differs_behind_layers_that_agree_is_the_norm_or_the_output(tmp_path: Path) -> None:
    layers = {n: _logits(n) for n in range(2)}
    _write_layers(tmp_path, "hf", layers)
    _write_layers(tmp_path, "llama", layers)
    assert first_wrong_layer(tmp_path, [[0, 1, 2, 3]]) == 2
    assert layer_sentence(2, 2) == "All layers agree: the final norm or the output differs."


def test_without_outputs_of_layers_there_is_nothing_to_say(tmp_path: Path) -> None:
    _write_layers(tmp_path, "hf", {0: _logits()})
    assert first_wrong_layer(tmp_path, [[0, 1, 2, 3]]) is None and layer_sentence(None, 2) == ""


# ---- the verdict -------------------------------------------------------------------------------------


def test_known_causes_are_looked_for_where_they_can_be() -> None:
    (known,) = known_differences(DEEPSEEK_V3_SILENT)
    neutral = known.neutral(DEEPSEEK_V3_SILENT)
    assert neutral is not None and neutral["scoring_func"] == "sigmoid" and not known.accepted
    assert "scoring_func" not in DEEPSEEK_V3_SILENT, "the config given is untouched"
    assert not [*known_differences(DEEPSEEK_V3)] and not [*known_differences(FLAN_T5)]
    assert [*known_differences(T5_TIED)]
    assert ignores_window(MISTRAL) and not ignores_window(EXAONE4)


class _Script:
    """Answers each twin that is asked for with the next of these: whether it is equal, or from which position not."""

    def __init__(self, *answers: bool | int | str) -> None:
        self.answers, self.asked = list(answers), list[Any]()

    def make(self, attempt: Any) -> Any:
        self.asked.append(attempt)
        answer = self.answers.pop(0)
        if isinstance(answer, str):
            raise NotComparedError(answer)
        first = None if answer is True else int(answer)
        good = TwinAgreement(1e-5, 1.0, 1.0, 0.0, 24, 1.0, None)
        bad = TwinAgreement(5.0, 1.0, 0.5, 0.3, 24, 0.8, first)
        small: Shrunken = shrink_to_twin(attempt.config, full_depth=attempt.full_depth)
        facts = {
            "depth": small.depth, "real_depth": small.real_depth, "window": small.window,
            "rope_context": small.rope_context, "prompt_tokens": small.prompt_tokens,
        }  # fmt: skip
        short = bad if first is not None and first < 24 else good
        return twin._Found([short, good if first is None else bad], facts)


def _outcome(
    config: Config, script: _Script, folder: Path, monkeypatch: pytest.MonkeyPatch, allow: bool = False
) -> StageOutcome:
    monkeypatch.setattr(twin._Workshop, "make", lambda _shop, attempt: script.make(attempt))
    (folder / "in" / "source").mkdir(parents=True)
    (folder / "in" / "source" / "config.json").write_text(json.dumps(config))
    stage = Stage("twin", folder / "in", folder / "out", {}, {})
    return twin.twin(stage, TwinRequest(allow_twin_mismatch=allow))


def test_an_equal_twin_is_proof_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = _Script(True)
    facts = TwinFacts.read(_outcome(LLAMA, script, tmp_path, monkeypatch).facts)
    assert facts.status == "proved" and len(script.asked) == 1 and not facts.allowed
    assert facts.finding.startswith("Computes what Transformers computes: max |Δ logit| 0.00001")


def test_a_twin_that_differs_is_tried_at_full_depth_with_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = _Script(0, True)
    facts = TwinFacts.read(_outcome(LLAMA, script, tmp_path, monkeypatch).facts)
    assert facts.status == "proved" and script.asked[1].full_depth and script.asked[1].seed != script.asked[0].seed


def test_one_that_differs_twice_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageFailure) as failure:
        _outcome(LLAMA, _Script(0, 0), tmp_path, monkeypatch)
    assert failure.value.exit_code is ExitCode.UNSUPPORTED_MODEL and failure.value.error.kind == "twin"
    assert "ALLOW_TWIN_MISMATCH=1" in failure.value.error.hint


def test_what_is_allowed_to_differ_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = TwinFacts.read(_outcome(LLAMA, _Script(0, 0), tmp_path, monkeypatch, allow=True).facts)
    assert facts.status == "differs" and facts.allowed


def test_a_window_that_is_ignored_limits_the_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = TwinFacts.read(_outcome(MISTRAL, _Script(32), tmp_path, monkeypatch).facts)
    assert (facts.status, facts.right_up_to_tokens) == ("limited", 4096)


def test_a_scaled_rope_that_is_ignored_limits_the_length_to_the_original_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = TwinFacts.read(_outcome(LLAMA, _Script(30, 30), tmp_path, monkeypatch).facts)
    assert (facts.status, facts.right_up_to_tokens) == ("limited", 8192)


def test_a_difference_that_begins_elsewhere_than_at_a_limit_is_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StageFailure):
        _outcome(MISTRAL, _Script(28, 28), tmp_path, monkeypatch)


def test_a_cause_that_is_known_is_told_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageFailure) as failure:
        _outcome(DEEPSEEK_V3_SILENT, _Script(0, True), tmp_path, monkeypatch)
    assert "sigmoid" in failure.value.error.message and "scoring_func" in failure.value.error.hint


def test_a_cause_that_no_config_is_without_is_told_where_the_twin_differs_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**LLAMA, "architectures": ["PhiMoEForCausalLM"]}
    with pytest.raises(StageFailure) as failure:
        _outcome(config, _Script(0, 0), tmp_path / "differs", monkeypatch)
    assert "SparseMixer" in failure.value.error.message and "Phi-4-mini" in failure.value.error.hint
    proved = _outcome(config, _Script(True), tmp_path / "proved", monkeypatch)
    assert "SparseMixer" not in str(proved.facts["finding"])


@pytest.mark.parametrize(
    ("parity", "compared"), [("twin", ["twin"]), ("full", ["twin", "parity"]), ("off", [])]
)
def test_parity_says_what_is_compared_and_the_twin_comes_before_the_conversion(
    local_source: Source, parity: Parity, compared: list[str]
) -> None:
    options = BuildOptions(
        quants=parse_quants("Q8_0"), outtype="auto", allow_pickle=False, allow_requantize=False, allow_mismatch=(),
        threads=0, workers=1, endpoint=None, parity=parity,
    )  # fmt: skip
    labels = [step.label for step in make_build_plan(local_source, options).steps]
    assert [label for label in labels if label in ("twin", "parity")] == compared
    assert labels[-2:] == ["quantize Q8_0", "verify Q8_0"] and "convert" in labels
    assert not compared or labels.index("twin") < labels.index("convert")
    assert "parity" not in labels or labels.index("convert") < labels.index("parity")


def test_the_card_shows_the_figure_and_warns_on_top_of_what_is_not_equal_everywhere() -> None:
    def card(**facts: Any) -> str:
        return render_card(with_twin(manifest_of(), **facts), CONTEXT)

    proved = card(status="proved", finding="Computes what Transformers computes: max |Δ logit| 0.000023.")
    assert "Computes what Transformers computes" in proved and "Not everywhere" not in proved
    limited = card(status="limited", finding="Computes it up to 4,096 tokens, its sliding window.")
    assert limited.index("Not everywhere what the original computes") < limited.index("up to 4,096 tokens")
    allowed = card(status="differs", finding="llama.cpp computes something else.", allowed=True)
    assert "This was allowed." in allowed


def test_the_page_shows_the_finding() -> None:
    manifest = with_twin(manifest_of(), status="proved", finding="Computes what Transformers computes: max 0.000023.")
    facts = dict(page_facts(manifest, manifest.evaluations["standard"]))
    assert facts["Computation"] == "Computes what Transformers computes: max 0.000023."
    assert "Computation" not in dict(page_facts(manifest_of(), manifest.evaluations["standard"]))


@pytest.mark.parametrize("why", ["Transformers has no class OddForCausalLM", "The converter ends with exit code 1"])
def test_without_a_twin_nothing_is_proved_and_the_build_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    facts = TwinFacts.read(_outcome(LLAMA, _Script(why), tmp_path, monkeypatch).facts)
    assert facts.status == "unproved" and why in facts.finding and facts.max_delta is None


# ---- what a build says -------------------------------------------------------------------------------


@pytest.mark.parametrize("finding", ["Computes what Transformers computes: max |Δ logit| 0.00002.", "Not proved: [x]."])
def test_a_build_ends_with_the_finding_in_words_and_as_json_also_when_there_is_nothing_to_do(
    local_source: Source, make_runner: MakeRunner, notes: Notes, finding: str
) -> None:
    status = "proved" if finding.startswith("Comp") else "unproved"
    for _ in range(2):
        runner = make_runner(
            local_source, FakeEngine(behaviours={"twin": _says({"status": status, "finding": finding})}), parity="twin"
        )
        built = built_result(runner, runner.run(notes))
        (line,) = [line for line in terminal_built(built).splitlines() if line.startswith("[bold]twin ")]
        assert line.replace("\\[", "[").endswith(finding)
        twin = build_output(built).twin
        assert twin is not None and (twin.status, twin.finding) == (status, finding)
    without = make_runner(local_source, FakeEngine())
    assert build_output(built_result(without, without.run(notes))).twin is None, "this plan compares nothing"


# ---- tried again -------------------------------------------------------------------------------------


def _says(facts: dict[str, JsonValue]) -> Behaviour:
    def behave(spec: StageSpec, space: Workspace) -> StageResult:
        return writes()(spec, space).model_copy(update={"facts": facts})

    return behave


def test_a_twin_that_lacked_a_package_is_tried_in_every_build_until_it_is_there(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    def build(facts: dict[str, JsonValue]) -> list[str]:
        engine = FakeEngine(behaviours={"twin": _says(facts)})
        runner = make_runner(local_source, engine, parity="twin")
        runner.run(notes)
        return engine.ran

    lacks: dict[str, JsonValue] = {"status": "unproved", "finding": "No torch.", "lacks_package": True}
    proved: dict[str, JsonValue] = {"status": "proved", "finding": "Computes what Transformers computes."}
    assert build(lacks) == ["twin", "convert", "quantize Q4_K_M", "verify Q4_K_M"]
    assert build(lacks) == ["twin"] == build(proved)
    assert build(proved) == []


def test_what_cannot_be_proved_anywhere_is_not_tried_again(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    for expected in (True, False):
        facts: dict[str, JsonValue] = {"status": "unproved", "finding": "No class."}
        engine = FakeEngine(behaviours={"twin": _says(facts)})
        make_runner(local_source, engine, parity="twin").run(notes)
        assert ("twin" in engine.ran) == expected


@pytest.mark.parametrize("script", ["random_weights", "real_model"])
def test_a_missing_package_is_told_apart_from_a_model_that_cannot_be_compared(script: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    argv = [sys.executable, f"builder/twin_model/{script}.py", "--source", ".", "--out", str(tmp_path)]
    argv += ["--twin", str(tmp_path)] if script == "random_weights" else ["--text", "x", "--dtype", "float32"]
    env = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(argv, cwd=REPO_DIR, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == LACKS_PACKAGE and "no torch here" in done.stdout
    with pytest.raises(NotComparedError) as refused:
        refuse_failed_side(ToolRun(tuple(argv), done.returncode, done.stdout), "Transformers")
    assert refused.value.lacks_package
