"""The choice for people, as a table and sentences, and for programs."""

from __future__ import annotations

import math
from typing import Any, Final

from rich.table import Table

from quantyard.choose.candidates import Candidate, ChoiceSet, eval_command
from quantyard.choose.pick import Budget, Choice, half_width, is_tie, misses
from quantyard.cli.render.styled import escape
from quantyard.formatting.columns import columns
from quantyard.formatting.numbers import DASH, digits, human_bytes, percent, signed
from quantyard.metrics.intervals import difference
from quantyard.metrics.pareto import beaten_by

_SHORT: Final = {"RAM": "above RAM", "MIN_TPS": "below MIN_TPS", "MAX_KLD": "above MAX_KLD"}


def files_table(field: ChoiceSet, budget: Budget, choice: Choice | None) -> Table:
    """Every file that was measured, the largest first, and what becomes of it."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("file", "size", "memory", field.metric, "generated", ""):
        table.add_column(name, justify="left" if name in ("file", "") else "right", no_wrap=True)
    beaten = beaten_by(c.entry for c in field.candidates)
    for found in _largest_first(field):
        cells = (human_bytes(found.size_bytes), _memory(found), _quality(field, found), _speed(found.tokens_per_s))
        table.add_row(escape(found.quant), *cells, escape(_fate(found, budget, choice, beaten[found.quant])))
    return table


def choice_text(field: ChoiceSet, budget: Budget, choice: Choice, model: str) -> str:
    """The file to take, why, and the runner-up."""
    facts = [
        ("Take", f"[bold]{escape(choice.best.quant)}[/]: {escape(_reason(field, choice))}"),
        ("", escape(str(choice.best.path))),
        ("Runner-up", escape(_runner_up(field, choice))),
    ]
    return columns([*facts, _front(field), *_conditions(field, budget), *notes(field, budget, choice, model)])


def choice_line(field: ChoiceSet, budget: Budget, choice: Choice) -> str:
    """The file to take and why, in one line."""
    use = f"{field.use.tokens:,} tokens of context"
    return f"{choice.best.quant} with {_ram(budget.memory_bytes)} of memory and {use}: {_reason(field, choice)}"


def notes(field: ChoiceSet, budget: Budget, choice: Choice | None, model: str) -> list[tuple[str, str]]:
    """What has to be known beside it."""
    said = [("Note", escape(text)) for text in _limits(field, budget, choice)]
    for quant, why in field.others.items():
        said.append(("Left out", escape(f"{quant} {why}")))
    if field.others:
        said.append(("", escape(f"Measure all of them: {eval_command(field, model)}")))
    return said


def conditions_text(field: ChoiceSet, budget: Budget) -> str:
    """What the numbers of the table are for."""
    return columns([_front(field), *_conditions(field, budget)])


def _largest_first(field: ChoiceSet) -> list[Candidate]:
    return sorted(field.candidates, key=lambda c: -c.size_bytes)


# ---- cells -------------------------------------------------------------------------------------------


def _memory(found: Candidate) -> str:
    return DASH if found.memory_bytes is None else human_bytes(found.memory_bytes, binary=True)


def _quality(field: ChoiceSet, found: Candidate) -> str:
    value, half = found.quality.value, half_width(found)
    if field.metric == "ΔPPL":
        return f"{signed(100 * math.expm1(value), 2)} ± {100 * half:.2f} %"
    return f"{digits(value)} ± {digits(half, 1)}" if half else digits(value)


def _speed(tokens_per_s: float) -> str:
    return f"{digits(tokens_per_s)} t/s"


def _fate(found: Candidate, budget: Budget, choice: Choice | None, winners: tuple[str, ...]) -> str:
    if choice and found is choice.best:
        return "the choice"
    if choice and found is choice.runner_up:
        return "runner-up"
    said = [_SHORT[miss.what] for miss in misses(found, budget)]
    said += [f"beaten by {', '.join(winners)}"] if winners else []
    return "; ".join(said) or "on the front"


def _ram(n: int) -> str:
    return human_bytes(n, binary=True)


# ---- sentences ---------------------------------------------------------------------------------------


def _reason(field: ChoiceSet, choice: Choice) -> str:
    best, n = choice.best, len(choice.fitting)
    if n == 1:
        return f"the only file that keeps the budget; {field.metric} {_quality(field, best)}"
    if not choice.equal:
        return f"the best of {n} files that keep the budget; {field.metric} {_quality(field, best)}"
    better = " and ".join(c.quant for c in choice.equal)
    verb = "are" if len(choice.equal) > 1 else "is"
    return f"{better} {verb} better by less than the interval ({_gap(field, choice.equal[0], best)}); take the smaller"


def _gap(field: ChoiceSet, one: Candidate, other: Candidate) -> str:
    found = difference(one.quality, other.quality)
    gap, half = abs(found.value), found.high - found.value
    if field.metric == "ΔPPL":
        return f"{100 * gap:.2f} ± {100 * half:.2f} %"
    return f"{digits(gap, 2)} ± {digits(half, 2)}"


def _runner_up(field: ChoiceSet, choice: Choice) -> str:
    other, best = choice.runner_up, choice.best
    if other is None:
        return "none: no other file keeps the budget"
    size, speed = other.size_bytes / best.size_bytes - 1, other.tokens_per_s / best.tokens_per_s - 1
    within = max(other.speed.generated_spread, best.speed.generated_spread) / 2 > abs(speed)
    parts = [
        f"{percent(abs(size), 0)} {'larger' if size > 0 else 'smaller'}",
        f"{percent(abs(speed), 0)} {'faster' if speed > 0 else 'slower'}" + (", within the spread" if within else ""),
        f"{field.metric} {_quality(field, other)}" + (", a tie" if is_tie(other, best) else ""),
    ]
    return f"{other.quant}: {'; '.join(parts)}"


def _front(field: ChoiceSet) -> tuple[str, str]:
    beaten = beaten_by(c.entry for c in field.candidates)
    names = [c.quant for c in _largest_first(field) if not beaten[c.quant]]
    return "Front", escape(f"{', '.join(names)}: smaller, better or faster than any other file")


def _conditions(field: ChoiceSet, budget: Budget) -> list[tuple[str, str]]:
    use, speed = field.use, field.candidates[0].speed
    at_once = f"{use.sequences} {'requests' if use.sequences > 1 else 'request'} at once"
    kinds = sorted({c.context_bytes for c in field.candidates if c.context_bytes is not None})
    cache = f"; its cache takes {human_bytes(kinds[0], binary=True)} of the memory" if kinds else ""
    cpu = field.report.hardware.get("cpu", "an unknown CPU")
    where = f"suite {field.report.suite.name} on {cpu}, {speed.threads} threads"
    gpu = f", {speed.n_gpu_layers} layers on the GPU" if speed.n_gpu_layers else ""
    return [
        ("Context", escape(f"{use.tokens:,} tokens, {at_once}{cache}")),
        ("RAM", escape(f"{_ram(budget.memory_bytes)}, {budget.memory_reason}")),
        ("Measured", escape(f"{where}{gpu}; another machine has other speeds")),
    ]


def _limits(field: ChoiceSet, budget: Budget, choice: Choice | None) -> list[str]:
    said = []
    if field.trained_context and field.use.tokens > field.trained_context:
        said.append(f"the model was trained on {field.trained_context:,} tokens; beyond them it may write nonsense")
    if choice and budget.max_kld is not None and choice.best.quality.value + half_width(choice.best) > budget.max_kld:
        said.append(f"the interval of {choice.best.quant} reaches beyond MAX_KLD={budget.max_kld:g}")
    return said


# ---- for programs ------------------------------------------------------------------------------------


def choice_json(field: ChoiceSet, budget: Budget, choice: Choice) -> dict[str, Any]:
    """The same for programs; bytes, nats and tokens per second."""
    beaten = beaten_by(c.entry for c in field.candidates)
    runner_up = choice.runner_up.quant if choice.runner_up else None
    return {
        "choice": choice.best.quant, "path": str(choice.best.path), "runner_up": runner_up,
        "tied_with": [c.quant for c in choice.equal], "reason": _reason(field, choice),
        "budget": {
            "memory_bytes": budget.memory_bytes, "min_tokens_per_s": budget.min_tokens_per_s,
            "max_mean_kld": budget.max_kld, "context_tokens": field.use.tokens, "parallel": field.use.sequences,
        },
        "suite": field.report.suite.name, "metric": field.metric, "left_out": dict(field.others),
        "files": [_file_json(c, budget, beaten[c.quant]) for c in field.candidates],
    }  # fmt: skip


def _file_json(found: Candidate, budget: Budget, winners: tuple[str, ...]) -> dict[str, Any]:
    return {
        "quant": found.quant, "path": str(found.path), "size_bytes": found.size_bytes,
        "memory_bytes": found.memory_bytes, "context_bytes": found.context_bytes,
        "quality": found.quality.value, "quality_stderr": found.quality.stderr, "tokens_per_s": found.tokens_per_s,
        "on_front": not winners, "beaten_by": list(winners),
        "misses": [miss.what for miss in misses(found, budget)],
    }
