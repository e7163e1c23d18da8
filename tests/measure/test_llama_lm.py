"""The lm-eval model on the demo GGUF: packed scores are plain scores, and what it cannot answer it refuses."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance

from eval.analysis.self_check import NOISE_FACTOR, self_check, self_check_logprobs, self_check_requests
from eval.llama import context as context_module
from eval.llama import question_units
from eval.llama import scorer as scorer_module
from eval.llama.lm import LlamaLM
from eval.llama.model import GgufModel
from eval.llama.prefix_tree import Request
from eval.tasks import offline
from quantyard.paths import REPO_DIR
from quantyard.protocol.base import ExitCode
from quantyard.protocol.evaluation import TaskEntry
from quantyard.protocol.runner import StageFailure

SMOKE = REPO_DIR / "eval" / "suites" / "smoke"


@pytest.fixture(scope="module")
def lm(demo_gguf: Any) -> LlamaLM:
    return LlamaLM(demo_gguf("BF16"), threads=1)


@pytest.fixture(scope="module")
def quantized(demo_gguf: Any) -> LlamaLM:
    return LlamaLM(demo_gguf("Q4_K_M"), threads=1)


def loglikelihoods(lm: LlamaLM, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    return lm.loglikelihood([Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)])


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def test_the_self_check_passes_on_the_baseline_and_on_a_quant(lm: LlamaLM, quantized: LlamaLM) -> None:
    for model in (lm, quantized):
        found = self_check(model)
        assert found.known_answers_right >= 12 and found.noise > 0
        assert found.packed_difference <= NOISE_FACTOR * found.noise
        assert found.rolling_difference < 1e-6


def test_the_self_check_finds_scores_that_are_off_by_one_token(lm: LlamaLM, monkeypatch: pytest.MonkeyPatch) -> None:
    own = LlamaLM._request

    def shifted(self: LlamaLM, context: list[int], target: list[int], texts: tuple[str, str] = ("", "")) -> Request:
        request = own(self, context, target, texts)
        room = len(request.tokens) > len(request.targets)  # as a missing BOS shifts the rows of the echo route
        return Request(request.tokens[:-1], request.targets) if room else request

    monkeypatch.setattr(LlamaLM, "_request", shifted)
    with pytest.raises(StageFailure, match="self-check failed"):
        self_check(lm)


def test_the_self_check_finds_packing_that_lets_sequences_see_each_other(
    lm: LlamaLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = scorer_module._prefix_nodes_of_group

    def leaky(plan: Any, group: Any) -> Any:
        nodes = own(plan, group)
        swapped = np.roll(nodes.tokens, 1)  # every token is read where its neighbour stands
        return scorer_module._Nodes(swapped, nodes.depth, nodes.sequence, nodes.first, nodes.count)

    monkeypatch.setattr(scorer_module, "_prefix_nodes_of_group", leaky)
    with pytest.raises(StageFailure, match="self-check failed"):
        self_check(lm)


@given(seed=st.integers(0, 2**31), batch=st.sampled_from([24, 64, 512]))
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_request_trees_score_as_one_by_one_whatever_the_packing(lm: LlamaLM, seed: int, batch: int) -> None:
    """Random branches of random depth, in random order, in batches of another size."""
    chosen = random.Random(seed)
    asked = [request_from(chosen, lm) for _ in range(20)]
    asked += [Request(asked[0].tokens, asked[0].targets), Request(asked[1].tokens[:-1] or [1], asked[1].targets[:1])]
    chosen.shuffle(asked)
    plain = self_check_logprobs(lm, asked, "auto")
    noise = rms(self_check_logprobs(lm, asked, "off") - plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer_module, "BATCH_TOKENS", batch)
        packed = lm.scorer.score(asked).logprobs
    assert rms(packed - plain) <= NOISE_FACTOR * noise


def request_from(chosen: random.Random, lm: LlamaLM) -> Request:
    words = ["the", "old", "river", "bridge", "was", "closed", "because", "of", "rain", "so", "nobody", "went"]
    stem = words[: chosen.randrange(1, len(words))]
    ending = chosen.sample(words, chosen.randrange(1, 6))
    start = lm.tok_encode(" ".join(stem))
    whole = start + lm.tok_encode(" " + " ".join(ending))
    return Request(whole[:-1], whole[len(start) :])


def test_tokens_decoded_are_the_nodes_of_the_prefix_tree(demo_gguf: Any) -> None:
    lm = LlamaLM(demo_gguf("Q4_K_M"), threads=1)
    asked = self_check_requests(lm)
    lm.scorer.score(asked)
    nodes = {tuple(request.tokens[: n + 1]) for request in asked for n in range(len(request.tokens))}
    assert lm.scorer.n_tokens_decoded == len(nodes) < lm.scorer.n_tokens_requested


def test_requests_asked_in_parts_score_the_same_and_progress_never_goes_back(
    lm: LlamaLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [(f"Question {k // 4}: what is {k // 4} and one?\nAnswer:", f" {'abcd'[k % 4]}") for k in range(20)]
    texts = ["One day it rained. " * n for n in (1, 2, 3)]
    whole, seen = loglikelihoods(lm, pairs), []
    rolling = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts])
    monkeypatch.setattr(question_units, "PART", 7)
    monkeypatch.setattr(lm, "on_progress", lambda done, total: seen.append((done, total)))
    assert np.allclose([s for s, _ in loglikelihoods(lm, pairs)], [s for s, _ in whole], atol=0.1)
    assert seen == sorted(seen) and seen[-1] == (20, 20)
    seen.clear()
    monkeypatch.setattr(question_units, "PART", 2)
    parts = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts])
    assert np.allclose(parts, rolling, atol=0.3) and seen[-1] == (3, 3)


def test_greedy_is_exact_also_for_continuations_of_several_tokens(lm: LlamaLM) -> None:
    context = "1 2 3 4 5 6 7 8 9"
    likeliest = lm.generate_until([Instance("generate_until", {}, (context, {"until": [], "max_gen_toks": 4}), 0)])[0]
    found = loglikelihoods(lm, [(context, likeliest), (context, " purple"), (context, likeliest + " purple")])
    assert [greedy for _, greedy in found] == [True, False, False]


def test_a_text_without_context_is_conditioned_on_one_bos(lm: LlamaLM) -> None:
    text = "The river was high that morning."
    alone = loglikelihoods(lm, [("", text)])[0][0]
    rolling = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])[0]
    tokens = lm.tok_encode(text, add_special_tokens=False)
    by_hand = self_check_logprobs(lm, [Request([lm.prefix_token_id, *tokens[:-1]], tokens)], "auto").sum()
    assert rolling == alone and abs(by_hand - alone) < 0.3


def test_a_long_request_is_cut_from_the_left_and_counted(demo_gguf: Any) -> None:
    lm = LlamaLM(demo_gguf("Q4_K_M"), threads=1, max_length=32)
    long = "It was a long road and " * 30
    cut, short = loglikelihoods(lm, [(long + "we went", " home"), ("we went", " home")])
    assert lm.n_truncated == 1
    whole = lm.tok_encode(long + "we went home")[-33:]
    by_hand = self_check_logprobs(lm, [Request(whole[:-1], whole[-1:])], "auto").sum()
    assert abs(by_hand - cut[0]) < 0.5 and cut[0] != short[0]


def test_a_rolling_text_longer_than_the_context_is_scored_in_windows(demo_gguf: Any) -> None:
    lm = LlamaLM(demo_gguf("Q4_K_M"), threads=1, max_length=32)
    text = " ".join(f"Line {n} of the long road." for n in range(30))
    total = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])[0]
    n_tokens = len(lm.tok_encode(text))
    assert n_tokens > 5 * 32 and -8 * n_tokens < total < 0


def test_the_chat_template_is_the_ggufs_own(lm: LlamaLM) -> None:
    chat = [{"role": "user", "content": "Hello"}]
    asked = lm.apply_chat_template(chat)
    assert "Hello" in asked and asked.rstrip().endswith("assistant")
    begun = lm.apply_chat_template([*chat, {"role": "assistant", "content": "Good mor"}], add_generation_prompt=False)
    assert begun.endswith("Good mor")


@pytest.mark.parametrize(
    ("pair", "says"), [(("A question", ""), "empty continuation"), (("", ""), "empty continuation")]
)
def test_nothing_to_score_is_refused_by_name(lm: LlamaLM, pair: tuple[str, str], says: str) -> None:
    with pytest.raises(StageFailure, match=says) as caught:
        loglikelihoods(lm, [("a", " b"), pair])
    assert caught.value.exit_code is ExitCode.BAD_REQUEST


def test_a_continuation_longer_than_the_model_holds_is_refused(demo_gguf: Any) -> None:
    lm = LlamaLM(demo_gguf("Q4_K_M"), threads=1, max_length=16)
    with pytest.raises(StageFailure, match="the longest request is 16"):
        loglikelihoods(lm, [("a", " very long road" * 20)])
    with pytest.raises(StageFailure, match="generates up to 64"):
        lm.generate_until([Instance("generate_until", {}, ("a", {"until": [], "max_gen_toks": 64}), 0)])


def test_logits_that_are_nan_end_the_measurement(lm: LlamaLM, monkeypatch: pytest.MonkeyPatch) -> None:
    own = context_module.Context.decode

    def broken(self: Any, *args: Any) -> Any:
        rows = own(self, *args).copy()
        rows[:, 5] = np.nan
        return rows

    monkeypatch.setattr(context_module.Context, "decode", broken)
    with pytest.raises(StageFailure, match="not finite"):
        loglikelihoods(lm, [("a", " b")])


def test_a_truncated_file_and_one_that_is_no_gguf_are_refused(demo_gguf: Any, tmp_path: Path) -> None:
    short, other = tmp_path / "short.gguf", tmp_path / "other.gguf"
    short.write_bytes(demo_gguf("Q4_K_M").read_bytes()[:50_000_000])
    other.write_bytes(b"not a model at all, but long enough to hold a header" * 10)
    for path in (short, other):
        with pytest.raises(StageFailure, match="not a usable GGUF") as caught:
            LlamaLM(path)
        assert caught.value.exit_code is ExitCode.BAD_REQUEST
    with pytest.raises(StageFailure, match="does not exist"):
        LlamaLM(tmp_path / "none.gguf")


def test_a_vocabulary_without_weights_is_refused(demo_gguf: Any, tmp_path: Path) -> None:
    """The demo's header with its count of tensors set to none."""
    data = bytearray(demo_gguf("Q4_K_M").read_bytes()[:8_000_000])
    struct.pack_into("<Q", data, 8, 0)
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(data)
    with pytest.raises(StageFailure, match="vocabulary but no weights"):
        LlamaLM(path)


def test_real_questions_have_a_signal_and_share_their_prefixes(demo_gguf: Any) -> None:
    lm = LlamaLM(demo_gguf("Q8_0"), threads=1)
    questions = [json.loads(line) for line in (SMOKE / "questions.jsonl").read_text().splitlines()[:60]]
    pairs = [(f"Question: {q['question']}\nAnswer:", f" {choice}") for q in questions for choice in q["choices"]]
    scores = iter(loglikelihoods(lm, pairs))
    answers = [int(np.argmax([next(scores)[0] / len(choice) for choice in q["choices"]])) for q in questions]
    right = sum(answer == q["answer"] for answer, q in zip(answers, questions, strict=True))
    assert right > 0.25 * len(questions)
    assert lm.scorer.n_tokens_decoded < 0.6 * lm.scorer.n_tokens_requested


# ---- a question's score is its own -------------------------------------------------------------------------------


def _smoke_answers(
    gguf: Path, limit: int | None, *, alone: bool = True, task: str = "smoke_questions"
) -> dict[int, list[Any]]:
    """Number of each question of one of the smoke suite's tasks → its scores or texts, as the stage asks them."""
    from eval.tasks.drawn_questions import ask_drawn_questions
    from eval.tasks.load import load_tasks

    entry = TaskEntry(task=task, limit=limit)
    (leaf,) = load_tasks([entry], SMOKE)
    lm = LlamaLM(gguf, threads=1)
    lm.blocks = {leaf.name: ask_drawn_questions(leaf.task, limit, 1234)}
    leaf.task.build_all_requests()
    requests = list(leaf.task.instances)
    ask = lm.generate_until if leaf.output_type == "generate_until" else lm.loglikelihood
    if not alone:  # another task beside it, and all in another order
        options = {"until": ["."], "max_gen_toks": 2}
        others = [
            Instance(leaf.output_type, {}, (f"{k} and", f" {k + 1}" if ask == lm.loglikelihood else options), 0,
                     ("other", k, 1)) for k in range(60)
        ]  # fmt: skip
        requests = random.Random(1).sample([*others, *requests], len(others) + len(requests))
    found: dict[int, list[Any]] = {}
    answers = {(r.task_name, r.doc_id, r.idx): a for r, a in zip(requests, ask(requests), strict=True)}
    for (name, number, _), answer in sorted(answers.items()):
        if name == leaf.name:
            found.setdefault(number, []).append(answer)
    return found


def test_a_questions_score_is_the_same_bits_whatever_else_is_asked(demo_gguf: Any, tmp_path: Path) -> None:
    offline.take_datasets_offline(None, tmp_path)
    asked = ((50, True), (20, True), (3, False))
    whole, few, in_company = (_smoke_answers(demo_gguf("Q4_K_M"), limit, alone=alone) for limit, alone in asked)
    assert (len(whole), len(few), len(in_company)) == (50, 20, 20)
    assert all(scores == whole[number] for found in (few, in_company) for number, scores in found.items())


def test_a_generated_answer_is_the_same_whatever_else_is_asked(demo_gguf: Any, tmp_path: Path) -> None:
    offline.take_datasets_offline(None, tmp_path)
    asked = ((None, True), (3, False))
    whole, in_company = (
        _smoke_answers(demo_gguf("Q4_K_M"), limit, alone=alone, task="smoke_generation") for limit, alone in asked
    )
    assert (len(whole), len(in_company)) == (32, 20)
    assert all(texts == whole[number] for number, texts in in_company.items())


class _Thinking(GgufModel):
    """The demo model with a template that names thoughts, which it then "thinks" up to the first full stop."""

    @property
    def chat_template(self) -> str:
        """One that knows the marks."""
        return "{% for message in messages %}{{ message.content }}</think>{% endfor %}<think>"


def test_thoughts_of_a_task_have_their_own_room_and_no_score(demo_gguf: Any) -> None:
    with _Thinking.load(demo_gguf("Q4_K_M")) as model:
        lm = LlamaLM(model, threads=1, thought_tokens=3)
        asked = ("The capital of France is Paris. The capital of France is<think>", {"until": ["."], "max_gen_toks": 4})
        assert lm.generate_until([Instance("generate_until", {}, asked, 0)]) == [""]
        assert (lm.n_unanswered, lm.counts()[-1]) == (1, 1)
        plain = LlamaLM(model, threads=1)
        assert plain.generate_until([Instance("generate_until", {}, asked, 0)]) != [""]
        assert plain.n_unanswered == 0
