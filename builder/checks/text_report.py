"""From what differs between a GGUF's texts and the model's own to findings, and to the failure where one is refused."""

from __future__ import annotations

import math
from typing import Final

from builder.checks.grades import COMMON_SCRIPTS, check_finding_outcome
from builder.checks.token_parity import KindCounts, TextDifference, TokenParity
from builder.llama.runtime import LlamaRuntime
from quantyard.protocol.base import ExitCode
from quantyard.protocol.reference import Passage, Reference
from quantyard.protocol.runner import StageFailure
from quantyard.protocol.text_findings import PLAIN_TEXT, SCRIPT, TextFinding

_SHOWN_IDS: Final = 12
_SHOWN_CHARACTERS: Final = 60
_DETAILS: Final = 10
_SCORED_TOKENS: Final = 600  # of running text run through the model, in each of the two tokenizations
_SCORED_AT_ONCE: Final = 400  # tokens; a longer passage is not scored
# Of a guess among all tokens. A model that is no better knows nothing of the text: then each further token costs the
# same, and the cost is the number of tokens in other words.
_GUESSING: Final = 0.8


def token_findings(
    runtime: LlamaRuntime, reference: Reference, permitted: frozenset[str], *, can_score: bool,
    common: frozenset[str] = COMMON_SCRIPTS,
) -> list[TextFinding]:
    """Tokenize everything in the reference and grade what differs.

    Args:
        permitted: the kinds that the user permits.
        can_score: whether the model gives probabilities of a text.
        common: the scripts that count as plain text.

    Raises:
        StageFailure: `verify-tokenizer`, a finding is refused.
    """
    parity = TokenParity(runtime, reference, common)
    parity.compare()
    costs = _tokenization_costs(runtime, parity, reference) if can_score else {}
    findings = {
        kind: _text_parity_finding(kind, counts, costs.get(kind), permitted)
        for kind, counts in sorted(parity.kinds.items())
        if counts.probes or counts.passages
    }
    refused = [finding for finding in findings.values() if finding.outcome == "refuse"]
    if refused:
        raise _text_parity_refusal(refused, parity.kinds[refused[0].kind], reference)
    return list(findings.values())


def _text_parity_finding(kind: str, counts: KindCounts, cost: float | None, permitted: frozenset[str]) -> TextFinding:
    finding = TextFinding(
        kind=kind, outcome="record", probes=len(counts.probes), tokens=counts.tokens, differing=counts.differing,
        nats_per_token=None if cost is None else round(cost, 4), example=_text_parity_example(counts)[:800],
    )  # fmt: skip
    outcome = check_finding_outcome(finding, permitted, worst_text=counts.worst_text, is_certain=counts.is_certain)
    return finding.model_copy(update={"outcome": outcome})


def _text_parity_example(counts: KindCounts) -> str:
    if counts.passages and not counts.is_certain:
        passage, found = counts.passages[0]
        return f"in {passage.name}: {_different_token_ids(TextDifference('', passage.ids, found))}"
    difference = counts.probes[0]
    return f"{_quoted_passage(difference.text)}: {_different_token_ids(difference)}"


def _quoted_passage(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")


def _different_token_ids(difference: TextDifference) -> str:
    expected, found = difference.expected, difference.found
    ours, theirs = _ids_from_token_difference(found, expected), _ids_from_token_difference(expected, found)
    return f"{theirs} expected, {ours} found"


def _ids_from_token_difference(ids: list[int], other: list[int]) -> str:
    """The ids from shortly before the first difference."""
    at = next((i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other)))
    start = max(0, at - 2)
    shown = ", ".join(map(str, ids[start : start + _SHOWN_IDS]))
    return f"[{'… ' if start else ''}{shown}{' …' if len(ids) > start + _SHOWN_IDS else ''}]"


def _text_parity_refusal(refused: list[TextFinding], counts: KindCounts, reference: Reference) -> StageFailure:
    first = refused[0]
    others = f" Refused too: {', '.join(finding.kind for finding in refused[1:])}." if refused[1:] else ""
    message = (
        f"llama.cpp tokenizes otherwise than {reference.witness}. {first.kind}: {first.figures}; "
        f"for example {first.example}.{others}"
    )
    hint = (
        "Answers would be worse than the model's own. Look for an issue on this model in llama.cpp, try a newer image, "
        f"or permit it by name: ALLOW_MISMATCH={','.join(finding.kind for finding in refused)}. The card then says so."
    )
    detail = "\n".join(f"{d.text!r}: expected {d.expected}, found {d.found}" for d in counts.probes[:_DETAILS])
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "verify-tokenizer", message, hint, detail)


def _tokenization_costs(runtime: LlamaRuntime, parity: TokenParity, reference: Reference) -> dict[str, float]:
    """By kind, how much less likely its passages are in llama.cpp's tokens, in nats per token of the model's own.

    Passages are run until `_SCORED_TOKENS` are spent, those of the kind that differs most first.
    """
    n_vocab = 2 + max((token for passage in reference.passages for token in passage.ids), default=0)
    kinds = [kind for kind in parity.kinds if kind == PLAIN_TEXT or kind.startswith(SCRIPT)]
    left, found = _SCORED_TOKENS, dict[str, float]()
    for kind in sorted(kinds, key=lambda kind: -parity.kinds[kind].worst_text):
        short = [(p, ids) for p, ids in parity.kinds[kind].passages if max(len(p.ids), len(ids)) <= _SCORED_AT_ONCE]
        if not short or left < len(short[0][0].ids):
            continue
        left -= len(short[0][0].ids)
        if (cost := _tokenization_cost(runtime, *short[0], math.log(n_vocab))) is not None:
            found[kind] = cost
    return found


def _tokenization_cost(runtime: LlamaRuntime, passage: Passage, other: list[int], guess: float) -> float | None:
    """Nats per token that a passage loses; None where the runtime cannot tell, or the model only guesses.

    Args:
        guess: nats of a token that is guessed among all.
    """
    own = runtime.text_logprob(passage.ids)
    if own is None or -own > _GUESSING * guess * len(passage.ids):
        return None
    llamas = runtime.text_logprob(other)
    return None if llamas is None else (own - llamas) / len(passage.ids)
