"""The request of the stage `behaviour`, and what it leaves."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from quantyard.protocol.base import Frozen, RelativePath, StageRequest
from quantyard.protocol.behaviour import BehaviourName, BehaviourSettings
from quantyard.protocol.evaluation import DEFAULT_SEED, THOUGHT_TOKENS, Runtime
from quantyard.protocol.shard import RequestedShard
from quantyard.protocol.task_results import FileFacts

_Count = Annotated[int, Field(ge=0)]


class BehaviourRequest(StageRequest):
    """Let `/in/model` answer our scenarios. Leaves `behaviour.json` (a `BehaviourRun`) and every answer as text; a
    shard leaves the answers alone.
    """

    stage: Literal["behaviour"] = "behaviour"
    label: str
    model_file: RelativePath = "model.gguf"
    settings: BehaviourSettings = BehaviourSettings()
    thought_tokens: Annotated[int, Field(ge=0)] = THOUGHT_TOKENS  # before an answer, of a model that thinks
    seed: int = DEFAULT_SEED
    runtime: Runtime = Runtime()
    shard: RequestedShard = None
    not_in_key: ClassVar[frozenset[str]] = frozenset({"runtime.threads"})


class BehaviourAnswer(Frozen):
    """One answer, judged."""

    is_right: bool
    n_tokens: _Count  # of the whole answer, thoughts included; of one in a loop, its limit
    n_thought: _Count = 0  # tokens of its thoughts
    is_unfinished: bool = False  # it reached its limit of tokens
    # It repeats itself at its end, for which it was ended as unfinished; eval/llama/loops.py defines it.
    is_loop: bool = False


class BehaviourOutcome(Frozen):
    """The answers to the questions of one kind; `answers[i]` are those to question i, one for each seed."""

    suite: BehaviourName
    chance: float = 0.0  # accuracy of an answer that understands nothing: that never calls a tool, or guesses a choice
    questions: tuple[str, ...]  # their names
    hashes: tuple[str, ...]  # of all that a scenario says, to pair questions across files
    answers: tuple[tuple[BehaviourAnswer, ...], ...]


class BehaviourRun(Frozen):
    """The result of `behaviour` for one file."""

    file: FileFacts
    reason: str = ""  # why nothing was measured, as half a sentence: "it has no chat template"
    outcomes: tuple[BehaviourOutcome, ...] = ()
    versions: dict[str, str] = {}
    duration_s: float = 0.0
