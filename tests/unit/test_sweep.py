"""The table of architectures: what is in it, and that every row has a result."""

from __future__ import annotations

import pytest

from quantyard.sources.architectures import known_architectures
from quantyard.sources.presets import shipped_presets
from tests.architectures.rows import FOLDER, ROWS, Row
from tests.architectures.sweep import STAGES, WRITTEN, read_results, result_name, wanted_rows
from tests.architectures.tiny import with_vocabulary


def test_there_are_fifty_and_more_and_each_has_a_config_of_its_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) >= 50
    assert {path.stem for path in (FOLDER / "configs").glob("*.json")} == {row.name for row in ROWS}


def test_the_family_of_every_preset_is_among_them() -> None:
    families = {preset.architecture for preset in shipped_presets()}
    assert families <= {row.architecture for row in ROWS}
    assert families <= {result["architecture"] for result in read_results().values()}, "and each has been tried"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_config_is_as_it_stands_on_the_hub_at_its_original_size(row: Row) -> None:
    config = row.config
    assert "rope_parameters" not in config and not str(config.get("transformers_version", "4")).startswith("5")
    text = config.get("text_config", config)
    widths = [text[name] for name in ("hidden_size", "n_embd", "d_model", "n_embed") if name in text]
    assert widths and widths[0] >= 384


def test_every_row_has_a_result_of_every_stage() -> None:
    results = read_results()
    assert set(results) == {result_name(*wanted) for wanted in wanted_rows([])}
    for name, result in results.items():
        marks = {result[stage] for stage in STAGES}
        assert marks <= {"ok", "no", "limited", "-"}, name
        assert result["why"] or marks == {"ok"}, f"{name}: nothing says why"


def test_what_the_converter_does_not_know_is_not_built() -> None:
    for name, result in read_results().items():
        assert result["architecture"] in known_architectures() or result["build"] != "ok", name


def test_ids_of_tokens_fit_the_vocabulary_and_stay_apart() -> None:
    config = {"vocab_size": 9, "eos_token_id": [8, 7, 1], "bos_token_id": None, "part": {"pad_token_id": 5}, "n": 9}
    assert with_vocabulary(config, 4) == {
        "vocab_size": 4, "eos_token_id": [3, 2, 1], "bos_token_id": None, "part": {"pad_token_id": 3}, "n": 9,
    }  # fmt: skip


def test_the_forms_that_are_written_are_of_rows() -> None:
    assert set(WRITTEN) <= {row.name for row in ROWS}
