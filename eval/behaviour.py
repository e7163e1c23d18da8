"""The stage `behaviour`: lets one GGUF answer scenarios, and judges the answers.

Each block of questions is computed on its own and put in place with a rename, so an interrupted run repeats only the
block it was in. A block keeps every answer as text. Sampled answers draw the same numbers on every file, see
`eval/llama/answers.py`. A shard answers some of the blocks; a run with the shards as inputs finds them answered.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from pydantic import JsonValue

from eval.analysis.sampled_answers import sampled_answer_seed
from eval.llama.answers import Answer as GivenAnswer
from eval.llama.answers import answer_questions, recommended_sampling
from eval.llama.model import GgufModel
from eval.llama.sampling import GREEDY, Sampling
from eval.llama.thoughts import thought_marks
from eval.scenarios.checks import CheckedAnswer, is_right_answer, scenario_chance
from eval.scenarios.prompts import ScenarioPrompts, UnfitTemplate
from eval.scenarios.scenario import ANSWER_TOKENS, Scenario, drawn_scenario_blocks
from quantyard.protocol.base import Frozen
from quantyard.protocol.behaviour import BehaviourEntry
from quantyard.protocol.behaviour_run import BehaviourAnswer, BehaviourOutcome, BehaviourRequest, BehaviourRun
from quantyard.protocol.runner import Stage, StageOutcome, run_stage
from quantyard.protocol.shard import shard_folders, shard_members

_PROMPT_END: Final = 64  # characters of a prompt, where a template may begin a call
_TEMPERATURE: Final = 0.7  # of sampled answers, where neither the suite nor the model says


class AnswerRecord(Frozen):
    """One answer as a block keeps it."""

    question: str
    seed: int  # its number among the answers to the question
    text: str  # with the names of special tokens
    judged: BehaviourAnswer


class BlockRecord(Frozen):
    """The answers of one block."""

    answers: tuple[AnswerRecord, ...]


@dataclass
class _Asker:
    """Asks one model, and counts what is done."""

    stage: Stage
    request: BehaviourRequest
    model: GgufModel
    prompts: ScenarioPrompts
    total: int
    done: int = 0
    _told: int = -1

    def outcome(self, entry: BehaviourEntry) -> BehaviourOutcome:
        """The answers to the questions of one kind."""
        blocks = drawn_scenario_blocks(entry, self.request.seed)
        found: dict[tuple[str, int], BehaviourAnswer] = {}
        for number, block in enumerate(blocks):
            record = self._block(entry, number, block)
            found |= {(answer.question, answer.seed): answer.judged for answer in record.answers}
        asked = [scenario for block in blocks for scenario in block][: entry.limit]
        return BehaviourOutcome(
            suite=entry.suite, chance=sum(map(scenario_chance, asked)) / len(asked),
            questions=tuple(each.id for each in asked), hashes=tuple(each.digest for each in asked),
            answers=tuple(tuple(found[each.id, seed] for seed in range(entry.n_answers)) for each in asked),
        )  # fmt: skip

    def answer_blocks(self, blocks: Sequence[_Block]) -> None:
        """Answer these blocks, and leave them."""
        for entry, number, block in blocks:
            self._block(entry, number, block)

    def _block(self, entry: BehaviourEntry, number: int, block: Sequence[Scenario]) -> BlockRecord:
        """Answer one block, or read what an earlier run finished."""
        path = self.stage.files_dir / entry.suite / f"{number}.json"
        if path.exists():
            record = BlockRecord.model_validate_json(path.read_bytes())
        else:
            record = BlockRecord(answers=tuple(self._answers(entry, block)))
            path.parent.mkdir(exist_ok=True)
            unfinished = self.stage.scratch_dir / path.name
            unfinished.write_text(record.model_dump_json(indent=1) + "\n")
            unfinished.rename(path)
        self.done += len(block)
        self._report(entry, 0)
        return record

    def _answers(self, entry: BehaviourEntry, block: Sequence[Scenario]) -> Iterator[AnswerRecord]:
        prompts = [self.prompts.prompt(scenario) for scenario in block]
        seeds = [sampled_answer_seed(self.request.seed, entry.suite, number) for number in range(entry.n_answers)]
        answers = answer_questions(
            self.model, prompts, seeds=seeds, max_tokens=ANSWER_TOKENS[entry.suite],
            max_thought_tokens=self.request.thought_tokens, sampling=_behaviour_sampling(entry, self.model),
            threads=self.request.runtime.threads, on_progress=lambda done, _: self._report(entry, done // len(seeds)),
        )  # fmt: skip
        for answer in answers:
            scenario, prompt = block[answer.question], prompts[answer.question]
            judged = BehaviourAnswer(
                is_right=is_right_answer(scenario, self._answer_to_check(answer, prompt)),
                n_tokens=answer.n_tokens + answer.n_thought_tokens, n_thought=answer.n_thought_tokens,
                is_unfinished=not answer.is_finished, is_loop=answer.is_looped,
            )  # fmt: skip
            yield AnswerRecord(
                question=scenario.id, seed=seeds.index(answer.seed), text=answer.raw, judged=judged
            )

    def _answer_to_check(self, answer: GivenAnswer, prompt: str) -> CheckedAnswer:
        """The answer with the names of special tokens, by which tool calls are known, and without its thoughts."""
        marks, raw = thought_marks(self.model.chat_template), answer.raw
        if marks and not marks.header_ends and answer.thoughts:
            raw = raw.partition(marks.closes)[2]
        return CheckedAnswer(answer.text, raw, prompt[-_PROMPT_END:])

    def _report(self, entry: BehaviourEntry, done: int) -> None:
        if self.done + done != self._told:  # a block takes many steps, of which few end an answer
            self._told = self.done + done
            self.stage.progress(self._told, self.total, "questions", entry.suite)


def _behaviour_sampling(entry: BehaviourEntry, model: GgufModel) -> Sampling:
    """Greedy for one answer a question, else as the entry or the model's own generation_config.json says."""
    if entry.n_answers == 1 and not entry.temperature:
        return GREEDY
    if entry.temperature is not None:
        return Sampling(entry.temperature, top_p=entry.top_p)
    return recommended_sampling(model) or Sampling(_TEMPERATURE, top_p=entry.top_p)


def behaviour(stage: Stage, request: BehaviourRequest) -> StageOutcome:
    """Ask every question of the settings.

    Raises:
        StageFailure: 2 or 3 if the file cannot be measured, see `GgufModel.load`; 3 if its template breaks a limit.
    """
    started = time.monotonic()
    path = stage.in_dir / "model" / request.model_file
    for folder in shard_folders(stage.in_dir):
        shutil.copytree(folder, stage.files_dir, dirs_exist_ok=True)
    if request.shard:
        with GgufModel.load(path, request.runtime.n_gpu_layers) as model:
            _asked_behaviours(stage, request, model)
        return StageOutcome(tools=_behaviour_versions())
    sha256 = next((file.sha256 for file in stage.input_files("model") if file.path == request.model_file), None)
    with GgufModel.load(path, request.runtime.n_gpu_layers) as model:
        outcomes, reason = _asked_behaviours(stage, request, model)
        run = BehaviourRun(
            file=model.facts(request.label, sha256), outcomes=tuple(outcomes), reason=reason,
            versions=_behaviour_versions(), duration_s=time.monotonic() - started,
        )  # fmt: skip
    (stage.files_dir / "behaviour.json").write_text(run.model_dump_json(indent=1) + "\n")
    return StageOutcome(facts=behaviour_facts(run), tools=_behaviour_versions())


def _asked_behaviours(
    stage: Stage, request: BehaviourRequest, model: GgufModel
) -> tuple[list[BehaviourOutcome], str]:
    """What was found, or why the model cannot be asked."""
    entries = request.settings.suites
    blocks = _own_behaviour_blocks(request)
    try:
        prompts = ScenarioPrompts(model)
    except UnfitTemplate as unfit:
        return [], str(unfit)
    try:
        asker = _Asker(stage, request, model, prompts, sum(len(block) for _, _, block in blocks))
        if request.shard:
            asker.answer_blocks(blocks)
            return [], ""
        return [asker.outcome(entry) for entry in entries], ""
    except UnfitTemplate as unfit:
        return [], str(unfit)
    finally:
        prompts.close()


_Block = tuple[BehaviourEntry, int, list[Scenario]]  # its kind, its number, its questions


def _own_behaviour_blocks(request: BehaviourRequest) -> list[_Block]:
    """The blocks that this run computes: all, or those of its shard."""
    blocks = [
        (entry, number, block) for entry in request.settings.suites
        for number, block in enumerate(drawn_scenario_blocks(entry, request.seed))
    ]  # fmt: skip
    if request.shard is None:
        return blocks
    costs = [len(block) * entry.n_answers * ANSWER_TOKENS[entry.suite] for entry, _, block in blocks]
    return [blocks[at] for at in shard_members(costs, request.shard)]


def _behaviour_versions() -> dict[str, str]:
    return {"llama_cpp_python": importlib.metadata.version("llama-cpp-python")}


def behaviour_facts(run: BehaviourRun) -> dict[str, JsonValue]:
    """The stage's facts: the number of questions, and the share of right answers by kind."""
    accuracy: dict[str, JsonValue] = {}
    for outcome in run.outcomes:
        shares = [sum(answer.is_right for answer in answers) / len(answers) for answers in outcome.answers]
        accuracy[outcome.suite] = sum(shares) / len(shares)
    n_questions = sum(len(outcome.questions) for outcome in run.outcomes)
    return {"n_questions": n_questions, "accuracy": accuracy, "reason": run.reason}


def main() -> NoReturn:
    """Entry point of the stage."""
    run_stage(BehaviourRequest, behaviour)


if __name__ == "__main__":
    main()
