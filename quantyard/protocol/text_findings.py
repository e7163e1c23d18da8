"""Texts that llama.cpp tokenizes otherwise than a model's own files do: the kinds, and what was found of each."""

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from quantyard.formatting.numbers import format_count, format_percent, format_signed

PLAIN_TEXT: Final = "plain-text"
NORMALIZATION: Final = "normalization"
LEADING_SPACE: Final = "leading-space"
SENTINEL_TOKENS: Final = "sentinel-tokens"
SCRIPT: Final = "script:"  # begins the kind of one script, such as script:hebrew

# To add a kind: add a row, kind → what differs.
KINDS: Final = {
    PLAIN_TEXT: "plain text, chat templates or added tokens",
    NORMALIZATION: "decomposed and invisible characters",
    LEADING_SPACE: "white space at the beginning of a text or after a special token",
    SENTINEL_TOKENS: "words that spell a token of another model, or one that is reserved",
}
_ADVICE: Final = {
    "record": "Nothing to do unless your texts hold such.",
    "warn": (
        "Compare answers to such texts with the original's; a newer llama.cpp may agree with it "
        "(LLAMA_CPP_TAG=full-bNNNN)."
    ),
    "allowed": "It was permitted by ALLOW_MISMATCH, and the card says so.",
    "refuse": "It can be permitted by name, with ALLOW_MISMATCH.",
}
_SCRIPT_KIND: Final = re.compile(rf"{SCRIPT}[a-z]+(-[a-z]+)*")
_MAX_EXAMPLE: Final = 800  # characters
_SMALL_SHARE: Final = 0.005  # below it, one decimal place says too little


def is_mismatch_kind(name: str) -> bool:
    """Whether findings of this kind exist."""
    return name in KINDS or bool(_SCRIPT_KIND.fullmatch(name))


def _text_finding_kind(name: str) -> str:
    if not is_mismatch_kind(name):
        raise ValueError(f"{name[:40]!r} is not a kind of mismatch")
    return name


MismatchKind = Annotated[str, Field(max_length=60), AfterValidator(_text_finding_kind)]
# record: stands in the manifest; warn: on the terminal and the card too; allowed: would have been refused.
Outcome = Literal["record", "warn", "refuse", "allowed"]


class TextFinding(BaseModel):
    """Texts of one kind that llama.cpp tokenizes or renders otherwise than the model's own files.

    Attributes:
        probes: how many of the short probes differ.
        tokens: of running text of this kind that were compared; 0 if there is none.
        differing: how many of them differ.
        nats_per_token: how much less likely the model finds running text in llama.cpp's tokens than in its own, in
            nats per token; None where it was not measured.
        example: one text that differs, and how.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False, defer_build=True)

    kind: MismatchKind
    outcome: Outcome
    probes: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    differing: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    nats_per_token: float | None = None
    example: Annotated[str, Field(max_length=_MAX_EXAMPLE)] = ""

    @property
    def share(self) -> float:
        """Of the running text's tokens, from 0 to 1."""
        return self.differing / self.tokens if self.tokens else 0.0

    @property
    def words(self) -> str:
        """What differs: "text in Hebrew script" for script:hebrew."""
        if self.kind in KINDS:
            return KINDS[self.kind]
        return f"text in {self.kind.removeprefix(SCRIPT).replace('-', ' ').title()} script"

    @property
    def sentence(self) -> str:
        """The finding in one sentence, without its end and the example."""
        return f"llama.cpp tokenizes {self.words} otherwise than the model's own files ({self.kind}): {self.figures}"

    @property
    def advice(self) -> str:
        """What to do about it, a sentence."""
        return _ADVICE[self.outcome]

    @property
    def figures(self) -> str:
        """How much differs: "23 probes differ"."""
        parts = []
        if self.differing:
            share = format_percent(self.share, 1 if self.share >= _SMALL_SHARE else 3)
            parts.append(f"{share} of {format_count(self.tokens)} tokens of running text differ")
        if self.probes:
            parts.append(f"{format_count(self.probes)} {'probes differ' if self.probes > 1 else 'probe differs'}")
        if self.nats_per_token is not None:
            parts.append(f"{format_signed(self.nats_per_token, 3)} nats per token")
        return ", ".join(parts) or "a text differs"
