"""The subject of a card: the manifest, the files of it that are published, and where they are published."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from quantyard.errors import BadRequest
from quantyard.formats.gguf import ENCODER_DECODERS
from quantyard.formats.names import safe_file_name
from quantyard.formats.purpose import Pooling, Purpose
from quantyard.hub.files import Closed, hub_model_url, parse_hub_repo_id
from quantyard.metrics.choice import BestFile, ReportedFile, best_of_report
from quantyard.metrics.headline_metrics import headline_scores
from quantyard.protocol.facts import VerifyFacts
from quantyard.protocol.gate import BudgetResult
from quantyard.protocol.measurements import EvalReport, Measurement, Score
from quantyard.quants.catalog import quant_rank
from quantyard.store.manifest import ImatrixRecord, Manifest, QuantRecord, StageRecord

if TYPE_CHECKING:
    from quantyard.sources.licence import Licence

USUAL_BITS: Final = 4.85  # of Q4_K_M on an 8B model, the most common choice


@dataclass(frozen=True)
class CardContext:
    """What the card needs and the manifest does not hold. `plots` are paths in the repo, `…-light.svg`, `…-dark.svg`.

    `repo_id` is the Hub repo, "" if it is not known; `suite` the evaluation to show, "" for none; `quants` the files
    that are published, by default all.
    """

    repo_id: str
    suite: str
    licence: Licence
    oci: str = ""  # registry/name or registry/name:tag
    plots: tuple[str, ...] = ()
    licence_text: str = ""
    quants: tuple[str, ...] = ()
    branch: str = ""  # of the Hub repo; "": main
    closed: Closed = ""  # whether reading the Hub repo takes a token


@dataclass(frozen=True)
class CardSubject:
    """A manifest and a context, checked to belong together."""

    manifest: Manifest
    context: CardContext

    def __post_init__(self) -> None:
        """Check that every measurement is of the file that the card names.

        Raises:
            BadRequest: an unknown suite or quant, a measurement of another file, or an invalid repo name.
        """
        if self.context.repo_id and not _is_card_repo_id(self.context.repo_id):
            message = f"{self.context.repo_id!r} is not a repo name."
            raise BadRequest(message, "Name it like this: REPO=me/name-GGUF")
        if missing := [label for label in self.context.quants if label not in self.manifest.quants]:
            message = f"{', '.join(missing)} is not in the manifest."
            raise BadRequest(message, f"Build it: make build MODEL=… QUANT={','.join(missing)}")
        suite = self.context.suite
        if suite and suite not in self.manifest.evaluations:
            message = f"The model was not evaluated with the suite {suite!r}."
            raise BadRequest(message, f"Measure: make eval MODEL=… SUITE={suite}")
        for label, record in self.quants.items():
            measured = self.measurement(label)
            if measured and measured.file.sha256 and measured.file.sha256 != record.sha256:
                message = f"The evaluation of {label} is of another file: {measured.file.sha256[:12]}…"
                raise BadRequest(message, f"Measure this one, {record.sha256[:12]}…: make eval MODEL=… SUITE={suite}")

    @cached_property
    def quants(self) -> dict[str, QuantRecord]:
        """The files that are published, the largest first."""
        wanted = self.context.quants or tuple(self.manifest.quants)
        chosen = {label: self.manifest.quants[label] for label in wanted}
        return dict(sorted(chosen.items(), key=lambda item: (-item[1].size_bytes, item[0])))

    @property
    def imatrices(self) -> tuple[ImatrixRecord, ...]:
        """The importance matrices that these files were made with, each once."""
        found = {record.imatrix.file: record.imatrix for record in self.quants.values() if record.imatrix}
        return tuple(found[name] for name in sorted(found))

    @property
    def report(self) -> EvalReport | None:
        """The evaluation to show."""
        return self.manifest.evaluations.get(self.context.suite)

    @property
    def baseline(self) -> Measurement | None:
        """The file the others are compared with."""
        if self.report is None:
            return None
        return next((m for m in self.report.measurements if m.file.label == self.report.baseline), None)

    def measurement(self, label: str) -> Measurement | None:
        """What was measured on one file."""
        return next((m for m in self.report.measurements if m.file.label == label), None) if self.report else None

    @property
    def measured(self) -> dict[str, Measurement]:
        """Of the published files, those that were measured."""
        found = {label: self.measurement(label) for label in self.quants}
        return {label: m for label, m in found.items() if m is not None}

    @cached_property
    def headlines(self) -> tuple[Score, ...]:
        """The baseline's scores to show: one per entry of the suite, or per task if a group has no score of its own."""
        if self.report is None or self.baseline is None:
            return ()
        return headline_scores(self.report.suite, self.baseline.scores)

    @property
    def limits(self) -> tuple[BudgetResult, ...]:
        """The gate's results that count, of the published files, in the card's order of files."""
        gate, order = self.manifest.gate, list(self.quants)
        found = [r for r in gate.results if r.quant in self.quants and r.outcome != "not judged"] if gate else []
        return tuple(sorted(found, key=lambda r: order.index(r.quant)))

    @cached_property
    def choice(self) -> BestFile[ReportedFile] | None:
        """The file to take and the next, by the rule of `choose`; None if no quality was measured."""
        return best_of_report(self.report, self.quants) if self.report else None

    @property
    def taken(self) -> str:
        """The file that is recommended and that the examples name. Where no quality was measured it is the type that
        most people use; among unranked types the one nearest to 4.85 bits per weight. "" if there are no files.
        """
        if self.choice:
            return self.choice.best.label
        far = {label: abs(record.bits_per_weight - USUAL_BITS) for label, record in self.quants.items()}
        return min(self.quants, key=lambda label: (quant_rank(label), far[label]), default="")

    @property
    def contexts(self) -> tuple[int, ...]:
        """The contexts whose memory is known of a file, in tokens."""
        return tuple(sorted({tokens for record in self.quants.values() if record.context
                             for tokens in record.context.served}))  # fmt: skip

    @property
    def has_chat_template(self) -> bool:
        """Whether it can be chatted with; a base model only goes on with a text. True where no stage has said it."""
        facts = [VerifyFacts.read(record.facts) for _, record in self.stages("verify")]
        return all(found.chat_template is not False for found in facts)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether llama-server cannot run it."""
        facts = [VerifyFacts.read(record.facts) for _, record in self.stages("verify")]
        return any(found.architecture in ENCODER_DECODERS for found in facts)

    @property
    def purpose(self) -> tuple[Purpose, Pooling]:
        """What the model is for, and how a text's hidden states become one vector."""
        facts = [VerifyFacts.read(record.facts) for _, record in self.stages("verify")]
        return next(((f.purpose, f.pooling) for f in facts if f.purpose != "generate"), ("generate", "none"))

    @property
    def title(self) -> str:
        """The model's name."""
        source = self.manifest.source
        if source.repo_id:
            return source.repo_id.rsplit("/", 1)[-1]
        return self.report.title if self.report else source.title.rstrip("/").rsplit("/", 1)[-1]

    @property
    def repo_name(self) -> str:
        """The name of the repo, without its owner."""
        return self.context.repo_id.rsplit("/", 1)[-1] or f"{safe_file_name(self.title)}-GGUF"

    @property
    def hub_source(self) -> str:
        """The Hub's id of the source; "" if the source is not a repo of the Hub."""
        return self.manifest.source.repo_id if _is_card_repo_id(self.manifest.source.repo_id) else ""

    @property
    def source_url(self) -> str:
        """The URL of the source at its commit; "" if it is not a repo of the Hub."""
        return hub_model_url(self.manifest.source.repo_id, self.manifest.source.commit)

    def stages(self, name: str) -> list[tuple[str, StageRecord]]:
        """The runs of one stage that concern the published files: (label, record)."""
        keys = [name, *(f"{name} {label}" for label in self._labels())]
        return [(key, self.manifest.stages[key]) for key in keys if key in self.manifest.stages]

    def _labels(self) -> list[str]:
        return [*([self.report.baseline] if self.report else []), *self.quants]


def _is_card_repo_id(text: str) -> bool:
    try:
        return parse_hub_repo_id(text) == (text, None)
    except BadRequest:
        return False
