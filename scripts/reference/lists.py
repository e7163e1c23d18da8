# ruff: noqa: INP001 (a helper of scripts, not a package)
"""The pages that list what there is: quants, models, architectures, client libraries, suites, stages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from reference.exit_codes import _with_subclasses
from reference.json_formats import _model_fields, field_table
from reference.markdown import code_text, first_sentence, table_text

from quantyard.plan.stages import STAGES
from quantyard.plan.suites import BUILTIN, find_suite
from quantyard.protocol import evaluation
from quantyard.protocol.base import StageRequest
from quantyard.quants.catalog import QUANTS
from quantyard.quants.recipe_files import shipped_recipes
from quantyard.sources.presets import shipped_presets
from tests.architectures.sweep import read_results, wanted_rows
from tests.clients.rows import CLIENTS, FEATURES, TOOLS_OF_A_TEMPLATE
from tests.clients.sweep import WORKS
from tests.clients.sweep import read_results as read_client_results

_MARKS = {"ok": "yes", "no": "**no**", "limited": "in part", "-": "-"}


def quants_page() -> Iterator[str]:
    """Quants and recipes."""
    yield (
        "`make quants` prints this list. Bits per weight are those of the whole file of an 8B model; small models come "
        "out higher, because their embeddings weigh more."
    )
    rows = []
    for quant in QUANTS:
        use = f"{quant.use} (`{quant.alias_of}`)" if quant.alias_of else quant.use
        rows.append((code_text(quant.name), quant.bits_per_weight, "yes" if quant.needs_imatrix else "", use))
    yield table_text(("type", "bits per weight", "needs an importance matrix", "when to choose it"), rows)
    yield "## Recipes"
    yield "Mixtures of tensor types that come with Quantyard; [Tune a model](../how-to/tune.md) shows how to write one."
    recipes = ((code_text(recipe.name), code_text(recipe.base), recipe.description) for recipe in shipped_recipes())
    yield table_text(("recipe", "base", "what it is for"), recipes)


def models_page() -> Iterator[str]:
    """Presets."""
    yield (
        "What `MODEL` knows by a short name; `make models` prints it, and `models.toml` says how to add one. A Hub "
        "repository that is not in the list is named as `org/name`."
    )
    rows = (
        (
            f"`{preset.name}`<br>{preset.repo}", f"{preset.n_params / 1e9:.2f}", preset.licence_text,
            preset.unsupported or ", ".join(preset.quants), " ".join(preset.notes),
        )
        for preset in shipped_presets()
    )
    yield table_text(("name and repository", "10⁹ weights", "licence", "recommended quants", "what to know"), rows)


def architectures_page() -> Iterator[str]:
    """What was tried of each architecture."""
    results = read_results()
    built = sum(result["build"] == "ok" for result in results.values())
    proved = sum(result["twin"] == "ok" for result in results.values())
    yield (
        f"{len(results)} of {len(wanted_rows([]))} configurations have been tried, {built} of which build and "
        f"{proved} of which are proved to compute what Transformers computes. Each is the config.json of a model as "
        "it stands on the Hub, or (*written by 5*) as transformers 5 writes it, shrunk to a few layers with random "
        "weights, and taken through every stage. All that the converter takes are named in "
        "`quantyard/sources/converter_architectures.txt`; a plan refuses others. The tokenizers are stand-ins: what is "
        "known of the real ones is said in [Models](models.md)."
    )
    yield (
        "*build*: converted and quantized. *verify*: tensors and tokenizer are right, it loads, its logits are finite. "
        "*twin*: llama.cpp's logits are those of Transformers. *eval*: its divergence is measured. *serve*: the server "
        "answers and streams. A dash: not reached, or not for this kind of model."
    )
    columns = ("build", "verify", "twin", "eval", "serve")
    rows = [
        (
            f"{code_text(name.partition(':')[0])}{', written by 5' if ':' in name else ''}<br>{result['repo']}",
            result["architecture"], *(_MARKS[result[column]] for column in columns), code_text(result["transformers"]),
            "<br>".join(_plain(sentence) for sentence in result["why"]),
        )
        for name, result in results.items()
    ]
    head = ("model", "architecture", *columns, "converter's transformers", "what does not work, and why")
    yield table_text(head, rows)
    yield "`.venv/bin/python -m tests.architectures.sweep` runs them all again; `make test-all` does and compares."


def clients_page() -> Iterator[str]:
    """What works with each client library."""
    results = read_client_results()
    yield (
        "Libraries that people use with OpenAI's or Anthropic's API, tried with the demo model (SmolLM2-135M-Instruct) "
        "as one file and as two, through `docker compose up`: the same works with both. With several files a request "
        "names its model as `/v1/models` lists it. Versions are those of `locks/` and `tests/clients`."
    )
    yield (
        "*chat*, *stream*: an answer, whole and in pieces. *JSON schema*: an answer that a schema constrains, by the "
        "library's own means. *tools*: a call of a tool that is required. A dash: it was not tried, or is not for this "
        "library."
    )
    yield (
        "Tools need a chat template that knows them, such as those of Qwen3 and Llama 3.1. SmolLM2's does not: the "
        "server answers with text, in which no library finds a call. The column is that of the same model with a "
        "template that does."
    )
    columns = ("chat", "stream", "schema", TOOLS_OF_A_TEMPLATE)
    rows = [
        (
            f"{code_text(', '.join(client.packages))}{'' if client.is_python else ' (npm)'}",
            ", ".join(client.versions()),
            *(_client_mark(results[name], feature) for feature in columns),
        )
        for name, client in CLIENTS.items()
    ]
    yield table_text(("library", "version", "chat", "stream", "JSON schema", "tools"), rows)
    yield "## Settings"
    yield (
        "ADDRESS is `http://127.0.0.1:8080`, KEY the content of `artifacts/keys/api-key`, MODEL the name of the file "
        "without `.gguf`. OpenAI's libraries take a base that ends in `/v1`; Anthropic's adds `/v1` itself."
    )
    yield table_text(("library", "settings"), [(name, code_text(client.settings)) for name, client in CLIENTS.items()])
    yield "## What does not work, and why"
    wrong = [
        (name, FEATURES.get(feature, "tools"), _plain(CLIENTS[name].limits.get(feature, said)))
        for name in CLIENTS
        for feature, said in results[name]["two files"].items()
        if said != WORKS and feature != "tools"
    ]
    yield table_text(("library", "what", "why"), wrong)
    yield "`.venv/bin/python -m tests.clients.sweep` tries them all again; `make test-all` does and compares."


def _client_mark(setups: Mapping[str, Mapping[str, str]], feature: str) -> str:
    said = {found[feature] for found in setups.values() if feature in found}
    return _MARKS["no" if said - {WORKS} else "ok" if said else "-"]


def _plain(text: str) -> str:
    """A tool's words in a cell of a table: no markup, no path of a machine."""
    words = re.sub(r"/[\w./-]+/(?=[\w.-]+)", "", text)
    return re.sub(r"([<>*_`\[\]])", r"\\\1", words)


def suites_page() -> Iterator[str]:
    """The suites that come with Quantyard."""
    yield "What `SUITE=…` can name. [Ask your own questions](../how-to/your-own-questions.md) shows how to write one."
    for name in BUILTIN:
        suite = find_suite(name).suite
        yield f"## {name}"
        yield suite.description
        rows = []
        for task in suite.tasks:
            examples = "as the task says" if task.num_fewshot is None else task.num_fewshot
            rows.append((code_text(task.task), examples, task.limit or "all"))
        yield table_text(("task", "solved examples", "questions of each (sub)task"), rows)
    yield "## Fields of a suite"
    yield from _model_fields(evaluation.Suite, depth=3)


def stages_page() -> Iterator[str]:
    """The stages with their requests."""
    yield (
        "A stage is one process with one request. It finds `request.json` and its inputs below `/in`, writes files to "
        "`/out/files` and its answer to `/out/result.json`. Its name is also its module, log prefix and key in the "
        "manifest."
    )
    rows = (
        (
            f"[`{row.name}`](#{row.name})", code_text(row.module), row.image, "yes" if row.network else "",
            ", ".join(map(code_text, row.secrets)), f"{row.timeout_s / 3600:g} h", "yes" if row.resumable else "",
        )
        for row in STAGES.values()
    )
    yield table_text(("stage", "module", "image", "network", "secrets", "time limit", "resumes"), rows)
    requests = {r.model_fields["stage"].default: r for r in _with_subclasses(StageRequest)}
    for row in STAGES.values():
        request = requests[row.name]
        yield f"## {row.name}"
        yield first_sentence(request.__doc__ or "")
        yield field_table(request, skip=("contract", "stage"))
