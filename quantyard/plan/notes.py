"""What a plan says besides its steps: of the model's files, of chunks that are shorter than usual, of quants that are
not what their names say for rows as narrow as this model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from quantyard.formatting.numbers import format_count
from quantyard.plan.steps import BuildPlan, Step
from quantyard.quants.narrow_rows import find_narrow_rows
from quantyard.sources.projector import projector_note


def plan_notes(plan: BuildPlan) -> tuple[str, ...]:
    """The notes, a sentence each."""
    own = (*plan.source.notes, *_no_projector_note(plan), *_no_twin_note(plan), *_short_context_note(plan))
    return (*own, *_narrow_rows_notes(plan), *_imatrix_notes(plan))


def _narrow_rows_notes(plan: BuildPlan) -> Iterator[str]:
    """For quants that are not what their names say; of several, what they have in common is said once."""
    found = [one for t in plan.targets if (one := find_narrow_rows(t.quant, plan.source.type_counts))]
    for block in dict.fromkeys(one.block for one in found):
        alike = [one for one in found if one.block == block]
        if len(alike) == 1:
            yield alike[0].sentence
        else:
            yield f"Most rows of this model are not multiples of {block}, so these are not what their names say:"
            yield from (one.line for one in alike)


def _no_projector_note(plan: BuildPlan) -> Iterator[str]:
    """For a model that reads pictures or sound, which its files will not."""
    if plan.projector and (note := projector_note(plan.projector)):
        yield note


def _no_twin_note(plan: BuildPlan) -> Iterator[str]:
    """For a GGUF, of which there is no original here."""
    if plan.source.kind == "gguf":
        yield "A GGUF has no twin: there is no original to compare its computation with."


def _imatrix_notes(plan: BuildPlan) -> Iterator[str]:
    """Which files are made with an importance matrix: their names do not tell."""
    made = [step for step in plan.steps if step.row.name == "quantize" and step.quant]
    given = [step.quant for step in made if "imatrix" in step.inputs]
    if given:
        others = [step.quant for step in made if step.quant not in given]
        without = f"; without one: {', '.join(others)}" if others else ""
        yield f"Made with an importance matrix: {', '.join(dict.fromkeys(given))}{without}."


def _short_context_note(plan: BuildPlan) -> Iterator[str]:
    """For a model that was trained for fewer tokens than a stage reads at once: the stage reads no more than that."""
    trained, seen = plan.source.trained_tokens, set[str]()
    for step in plan.steps if trained else ():
        what, tokens = _stage_tokens_at_once(step)
        if trained and tokens > trained and what not in seen:
            seen.add(what)
            n, usual = format_count(trained), format_count(tokens)
            yield f"The model was trained for {n} tokens: {what} has {n} in place of {usual}."


# Stage → what it reads at once.
_READ_AT_ONCE: Final[Mapping[str, str]] = {
    "calibrate": "a chunk of the calibration", "divergence": "a chunk of the divergence",
    "cache": "a chunk of the cache's text", "openvino": "a chunk in OpenVINO", "speed": "the timed prompt",
}  # fmt: skip


def _stage_tokens_at_once(step: Step) -> tuple[str, int]:
    """What a stage reads at once, and its length in tokens; ("", 0) for the others."""
    what = _READ_AT_ONCE.get(step.row.name, "")
    if not what:
        return "", 0
    settings: Any = getattr(step.request, "settings", step.request)
    if step.row.name == "speed":
        return what, max(settings.prompt_tokens, settings.generated_tokens)
    return what, settings.n_ctx
