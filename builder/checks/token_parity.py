"""Where llama.cpp tokenizes a text otherwise than the model's own files do: probes, added tokens and running text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from typing import Final

from builder.checks.grades import COMMON_SCRIPTS, added_token_kind, difference_kind, passage_kind
from builder.llama.runtime import LlamaRuntime
from quantyard.protocol.reference import Passage, ProbeBatch, Reference
from quantyard.protocol.text_findings import LEADING_SPACE, PLAIN_TEXT

_MAX_SINGLES: Final = 2000  # probes of added tokens asked one by one, where batches differ; then it is plain enough


@dataclass(frozen=True)
class TextDifference:
    """One text, the ids that the model's own files give, and llama.cpp's.

    Attributes:
        apart: see `ProbeBatch`.
    """

    text: str
    expected: list[int]
    found: list[int]
    apart: list[int] | None = None


@dataclass
class KindCounts:
    """What differs of one kind.

    Attributes:
        probes: the short texts that differ, the first of which is the example.
        is_certain: added tokens, or BOS and EOS, are among them.
        tokens, differing: of running text.
        worst_text: the largest share of differing tokens in one passage.
        passages: those that differ, with the ids that llama.cpp gives.
    """

    probes: list[TextDifference] = field(default_factory=list)
    is_certain: bool = False
    tokens: int = 0
    differing: int = 0
    worst_text: float = 0.0
    passages: list[tuple[Passage, list[int]]] = field(default_factory=list)


class TokenParity:
    """The comparison of one GGUF with one reference; `kinds` holds what was seen, by kind, once `compare` has run."""

    def __init__(
        self, runtime: LlamaRuntime, reference: Reference, common: frozenset[str] = COMMON_SCRIPTS
    ) -> None:
        """`common`: the scripts that count as plain text."""
        self._runtime, self._reference, self._common = runtime, reference, common
        self._singles = 0
        self.kinds: dict[str, KindCounts] = defaultdict(KindCounts)

    def compare(self) -> None:
        """Tokenize everything."""
        for text, ids in self._reference.probe_ids.items():
            if difference := self._difference(text, ids):
                kind = difference_kind(text, ids, difference.found, self._tokenize, self._common)
                self.kinds[kind].probes.append(difference)
        self._compare_ends()
        for difference, token in self._added():
            kind = LEADING_SPACE if difference.found == difference.apart else added_token_kind(token)
            self._certain(kind, difference)
        for passage in self._reference.passages:
            self._compare_passage(passage)

    def _compare_ends(self) -> None:
        """BOS and EOS, on texts that agree without them."""
        for text, ids in self._reference.probe_ids_with_special.items():
            bare = self._reference.probe_ids.get(text)
            difference = self._difference(text, ids, add_special=True)
            if difference and bare is not None and self._tokenize(text) == bare:
                self._certain(PLAIN_TEXT, difference)

    def _certain(self, kind: str, difference: TextDifference) -> None:
        counts = self.kinds[kind]
        counts.probes.insert(0 if not counts.is_certain else len(counts.probes), difference)
        counts.is_certain = True

    def _added(self) -> Iterator[tuple[TextDifference, str]]:
        """Each probe of an added token that differs, with the token; a batch that agrees as a whole has none."""
        for batch in self._reference.added_batches:
            joined = self._difference("\n".join(batch.texts), batch.joined_ids)
            if joined is not None:
                singles = list(self._singles_of(batch))
                yield from singles or [(replace(joined, apart=batch.joined_apart_ids), batch.tokens[0])]

    def _singles_of(self, batch: ProbeBatch) -> Iterator[tuple[TextDifference, str]]:
        for n, (token, text, ids) in enumerate(zip(batch.tokens, batch.texts, batch.ids, strict=True)):
            self._singles += 1
            if self._singles > _MAX_SINGLES:
                return
            if difference := self._difference(text, ids):
                yield replace(difference, apart=batch.apart_ids[n] if batch.apart_ids else None), token

    def _compare_passage(self, passage: Passage) -> None:
        counts = self.kinds[passage_kind(passage.script, self._common)]
        counts.tokens += len(passage.ids)
        found = self._tokenize(passage.text)
        if found != passage.ids:
            differing = n_differing_tokens(passage.ids, found)
            counts.differing += differing
            counts.worst_text = max(counts.worst_text, differing / max(1, len(passage.ids)))
            counts.passages.append((passage, found))

    def _difference(self, text: str, ids: list[int], *, add_special: bool = False) -> TextDifference | None:
        found = self._runtime.tokenize(text, add_special=add_special)
        return None if found == ids else TextDifference(text, ids, found)

    @property
    def _tokenize(self) -> Callable[[str], list[int]]:
        return lambda text: self._runtime.tokenize(text, add_special=False)


def n_differing_tokens(expected: Sequence[int], found: Sequence[int]) -> int:
    """How many of the expected tokens are not among the found ones, in order; at least 1 if the two differ."""
    blocks = SequenceMatcher(None, expected, found, autojunk=False).get_matching_blocks()
    return max(len(expected) - sum(block.size for block in blocks), int(list(expected) != list(found)))
