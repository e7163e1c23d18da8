"""The model card: what it says, and what of it the Hub reads."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub._eval_results import parse_eval_result_entries
from markdown_it import MarkdownIt

from quantyard.card.blocks import card_blocks, card_table_cells
from quantyard.card.hub_results import BENCHMARKS
from quantyard.card.metadata import OWN_TAGS, card_metadata
from quantyard.card.render import CardContext, card_differences, card_eval_results, render_card
from quantyard.card.subject import CardSubject
from quantyard.errors import BadRequest
from quantyard.formatting.numbers import format_memory
from quantyard.protocol.base import FileEntry
from quantyard.sources.licence import Licence
from quantyard.store.manifest import ContextRecord, Manifest, SourceCard, UseRecord
from tests.cards import CONTEXT, LEGAL, gate, standard, whole
from tests.evaluations import LARGE
from tests.manifests import NAME, manifest_of, sha256_of, with_imatrix, with_narrow_rows


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return whole()


@pytest.fixture(scope="module")
def card(manifest: Manifest) -> str:
    return render_card(manifest, CONTEXT)


# ---- what it says ------------------------------------------------------------------------------------


def test_the_metadata_names_the_source_the_licence_and_who_quantized(card: str) -> None:
    data = ModelCard(card).data.to_dict()
    assert data["base_model"] == f"lagoon/{NAME}" and data["base_model_relation"] == "quantized"
    assert (data["license"], data["library_name"], data["quantized_by"]) == ("apache-2.0", "gguf", "me")
    assert (data["language"], data["pipeline_tag"]) == (["en"], "text-generation")
    assert data["tags"] == list(OWN_TAGS)


def test_a_source_that_is_quantized_already_is_said_to_be(manifest: Manifest, card: str) -> None:
    source = manifest.source.model_copy(update={"quantization": "GPTQ, 4 bit"})
    said = render_card(manifest.model_copy(update={"source": source}), CONTEXT)
    assert "The source is quantized already: GPTQ, 4 bit." in said and "quantized already" not in card


def test_a_file_that_is_not_what_its_name_says_is_told_with_what_to_take_instead(manifest: Manifest, card: str) -> None:
    found = render_card(with_narrow_rows(manifest), CONTEXT)
    assert "6.17 bits per weight, since rows are not multiples of 256; IQ4\\_NL has 5.37" in found
    assert "QUANT=IQ4\\_NL is what its name says, with 5.37 bits per weight" in found
    assert "not multiples" not in card


def test_a_source_that_is_no_repo_of_the_hub_is_no_base_model(manifest: Manifest) -> None:
    source = manifest.source.model_copy(update={"repo_id": "", "title": "/home/somebody/models/Lagoon-1B-Instruct"})
    found = render_card(manifest.model_copy(update={"source": source}), CONTEXT)
    assert "base_model" not in ModelCard(found).data.to_dict()
    assert "/home" not in found


def test_the_tags_of_the_source_are_carried_on_but_not_what_the_hub_or_the_weights_make_of_it() -> None:
    tags = ["chat", "safetensors", "license:mit", "chat", *(f"t{i}" for i in range(100))]
    manifest = manifest_of(card=SourceCard(tags=tags))
    found = ModelCard(render_card(manifest, CONTEXT)).data.tags
    assert found[: len(OWN_TAGS) + 2] == [*OWN_TAGS, "chat", "t0"]
    assert len(found) <= 40


def test_a_licence_that_the_hub_has_no_word_for_is_other_with_its_name_and_link() -> None:
    card = SourceCard(license_name="lagoon-licence", license_link="https://example.org/licence")
    context = replace(CONTEXT, licence=Licence("other", "source", ()))
    data = ModelCard(render_card(manifest_of(card=card), context)).data.to_dict()
    assert data["license"] == "other" and data["license_name"] == "lagoon-licence"
    assert data["license_link"] == "https://example.org/licence"


def test_the_limits_are_one_line_under_the_title_and_a_table_below_in_a_readers_words(card: str) -> None:
    blocks = dict(card_blocks(card))
    text = ModelCard(card).text.lstrip()
    assert text.startswith("# ") and text.index("quantyard:gate") < text.index("## Which file")
    assert blocks["gate"] == [
        "1 of 4 quality limits missed, 1 undecided, 1 not measured: [details below](#quality-limits)."
    ]
    assert "\n## Quality limits\n" in text
    missed, unmeasured, undecided = (card_table_cells(row) for row in blocks["limits"][2:])
    assert missed == ["`Q4_K_M`", "mean KLD", "0.02", "0.0310", "0.0292 to 0.0328 (95 %)", "missed"]
    assert undecided[1:3] == ["loss of accuracy, arc\\_easy", "1 points"] and "too few questions" in undecided[-1]
    assert unmeasured[1] == "speed of reading a prompt" and unmeasured[-1] == "not measured"
    makers = r"(?:max|min)_(?:ppl|mean|acc|gen|prompt|size)|Type: |published (?:anyway|all the same)"
    assert not re.search(makers, text.replace("\\", ""))


def test_limits_that_are_all_met_are_one_line() -> None:
    passed = gate().model_copy(update={"results": gate().results[-1:]})
    found = render_card(manifest_of().model_copy(update={"gate": passed}), CONTEXT)
    assert "\nThe quality limit is met.\n" in found and "## Quality limits" not in found


def test_the_first_screen_names_the_file_that_choose_would_take_its_size_its_cost_and_why(card: str) -> None:
    take, why, less = dict(card_blocks(card))["take"]
    assert take == (f"**Take [`Q8_0`]({NAME}-Q8_0.gguf)**: 1.17 GB, agrees with the original on 98.8 % of tokens.")
    assert why == "It is the closest of these 2 files to BF16."
    assert less.startswith("With less memory take Q4\\_K\\_M: 848 MB, agrees with the original on ")
    assert "llama-server -hf me/Lagoon-GGUF:Q8_0" in card
    assert f"hf download me/Lagoon-GGUF {NAME}-Q8_0.gguf" in card
    assert "**recommended**" in dict(card_blocks(card))["which"][2]


def test_without_a_quality_the_usual_file_is_named_and_said_to_be_unmeasured() -> None:
    manifest = manifest_of().model_copy(update={"evaluations": {}})
    found = render_card(manifest, replace(CONTEXT, suite=""))
    assert f"**Take [`Q4_K_M`]({NAME}-Q4_K_M.gguf)**: 848 MB. Its quality was not measured" in found


def test_the_command_stands_before_the_table_which_fills_the_screen_of_a_phone(card: str) -> None:
    before = card.partition("quantyard:which")[0]
    assert re.search(r"^Run it: `llama-server -hf \S+:\S+`$", before, re.MULTILINE)


def test_without_a_repo_the_commands_name_the_file_and_nobody_quantized(manifest: Manifest) -> None:
    found = render_card(manifest, replace(CONTEXT, repo_id=""))
    assert f"llama-server -m {NAME}-Q8_0.gguf --host" in found and f"-m /models/{NAME}-Q8_0.gguf" in found
    assert "quantized_by" not in ModelCard(found).data.to_dict()
    assert not [word for word in ("-hf", "hf download", "ollama", "lms get", "docker model", "me/") if word in found]


def used(manifest: Manifest) -> Manifest:
    """The release of a model that says how it is used: 1 KiB a token, measured at the context of the simulation."""
    (report,) = manifest.evaluations.values()
    n_ctx = next(m.speed.n_ctx for m in report.measurements if m.speed)
    context = ContextRecord(served={8192: 8 << 20, 32768: 32 << 20}, measured={n_ctx: n_ctx << 10})
    quants = {label: record.model_copy(update={"context": context}) for label, record in manifest.quants.items()}
    use = UseRecord(context_tokens=32768, prompt="<|user|>Hi\n```\n", sampling={"temp": 0.6, "top_p": 0.95})
    return manifest.model_copy(update={"quants": quants, "use": use})


def test_memory_stands_at_the_contexts_that_people_ask_for(manifest: Manifest) -> None:
    release = used(manifest)
    found = render_card(release, CONTEXT)
    head, _, large, _ = (card_table_cells(row) for row in dict(card_blocks(found))["which"])
    assert head[2:4] == ["memory at 8k", "memory at 32k"]
    speed = next(m.speed for m in release.evaluations["standard"].measurements if m.file.label == "Q8_0")
    assert speed is not None
    base = speed.peak_memory_bytes - (speed.n_ctx << 10)
    assert large[2:4] == [format_memory(base + (8 << 20)), format_memory(base + (32 << 20))]
    assert card_differences(found, release, CONTEXT) == []


def test_prompt_format_sampling_context_and_the_release_of_llama_cpp_are_the_models_own(manifest: Manifest) -> None:
    found = render_card(used(manifest), CONTEXT)
    assert "````text\n<|user|>Hi\n```\n````" in found
    assert "`--temp 0.6 --top-p 0.95`" in found and "trained for 32,768 tokens" in found
    assert "[b7640](https://github.com/ggml-org/llama.cpp/releases/tag/b7640)" in found


def test_only_the_files_that_are_published_are_on_the_card() -> None:
    found = render_card(manifest_of(), replace(CONTEXT, quants=("Q8_0",)))
    assert "Q8_0" in found and "Q4_K_M" not in found


def test_the_memory_is_said_to_be_unknown_where_it_was_not_measured() -> None:
    manifest = manifest_of()
    report = manifest.evaluations["standard"]
    without = tuple(m.model_copy(update={"speed": None}) for m in report.measurements)
    evaluations = {"standard": report.model_copy(update={"measurements": without})}
    found = render_card(manifest.model_copy(update={"evaluations": evaluations}), CONTEXT)
    assert "memory" not in card_table_cells(dict(card_blocks(found))["which"][0]) and "Memory is" not in found
    assert "Speed and memory of `Q8_0`, `Q4_K_M`." in found


def test_what_was_never_evaluated_or_tested_says_so() -> None:
    manifest = manifest_of().model_copy(update={"evaluations": {}, "contracts": {}})
    found = render_card(manifest, replace(CONTEXT, suite=""))
    assert "Anything: these files have not been evaluated." in found
    assert "no contract test of `Q8_0`, `Q4_K_M`" in found
    assert card_differences(found, manifest, replace(CONTEXT, suite="")) == []


def test_the_card_says_which_files_an_imatrix_made_and_of_which_text(card: str) -> None:
    (line, *_) = dict(card_blocks(card))["apart"]
    assert f"`Q4_K_M`: made with the importance matrix `{NAME}.imatrix.gguf`, of Quantyard's own text (" in line
    assert sha256_of("text") in line and "234 chunks of 512 tokens" in line
    hashes = "\n".join(dict(card_blocks(card))["hashes"])
    assert f"| `{NAME}.imatrix.gguf` | 4,000,000 | `{sha256_of('imatrix')}` |" in hashes
    assert "calibrate: llama" in card and "Importance matrix: none" not in card


def test_the_users_calibration_text_is_named_and_one_that_was_overwritten_since_by_its_hash(manifest: Manifest) -> None:
    made = manifest.stages["calibrate"]
    facts = made.facts | {"text": "a_b.txt"}
    of_users = made.model_copy(update={"request": {"text_files": ["a_b.txt"]}, "facts": facts})
    found = render_card(manifest.model_copy(update={"stages": manifest.stages | {"calibrate": of_users}}), CONTEXT)
    assert r"of the text a\_b&#46;txt (SHA-256" in found
    later = made.model_copy(update={"outputs": made.outputs[:1]})
    found = render_card(manifest.model_copy(update={"stages": manifest.stages | {"calibrate": later}}), CONTEXT)
    assert f"of a text with the SHA-256 `{sha256_of('text')}`" in found


def test_an_imatrix_that_was_given_is_said_to_be_made_elsewhere() -> None:
    found = render_card(with_imatrix(manifest_of(), "Q4_K_M", "Q8_0", made=False), CONTEXT)
    assert dict(card_blocks(found))["apart"] == [
        f"- `Q8_0`, `Q4_K_M`: made with the importance matrix `{NAME}.imatrix.gguf`, made elsewhere."
    ]


def test_without_an_imatrix_the_card_says_none_and_of_one_that_was_not_kept_its_digest() -> None:
    plain = render_card(manifest_of(), CONTEXT)
    assert "Importance matrix: none. Calibration data: none." in plain and "apart" not in dict(card_blocks(plain))
    manifest = manifest_of()
    used = manifest.stages["quantize Q4_K_M"].model_copy(update={"inputs": {"imatrix": "d" * 64}})
    lost = manifest.model_copy(update={"stages": manifest.stages | {"quantize Q4_K_M": used}})
    assert f"Importance matrix: not kept, digest `{'d' * 64}`." in render_card(lost, CONTEXT)


def test_an_imatrix_that_proved_of_no_use_is_not_on_the_card() -> None:
    manifest = with_imatrix(manifest_of(), "Q4_K_M")
    found = render_card(manifest, replace(CONTEXT, quants=("Q8_0",)))
    assert "Importance matrix: none." in found and "calibrate" not in found and "imatrix" not in found


def test_a_file_of_a_recipe_says_what_the_recipe_is(card: str) -> None:
    (_, line) = dict(card_blocks(card))["apart"]
    assert line == "- `Q8_0`: a mix of tensor types, Q8\\_0 but for `ffn_down` Q6\\_K, `output` Q8\\_0."


def test_a_card_of_six_files_is_complete_and_ordered_by_size_whatever_order_they_were_made_in() -> None:
    six = [LARGE[0], *(LARGE[i] for i in (3, 8, 1, 5, 2, 7))]
    manifest = manifest_of(six)
    blocks = dict(card_blocks(render_card(manifest, CONTEXT)))
    sizes = {label: record.size_bytes for label, record in manifest.quants.items()}
    large_first = sorted(sizes, key=lambda label: -sizes[label])
    assert [card_table_cells(row)[0].strip("`") for row in blocks["files"][3:]] == large_first
    assert [re.findall("`(.+?)`", row)[0] for row in blocks["which"][2:]] == large_first
    assert [card_table_cells(row)[0].strip("`") for row in blocks["speed"][3:]] == large_first
    assert len(blocks["hashes"]) == len(blocks["verdicts"]) == 2 + 6
    assert not any("—" in card_table_cells(row) for row in blocks["files"][3:])


def test_a_mismatch_that_was_allowed_is_on_the_card() -> None:
    manifest = manifest_of()
    facts = {"bits_per_weight": 8.5, "mismatches_allowed": ["tokenizer"]}
    allowed = manifest.stages["verify Q8_0"].model_copy(update={"facts": facts})
    found = render_card(manifest.model_copy(update={"stages": manifest.stages | {"verify Q8_0": allowed}}), CONTEXT)
    assert "Differs from the source, and was allowed to" in found


def test_a_path_of_the_host_stays_at_home() -> None:
    manifest = manifest_of()
    argv = [["convert", "/home/somebody/x/model.gguf", "--out=/srv/secret/y.gguf", "/in/source"]]
    run = manifest.stages["convert"].model_copy(update={"argv": argv})
    found = render_card(manifest.model_copy(update={"stages": manifest.stages | {"convert": run}}), CONTEXT)
    assert "somebody" not in found and "secret" not in found
    assert "…/model.gguf" in found and "/in/source" in found


def test_plots_have_a_picture_for_each_theme_and_words_for_who_cannot_see_them(card: str) -> None:
    assert re.search(r'<source media="\(prefers-color-scheme: dark\)" srcset="plots/tradeoff-dark.svg">', card)
    assert re.search(r'<img alt="[^"]{20,}" src="plots/tradeoff-light.svg">', card)


def test_the_text_of_the_licence_is_quoted_to_the_letter(card: str) -> None:
    tokens = MarkdownIt("commonmark").parse(ModelCard(card).text)
    assert LEGAL.strip() + "\n" in [token.content for token in tokens if token.type == "fence"]


@pytest.mark.parametrize("context", [
    replace(CONTEXT, suite="nightly"), replace(CONTEXT, repo_id="no repo"), replace(CONTEXT, quants=("Q2_K",)),
])  # fmt: skip
def test_what_does_not_fit_the_manifest_is_refused(context: CardContext) -> None:
    with pytest.raises(BadRequest) as error:
        render_card(manifest_of(), context)
    assert error.value.hint


def test_numbers_of_another_file_are_refused() -> None:
    manifest = manifest_of()
    other = manifest.quants["Q8_0"].model_copy(update={"sha256": "0" * 64})
    with pytest.raises(BadRequest, match="of another file"):
        render_card(manifest.model_copy(update={"quants": {**manifest.quants, "Q8_0": other}}), CONTEXT)


def test_a_file_published_in_parts_has_the_hash_of_each() -> None:
    manifest = manifest_of()
    parts = [FileEntry(path=f"Q8_0-0000{i}-of-00002.gguf", size_bytes=i, sha256=str(i) * 64) for i in (1, 2)]
    quants = manifest.quants | {"Q8_0": manifest.quants["Q8_0"].model_copy(update={"parts": parts})}
    hashes = "\n".join(
        dict(card_blocks(render_card(manifest.model_copy(update={"quants": quants}), CONTEXT)))["hashes"]
    )
    assert all(f"| `{part.path}` | {part.size_bytes} | `{part.sha256}` |" in hashes for part in parts)
    assert "Q8_0.gguf" not in hashes


# ---- results for the Hub -----------------------------------------------------------------------------


def test_a_result_for_the_hub_is_one_file_per_task_and_quant_with_how_it_was_asked() -> None:
    found = card_eval_results(standard(num_fewshot=0), CONTEXT)
    (entry,) = parse_eval_result_entries(yaml.safe_load(found[".eval_results/arc_easy-Q4_K_M.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("allenai/ai2_arc", "ARC-Easy", 57.0)
    assert entry.notes == "Q4_K_M, acc_norm in %, 0-shot, lm-eval 0.4.13 on llama.cpp"
    assert entry.source_url == "https://huggingface.co/me/Lagoon-GGUF"


def test_a_part_of_a_benchmark_goes_on_no_leaderboard_but_into_the_model_index() -> None:
    manifest = standard(limit=200)
    assert card_eval_results(manifest, CONTEXT) == {}
    results = ModelCard(render_card(manifest, CONTEXT)).data.eval_results
    assert {"ARC Easy", "HellaSwag"} <= {result.dataset_name for result in results}
    assert all("questions only" in (result.metric_name or "") for result in results)


def test_tasks_of_a_suites_own_are_never_a_result_for_the_hub() -> None:
    manifest = standard()
    report = manifest.evaluations["standard"]
    suite = report.suite.model_copy(update={"include_path": "smoke"})
    local = manifest.model_copy(update={"evaluations": {"standard": report.model_copy(update={"suite": suite})}})
    assert card_eval_results(local, CONTEXT) == {}
    assert "model-index" not in ModelCard(render_card(local, CONTEXT)).data.to_dict()


def test_every_benchmark_is_there_once() -> None:
    assert not [task for task, n in Counter(row.task for row in BENCHMARKS).items() if n > 1]


# ---- how to run it -----------------------------------------------------------------------------------


def test_the_examples_that_need_other_tools_have_the_form_those_document(card: str) -> None:
    commands = re.findall(r"```sh\n(.+?)\n```", ModelCard(card).text)
    assert "ollama run hf.co/me/Lagoon-GGUF:Q8_0" in commands
    assert "lms get https://huggingface.co/me/Lagoon-GGUF@Q8_0" in commands
    assert "docker model run hf.co/me/Lagoon-GGUF:Q8_0" in commands


def test_docker_pulls_from_the_registry_where_there_is_one() -> None:
    found = render_card(manifest_of(), replace(CONTEXT, oci="registry.example/team/lagoon:q4_k_m"))
    assert "docker model run registry.example/team/lagoon:q4_k_m" in found


def test_an_address_of_a_registry_cannot_leave_its_command() -> None:
    found = render_card(manifest_of(), replace(CONTEXT, oci="x; rm -rf ~\n```\n<b>"))
    assert "docker model run 'x; rm -rf ~  <b>:Q8_0'" in found


def test_a_base_models_card_shows_how_to_continue_a_text_and_nothing_that_chats() -> None:
    manifest = whole()
    for name, record in manifest.stages.items():
        if name.startswith("verify"):
            record.facts["chat_template"] = False
    card = render_card(manifest, CONTEXT)
    assert "This is a base model" in card and "client.completions.create(" in card
    assert not [word for word in ("chat.completions", "ollama", "lms get", "docker model", "outlines") if word in card]
    assert "llama-server -hf" in card and "ghcr.io/ggml-org/llama.cpp:server" in card


# ---- languages, as the Hub takes them ----------------------------------------------------------------


@pytest.mark.parametrize(("named", "codes", "tags"), [
    (["zh-CN"], ["zh"], ["zh-CN"]),
    (["zh_hans_cn", "zh"], ["zh"], ["zh-Hans-CN"]),
    (["pt-BR", "pt-PT"], ["pt"], ["pt-BR", "pt-PT"]),
    (["sr-Latn", "sr-Cyrl"], ["sr"], ["sr-Latn", "sr-Cyrl"]),
    (["eng_Latn", "deu_Latn"], ["eng", "deu"], ["eng-Latn", "deu-Latn"]),
    (["EN", "de"], ["en", "de"], None),
    (["es-419", "ca-valencia"], ["es", "ca"], ["es-419", "ca-valencia"]),
    (["code", "multilingual"], ["code", "multilingual"], None),
    (["english", "e", "x" * 50], None, None),
])  # fmt: skip
def test_languages_are_codes_and_what_more_they_say_stands_beside_them(
    named: list[str], codes: list[str] | None, tags: list[str] | None
) -> None:
    manifest = manifest_of()
    manifest.source.card = manifest.source.card.model_copy(update={"languages": named})
    data = card_metadata(CardSubject(manifest, CONTEXT)).to_dict()
    assert (data.get("language"), data.get("language_bcp47")) == (codes, tags)
