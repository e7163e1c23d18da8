"""The card's lists of how the files were made: importance matrices and recipes, then source, commands and images."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Final

from quantyard.card.escaping import (
    SafeMarkdown,
    escape_markdown,
    join_markdown,
    markdown_code,
    markdown_code_block,
    markdown_link,
)
from quantyard.card.subject import CardSubject
from quantyard.protocol.base import files_digest
from quantyard.protocol.facts import CalibrateFacts, VerifyFacts
from quantyard.protocol.text_findings import TextFinding
from quantyard.quants.catalog import QUANTS
from quantyard.quants.narrow_rows import narrow_rows_of_counts
from quantyard.store.manifest import ImatrixRecord, StageRecord

_MAX_NAMED: Final = 20
# Folders of a container. Any other path is one of the machine that ran the stage, and is not shown.
_IN_IMAGES: Final = re.compile(r"/(?:in|out|app|opt|usr)/")


# ---- importance matrices and recipes -----------------------------------------------------------------


def card_file_provenance(subject: CardSubject) -> Iterator[SafeMarkdown]:
    """The files made with an importance matrix, with its text; the files made by a recipe."""
    for found in subject.imatrices:
        labels = [label for label, record in subject.quants.items() if record.imatrix == found]
        yield SafeMarkdown(f"{join_markdown(', ', map(markdown_code, labels))}: made with the importance matrix "
        f"{markdown_code(found.file)}, "
                   f"{_card_imatrix_text(subject, found)}.")  # fmt: skip
    for label, record in subject.quants.items():
        made_by = subject.manifest.stages.get(record.made_by)
        if made_by is not None and made_by.request.get("recipe"):
            yield SafeMarkdown(f"{markdown_code(label)}: a mix of tensor types, {_card_recipe(made_by)}.")


def _card_imatrix_text(subject: CardSubject, found: ImatrixRecord) -> SafeMarkdown:
    """The text that a matrix was computed from, as far as the manifest records it."""
    made = subject.manifest.stages.get("calibrate")
    if made is None or files_digest(tuple(made.outputs)) != files_digest(tuple(found.given)):
        read = next((f for f in found.given if f.sha256 != found.sha256), None)
        return SafeMarkdown(
            f"of a text with the SHA-256 {markdown_code(read.sha256 or '')}" if read else "made elsewhere"
        )
    facts, names = CalibrateFacts.read(made.facts), made.request.get("text_files")
    which = f"of the text {escape_markdown(facts.text, 200)}" if names else "of Quantyard's own text"
    sha256 = markdown_code(facts.text_sha256 or "not known")
    return SafeMarkdown(f"{which} (SHA-256 {sha256}), {facts.chunks} chunks of {facts.chunk_tokens} tokens")


def _card_recipe(stage: StageRecord) -> SafeMarkdown:
    """The recipe in the request: a base type, and the types that differ."""
    asked = stage.request
    types = asked.get("tensor_types")
    rules = (
        [SafeMarkdown(f"{markdown_code(name)} {escape_markdown(kind)}") for name, kind in types.items()]
        if isinstance(types, dict)
        else []
    )
    for key, name in (("output_type", "output"), ("token_embedding_type", "token_embd")):
        rules += [SafeMarkdown(f"{markdown_code(name)} {escape_markdown(asked[key])}")] if asked.get(key) else []
    rest = [escape_markdown(f"and {len(rules) - _MAX_NAMED} more")] if len(rules) > _MAX_NAMED else []
    return SafeMarkdown(
        f"{escape_markdown(asked.get('quant'))} but for {join_markdown(', ', [*rules[:_MAX_NAMED], *rest])}"
    )


# ---- source, commands, images ------------------------------------------------------------------------


def card_provenance(subject: CardSubject) -> Iterator[SafeMarkdown]:
    source = subject.manifest.source
    where = (
        markdown_link(markdown_code(source.repo_id), subject.source_url)
        if source.repo_id
        else markdown_code(subject.title)
    )
    kind = "commit" if source.repo_id else "local files, digest"
    yield SafeMarkdown(f"Source: {where}, {kind} {markdown_code(source.commit)}.")
    if source.quantization:
        yield SafeMarkdown(
            f"The source is quantized already: {escape_markdown(source.quantization)}. No file here is closer to the "
            "model as it was before that than the source is, and every measurement is against the source."
        )
    if not subject.imatrices:
        used = sorted({stage.inputs["imatrix"] for _, stage in subject.stages("quantize") if "imatrix" in stage.inputs})
        told = f"not kept, digest {join_markdown(', ', map(markdown_code, used))}" if used else "none"
        yield SafeMarkdown(f"Importance matrix: {told}. Calibration data: {'not known' if used else 'none'}.")
    for name in ("fetch", "twin", "convert", "projector", "parity", "calibrate", "quantize"):
        if name != "calibrate" or subject.imatrices:  # no published file may use the matrix
            for key, stage in subject.stages(name):
                yield from _card_stage_run(key, stage)
    yield from _card_verified_items(subject)
    yield from _card_image_items(subject)


def _card_stage_run(key: str, stage: StageRecord) -> Iterator[SafeMarkdown]:
    tools = join_markdown(
        ", ",
        [SafeMarkdown(f"{escape_markdown(name)} {escape_markdown(version)}") for name, version in stage.tools.items()],
    )
    head = SafeMarkdown(f"{escape_markdown(key)}: {join_markdown(', on ', [tools, escape_markdown(stage.cpu)])}.")
    commands = "\n".join(shlex.join(_card_portable_argument(arg) for arg in argv) for argv in stage.argv)
    block = markdown_code_block(commands, "sh").replace("\n", "\n  ") if commands else ""
    yield SafeMarkdown(f"{head}\n\n  {block}\n" if block else head)


def _card_portable_argument(argument: str) -> str:
    """The last part of a host's path: the rest is private."""
    flag, equals, value = argument.rpartition("=")
    if value.startswith(("/", "~", "file:")) and not _IN_IMAGES.match(value):
        return f"{flag}{equals}…/" + value.rstrip("/").rsplit("/", 1)[-1]
    return argument


def _card_verified_items(subject: CardSubject) -> Iterator[SafeMarkdown]:
    for key, stage in subject.stages("verify"):
        facts = VerifyFacts.read(stage.facts)
        compared = ((facts.probes, "tokenizer probes"), (facts.chats, "conversations"))
        parts = [SafeMarkdown(f"{n} {what}") for n, what in compared if n is not None]
        allowed = facts.mismatches_allowed
        differs = (
            SafeMarkdown(f" **Differs from the source, and was allowed to: {escape_markdown(allowed, 400)}.**")
            if allowed
            else ""
        )
        findings = [
            *map(_card_text_finding, facts.findings),
            *_card_witness_items(facts),
            *_card_embeddings_items(facts),
        ]
        tried = f" ({join_markdown(', ', parts)})" if parts else ""
        narrow = _card_narrow_rows(subject, key, stage, facts)
        yield SafeMarkdown(f"{escape_markdown(key)}: passed{tried}.{narrow}{differs}{''.join(findings)}")


def _card_narrow_rows(subject: CardSubject, key: str, stage: StageRecord, facts: VerifyFacts) -> SafeMarkdown:
    """That the file is not what its name says; by its tensors where nothing is recorded."""
    found = next((record.narrow_rows for record in subject.quants.values() if record.verified_by == key), None)
    quant = next((quant for quant in QUANTS if quant.name == stage.request.get("quant")), None)
    if found is None and quant is not None and not stage.request.get("tensor_types"):
        found = narrow_rows_of_counts(quant, facts.types, facts.bits_per_weight, by_weight=False)
    return SafeMarkdown(f" **{escape_markdown(found.sentence.removesuffix('.'), 600)}.**" if found else "")


def _card_text_finding(finding: TextFinding) -> SafeMarkdown:
    """What llama.cpp tokenizes otherwise; what is more than a record stands out."""
    sentence = escape_markdown(finding.sentence, 400)
    if finding.outcome == "allowed":
        return SafeMarkdown(f" **Differs from the source, and was allowed to: {sentence}.**")
    return SafeMarkdown(f" **{sentence}.**" if finding.outcome == "warn" else f" {sentence}.")


def _card_embeddings_items(facts: VerifyFacts) -> Iterator[SafeMarkdown]:
    """How close embeddings or scores are to the original's."""
    for sentence, is_warning in facts.embeddings_sentences:
        text = escape_markdown(sentence, 400)
        yield SafeMarkdown(f" **{text}.**" if is_warning else f" {text}.")


def _card_witness_items(facts: VerifyFacts) -> Iterator[SafeMarkdown]:
    for sentence in facts.witnesses_that_differ:
        yield SafeMarkdown(f" Judged by the file; {escape_markdown(sentence, 400)}.")


def _card_image_items(subject: CardSubject) -> Iterator[SafeMarkdown]:
    """Each image once, with its base image."""
    seen: dict[str, None] = {}
    making = ("fetch", "twin", "convert", "projector", "parity", "calibrate", "quantize")
    for name in (*making, "verify", "evaluate", "contract"):
        for _, stage in subject.stages(name):
            seen.update(dict.fromkeys(_card_image_lines(stage.ran_by)))
    yield from map(SafeMarkdown, seen)


def _card_image_lines(ran_by: Mapping[str, str]) -> Iterator[str]:
    images = {key: value for key, value in ran_by.items() if key.endswith("_image") and key != "base_image"}
    base = (
        f" on {markdown_code(ran_by['base_image'])} {markdown_code(ran_by.get('base_digest', ''))}"
        if "base_image" in ran_by
        else ""
    )
    for key, digest in images.items():
        yield f"{escape_markdown(key.removesuffix('_image'))} image {markdown_code(digest)}{base}."
    if not images and ran_by:
        told = join_markdown(
            ", ",
            [
                SafeMarkdown(f"{escape_markdown(key)} {escape_markdown(value)}")
                for key, value in list(ran_by.items())[:_MAX_NAMED]
            ],
        )
        yield f"Run by {told}."
