"""Models by a short name: every entry of the list, how a name is found, and what a plan says of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.text import Text

from quantyard import cli
from quantyard.cli.json_outputs.building import plan_output
from quantyard.cli.render import build as summary
from quantyard.errors import BadRequest, BadSource, UnsupportedModel
from quantyard.forecast.cost import Cost
from quantyard.hub.client import HubAccess
from quantyard.hub.files import parse_hub_repo_id
from quantyard.plan.steps import BuildPlan
from quantyard.quants.catalog import QUANTS, find_quant
from quantyard.sources.licence import RULES
from quantyard.sources.presets import Preset, find_preset, read_presets, shipped_presets, split_preset_name
from quantyard.sources.resolve import Source, find_source, recall_source
from quantyard.store.hash_cache import HashCache
from quantyard.workflows.results import Planned
from tests.gguf_files import SMALL_METADATA, TensorSpec, gguf
from tests.hub_server import HubServer
from tests.unit.conftest import MakeRunner, Notes
from tests.unit.fake_engine import FakeEngine

COMMIT = "a" * 40
TABLE = {
    "repo": '"org/tiny"', "n_params": "35", "architecture": '"LlamaForCausalLM"', "licence": '"mit"',
    "quants": '["Q8_0", "Q4_K_M"]', "reason": '"Because it is small."',
}  # fmt: skip
# What the project's own list of wishes names; the families by one of each.
WANTED = [
    "TinyLlama-1.1B-Chat", "phi-2", "Phi-4-mini-instruct", "dolly-v2-3b", "RedPajama-INCITE-3B-Instruct",
    "Mistral-7B-Instruct-v0.2", "Meta-Llama-3-8B-Instruct", "gemma-3-4b-it", "gemma-3-4b-it-GGUF", "FLAN-T5-XL",
    "Qwen2.5-0.5B-Instruct", "Qwen3-0.6B", "SmolLM2-135M", "SmolLM2-360M-Instruct", "SmolLM2-1.7B-Instruct",
]  # fmt: skip
WEIGHTS = b'\x40\x00\x00\x00\x00\x00\x00\x00{"a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}         ' + bytes(8)
MODEL = {
    "config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS, "README.md": b"#", "tokenizer.json": b"{}",
}  # fmt: skip


def _file(folder: Path, name: str = "tiny", **changed: str) -> Path:
    """A list of one model; a field changed to "" is left out."""
    fields = {key: value for key, value in (TABLE | changed).items() if value}
    path = folder / "models.toml"
    path.write_text("\n".join([f'["{name}"]', *(f"{key} = {value}" for key, value in fields.items())]))
    return path


# ---- The list ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", shipped_presets(), ids=lambda preset: preset.name)
def test_an_entry_names_a_repo_a_licence_and_quants_that_exist(preset: Preset) -> None:
    assert parse_hub_repo_id(preset.repo) == (preset.repo, None)
    assert preset.licence in RULES
    assert preset.commit == "latest" or re.fullmatch(r"[0-9a-f]{40}", preset.commit)
    quants = [find_quant(name) for name in preset.quants]
    assert [q.name for q in quants] == list(preset.quants), "full names, in capitals"
    assert [q.name for q in quants if q.needs_imatrix] == [], "`make build` has no importance matrix"
    places = [QUANTS.index(q) for q in quants]
    assert places == sorted(set(places)), "largest first, none twice"


@pytest.mark.parametrize("preset", shipped_presets(), ids=lambda preset: preset.name)
def test_whoever_may_not_share_a_model_freely_is_told(preset: Preset) -> None:
    restricted = preset.licence not in ("apache-2.0", "mit")
    assert preset.licence_note or not restricted, f"{preset.licence} needs a licence_note"


@pytest.mark.parametrize("name", WANTED)
def test_the_models_people_ask_for_are_there_in_any_case(name: str) -> None:
    assert find_preset(name.upper()).name == find_preset(name.lower()).name == name


def test_the_name_of_its_repo_finds_it_too() -> None:
    assert find_preset("TinyLlama-1.1B-Chat-v1.0").name == "TinyLlama-1.1B-Chat"


@pytest.mark.parametrize(
    ("typed", "near"), [("phi2", "phi-2"), ("smollm2-135", "SmolLM2-135M"), ("dolly", "dolly-v2-3b")]
)
def test_an_unknown_name_is_answered_with_the_nearest_and_where_the_list_is(typed: str, near: str) -> None:
    with pytest.raises(BadSource) as error:
        find_preset(typed)
    assert f"{typed!r}" in error.value.message and near in error.value.message
    assert "make models" in error.value.hint


# ---- A file that is wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"repo": '"tiny"'}, "tiny repo"),
        ({"commit": '"main"'}, "tiny commit"),
        ({"commit": '"abc123"'}, "tiny commit"),
        ({"n_params": "0"}, "tiny n_params"),
        ({"n_params": '"35"'}, "tiny n_params"),
        ({"architecture": ""}, "tiny architecture: Field required"),
        ({"gated": '"no"'}, "tiny gated"),
        ({"caveats": '["no sentence"]'}, "'no sentence' is not a sentence"),
        ({"caveats": '["A line.\\nAnother."]'}, "is not a sentence of one line"),
        ({"quants": "[]", "reason": ""}, "give either `quants`, or `unsupported`"),
        ({"unsupported": '"It cannot be."'}, "give either `quants`, or `unsupported`"),
        ({"reason": ""}, "give `quants` and `reason` together"),
        ({"size": "3"}, "tiny size"),
        ({"repo": "org/tiny"}, "models.toml cannot be read"),
    ],
)
def test_a_field_that_cannot_be_is_named_with_its_model(changed: dict[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as error:
        read_presets(_file(tmp_path, **changed))
    assert says in error.value.message and "models.toml" in error.value.hint


def test_what_is_outside_of_a_table_is_named(tmp_path: Path) -> None:
    path = _file(tmp_path)
    path.write_text('repo = "org/other"\n' + path.read_text())
    with pytest.raises(BadRequest, match="repo stands outside a table"):
        read_presets(path)


@pytest.mark.parametrize("second", ["TINY", "tiny-two"])
def test_two_models_never_answer_to_one_name(second: str, tmp_path: Path) -> None:
    first = _file(tmp_path).read_text()
    path = _file(tmp_path, second)
    path.write_text(first + "\n" + path.read_text())
    with pytest.raises(BadRequest, match=f"tiny and {second} share the name tiny"):
        read_presets(path)


# ---- MODEL=name --------------------------------------------------------------------------------------------------


def _find(hub_server: HubServer, model: str, folder: Path, gguf_file: str | None = None) -> Source:
    access, hashes = HubAccess(hub_server.endpoint), HashCache(folder / "hashes")
    return find_source(model, access, hashes, allow_pickle=False, gguf_file=gguf_file)


def test_a_name_is_looked_up_and_resolved_to_the_newest_commit(hub_server: HubServer, tmp_path: Path) -> None:
    repo = hub_server.add_repo("microsoft/phi-2", MODEL)
    source = _find(hub_server, "PHI-2", tmp_path)
    assert (source.repo_id, source.model.commit, source.revision) == ("microsoft/phi-2", repo.commit, "main")
    assert source.preset is not None and source.preset.name == "phi-2"


def test_a_revision_after_the_name_is_taken_as_after_a_repo_id(hub_server: HubServer, tmp_path: Path) -> None:
    hub_server.add_repo("microsoft/phi-2", MODEL, tags=("v1.0",))
    assert split_preset_name("phi-2@v1.0") == ("phi-2", "v1.0")
    assert _find(hub_server, "phi-2@v1.0", tmp_path).revision == "v1.0"


def test_a_repo_id_is_no_preset_even_where_its_name_is_one(hub_server: HubServer, tmp_path: Path) -> None:
    hub_server.add_repo("somebody/phi-2", MODEL)
    source = _find(hub_server, "somebody/phi-2", tmp_path)
    assert (source.repo_id, source.preset) == ("somebody/phi-2", None)


def test_a_folder_of_that_name_with_a_model_in_it_wins(
    hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "phi-2").mkdir()
    for name, content in MODEL.items():
        (tmp_path / "phi-2" / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    source = _find(hub_server, "phi-2", tmp_path)
    assert source.local is not None and source.preset is None


def test_the_file_of_a_ready_made_repo_is_the_presets_unless_another_is_asked_for(
    hub_server: HubServer, tmp_path: Path
) -> None:
    preset = find_preset("gemma-3-4b-it-GGUF")
    content = gguf(SMALL_METADATA, (TensorSpec("blk.0.ffn_up.weight", (256, 2), "F16"),))
    hub_server.add_repo(preset.repo, {"other-f16.gguf": content, str(preset.gguf_file): content})
    assert _find(hub_server, preset.name, tmp_path).gguf_file == preset.gguf_file
    assert _find(hub_server, preset.name, tmp_path, "other-f16.gguf").gguf_file == "other-f16.gguf"


def test_what_cannot_be_built_is_refused_before_the_hub_is_asked(hub_server: HubServer, tmp_path: Path) -> None:
    for preset in (p for p in shipped_presets() if p.unsupported):
        with pytest.raises(UnsupportedModel) as error:
            _find(hub_server, preset.name, tmp_path)
        assert str(preset.unsupported) in error.value.message and preset.name in error.value.message
    assert hub_server.requests == []


def _pinned(monkeypatch: pytest.MonkeyPatch, folder: Path, commit: str) -> None:
    listed = read_presets(_file(folder, "short", commit=f'"{commit}"'))
    monkeypatch.setattr("quantyard.sources.presets.shipped_presets", lambda: listed)


def test_a_pinned_commit_is_the_one_that_is_built(
    hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub_server.add_repo("org/tiny", MODEL)
    _pinned(monkeypatch, tmp_path, repo.commit)
    source = _find(hub_server, "short", tmp_path)
    assert (source.model.commit, source.revision) == (repo.commit, repo.commit)


def test_a_pinned_preset_that_was_built_before_needs_no_hub(
    hub_source: Source, make_runner: MakeRunner, notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_runner(hub_source, FakeEngine()).run(notes)
    _pinned(monkeypatch, tmp_path, COMMIT)
    known = recall_source(tmp_path / "artifacts", "short")
    assert known is not None and known.preset is not None
    assert (known.model.commit, known.preset.name) == (COMMIT, "short")
    _pinned(monkeypatch, tmp_path, "latest")
    assert recall_source(tmp_path / "artifacts", "short") is None


# ---- What is said ------------------------------------------------------------------------------------------------


def test_a_plan_says_the_licence_note_and_each_caveat_on_a_line_of_its_own(
    hub_source: Source, make_runner: MakeRunner
) -> None:
    preset = find_preset("Meta-Llama-3-8B-Instruct")
    planned = _planned(make_runner(replace(hub_source, preset=preset), FakeEngine()).plan)
    lines = summary.terminal_plan(planned).splitlines()
    for said in (preset.licence_note, *preset.caveats):
        assert sum(line.endswith(f"]{said}") for line in lines) == 1, said
    assert any("HF_TOKEN" in line for line in lines), "it is gated"
    assert plan_output(planned).preset == preset


def test_a_plan_of_any_other_model_says_nothing_of_the_kind(hub_source: Source, make_runner: MakeRunner) -> None:
    planned = _planned(make_runner(hub_source, FakeEngine()).plan)
    text = summary.terminal_plan(planned)
    assert "Licence" not in text and "Note" not in text
    assert plan_output(planned).preset is None


def _planned(plan: BuildPlan) -> Planned:
    return Planned(plan, frozenset(), Cost(0, 0, 10**9, ()), "docker", "asked for", Path("artifacts"))


def test_models_lists_every_preset_with_all_that_is_known_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["models"])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert not ended.value.code
    assert [line.split()[0] for line in lines] == [preset.name for preset in shipped_presets()]
    for preset in shipped_presets():
        text = summary.terminal_presets([preset])
        assert isinstance(text, str)
        notes = {Text.from_markup(line).plain.strip() for line in text.splitlines()}
        assert {*preset.caveats, *filter(None, [preset.licence_note])} <= notes, preset.name
        assert any(line.split()[0] == preset.name and preset.repo in line and preset.licence in line for line in lines)


def test_models_as_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["models", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert [Preset.model_validate(model) for model in told["models"]] == list(shipped_presets())
