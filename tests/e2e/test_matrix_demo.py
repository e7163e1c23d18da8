"""`make matrix` on each engine: the demo's quants with an importance matrix, in one command; and what it
says, worked out again by hand from its report.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quantyard.formatting.numbers import format_digits
from quantyard.protocol.measurements import EvalReport
from tests.conftest import Demo, lend, run, run_json
from tests.e2e.conftest import Measured, write_example
from tests.hostile.sampling import WHOLE

SIX = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
QUANTS = SIX if WHOLE else ("Q4_K_M", "Q8_0")
BEST = "Q8_0"  # nothing else comes near sixteen bits
CONTEXT, PARALLEL = 2048, 2


@dataclass(frozen=True)
class Made:
    """One matrix: how it was asked for, and what was said."""

    quants: tuple[str, ...]
    asked: dict[str, str]
    planned: dict[str, Any]
    said: dict[str, Any]

    @property
    def report(self) -> EvalReport:
        return EvalReport.model_validate(self.said["report"])

    @property
    def folder(self) -> Path:
        return Path(self.said["manifest"]).parent


@pytest.fixture(scope="module")
def made_before() -> dict[str, Made | None]:
    """What was made already, by engine; None: that failed, and need not fail for each test again."""
    return {}


@pytest.fixture
def made(
    engine: str, built_demo: Callable[[str], Demo], measured_demo: Callable[[str], Measured],
    made_before: dict[str, Made | None], tmp_path_factory: pytest.TempPathFactory,
) -> Made:  # fmt: skip
    """In a store of its own, to which the conversion, the file that needs no matrix and what was measured of the
    unquantized one are lent.
    """
    if engine not in made_before:
        made_before[engine] = None
        demo, folder = built_demo(engine), tmp_path_factory.mktemp(f"matrix-{engine}")
        demo.lend(folder / "artifacts", "convert", "quantize-Q8_0", "verify-Q8_0")
        measured = Path(measured_demo(engine).asked["ARTIFACTS"])
        lend(measured, folder / "artifacts", "evaluate-BF16", "divergence-BF16", "speed-BF16")
        asked = {
            "MODEL": str(demo.model), "QUANTS": ",".join(QUANTS), "SUITE": str(write_example(folder / "suite")),
            "CHUNKS": "4", "ENGINE": engine, "ARTIFACTS": str(folder / "artifacts"),
        }
        planned = run_json("plan", IMATRIX="auto", **asked)
        made_before[engine] = Made(QUANTS, asked, planned, run_json("matrix", **asked))
    made = made_before[engine]
    assert made is not None, "see the first of these tests"
    return made


def test_one_command_makes_measures_and_compares_all_of_them(made: Made) -> None:
    assert not made.said["failed"] and made.report.baseline == "BF16"
    assert [m.file.label for m in made.report.measurements] == ["BF16", *made.quants]
    for file in made.said["files"]:
        assert Path(file["path"]).stat().st_size == file["size_bytes"]
    manifest = json.loads((made.folder / "manifest.json").read_text())
    for once in ("convert", "calibrate", "evaluate BF16", "divergence BF16"):
        assert once in manifest["stages"]


def test_the_plan_before_it_named_every_stage_and_the_sizes_to_a_fiftieth(made: Made) -> None:
    planned = {stage["label"] for stage in made.planned["stages"]}
    manifest = json.loads((made.folder / "manifest.json").read_text())
    ran = {label for label in manifest["stages"] if "-plain" not in label}  # the trial's losers come on top
    assert ran <= planned
    foreseen = {file["quant"]: file["size_bytes"] for file in made.planned["files"]}
    for file in made.said["files"]:
        assert foreseen[file["quant"]] == pytest.approx(file["size_bytes"], rel=0.02)


def test_a_file_has_the_matrix_only_where_it_was_better_with_it_beyond_chance(made: Made) -> None:
    stages = json.loads((made.folder / "manifest.json").read_text())["stages"]
    for quant in set(made.quants) - {"Q8_0"}:
        kept, plain = (_kld(made.folder, stages[f"{stage} {quant}"]) for stage in ("divergence", "divergence-plain"))
        if "imatrix" in stages[f"quantize {quant}"]["inputs"]:
            gain, noise = plain["value"] - kept["value"], (plain["stderr"] ** 2 + kept["stderr"] ** 2) ** 0.5
            assert gain > 1.96 * noise
        else:
            assert kept == plain  # the same file, measured twice


def _kld(folder: Path, stage: dict[str, Any]) -> dict[str, float]:
    (found,) = (folder / "stages").glob(f"*{stage['key'][:12]}*/files/divergence.json")
    value: dict[str, float] = json.loads(found.read_text())["mean_kld"]
    return value


def test_the_front_is_what_the_reports_numbers_say(made: Made) -> None:
    found = {}
    for m in made.report.measurements[1:]:
        assert m.divergence and m.divergence.mean_kld and m.speed and m.file.size_bytes
        found[m.file.label] = (m.file.size_bytes, m.divergence.mean_kld.value, -m.speed.generated_tokens_per_s)
    for label, mine in found.items():
        winners = [
            other for other, theirs in found.items()
            if theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True))
        ]  # fmt: skip
        assert sorted(made.said["front"][label]) == sorted(winners)


def test_the_choice_is_the_best_that_fits_with_the_cache_counted_by_hand(made: Made) -> None:
    asked = made.asked | {"CONTEXT_SIZE": str(CONTEXT), "PARALLEL": str(PARALLEL), "RAM": "64GiB"}
    del asked["QUANTS"]
    asked["SUITE"] = made.report.suite.name
    chosen = run_json("choose", **asked)
    config = json.loads((Path(made.asked["MODEL"]) / "config.json").read_text())
    per_head = config["hidden_size"] // config["num_attention_heads"]
    # Keys and values of two bytes, in every layer, for each token.
    cache = 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * per_head * CONTEXT
    assert {file["context_bytes"] for file in chosen["files"]} == {cache}
    quality = {m.file.label: m.divergence.mean_kld.value for m in made.report.measurements[1:]}  # type: ignore[union-attr]
    assert chosen["choice"] == BEST == min(quality, key=quality.__getitem__)

    by_memory = sorted(chosen["files"], key=lambda file: file["memory_bytes"])
    fewer = run_json("choose", **asked | {"RAM": str(by_memory[-2]["memory_bytes"])})
    fitting = [file["quant"] for file in by_memory if file["memory_bytes"] <= by_memory[-2]["memory_bytes"]]
    assert fewer["choice"] in fitting and BEST not in fitting
    refused = run("choose", **asked | {"RAM": str(by_memory[0]["memory_bytes"] - 1)})
    assert refused.returncode == 2 and by_memory[0]["quant"] in refused.stderr


def test_card_and_page_show_all_of_them_with_the_reports_numbers(made: Made) -> None:
    card, page = Path(made.said["card"]).read_text(), Path(made.said["page"]).read_text()
    for m in made.report.measurements[1:]:
        assert m.divergence and m.divergence.mean_kld
        shown = format_digits(m.divergence.mean_kld.value)
        assert any(m.file.label in line and shown in line for line in card.splitlines() if line.startswith("|"))
        assert m.file.label in page and shown in page
    assert "imatrix" in card


@pytest.mark.skipif(WHOLE, reason="the demo has six quants then")
def test_six_quants_of_a_tiny_model_are_made_and_measured_in_one_run(tiny_model: Path, tmp_path: Path) -> None:
    suite = tmp_path / "little.yaml"
    suite.write_text("divergence: {n_chunks: 1}\nspeed: {prompt_tokens: 64, generated_tokens: 8, repeats: 2}\n")
    asked = {"QUANTS": ",".join(SIX), "SUITE": str(suite), "IMATRIX": "none", "ENGINE": "docker"}
    said = run_json("matrix", MODEL=str(tiny_model), ARTIFACTS=str(tmp_path / "artifacts"), **asked)
    report = EvalReport.model_validate(said["report"])
    assert not said["failed"] and [m.file.label for m in report.measurements] == ["BF16", *SIX]
    assert all(m.divergence and m.divergence.mean_kld and m.speed for m in report.measurements[1:])
    assert {file["quant"] for file in said["files"]} == set(SIX) == said["front"].keys()


def test_a_second_time_nothing_runs(made: Made) -> None:
    again = run_json("matrix", **made.asked)
    assert again["ran"] == [] and again["front"] == made.said["front"]
