"""The behaviour part of a suite: which scenarios are asked, and how answers are sampled."""

from typing import Annotated, Final, Literal, get_args

from pydantic import Field

from quantyard.protocol.base import Frozen

BehaviourName = Literal["tool_calls", "instructions", "structured_output", "grounded_answers", "reasoning"]
BEHAVIOUR_NAMES: Final[tuple[BehaviourName, ...]] = get_args(BehaviourName)


class BehaviourEntry(Frozen):
    """The scenarios of one kind. One seed: a greedy answer to each question; more: as many sampled ones."""

    suite: BehaviourName
    limit: Annotated[int, Field(ge=1)] | None = None  # questions; None: all
    seeds: Annotated[int, Field(ge=1, le=64)] = 1
    # Of sampled answers; None: as the model's generation_config.json says, else 0.7. With 0 there is one answer.
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95  # where the temperature is not the model's own

    @property
    def n_answers(self) -> int:
        """Of each question; greedy answers are all alike."""
        return 1 if self.temperature == 0 else self.seeds


class BehaviourSettings(Frozen):
    """Which behaviours are measured; by default all. Reasoning is sampled, as models that think are run."""

    suites: Annotated[tuple[BehaviourEntry, ...], Field(min_length=1)] = tuple(
        BehaviourEntry(suite=name, seeds=2 if name == "reasoning" else 1) for name in BEHAVIOUR_NAMES
    )
