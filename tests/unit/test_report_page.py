"""The comparison page as text: its numbers, its safety, its colours. tests/page/ opens it in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product

import pytest

from quantyard.errors import BadRequest
from quantyard.hub.files import HubPlace
from quantyard.metrics.plots.axes import AxisScale, Box, place_plot_names
from quantyard.metrics.plots.domain_panels import plot_domains
from quantyard.protocol.base import FileEntry
from quantyard.protocol.divergence_results import DomainDivergence, DomainPart, Domains
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.gate import BudgetResult, GateReport
from quantyard.protocol.measurements import EvalReport
from quantyard.protocol.task_results import AccuracyNoise, LayoutNoise
from quantyard.report_page.domains_table import page_domains_table
from quantyard.report_page.render import TEMPLATES, render_report_page
from quantyard.report_page.tables import page_files
from quantyard.store.manifest import Manifest, SourceCard
from tests.evaluations import LARGE, SMALL
from tests.manifests import COMMIT, NAME, manifest_of, with_narrow_rows

HOSTILE = (
    "</script><script>window.planted = 1</script>",
    '"><img src=x onerror="window.planted = 1">',
    "' onmouseover='window.planted = 1' x='",
    "{{ 1237 * 7 }}{% raw %}",
    "]]><!--\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe",
    "&lt;b&gt;" + "long" * 200,
)


def hostile() -> Manifest:
    """A manifest every free text of which attacks the page."""
    name = " ".join(HOSTILE)
    manifest = manifest_of(title=name, license=name, card=SourceCard(license_name=name))
    (suite, report), = manifest.evaluations.items()
    data = report.model_dump()
    data["suite"] |= {"name": name, "description": name, "tasks": []}
    data |= {"versions": {name: name}, "hardware": {name: name}}
    for measurement in data["measurements"]:
        if measurement["divergence"]:
            measurement["divergence"]["text"] = name
        for i, found in enumerate((*measurement["scores"], *measurement["comparisons"])):
            found["task"], found["metric"] = f"{HOSTILE[i % len(HOSTILE)]} {found['task']}", f"{found['metric']},{name}"
        label = measurement["file"]["label"]
        measurement["file"]["label"] = name if label == "Q4_K_M" else label
    record = manifest.quants.pop("Q4_K_M")
    contract = manifest.contracts.pop("Q4_K_M")
    words = {"name": name, "finding": name, "promise": name}
    checks = tuple(check.model_copy(update=words) for check in contract.checks)
    hostile_files = [FileEntry(path="x", size_bytes=1, sha256="0" * 64)]
    return with_gate(manifest.model_copy(update={
        "quants": {**manifest.quants, name: record},
        "contracts": {name: contract.model_copy(update={"checks": checks})},
        "evaluations": {suite: EvalReport.model_validate(data)},
        "source": manifest.source.model_copy(update={"repo_id": name, "files": hostile_files}), "quantyard": name,
    }), finding=name)  # fmt: skip


def with_gate(manifest: Manifest, finding: str = "mean KLD 0.0310 is above 0.0200") -> Manifest:
    """The manifest after a gate that its last file did not pass."""
    (first, last), budget = (list(manifest.quants)[i] for i in (0, -1)), "max_mean_kld"
    results = (
        BudgetResult(quant=first, budget=budget, limit=0.02, value=0.0012, outcome="passed", finding="well below"),
        BudgetResult(quant=last, budget=budget, limit=0.02, value=0.031, outcome="failed", finding=finding),
    )
    gate = GateReport(budgets="default", sha256="0" * 64, suite="standard", results=results)
    return manifest.model_copy(update={"gate": gate})


class _Read(HTMLParser):
    """Counts tags, keeps ids, references and what stands in cells."""

    VOID = frozenset({"meta", "link", "input", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.refers: set[str] = set()
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("aria-labelledby", "aria-describedby", "aria-details"):
                self.refers |= set((value or "").split())
            elif name == "href" and (value or "").startswith("#"):
                self.refers.add((value or "")[1:])
            elif name.startswith("on") or name in ("style", "src", "srcset", "action"):
                self.handlers.append(name)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)


def _text(page: str) -> str:
    return re.sub(r"\s+", " ", " ".join(_Read(page).text))


@pytest.mark.parametrize("manifest", [manifest_of(), with_gate(manifest_of(LARGE, n_tasks=12)), hostile()],
                         ids=["small", "large", "hostile"])  # fmt: skip
def test_the_html_is_well_formed_and_what_it_refers_to_is_there(manifest: Manifest) -> None:
    read = _Read(render_report_page(manifest, "standard"))
    assert read.open == []
    assert [name for name, n in Counter(read.ids).items() if n > 1] == []
    assert read.refers <= set(read.ids)
    assert read.handlers == []


def test_the_same_manifest_gives_the_same_page_to_the_byte() -> None:
    assert render_report_page(manifest_of(), "standard") == render_report_page(manifest_of(), "standard")


def test_a_suite_that_was_not_measured_is_refused_with_those_that_were() -> None:
    with pytest.raises(BadRequest, match="standard") as caught:
        render_report_page(manifest_of(), "full")
    assert "SUITE=full" in caught.value.hint


def test_a_report_without_its_baseline_is_refused() -> None:
    manifest = manifest_of()
    report = manifest.evaluations["standard"].model_copy(update={"baseline": "F32"})
    with pytest.raises(BadRequest):
        render_report_page(manifest.model_copy(update={"evaluations": {"standard": report}}), "standard")


def test_a_change_that_no_number_can_hold_is_left_out_of_plot_and_table() -> None:
    data = manifest_of().model_dump()
    data["evaluations"]["standard"]["measurements"][2]["divergence"]["ln_perplexity_ratio"]["value"] = 1e4
    page = render_report_page(Manifest.model_validate(data), "standard")
    assert "inf" not in re.findall(r'data-sort="([^"]*)"', page)


def test_planted_numbers_appear_and_the_old_ones_are_gone() -> None:
    def page(manifest: Manifest) -> str:
        return _text(render_report_page(manifest, "standard"))

    manifest = manifest_of()
    data = manifest.model_dump(mode="json")
    found = data["evaluations"]["standard"]["measurements"][2]
    found["divergence"]["mean_kld"]["value"] = 0.07654
    found["divergence"]["top1_agreement"]["value"] = 0.8765
    found["divergence"]["kld_percentiles"]["99"] = 0.4321
    found["speed"]["generated_tokens_per_s"] = 43.21
    found["speed"]["peak_memory_bytes"] = 765_000_000
    found["comparisons"][0] |= {"n": 4321, "delta": {"value": -0.0987, "low": -0.1234, "high": -0.0768}}
    data["contracts"]["Q4_K_M"]["schemas"] |= {"rate": 0.9123, "low": 0.8765, "high": 0.9432}
    planted = page(Manifest.model_validate(data))
    for text in ("0.0765", "87.6 %", "0.432", "43.2", "730 MiB", "4,321", "−9.9", "−12.3 to −7.7", "91.2 %",
                 "87.6 to 94.3"):  # fmt: skip
        assert text in planted, text
    assert " 0.0310 " in page(manifest) and " 0.0310 " not in planted


def test_every_file_of_the_manifest_has_a_row_even_if_the_suite_left_it_out() -> None:
    manifest = manifest_of()
    extra = manifest.quants["Q4_K_M"].model_copy(update={"size_bytes": 654_000_000, "bits_per_weight": 4.56})
    page = _text(
        render_report_page(manifest.model_copy(update={"quants": {**manifest.quants, "IQ4_NL": extra}}), "standard")
    )
    assert "654 MB" in page and "Not measured with this suite." in page and "4.56" in page


def test_limits_are_told_in_words_with_the_worst_first_and_left_out_where_there_are_none() -> None:
    page = render_report_page(with_gate(manifest_of()), "standard")
    table = page[page.index('id="budgets-table"') :]
    assert table.index("missed") < table.index("<bdi>met</bdi>")
    assert "1 of 1 quality limit missed. Missed: mean KLD 0.0310, limit 0.02." in _text(page)
    assert "max_mean_kld" not in page
    assert re.search(r"0\.02</bdi>.*?0\.0310</bdi>", table, re.DOTALL), "the value stands beside its limit"
    assert 'id="gate"' not in render_report_page(manifest_of(), "standard")


def test_the_page_begins_with_the_file_to_take_what_it_costs_why_and_how_to_run_it() -> None:
    manifest = manifest_of()
    page = render_report_page(manifest, "standard", HubPlace("me/Lagoon-GGUF"))
    first = page[: page.index('id="files"')]
    file = manifest.quants["Q8_0"].file
    assert "Take Q8_0 : 1.17 GB, agrees with the original on 98.8 % of tokens" in _text(first)
    assert "It is the closest of these 2 files to BF16. With less memory take Q4_K_M: 848 MB" in _text(first)
    assert f'<a class="download" href="{file}" download>' in first
    assert "llama-server -hf me/Lagoon-GGUF:Q8_0" in first
    assert f"llama-server -m {file}" in render_report_page(manifest, "standard")
    closed = render_report_page(manifest, "standard", HubPlace("me/Lagoon-GGUF", closed="private"))
    assert "HF_TOKEN=hf_xxx llama-server -hf me/Lagoon-GGUF:Q8_0" in closed
    on_branch = render_report_page(manifest, "standard", HubPlace("me/Lagoon-GGUF", branch="v2"))
    assert f"llama-server -m {file}" in on_branch
    for address in ("README.md", "manifest.json", f"https://huggingface.co/lagoon/{NAME}/tree/{COMMIT}"):
        assert f'href="{address}"' in first


def test_a_file_that_is_not_what_its_name_says_is_told_with_what_to_take_instead() -> None:
    page = _text(render_report_page(with_narrow_rows(manifest_of()), "standard"))
    assert "Only 20 % of the weights of Q4_K_M are Q4_K or its kind: most rows of this model are not multiples" in page
    assert "6.17 bits per weight; QUANT=IQ4_NL is what its name says, with 5.37 bits per weight." in page


def test_no_line_is_drawn_through_two_files_and_the_original_is_in_every_plot() -> None:
    few, many = (render_report_page(manifest_of(quants), "standard") for quants in (SMALL, LARGE))
    assert set(re.findall(r'class="front" points="([^"]*)"', few)) == {""}
    assert "" not in re.findall(r'class="front" points="([^"]*)"', many)
    for page in (few, many):
        assert page.count('class="spot original"') == page.count('<svg class="plot wide"') * 2 > 0
        assert "lower is better" in page and "(log scale)" in page and "smaller is better" in page


def test_filters_are_there_from_twelve_rows_on() -> None:
    assert 'id="filters"' in render_report_page(manifest_of(), "standard")
    page = render_report_page(manifest_of(n_tasks=2), "standard")
    assert 'id="filters"' not in page and 'id="legend"' not in page


def test_a_speed_within_the_spread_of_the_runs_is_no_difference() -> None:
    def page(spread: float, repeats: int = 3) -> str:
        data = manifest_of().model_dump(mode="json")
        for measurement in data["evaluations"]["standard"]["measurements"]:
            measurement["speed"] |= {"generated_spread": spread, "generated_tokens_per_s": 60.0}
            measurement["speed"]["settings"]["repeats"] = repeats
        data["evaluations"]["standard"]["measurements"][1]["speed"]["generated_tokens_per_s"] = 72.0
        return _text(render_report_page(Manifest.model_validate(data), "standard"))

    assert "Generated 1.1 to 1.3 times as many tokens per second as BF16 in these runs." in page(0.1)
    assert "Generates as fast as BF16, within the spread of the runs." in page(0.3)
    assert "times as" not in page(0.1, repeats=1) and "as fast as" not in page(0.1, repeats=1)


def test_a_baseline_measured_alone_has_its_scores_and_says_what_is_missing() -> None:
    page = _text(render_report_page(manifest_of([("BF16", 16.0, 0.0)]), "standard"))
    assert "Only the baseline has been measured" in page and "Scores of the baseline" in page and "arc_easy" in page


def test_a_suite_of_tasks_alone_has_no_plot_of_sizes_or_speed() -> None:
    data = manifest_of().model_dump(mode="json")
    for measurement in data["evaluations"]["standard"]["measurements"]:
        measurement |= {"divergence": None, "speed": None}
    page = render_report_page(Manifest.model_validate(data), "standard")
    assert 'id="size"' not in page and 'id="speed"' not in page and 'id="accuracy"' in page
    assert "Mean KLD" not in page


def test_the_folder_a_local_model_came_from_stays_at_home() -> None:
    manifest = manifest_of()
    source = manifest.source.model_copy(update={"title": "/home/ada/secret/model", "repo_id": ""})
    page = render_report_page(manifest.model_copy(update={"source": source}), "standard")
    assert "/home/ada" not in page and "a local folder, commit 7ae557604adf" in page


# ---- safety ------------------------------------------------------------------------------------------


def test_the_policy_allows_our_style_and_script_by_their_hashes_and_nothing_else() -> None:
    page = render_report_page(manifest_of(), "standard")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    rules = dict(rule.split(" ", 1) for rule in policy[1].replace("&#39;", "'").split("; "))
    assert rules["default-src"] == "'none'" and rules["base-uri"] == "'none'" and rules["form-action"] == "'none'"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


def test_nothing_in_the_page_names_another_place_on_the_network() -> None:
    page = render_report_page(with_gate(manifest_of(LARGE)), "standard")
    page = page.replace(f'href="https://huggingface.co/lagoon/{NAME}/tree/{COMMIT}"', "", 1)  # a link, to click
    assert re.findall(r"https?:|url\(|@import|src=|XMLHttpRequest|fetch\(|localStorage|sessionStorage", page) == []


def test_hostile_text_is_shown_as_it_is_and_adds_no_tag() -> None:
    tame, wild = (
        _Read(render_report_page(with_gate(manifest_of()), "standard")),
        _Read(render_report_page(hostile(), "standard")),
    )
    assert wild.tags["script"] == 1 and wild.tags["img"] == 0 and wild.tags["style"] == tame.tags["style"] == 1
    text = " ".join(wild.text)
    assert all(bad in text for bad in HOSTILE if "\N{RIGHT-TO-LEFT OVERRIDE}" not in bad)
    assert "8659" not in text
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text


# ---- colours -----------------------------------------------------------------------------------------

CSS = (TEMPLATES / "report.css").read_text()
COLOURS = {name: both for name, *both in re.findall(r"--([a-z]+): light-dark\((#\w{6}), (#\w{6})\);", CSS)}
TEXT_PAIRS = [*product(("text", "muted", "link"), ("ground", "raised", "picked", "band")), ("ground", "text")]
MARK_PAIRS = list(product(("green", "vermillion", "blue", "muted", "edge"), ("ground", "picked", "band")))


def _contrast(one: str, two: str) -> float:
    """By WCAG 2.2, from 1 to 21."""

    def luminance(colour: str) -> float:
        shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("colour", "ground", "least"), [
    *((a, b, 4.5) for a, b in TEXT_PAIRS), *((a, b, 3.0) for a, b in MARK_PAIRS),
])  # fmt: skip
def test_colours_that_meet_can_be_told_apart(theme: int, colour: str, ground: str, least: float) -> None:
    assert _contrast(COLOURS[colour][theme], COLOURS[ground][theme]) >= least


def test_every_colour_is_one_of_the_table() -> None:
    rest = re.sub(r"--[a-z]+: light-dark\([^)]+\);", "", CSS)
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b(?![^{]*\{)|rgb|hsl", rest) == []
    used = set(re.findall(r"var\(--(\w+)\)", CSS)) - {"is"}
    assert used == set(COLOURS)


# ---- layout ------------------------------------------------------------------------------------------


def test_ticks_are_round_and_lie_inside() -> None:
    scale = AxisScale(-21.3, 6.2, 0, 100)
    assert [text for _, text in scale.ticks(5)] == ["−20", "−10", "0"]
    log = AxisScale(0.0007, 0.9, 100, 0, log=True)
    assert [text for _, text in log.ticks(7)] == ["0.001", "0.01", "0.1"]
    short, sizes = AxisScale(0.002, 0.06, 100, 0, log=True), AxisScale(95, 310, 0, 100, log=True)
    assert [text for _, text in short.ticks(7)] == ["0.002", "0.005", "0.01", "0.02", "0.05"]
    assert [text for _, text in sizes.ticks(6)] == ["100", "150", "200", "250", "300"]
    assert all(0 <= pixel <= 100 for pixel, _ in (*scale.ticks(5), *log.ticks(7)))


def test_names_cover_neither_each_other_nor_points() -> None:
    points = [(100 + 24 * i, 100 + 14 * (i % 3), f"Q{i}_K_M") for i in range(8)]
    boxes = [placed.box for placed in place_plot_names(points, [], Box(0, 0, 400, 250))]
    assert all(a.overlap(b) == 0 for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert all(box.distance(x, y) > 5 for box in boxes for x, y, _ in points)


# ---- domains and layout noise ------------------------------------------------------------------------


def with_domains_and_noise(manifest: Manifest) -> Manifest:
    """Every file but the baseline diverges on four domains, each on another one most."""
    (suite, report), = manifest.evaluations.items()
    measured = []
    for at, m in enumerate(report.measurements):
        klds = [0.01 * (1 + (3 * at + i) % 4) for i in range(4)]
        told = [
            {} if at == 0 else {
                "mean_kld": Estimate(value=kld, stderr=kld / 9, df=8), "kld_p99": 9 * kld,
                "top1_agreement": Estimate(value=0.9, stderr=0.01, df=8),
            } for kld in klds
        ]  # fmt: skip
        ppl = Estimate(value=9.0, stderr=0.2, df=8)
        domains = tuple(
            DomainDivergence(domain=name, form="text", n_documents=9, n_tokens=4000, n_read=4000, n_bytes=16_000,
                             perplexity=ppl, **figures)
            for name, figures in zip(("code", "language_de", "long", "prose"), told, strict=True)
        )  # fmt: skip
        accuracy = AccuracyNoise(n_questions=160, expected_flips=2.1, layout_sd=0.0064, sample_stderr=0.031)
        noise = LayoutNoise(n_questions=8, n_requests=32, sd_nats=0.021, flips=1, accuracy=accuracy)
        domains_found = Domains(label=m.file.label, domains=domains)
        measured.append(m.model_copy(update={"domains": domains_found, "layout_noise": noise}))
    shown = report.model_copy(update={"measurements": tuple(measured)})
    return manifest.model_copy(update={"evaluations": {suite: shown}})


def test_each_file_has_a_panel_of_domains_in_one_order_with_its_worst_marked() -> None:
    manifest = with_domains_and_noise(manifest_of())
    (report,) = manifest.evaluations.values()
    panels = plot_domains(page_files(manifest, report))
    assert len(panels) == len(report.measurements) - 1, "nothing diverges from itself"
    orders = {tuple(row.label for row in panel.rows) for panel in panels}
    assert len(orders) == 1 and {len(order) for order in orders} == {4}
    for panel in panels:
        worst = max(panel.rows, key=lambda row: row.spot.x)
        assert [row.label for row in panel.rows if row.mark == "down"] == [worst.label]
        assert all(panel.left <= row.spot.low <= row.spot.x <= row.spot.high <= panel.right for row in panel.rows)
    page = render_report_page(manifest, "standard")
    assert page.count('id="domains-1"') == 1 and "the worst domain of the file" in page
    assert "the worst domain of the file" not in render_report_page(manifest_of(), "standard")


def test_a_domain_without_divergence_is_in_the_table_and_not_in_the_plot() -> None:
    """A log scale cannot show 0."""
    manifest = with_domains_and_noise(manifest_of())
    (suite, report), = manifest.evaluations.items()
    data = json.loads(report.model_dump_json())
    for m in data["measurements"][1:]:
        m["domains"]["domains"][0] |= {"kld_p99": 0.0, "mean_kld": {"value": 0.0, "stderr": 0.0}}
    shown = manifest.model_copy(update={"evaluations": {suite: EvalReport.model_validate(data)}})
    (report,) = shown.evaluations.values()
    assert {len(panel.rows) for panel in plot_domains(page_files(shown, report))} == {3}
    assert ">code<" in render_report_page(shown, suite)


def test_the_noise_of_the_packing_stands_beside_that_of_the_sample() -> None:
    page = _text(render_report_page(with_domains_and_noise(manifest_of()), "standard"))
    assert "0.64 points" in page and "3.1 points" in page and "1: 12.5 %" in page
    assert "Layout noise" not in _text(render_report_page(manifest_of(), "standard"))


def test_a_long_documents_positions_have_rows_of_their_own_below_their_domain() -> None:
    manifest = with_domains_and_noise(manifest_of())
    (report,) = manifest.evaluations.values()
    part = DomainPart(name="512-2048", n_tokens=6144, mean_kld=Estimate(value=0.05, stderr=0.005, df=7), kld_p99=0.4,
                      top1_agreement=Estimate(value=0.88, stderr=0.01, df=7))  # fmt: skip
    (s,) = (s for s in page_files(manifest, report) if s.label == "Q4_K_M")
    assert s.found is not None and s.found.domains is not None
    told = tuple(one.model_copy(update={"parts": (part,)}) if one.domain == "long" else one
                 for one in s.found.domains.domains)  # fmt: skip
    domains = s.found.domains.model_copy(update={"domains": told})
    shown = replace(s, found=s.found.model_copy(update={"domains": domains}))
    names = [row.cells[1].text for row in page_domains_table((shown,)).rows]
    assert names[names.index("long") + 1] == "long: 512-2048" and len(names) == 5
