"""Scores requests with one model: the log-probability of every target token, and whether it was the most likely one.

Decodes the plan of `prefix_tree.py`. Sequence 0 of the context is the path kept between groups; the others are the
sequences of a group. In a unified KV cache a shared token is one cell that belongs to many sequences, so sharing costs
neither memory nor time. Models with a state walk the same tree branch by branch (`branches.py`).

An encoder-decoder reads the context of its requests with the encoder, once for all requests that have the same; their
continuations are then the plan of the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final

import numpy as np
import numpy.typing as npt

from eval.llama.branches import BranchTokens, BranchWalk
from eval.llama.context import BATCH_TOKENS, Context, ContextSettings, most_sequences
from eval.llama.logprobs import LogSoftmax
from eval.llama.model import GgufModel
from eval.llama.prefix_tree import Limits, PrefixGroup, PrefixPlan, Request, Targets, plan_prefix_tree
from quantyard.hardware.machine import physical_cores

_KEPT: Final = 0  # the sequence that keeps the last path of the group before
_CELLS_OF_BRANCHES: Final = 4096  # of a hybrid's KV cache, for branches that are decoded side by side
OnProgress = Callable[[int, int], None]  # requests scored, of how many


@dataclass(frozen=True)
class Scores:
    """Scores of every target token, in the order of the requests: arrays of shape (targets,)."""

    logprobs: npt.NDArray[np.float64]  # nats
    greedy: npt.NDArray[np.bool_]  # no other token had a larger logit, nor an equal one with a smaller id
    offsets: npt.NDArray[np.int64]  # request i has targets offsets[i] to offsets[i + 1]

    def sums(self) -> list[tuple[float, bool]]:
        """For each request: the loglikelihood of its continuation in nats, and whether greedy decoding gives it."""
        starts = self.offsets[:-1]
        if not len(starts):
            return []
        totals = np.add.reduceat(self.logprobs, starts)
        return list(zip(totals.tolist(), np.logical_and.reduceat(self.greedy, starts).tolist(), strict=True))


class Scorer:
    """Scores requests; each call opens a context as large as they need. `threads` 0: one per physical core."""

    def __init__(self, model: GgufModel, threads: int = 0) -> None:
        self._model = model
        self.n_threads = threads or physical_cores()
        self._softmax = LogSoftmax(model.n_vocab)
        self.n_tokens_decoded = 0  # over all calls
        self.n_tokens_requested = 0  # tokens that decoding each request alone would have taken

    def score(self, requests: Sequence[Request], on_progress: OnProgress = lambda _done, _total: None) -> Scores:
        """Score the requests; their order does not matter.

        Raises:
            StageFailure: llama.cpp cannot decode, or the logits are not finite.
            ValueError: a request has nothing to score.
        """
        settings = self._context_settings(requests)
        self.n_tokens_requested += sum(len(request.tokens) + len(request.encoded) for request in requests)
        parts, n_done = _requests_by_encoder_text(requests), 0
        found: list[Scores] = []
        with Context(self._model, settings) as context:
            for encoded, numbers in parts.items():
                limits = Limits(BATCH_TOKENS, settings.n_ctx, settings.n_seq_max - 1)
                plan = plan_prefix_tree([requests[number] for number in numbers], limits)
                if encoded:
                    context.encode(encoded, min(settings.n_seq_max, len(plan.sequences) + 1))
                progress = partial(_report_scored_part, on_progress, n_done, len(requests))
                found.append(_Run(context, plan, self._softmax, progress, len(numbers)).run())
                n_done += len(numbers)
            self.n_tokens_decoded += context.n_tokens_decoded
        return found[0] if len(found) == 1 else _joined_scores(requests, list(parts.values()), found)

    @cached_property
    def _n_sequences(self) -> int:
        return most_sequences(self._model)

    def _context_settings(self, requests: Sequence[Request]) -> ContextSettings:
        longest = max((len(request.tokens) for request in requests), default=0)
        cells = longest + (_CELLS_OF_BRANCHES if self._model.has_states else BATCH_TOKENS)
        n_encoded = max((len(request.encoded) for request in requests), default=0)
        return ContextSettings(cells, self._n_sequences, self.n_threads, n_encoded)


def _requests_by_encoder_text(requests: Sequence[Request]) -> dict[tuple[int, ...], list[int]]:
    """The numbers of the requests with the same text for the encoder; of a decoder all, under (). Never empty."""
    parts: dict[tuple[int, ...], list[int]] = {} if requests else {(): []}
    for number, request in enumerate(requests):
        parts.setdefault(request.encoded, []).append(number)
    return parts


def _report_scored_part(on_progress: OnProgress, before: int, total: int, done: int, _of_part: int) -> None:
    on_progress(before + done, total)


def _joined_scores(requests: Sequence[Request], parts: Sequence[Sequence[int]], found: Sequence[Scores]) -> Scores:
    """The scores of all parts, in the order of the requests."""
    offsets = np.concatenate([[0], np.cumsum([len(request.targets) for request in requests])]).astype(np.int64)
    logprobs, greedy = np.empty(offsets[-1]), np.empty(offsets[-1], np.bool_)
    for numbers, scores in zip(parts, found, strict=True):
        for place, number in enumerate(numbers):
            here, there = slice(*offsets[number : number + 2]), slice(*scores.offsets[place : place + 2])
            logprobs[here], greedy[here] = scores.logprobs[there], scores.greedy[there]
    return Scores(logprobs, greedy, offsets)


class _Run:
    """One run over a plan."""

    def __init__(
        self, context: Context, plan: PrefixPlan, softmax: LogSoftmax, on_progress: OnProgress, n_requests: int
    ) -> None:
        self._context, self._plan, self._softmax = context, plan, softmax
        self._on_progress, self._n_requests = on_progress, n_requests
        self._rows = _RowIndex(plan.targets)
        n_targets = len(plan.targets.token)
        self._logprobs = np.full(n_targets, np.nan)
        self._greedy = np.zeros(n_targets, np.bool_)
        self._n_scored = 0

    def run(self) -> Scores:
        """Decode every group in order; of a model with states every branch."""
        if self._context.model.has_states:
            BranchWalk(self._context, self._plan, self._decode_branches).run()
        else:
            for group in self._plan.groups:
                self._together(group)
                self._report()
        assert self._n_scored == len(self._logprobs)
        return Scores(self._logprobs, self._greedy, self._plan.targets.offsets)

    def _together(self, group: PrefixGroup) -> None:
        """Decode the tokens that the group adds to the kept path, each for all sequences that contain it."""
        self._share_path(group)
        nodes = _prefix_nodes_of_group(self._plan, group)
        for start in range(0, len(nodes.tokens), BATCH_TOKENS):
            self._decode(nodes, slice(start, start + BATCH_TOKENS))
        self._keep_path(group)

    def _decode_branches(self, part: BranchTokens) -> None:
        nodes = _Nodes(part.tokens, part.depth, part.owner, part.slot, np.ones_like(part.slot))
        self._decode(nodes, slice(0, len(part.tokens)))
        self._report()

    def _share_path(self, group: PrefixGroup) -> None:
        if not group.kept:
            self._context.clear()
            return
        self._context.remove(_KEPT, group.kept)
        common = group.kept
        for number in range(group.first, group.last):
            common = min(common, int(self._plan.common[number]))
            if common:
                self._context.copy(_KEPT, number - group.first + 1, common)

    def _keep_path(self, group: PrefixGroup) -> None:
        """Make the group's last path sequence 0, and remove the others."""
        last = group.last - group.first
        self._context.remove(_KEPT)
        self._context.copy(last, _KEPT, len(self._plan.sequences[group.last - 1]))
        for sequence in range(1, last + 1):
            self._context.remove(sequence)

    def _decode(self, nodes: _Nodes, part: slice) -> None:
        sequence, depth = nodes.sequence[part], nodes.depth[part]
        targets, node_of = self._rows.at(sequence, depth)
        wanted = np.zeros(len(depth), np.bool_)
        wanted[node_of] = True
        logits = self._context.decode(nodes.tokens[part], depth, wanted, nodes.first[part], nodes.count[part])
        if not len(targets):
            return
        row_of = (np.cumsum(wanted) - 1)[node_of]
        tokens = self._plan.targets.token[targets]
        normalizers, likeliest = self._softmax.with_likeliest(logits)
        self._logprobs[targets] = logits[row_of, tokens] - normalizers[row_of]
        self._greedy[targets] = likeliest[row_of] == tokens
        self._n_scored += len(targets)

    def _report(self) -> None:
        share = self._n_scored / max(1, len(self._logprobs))
        self._on_progress(int(share * self._n_requests), self._n_requests)


@dataclass(frozen=True)
class _Nodes:
    """The nodes of a group that are not in the KV cache yet, in the order of the walk; arrays of shape (nodes,)."""

    tokens: npt.NDArray[np.int32]
    depth: npt.NDArray[np.int32]
    sequence: npt.NDArray[np.int32]  # the sequence of the plan that decodes this node
    first: npt.NDArray[np.int32]  # the first sequence of the context that contains the node
    count: npt.NDArray[np.int32]  # how many consecutive sequences contain it


def _prefix_nodes_of_group(plan: PrefixPlan, group: PrefixGroup) -> _Nodes:
    """The nodes that a group adds. A node belongs to the sequence that adds it and to those after it that share it."""
    tokens, depths, owners, counts = [], [], [], []
    shared = np.zeros(max(len(plan.sequences[j]) for j in range(group.first, group.last)), np.int32)
    for number in range(group.last - 1, group.first - 1, -1):
        start, end = int(plan.common[number]), len(plan.sequences[number])
        shared[:end] += 1  # at each depth, how many sequences from this one on share this path …
        depth = np.arange(start, end, dtype=np.int32)
        tokens.append(plan.sequences[number][start:])
        depths.append(depth)
        owners.append(np.full(end - start, number, np.int32))
        counts.append(shared[start:end].copy())
        shared[start:] = 0  # … of which the sequence before shares only the first `start` tokens
    joined = [np.concatenate(parts[::-1]) for parts in (tokens, depths, owners, counts)]
    return _Nodes(joined[0], joined[1], joined[2], joined[2] - np.int32(group.first) + np.int32(1), joined[3])


class _RowIndex:
    """Finds the targets of nodes by binary search: targets sorted by (sequence, depth)."""

    def __init__(self, targets: Targets) -> None:
        self._key = _scored_token_key(targets.sequence, targets.depth)
        self._order = np.argsort(self._key, kind="stable")
        self._key = self._key[self._order]

    def at(
        self, sequence: npt.NDArray[np.int32], depth: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """The targets at these nodes, and for each the index of its node."""
        keys = _scored_token_key(sequence, depth)
        low, high = np.searchsorted(self._key, keys, "left"), np.searchsorted(self._key, keys, "right")
        counts = high - low
        node_of = np.repeat(np.arange(len(keys)), counts)
        first = np.repeat(low - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        return self._order[first + np.arange(len(node_of))], node_of


def _scored_token_key(sequence: npt.NDArray[np.int32], depth: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    return (sequence.astype(np.int64) << 32) | depth
