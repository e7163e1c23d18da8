"""Walks a prefix tree with a model whose memory is a state: a recurrent or hybrid one.

A state belongs to the end of a sequence, and cannot be cut back. So a run of tokens up to the next branching is decoded
once, and its state is copied for each branch that goes on (llama.cpp copies it when it is first changed). Branches of
several places of the tree are decoded together, each as a sequence of its own.

As many states as there are slots are held at once. Where a tree branches deeper than that, the oldest state that waits
is given up, and its branches are decoded from their first token.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from eval.llama.context import BATCH_TOKENS, Context, Ints
from eval.llama.prefix_tree import PrefixPlan


@dataclass(eq=False)
class Branch:
    """A run of tokens between two branchings of the tree: those of sequence `owner`, from `start` to `end`."""

    owner: int
    start: int
    end: int
    children: list[Branch] = field(default_factory=list)


@dataclass(frozen=True)
class BranchTokens:
    """What is decoded at once; arrays of shape (tokens,)."""

    tokens: Ints
    depth: Ints  # position of each in its sequence
    owner: Ints  # the sequence of the plan that decodes it
    slot: Ints  # the sequence of the context


def prefix_branches(plan: PrefixPlan) -> list[Branch]:
    """The tree of a plan's sequences, cut at its branchings; the branches that begin at the root."""
    root = Branch(-1, 0, 0)
    path = [root]
    for number, tokens in enumerate(plan.sequences):
        common = int(plan.common[number])
        while path[-1].end > common:
            last = path.pop()
            if last.start < common:
                path.append(_split_branch(last, common))
        if len(tokens) > common:
            new = Branch(number, common, len(tokens))
            path[-1].children.append(new)
            path.append(new)
    return root.children


def _split_branch(branch: Branch, at: int) -> Branch:
    """Cut a branch in two; it keeps the first part."""
    branch.children = [Branch(branch.owner, at, branch.end, branch.children)]
    branch.end = at
    return branch


@dataclass(eq=False)
class _Running:
    """A branch that has a slot: it is decoded, and then held until its last child has the state."""

    branch: Branch
    slot: int
    at: int  # tokens decoded, counted from the root
    before: _Running | None  # whose cells it uses too
    n_cells: int  # in the KV cache of a hybrid
    waiting: list[_Waiting] = field(default_factory=list)  # children without a slot
    n_using: int = 1  # itself, and the children that use its cells


@dataclass(eq=False)
class _Waiting:
    """A branch without a slot. `after` None: it is decoded from its first token."""

    branch: Branch
    after: _Running | None


class BranchWalk:
    """One walk. `on_tokens` decodes what it is given."""

    def __init__(self, context: Context, plan: PrefixPlan, on_tokens: Callable[[BranchTokens], None]) -> None:
        self._context, self._plan, self._on_tokens = context, plan, on_tokens
        self._free = list(range(context.n_seq_max))  # a heap: the smallest first, so that slots are consecutive
        self._ready = [_Waiting(branch, None) for branch in reversed(prefix_branches(plan))]  # the next one last
        self._active: list[_Running] = []
        self._held: list[_Running] = []  # decoded, with children that wait; the oldest first
        self._n_cells = 0

    def run(self) -> None:
        """Decode the whole tree."""
        while self._ready or self._active:
            self._start()
            self._step()

    def _start(self) -> None:
        """Give slots to the branches that are next, as far as a batch, the slots and the cells reach."""
        room = BATCH_TOKENS - sum(running.branch.end - running.at for running in self._active)
        while self._ready and room > 0:
            running = self._slot_for(self._ready[-1])
            if running is None:
                if self._active:
                    return
                self._give_up_oldest()
                continue
            self._ready.pop()
            self._active.append(running)
            room -= running.branch.end - running.at

    def _slot_for(self, waiting: _Waiting) -> _Running | None:
        """None: there is no slot, or no room in the KV cache."""
        branch, after = waiting.branch, waiting.after
        start = branch.start if after else 0
        takes_over = after is not None and len(after.waiting) == 1
        if self._n_cells + branch.end - start > self._context.n_ctx or not (takes_over or self._free):
            return None
        slot = after.slot if after and takes_over else heapq.heappop(self._free)
        running = _Running(branch, slot, start, after, branch.end - start)
        self._n_cells += running.n_cells
        if after:
            after.waiting.remove(waiting)
            after.n_using += 1
            if takes_over:
                self._held.remove(after)
                self._stop_using(after)
            else:
                self._context.copy(after.slot, slot, -1)
        return running

    def _step(self) -> None:
        self._active.sort(key=lambda running: running.slot)
        room, parts = BATCH_TOKENS, list[tuple[_Running, int, int]]()
        for running in self._active:
            end = min(running.branch.end, running.at + room)
            parts += [(running, running.at, end)] if end > running.at else []
            room -= end - running.at
            running.at = end
        self._on_tokens(self._tokens_of(parts))
        finished = [running for running in self._active if running.at == running.branch.end]
        self._active = [running for running in self._active if running.at < running.branch.end]
        for running in finished:
            self._finish(running)

    def _tokens_of(self, parts: list[tuple[_Running, int, int]]) -> BranchTokens:
        lengths = [end - start for _, start, end in parts]
        return BranchTokens(
            np.concatenate([self._plan.sequences[r.branch.owner][start:end] for r, start, end in parts]),
            np.concatenate([np.arange(start, end, dtype=np.int32) for _, start, end in parts]),
            np.repeat(np.array([r.branch.owner for r, _, _ in parts], np.int32), lengths),
            np.repeat(np.array([r.slot for r, _, _ in parts], np.int32), lengths),
        )

    def _finish(self, running: _Running) -> None:
        running.waiting = [_Waiting(child, running) for child in reversed(running.branch.children)]
        self._ready += running.waiting
        if running.waiting:
            self._held.append(running)
        else:
            self._free_slot(running)

    def _give_up_oldest(self) -> None:
        """Let the children of the oldest held state begin at the root."""
        oldest = self._held.pop(0)
        for waiting in oldest.waiting:
            waiting.after = None
        oldest.waiting = []
        self._free_slot(oldest)

    def _free_slot(self, running: _Running) -> None:
        self._context.remove(running.slot)
        heapq.heappush(self._free, running.slot)
        self._stop_using(running)

    def _stop_using(self, running: _Running | None) -> None:
        """Count the cells of a branch as free once nothing uses them."""
        while running is not None:
            running.n_using -= 1
            if running.n_using:
                return
            self._n_cells -= running.n_cells
            running = running.before
