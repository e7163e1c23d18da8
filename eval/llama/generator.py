"""Generates text for many prompts with one model, by continuous batching with shared prefixes.

Every step decodes the next token of each running sequence, and as many tokens of new prompts as fit.
Prompts are admitted in sorted order, so that neighbours share the longest prefixes. Sequence 0 of the context keeps
the tokens of the prompt admitted last, as in `scorer.py`. The prefix that the next prompt shares with it is copied
(free in a unified KV cache) instead of decoded again. A model with a state, which cannot be cut back, copies that after
the beginning that all prompts have in common.

What is drawn depends on the prompt and its settings alone. Slots and neighbours change only batch sizes, and so the
last bits of the logits: a text can differ only where two tokens almost tie. The same prompts give the same bits in any
order, so that whoever asks them in fixed blocks gets the same answers whatever else is asked.

An encoder-decoder also runs one prompt at a time, since its context holds the text that the encoder read last.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from eval.llama.context import BATCH_TOKENS, Context, ContextSettings, most_sequences
from eval.llama.loops import ends_in_loop
from eval.llama.model import GgufModel
from eval.llama.sampling import GREEDY, GeneratedText, Sampler, Sampling
from eval.llama.thoughts import LlamaTranscript, ThoughtMarks

__all__ = ["Generated", "Generator", "Prompt", "Sampling"]

SLOTS: Final = 32  # the demo model on a CPU is as fast with 16
CELLS: Final = 16_384  # of the KV cache, for all slots; a longer request gets what it needs
_KEPT: Final = 0  # the sequence that keeps the tokens of the prompt admitted last
_LOOP_CHECK: Final = 8  # tokens between two looks for a loop
_ATTENTION_TILE: Final = 64  # GGML_FA_TILE_Q, ggml/src/ggml-cpu/common.h
_WORTH_WAITING: Final = 16  # wait a step if that saves this many tokens; fewer are decoded again

Ints = npt.NDArray[np.int32]
OnProgress = Callable[[int, int], None]  # prompts finished, of how many


@dataclass(frozen=True)
class Prompt:
    """Continue `tokens` by up to `max_tokens` tokens, or until one of the texts in `stop`.

    A model that thinks has `max_thought_tokens` before them.
    """

    tokens: Sequence[int]
    max_tokens: int
    stop: tuple[str, ...] = ()  # empty strings are ignored
    sampling: Sampling = GREEDY
    encoded: tuple[int, ...] = ()  # of an encoder-decoder: the text that the encoder reads; `tokens` begin the answer
    marks: ThoughtMarks | None = None  # of its thoughts; None: it does not think
    is_thinking: bool = False  # the prompt ends within thoughts
    max_thought_tokens: int = 0
    ends_loops: bool = False  # a text that repeats itself is not continued; see loops.py

    @property
    def room(self) -> int:
        """Tokens that may be generated."""
        return self.max_tokens + (self.max_thought_tokens if self.marks else 0)


@dataclass(frozen=True)
class Generated:
    """What a prompt was continued with.

    Attributes:
        text: the answer, without special tokens, cut before its first stop string.
        thoughts: what was thought before it, without the marks.
        tokens: all that were generated, without the one that ended the generation.
        n_thought_tokens: how many of them came before the answer.
        is_finished: whether the model, or a stop string, ended it, and not a limit.
        is_answered: whether it came out of its thoughts.
        is_looped: whether it was ended because it repeats itself.
    """

    text: str
    thoughts: str = ""
    tokens: tuple[int, ...] = ()
    n_thought_tokens: int = 0
    is_finished: bool = False
    is_answered: bool = True
    is_looped: bool = False


class Generator:
    """Generates text; each call opens a context as large as its prompts need."""

    def __init__(
        self, model: GgufModel, threads: int = 0, n_slots: int = SLOTS, n_cells: int = CELLS
    ) -> None:
        """Only store the settings.

        Args:
            threads: 0: one per physical core.
            n_slots: sequences at once; fewer where llama.cpp or the memory for states allows no more.
            n_cells: tokens in the KV cache; a single request that needs more gets more.
        """
        self._model = model
        self._threads = threads
        self._n_slots = 1 if model.has_encoder else n_slots
        self._n_cells = n_cells
        self.n_tokens_decoded = 0  # over all calls

    def generate(
        self, prompts: Sequence[Prompt], on_progress: OnProgress = lambda _done, _total: None
    ) -> list[Generated]:
        """The continuation of each prompt.

        Raises:
            StageFailure: llama.cpp cannot decode, or the logits are not finite.
            ValueError: a prompt without tokens, or a negative `max_tokens`.
        """
        _check_prompts(prompts)
        jobs = _generation_jobs(prompts, self._model)
        if not jobs:
            return [Generated("")] * len(prompts)
        with Context(self._model, self._context_settings(jobs)) as context:
            texts = _Run(context, jobs, len(prompts), on_progress).run()
            self.n_tokens_decoded += context.n_tokens_decoded
        return texts

    def _context_settings(self, jobs: Sequence[_Job]) -> ContextSettings:
        sizes = sorted((job.cells for job in jobs), reverse=True)
        n_slots = min(self._n_slots, len(jobs), self._most_slots)
        cells = max(sizes[0], min(self._n_cells, sum(sizes[:n_slots])))
        n_encoded = max(len(job.prompt.encoded) for job in jobs)
        return ContextSettings(cells, 1 if self._model.has_encoder else n_slots + 1, self._threads, n_encoded)

    @cached_property
    def _most_slots(self) -> int:
        return most_sequences(self._model) - 1


def _check_prompts(prompts: Sequence[Prompt]) -> None:
    for number, prompt in enumerate(prompts):
        if not len(prompt.tokens):
            raise ValueError(f"prompt {number} has no tokens; begin it with the model's BOS or EOS")
        if prompt.max_tokens < 0:
            raise ValueError(f"prompt {number} has max_tokens {prompt.max_tokens}; it must be 0 or more")


@dataclass(frozen=True)
class _Job:
    """A prompt that waits for a slot."""

    number: int  # in the caller's list
    prompt: Prompt
    tokens: Ints
    stream: int  # of its random numbers
    common: int  # length of the prefix shared with the job before; never all tokens: the last one's logits are needed

    @property
    def cells(self) -> int:
        """KV cells that the job may need; the last generated token is never decoded."""
        return len(self.tokens) + self.prompt.room - 1


def _generation_jobs(prompts: Sequence[Prompt], model: GgufModel) -> list[_Job]:
    """A job for each prompt with something to generate, sorted by tokens and seeds.

    A prompt that is asked several times with one seed draws other numbers each time.
    """
    asked: Counter[tuple[bytes, int]] = Counter()
    keys = [np.asarray(prompt.tokens, ">u4").tobytes() for prompt in prompts]  # big-endian bytes sort as tokens do
    seeds = [prompt.sampling.seed for prompt in prompts]
    numbers = sorted((n for n, prompt in enumerate(prompts) if prompt.room), key=lambda n: (keys[n], seeds[n]))
    jobs: list[_Job] = []
    for number in numbers:
        tokens = np.frombuffer(keys[number], ">u4").astype(np.int32)
        common = _common_prompt_length(jobs[-1].tokens, tokens[:-1]) if jobs and not model.has_encoder else 0
        times = asked[keys[number], seeds[number]]
        asked[keys[number], seeds[number]] += 1
        jobs.append(_Job(number, prompts[number], tokens, _random_stream(keys[number], times), common))
    if model.has_states and jobs:  # sorted, so the first and the last differ first
        head = _common_prompt_length(jobs[0].tokens[:-1], jobs[-1].tokens[:-1]) if len(jobs) > 1 else 0
        jobs = [replace(job, common=head if head >= _WORTH_WAITING else 0) for job in jobs]
    return jobs


def _random_stream(prompt: bytes, times: int) -> int:
    return int.from_bytes(hashlib.blake2b(prompt, digest_size=8, salt=str(times).encode()).digest())


def _common_prompt_length(before: Ints, here: Ints) -> int:
    n = min(len(before), len(here))
    differ = np.flatnonzero(before[:n] != here[:n])
    return int(differ[0]) if len(differ) else n


class _Run:
    """One run over sorted jobs."""

    def __init__(self, context: Context, jobs: list[_Job], n_prompts: int, on_progress: OnProgress) -> None:
        self._context, self._on_progress = context, on_progress
        self._waiting = jobs[::-1]  # the next one last
        self._has_states = context.model.has_states
        self._share = context.n_seq_max > 1 and not self._has_states  # up to any token
        self._free = list(range(context.n_seq_max - 1, 0, -1)) or [_KEPT]
        self._running: list[_Slot] = []  # in the order of admission: only the last may still be reading its prompt
        self._n_kept = 0  # tokens in sequence 0; all belong to the job admitted last
        self._link_to_kept = 0  # how many of them are shared with the last running slot
        self._pieces = _Pieces(context.model)
        self._texts = [Generated("")] * n_prompts
        self._n_left = len(jobs)

    def run(self) -> list[Generated]:
        """Step until every job is finished."""
        if self._has_states and self._waiting[-1].common:
            self._n_kept = self._waiting[-1].common
            self._context.decode_one(self._waiting[-1].tokens[: self._n_kept], n_rows=0)
        while self._waiting or self._running:
            self._step()
            self._on_progress(len(self._texts) - self._n_left, len(self._texts))
        return self._texts

    def _step(self) -> None:
        parts, room = [], BATCH_TOKENS
        for slot in self._running:
            parts.append(slot.take(room))
            room -= len(parts[-1].tokens)
        while room and (new := self._admit()):
            parts.append(new.take(room))
            room -= len(parts[-1].tokens)
        for together in _decoded_together(parts):
            complete = [part.slot for part in together if part.complete]
            for slot, logits in zip(complete, self._decode(together), strict=True):
                self._advance(slot, logits)

    def _decode(self, parts: Sequence[_Part]) -> npt.NDArray[np.float32]:
        """Logits after each complete part, shape (complete parts, vocabulary)."""
        lengths = [len(part.tokens) for part in parts]
        tokens = np.concatenate([part.tokens for part in parts])
        positions = np.concatenate([np.arange(len(part.tokens), dtype=np.int32) + part.start for part in parts])
        sequences = np.repeat(np.array([part.slot.seq for part in parts], np.int32), lengths)
        wanted = np.zeros(len(tokens), np.bool_)
        wanted[np.cumsum(lengths) - 1] = [part.complete for part in parts]
        return self._context.decode(tokens, positions.astype(np.int32), wanted, sequences, np.ones_like(sequences))

    def _admit(self) -> _Slot | None:
        """Give the next job a slot, if one is free, the KV cache has room, and waiting a step would not save tokens."""
        if not self._waiting or not self._free:
            return None
        job = self._waiting[-1]
        shared = min(self._n_kept, job.common)
        link = shared if self._has_states else min(shared, self._link_to_kept)
        # Reserve the worst case (every job generates max_tokens, shared cells count once), so decoding never runs out.
        used = sum(slot.job.cells - slot.link for slot in self._running) + job.cells - link
        used += self._n_kept if self._has_states else 0
        if used > self._context.n_ctx or job.common - shared >= _WORTH_WAITING:
            return None
        self._waiting.pop()
        if job.prompt.encoded:
            self._context.encode(job.prompt.encoded)
        slot = _Slot(self._free.pop(), job, link, job.tokens[shared:], shared)
        self._running.append(slot)
        self._share_path(slot, shared)
        return slot

    def _share_path(self, slot: _Slot, shared: int) -> None:
        """Copy the shared prefix to the new slot, and cut sequence 0 down to it."""
        if self._has_states:
            if shared:
                self._context.copy(_KEPT, slot.seq, -1)
            return
        self._link_to_kept = self._n_kept = shared
        if self._share:
            self._context.remove(_KEPT, shared)
            if shared:
                self._context.copy(_KEPT, slot.seq, shared)

    def _advance(self, slot: _Slot, logits: npt.NDArray[np.float32]) -> None:
        """Choose the next token of a slot whose tokens are all decoded."""
        if slot.n_read == len(slot.job.tokens) and slot is self._running[-1]:
            self._keep_path(slot)
        if slot.accept(slot.sampler.choose(logits), self._pieces):
            return
        self._texts[slot.job.number] = slot.generated()
        self._n_left -= 1
        self._release(slot)

    def _keep_path(self, slot: _Slot) -> None:
        if self._share:
            self._context.remove(_KEPT)  # before the copy: llama.cpp counts a cell twice if it has the sequence already
            self._context.copy(slot.seq, _KEPT, len(slot.job.tokens))
            self._link_to_kept = self._n_kept = len(slot.job.tokens)

    def _release(self, slot: _Slot) -> None:
        """Free a slot. Its two neighbours then share only the prefix that both shared with it."""
        at = self._running.index(slot)
        del self._running[at]
        if self._has_states:
            pass  # all share the beginning with sequence 0 alone
        elif at < len(self._running):
            self._running[at].link = min(self._running[at].link, slot.link)
        else:
            self._link_to_kept = min(self._link_to_kept, slot.link)
        self._free.append(slot.seq)
        self._context.remove(slot.seq)


@dataclass(eq=False)
class _Slot:
    """A running sequence."""

    seq: int  # sequence id in the context
    job: _Job
    link: int  # cells shared with the previous running slot, in the order of admission
    pending: Ints  # tokens to decode next: the rest of the prompt, later the token chosen last
    n_read: int  # tokens decoded or in the batch
    chosen: list[int] = field(default_factory=list)
    is_finished: bool = False
    is_looped: bool = False
    sampler: Sampler = field(init=False)
    transcript: LlamaTranscript = field(init=False)

    def __post_init__(self) -> None:
        prompt = self.job.prompt
        self.sampler = Sampler(prompt.sampling, self.job.stream, prompt.tokens)
        text = GeneratedText(prompt.stop, is_whole=bool(prompt.encoded))
        self.transcript = LlamaTranscript(text, prompt.marks, is_thinking=prompt.is_thinking)

    def take(self, room: int) -> _Part:
        """Move up to `room` pending tokens into a batch."""
        tokens, self.pending = self.pending[:room], self.pending[room:]
        part = _Part(self, tokens, self.n_read, complete=not len(self.pending))
        self.n_read += len(tokens)
        return part

    def accept(self, token: int, pieces: _Pieces) -> bool:
        """Append a token; returns False if nothing more is generated."""
        if pieces.model.ends_generation(token):
            self.is_finished = self.transcript.is_answered
            return False
        self.chosen.append(token)
        if self.transcript.add(*pieces.of(token)):
            self.is_finished = True
            return False
        self.pending = np.array([token], np.int32)
        self.is_looped = self._is_in_loop()
        return not self.is_looped and self._has_room()

    def _is_in_loop(self) -> bool:
        is_due = self.job.prompt.ends_loops and not len(self.chosen) % _LOOP_CHECK
        return is_due and ends_in_loop(self.chosen)

    def _has_room(self) -> bool:
        if self.transcript.has_answer:
            return self.transcript.n_answer_tokens < self.job.prompt.max_tokens
        return self.transcript.n_thought_tokens < (self.job.prompt.max_thought_tokens or self.job.prompt.max_tokens)

    def generated(self) -> Generated:
        """What has been generated."""
        said = self.transcript
        return Generated(
            said.answer(), said.thoughts(), tuple(self.chosen), said.n_thought_tokens, self.is_finished,
            said.is_answered, self.is_looped,
        )


@dataclass(frozen=True)
class _Part:
    """One slot's tokens in a batch."""

    slot: _Slot
    tokens: Ints
    start: int  # position of the first
    complete: bool  # whether nothing is pending after them, so that their logits choose the next token


def _decoded_together(parts: Sequence[_Part]) -> Iterator[Sequence[_Part]]:
    """All at once if they are few; else first the single tokens of the running answers, then the prompts.

    On a CPU, llama.cpp's attention skips the cells that no token of a tile sees, if there is a whole tile. Tokens of
    many sequences see cells everywhere, so a tile that mixes them with a prompt computes nearly all. Fewer tokens than
    a tile are computed one by one, and a batch more would read the weights once more.
    """
    if sum(len(part.tokens) for part in parts) < _ATTENTION_TILE:
        yield parts
        return
    for is_single in (True, False):
        if found := [part for part in parts if (len(part.tokens) == 1) == is_single]:
            yield found


class _Pieces:
    """Caches the bytes of tokens."""

    def __init__(self, model: GgufModel) -> None:
        self.model = model
        self._known: dict[int, tuple[bytes, bytes]] = {}

    def of(self, token: int) -> tuple[bytes, bytes]:
        """The bytes that a token adds to a text; for a special token, which adds none, also its name."""
        if token not in self._known:
            piece = self.model.piece(token, special=False)
            self._known[token] = piece, b"" if piece else self.model.piece(token, special=True)
        return self._known[token]
