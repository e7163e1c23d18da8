"""Tells the thoughts of a model that thinks from its answer, while it generates.

Which marks a model uses, its chat template says: it puts them around the thoughts of earlier turns, or opens them
itself at the end of the prompt. Thoughts are kept apart from the answer, stop strings do not count in them, and they
have a limit of their own. A thought that does not end within it leaves no answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from eval.llama.sampling import GeneratedText


@dataclass(frozen=True)
class ThoughtMarks:
    """What stands before and after a model's thoughts.

    Attributes:
        opens: may have been written by the template, at the end of the prompt; "": the model begins with thoughts.
        closes: the answer follows.
        sign: what a template with these marks contains, if not `opens`.
        header_ends: of a model that writes messages with headers: what ends a header. A message whose header contains
            `opens` holds thoughts.
    """

    opens: str
    closes: str
    sign: str = ""
    header_ends: tuple[str, ...] = ()


# To add marks: a row. tests/measure/test_thoughts.py names the models whose templates have them.
THOUGHT_MARKS: Final = (
    ThoughtMarks("<|channel|>analysis", "<|end|>", header_ends=("<|message|>",)),  # gpt-oss (harmony)
    ThoughtMarks("<|channel>thought", "<channel|>"),  # Gemma 4
    ThoughtMarks("[THINK]", "[/THINK]"),  # Magistral, Ministral
    ThoughtMarks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command R7B, Command A Reasoning
    ThoughtMarks("<seed:think>", "</seed:think>"),  # Seed-OSS
    ThoughtMarks("<mm:think>", "</mm:think>"),  # MiniMax-M3
    ThoughtMarks("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ThoughtMarks(
        "<|think|>", "<|end|>", "assistant<|think|>", ("<|think|>", "<|content|>", "<|tool_calls|>")
    ),  # Solar Open
    ThoughtMarks("", "[BEGIN FINAL RESPONSE]", "[BEGIN FINAL RESPONSE]"),  # Apriel
    ThoughtMarks("<think>", "</think>", "</think>"),  # Qwen3, DeepSeek-R1, GLM, Kimi, SmolLM3, Nemotron, Granite 3.3
)


def thought_marks(template: str | None) -> ThoughtMarks | None:
    """The marks that a chat template knows; None: the model does not think, or not in marks."""
    if not template:
        return None
    return next((marks for marks in THOUGHT_MARKS if (marks.sign or marks.opens) in template), None)


def opens_thoughts(prompt: str, marks: ThoughtMarks) -> bool:
    """Whether the prompt ends within thoughts: the template wrote their beginning."""
    return prompt.rstrip().endswith(marks.opens)


class _Stage(Enum):
    BEGIN = auto()  # not decided yet: white space, or the beginning of the opening mark or of a header
    THOUGHTS = auto()
    ANSWER = auto()


class LlamaTranscript:
    """A growing generation, sorted into thoughts and answer.

    Attributes:
        n_thought_tokens: tokens before the answer, marks and headers among them.
        n_answer_tokens: tokens after them.
    """

    def __init__(self, answer: GeneratedText, marks: ThoughtMarks | None = None, *, is_thinking: bool = False) -> None:
        """`is_thinking`: the prompt ends within thoughts, see `opens_thoughts`."""
        self._answer, self._marks = answer, marks
        self._raw, self._thoughts = bytearray(), bytearray()
        self._held: list[tuple[bytes, bytes]] = []
        self._stage = _Stage.ANSWER if marks is None else _Stage.THOUGHTS if is_thinking else _Stage.BEGIN
        self._begins_answer, self._n_searched = False, 0
        self.n_thought_tokens = self.n_answer_tokens = 0

    @property
    def has_answer(self) -> bool:
        """Whether the answer has begun."""
        return self._stage is _Stage.ANSWER

    @property
    def is_answered(self) -> bool:
        """Whether an end here ends an answer; within thoughts, or before what follows them, it does not."""
        return self._stage is _Stage.ANSWER or (self._stage is _Stage.BEGIN and not self._thoughts)

    def add(self, piece: bytes, hidden: bytes = b"") -> bool:
        """Append a token's bytes, and a special token's name; True once a stop string is in the answer."""
        if self._stage is _Stage.ANSWER:
            self.n_answer_tokens += 1
            return self._add_answer(piece, hidden)
        self.n_thought_tokens += 1
        self._raw += piece or hidden
        if self._stage is _Stage.BEGIN:
            self._held.append((piece, hidden))
            return self._begin()
        return self._think()

    def answer(self) -> str:
        """The answer before its first stop string; of a model that has not begun it, nothing."""
        if self._marks is not None and not self._marks.header_ends:
            for piece, hidden in self._held:  # a beginning of the opening mark that went no further
                self._add_answer(piece, hidden)
        self._held.clear()
        return self._answer.cut()

    def thoughts(self) -> str:
        """What was thought, without the marks."""
        left = bytes(self._raw) if self._stage is _Stage.THOUGHTS else b""
        return (bytes(self._thoughts) + left).decode(errors="replace").strip()

    def _add_answer(self, piece: bytes, hidden: bytes) -> bool:
        if self._begins_answer:  # white space between thoughts and answer belongs to neither
            piece = piece.lstrip()
            self._begins_answer = not piece
        return self._answer.add(piece, hidden)

    def _begin(self) -> bool:
        said = bytes(self._raw).lstrip()
        self._stage, rest = self._begun_stage(said) if said else (_Stage.BEGIN, b"")
        if self._stage is _Stage.BEGIN:
            return False
        held, self._held = self._held, []
        if self._stage is _Stage.THOUGHTS:
            self._raw = bytearray(rest)
            return self._think()
        if rest is not said:  # after a header
            return self._open_answer(rest)
        self.n_thought_tokens -= len(held)
        self.n_answer_tokens += len(held)
        return any(self._add_answer(piece, hidden) for piece, hidden in held)

    def _begun_stage(self, said: bytes) -> tuple[_Stage, bytes]:
        """What has begun, and its first bytes; `BEGIN`: that cannot be told yet."""
        assert self._marks is not None
        opens = self._marks.opens.encode()
        if self._marks.header_ends and said.startswith(b"<|"):
            ends = [(at, end) for name in self._marks.header_ends if (at := said.find(end := name.encode())) >= 0]
            if not ends:
                return _Stage.BEGIN, b""
            at, end = min(ends)
            header, rest = said[: at + len(end)], said[at + len(end) :]
            return (_Stage.THOUGHTS if opens in header else _Stage.ANSWER), rest
        if said.startswith(opens):
            return _Stage.THOUGHTS, said[len(opens) :]
        return (_Stage.BEGIN if opens.startswith(said) else _Stage.ANSWER), said

    def _think(self) -> bool:
        assert self._marks is not None
        closes = self._marks.closes.encode()
        at = self._raw.find(closes, max(0, self._n_searched - len(closes)))
        self._n_searched = len(self._raw)
        if at < 0:
            return False
        self._thoughts += self._raw[:at]
        rest, self._n_searched = bytes(self._raw[at + len(closes) :]), 0
        self._raw = bytearray(rest)
        if self._marks.header_ends:  # another message follows, which says itself what it is
            self._stage = _Stage.BEGIN
            return False
        return self._open_answer(rest)

    def _open_answer(self, rest: bytes) -> bool:
        self._stage, self._begins_answer = _Stage.ANSWER, True
        return self._add_answer(rest, b"") if rest else False
