"""What another llama.cpp changed, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from quantyard.cli.render.styled import escape_rich_markup
from quantyard.formatting.columns import format_columns
from quantyard.formatting.numbers import format_bytes, format_kld, format_percent, format_signed
from quantyard.metrics.regression import MetricChange
from quantyard.workflows.bump import Bumped

_SHOWN_TOOLS = ("llama.cpp", "base_digest", "convert_hf_to_gguf", "transformers")
_DECIMALS = 5  # of a difference of divergences, nats


def terminal_bump(found: Bumped) -> str:
    """The tools, the conversion, and a line or a few for each file."""
    facts = [*_render_bump_tools(found), *_render_bump_conversion(found)]
    for change in found.changes:
        facts += [(change.quant, text) for text in _render_file_change(change)]
    facts += [("Failed", f"{label}: {failed.message}") for label, failed in found.failures.items()]
    return format_columns([(name, escape_rich_markup(text)) for name, text in facts])


def _render_bump_tools(found: Bumped) -> Iterator[tuple[str, str]]:
    for name in _SHOWN_TOOLS:
        before, after = found.recorded_tools.get(name, ""), found.tools.get(name, "")
        if before or after:
            yield "Tools", f"{name}: {before or 'not recorded'}{'' if before == after else f' → {after}'}"


def _render_bump_conversion(found: Bumped) -> Iterator[tuple[str, str]]:
    if found.same_conversion is not None:
        yield "Conversion", "the same bytes" if found.same_conversion else "other bytes"
    if found.conversion_kld is not None and not found.same_conversion:
        yield "Conversion", f"mean KLD {format_kld(found.conversion_kld.value)} from the recorded one"


def _render_file_change(change: MetricChange) -> Iterator[str]:
    if not change.sha256:
        yield "worse: it could not be made"
    elif change.same_bytes:
        yield "the same bytes"
    else:
        yield f"{'worse: ' if change.is_worse else ''}other bytes{_render_size_change(change)}"
    if change.quality is not None:
        value, low, high = (format_signed(x, _DECIMALS) for x in (
            change.quality.value, change.quality.low, change.quality.high))  # fmt: skip
        yield f"{change.metric} {value} ({low} to {high}){', further from the baseline' * change.is_further}"
    if change.comparisons:
        worse = ", ".join(change.worse_tasks)
        yield f"worse in {worse}" if worse else f"none of {len(change.comparisons)} comparisons is worse"
    if change.generated_ratio is not None and change.prompt_ratio is not None:
        rates = (format_percent(change.generated_ratio), format_percent(change.prompt_ratio))
        yield f"generates at {rates[0]} and reads at {rates[1]} of the recorded speed (not counted)"


def _render_size_change(change: MetricChange) -> str:
    if change.size_bytes is None or change.size_bytes == change.recorded_size_bytes:
        return ""
    return f", {format_bytes(change.size_bytes)} in place of {format_bytes(change.recorded_size_bytes or 0)}"


def terminal_bump_end(found: Bumped, model: str, engine: str) -> str:
    """Whether something got worse, where the new files are, and what to type to accept."""
    head = "[bold red]Something got worse.[/]" if found.is_worse else "[bold green]Nothing got worse.[/]"
    facts = [("New files", str(found.store)), ("To accept", bump_acceptance(found, model, engine))]
    lines = format_columns([(name, escape_rich_markup(text)) for name, text in facts])
    return f"{head} Nothing in artifacts was replaced.\n{lines}"


def bump_acceptance(found: Bumped, model: str, engine: str) -> str:
    """What to type so that the new llama.cpp replaces the recorded one."""
    quants = ",".join(change.quant for change in found.changes)
    again = f"make eval MODEL={model} QUANT={quants}"
    named = found.llama_cpp
    if not named:
        return f"the tools are the configured ones; type: {again}"
    if engine == "local" or ("/" in named and not ("@" in named or ":" in named)):
        return f"pin that llama-cpp-python in locks/sdists.txt (scripts/lock.sh), then type: {again}"
    image, _, tag = named.rpartition(":")
    pin = f"LLAMA_CPP_IMAGE={image} LLAMA_CPP_TAG={tag}" if image else f"LLAMA_CPP_TAG={tag}"
    return f"set {pin} in versions.env or the environment, then type: {again}"
