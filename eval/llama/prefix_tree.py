"""Arranges requests as a prefix tree, cut into groups that fill batches: the plan that `scorer.py` decodes.

Sequences are sorted, so that neighbours share the longest prefixes. Visiting them in order is a depth-first walk of
their prefix tree: each sequence adds the tokens beyond its common prefix with the one before. A group is a run of
sequences whose added tokens fit in one batch; a token shared by several of them is decoded once. Only the last path
of a group is kept for the next one, which sorting makes sufficient: no earlier sequence shares a longer prefix with
what follows. So the number of decoded tokens is exactly the number of nodes of the tree.

A row of logits is computed once, when its node is decoded, and used by every request that scores a token after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Request:
    """Score `targets`, the tokens that follow each of the last `len(targets)` tokens of `tokens`."""

    tokens: Sequence[int]  # what is decoded: context and continuation, without its last token
    targets: Sequence[int]  # the continuation; targets[i] follows tokens[len(tokens) - len(targets) + i]
    encoded: tuple[int, ...] = ()  # of an encoder-decoder: what the encoder reads first; `tokens` are the decoder's


def answer_request(encoded: Sequence[int], targets: Sequence[int], start: int) -> Request:
    """Score what an encoder-decoder answers to `encoded`; its decoder begins with the token `start`."""
    return Request([start, *targets[:-1]], targets, tuple(encoded))


@dataclass(frozen=True)
class Limits:
    """Limits of one group."""

    batch_tokens: int
    cells: int  # of the KV cache: for the path kept from the group before and the tokens that the group adds
    sequences: int  # without the kept path


@dataclass(frozen=True)
class Targets:
    """All tokens to score, in the order of the requests; arrays of shape (targets,)."""

    sequence: Ints  # the sequence that decodes the token before the target
    depth: Ints  # position of that token in the sequence
    token: Ints
    offsets: npt.NDArray[np.int64]  # request i has targets offsets[i] to offsets[i + 1]


@dataclass(frozen=True)
class PrefixGroup:
    """Sequences `first` to `last` (exclusive); `kept` tokens of the path before are still in the KV cache."""

    first: int
    last: int
    kept: int


@dataclass(frozen=True)
class PrefixPlan:
    """What to decode. `common[j]` is the length of the prefix that sequence j shares with its predecessor."""

    sequences: Sequence[Ints]
    common: Ints
    targets: Targets
    groups: Sequence[PrefixGroup]

    @property
    def n_tokens(self) -> int:
        """Tokens that will be decoded: the size of the tree."""
        return sum(map(len, self.sequences)) - int(self.common.sum())


def plan_prefix_tree(requests: Sequence[Request], limits: Limits) -> PrefixPlan:
    """Build the prefix tree of the requests and cut it into groups.

    Raises:
        ValueError: a request has no targets, more targets than tokens, or does not fit in the KV cache.
    """
    _check_prefix_requests(requests, limits)
    keys = [np.asarray(request.tokens, ">u4").tobytes() for request in requests]  # big-endian bytes sort as tokens do
    order = sorted(set(keys))
    place = {key: number for number, key in enumerate(order)}
    sequences = [np.frombuffer(key, ">u4").astype(np.int32) for key in order]
    common = _common_prefix_lengths(sequences)
    targets = _prefix_targets(requests, [place[key] for key in keys], sequences, common)
    return PrefixPlan(sequences, common, targets, list(_prefix_groups(sequences, common, limits)))


def _check_prefix_requests(requests: Sequence[Request], limits: Limits) -> None:
    for number, request in enumerate(requests):
        if not 0 < len(request.targets) <= len(request.tokens):
            n_tokens, n_targets = len(request.tokens), len(request.targets)
            raise ValueError(f"request {number} has {n_targets} targets for {n_tokens} tokens")
        if len(request.tokens) > limits.cells:
            raise ValueError(f"request {number} has {len(request.tokens)} tokens, more than the {limits.cells} cells")


def _common_prefix_lengths(sequences: Sequence[Ints]) -> Ints:
    """Length of each sequence's common prefix with the one before."""
    lengths = np.zeros(len(sequences), np.int32)
    for number in range(1, len(sequences)):
        before, here = sequences[number - 1], sequences[number]
        n = min(len(before), len(here))
        differ = np.flatnonzero(before[:n] != here[:n])
        lengths[number] = differ[0] if len(differ) else n
    return lengths


def _prefix_targets(
    requests: Sequence[Request], places: Sequence[int], sequences: Sequence[Ints], common: Ints
) -> Targets:
    offsets = np.concatenate([[0], np.cumsum([len(request.targets) for request in requests])]).astype(np.int64)
    owner, depth = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int32)
    by_sequence: dict[int, list[int]] = {}
    for number, place in enumerate(places):
        by_sequence.setdefault(place, []).append(number)
    for place, owners in enumerate(_prefix_owners(sequences, common)):
        for number in by_sequence[place]:
            at = slice(offsets[number], offsets[number + 1])
            end = len(sequences[place])
            owner[at] = owners[end - len(requests[number].targets) : end]
            depth[at] = np.arange(end - len(requests[number].targets), end)
    tokens = np.concatenate([np.asarray(request.targets, np.int32) for request in requests] or [np.empty(0, np.int32)])
    return Targets(owner, depth, tokens, offsets)


def _prefix_owners(sequences: Sequence[Ints], common: Ints) -> Iterator[Ints]:
    """For each sequence, which sequence decodes each of its tokens; a view until the next."""
    owners = np.zeros(max(map(len, sequences), default=0), np.int32)
    for number, tokens in enumerate(sequences):
        owners[common[number] : len(tokens)] = number
        yield owners


def _prefix_groups(sequences: Sequence[Ints], common: Ints, limits: Limits) -> Iterator[PrefixGroup]:
    """Cut greedily. A sequence too long for one batch becomes a group of its own, decoded in several batches."""
    first = 0
    while first < len(sequences):
        kept, added, last = int(common[first]), 0, first
        while last < len(sequences):
            more = len(sequences[last]) - int(common[last])
            fits = added + more <= limits.batch_tokens and kept + added + more <= limits.cells
            if last > first and not (fits and last - first < limits.sequences):
                break
            added, last = added + more, last + 1
        yield PrefixGroup(first, last, kept)
        first = last
