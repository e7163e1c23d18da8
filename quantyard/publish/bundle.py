"""`make publish`: the checks before a release is published, and the files of the release.

Name, licence, gate and files are checked before a byte is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from quantyard.card.render import CardContext, card_app_files, card_eval_results, render_card
from quantyard.errors import BadRequest, GateClosed, NeedsPermission
from quantyard.gate.judge import GateBudgets, judge_gate_budgets, load_gate_budgets
from quantyard.hub.client import HubAccess
from quantyard.hub.files import Closed, HubPlace
from quantyard.plan.report_step import plan_suite_folder
from quantyard.protocol.base import FileEntry
from quantyard.protocol.gate import GateReport
from quantyard.publish.files import PublishedFile, git_blob_name, made_release_file
from quantyard.publish.hub.commit import HubTarget, check_hub_target
from quantyard.publish.hub.errors import publish_needs_token
from quantyard.publish.hub.target import MAIN
from quantyard.publish.hub.there import MANIFEST
from quantyard.publish.registry.artifact import OciReference, parse_oci_reference
from quantyard.publish.registry.signing import check_signing_key
from quantyard.publish.release import Release, release_manifest, release_report_files, whole_release_file
from quantyard.report_page.render import render_report_page
from quantyard.requests import PublishRequest
from quantyard.sources.licence import Licence, source_licence
from quantyard.store.manifest import SourceCard

CARD: Final = "README.md"
PAGE: Final = "report.html"
_NOWHERE: Final = HubPlace()
HUB: Final = "https://huggingface.co"
_LICENCE_TEXT_LIMIT: Final = 100_000  # characters that the card quotes


@dataclass(frozen=True)
class ReleaseDestination:
    """Where a release goes; at least one of the two."""

    hub: HubTarget | None
    oci: OciReference | None
    budgets: GateBudgets


def release_destination(
    publish: PublishRequest, access: HubAccess, card: SourceCard, n_quants: int
) -> ReleaseDestination:
    """Check the request itself, before hours of work.

    Raises:
        BadRequest: no destination, an invalid name, unreadable budgets or key, or no token.
    """
    if not publish.repo_id and not publish.oci:
        raise BadRequest("REPO is not given.", "Name it: REPO=me/name-GGUF, or a registry: OCI=registry/name")
    where = ReleaseDestination(
        _bundle_hub(publish, card), _bundle_oci(publish, n_quants), load_gate_budgets(publish.gate)
    )
    if not publish.dry_run:
        _check_means_to_publish(publish, where, access)
    return where


def _bundle_hub(publish: PublishRequest, card: SourceCard) -> HubTarget | None:
    if not publish.repo_id:
        return None
    target = HubTarget(
        publish.repo_id, private=not publish.public, gated=card.gated, branch=publish.branch,
        pull_request=publish.pull_request,
    )
    check_hub_target(target)
    return target


def _bundle_oci(publish: PublishRequest, n_quants: int) -> OciReference | None:
    reference = parse_oci_reference(publish.oci) if publish.oci else None
    if reference and reference.tag and n_quants > 1:
        message = f"OCI={publish.oci} is one tag, for {n_quants} files."
        untagged = f"{reference.registry}/{reference.repository}"
        raise BadRequest(message, f"Leave the tag out, and each file gets its own: OCI={untagged}")
    return reference


def _check_means_to_publish(publish: PublishRequest, where: ReleaseDestination, access: HubAccess) -> None:
    """Check the token and the key now: a release takes hours, and would fail without them at its end."""
    if where.hub and not access.token:
        raise publish_needs_token(access.endpoint or HUB)
    if where.oci and publish.cosign_key:
        check_signing_key(publish.cosign_key)


def release_licence(source: str | None, card: SourceCard, publish: PublishRequest) -> Licence:
    """The licence that the release is published under.

    Raises:
        NeedsPermission: the source's is unknown or forbids it, and the user has not stated one.
    """
    return source_licence(source, publish.license, card.license_name)


def preview_release_licence(source: str | None, card: SourceCard, publish: PublishRequest) -> Licence:
    """The licence for a preview, which may say that it is not known yet."""
    try:
        return release_licence(source, card, publish)
    except NeedsPermission:
        return Licence(source or "unknown", "source", ())


def judged_release(release: Release, budgets: GateBudgets, licence: Licence) -> Release:
    """The release with the gate's findings, and with the licence if the user states one."""
    gate = judge_gate_budgets(release.manifest, release.quants, release.suite, budgets)
    stated = licence.id if licence.stated_by == "user" else ""
    return replace(release, manifest=release.manifest.model_copy(update={"gate": gate, "stated_license": stated}))


_SAYS_NO: Final = {
    "failed": "is exceeded", "not measured": "was not measured", "too few questions": "has too few questions to tell",
}  # fmt: skip


def check_release_gate(gate: GateReport, *, allow_fail: bool) -> None:
    """Raise if the gate says no.

    Raises:
        GateClosed: it says no, and ALLOW_FAIL is not set.
    """
    if gate.outcome not in _SAYS_NO or allow_fail:
        return
    found = gate.with_outcome(gate.outcome)
    first = f"{found[0].quant} {found[0].budget}{' ' + found[0].task if found[0].task else ''}"
    which = f"{first} {_SAYS_NO[gate.outcome]}; {len(found)} of {len(gate.results)} budgets"
    message = f"The gate ({gate.budgets}) says no: {which}."
    hint = "Nothing was uploaded. Set budgets: GATE=file.yaml. Publish anyway, with a note on the card: ALLOW_FAIL=1"
    detail = "\n".join(f"{r.quant}: {r.finding}" for r in gate.results if r.outcome in _SAYS_NO)
    raise GateClosed(gate.outcome, message, hint, detail)


def release_place(where: ReleaseDestination | None, publish: PublishRequest, closed: Closed) -> HubPlace:
    """Where the files will lie on the Hub, for the commands on card and page."""
    branch = where.hub.branch if where and where.hub else ""
    return HubPlace(publish.repo_id, "" if branch == MAIN else branch, closed if publish.repo_id else "")


def release_card_context(
    release: Release, publish: PublishRequest, licence: Licence, legal: Sequence[PublishedFile] = (),
    place: HubPlace = _NOWHERE,
) -> CardContext:
    """What the card says in addition to the manifest."""
    texts = [file.read().decode(errors="replace") for file in legal if "README" not in file.path.upper()]
    return CardContext(
        repo_id=publish.repo_id, suite=release.suite, licence=licence, oci=publish.oci,
        plots=release_plots(release), licence_text="\n\n".join(texts)[:_LICENCE_TEXT_LIMIT],
        branch=place.branch, closed=place.closed,
    )


def release_plots(release: Release) -> tuple[str, ...]:
    """The plots of the report, by their names in the release."""
    folder = release.folder / plan_suite_folder(release.suite) / "plots"
    return tuple(sorted(path.relative_to(release.folder).as_posix() for path in folder.glob("*.*")))


@dataclass(frozen=True)
class ReleaseBundle:
    """Every file of a release: the models by quant, what reads pictures or sound for them, the importance matrices they
    were made with, licence texts, and what tells of them.
    """

    models: Mapping[str, tuple[PublishedFile, ...]]
    projectors: tuple[PublishedFile, ...]
    imatrices: tuple[PublishedFile, ...]
    legal: tuple[PublishedFile, ...]
    words: tuple[PublishedFile, ...]

    @property
    def files(self) -> tuple[PublishedFile, ...]:
        """All files, the models first."""
        models = (file for files in self.models.values() for file in files)
        return (*models, *self.projectors, *self.imatrices, *self.legal, *self.words)


def compose_release(
    release: Release, publish: PublishRequest, licence: Licence, legal: tuple[PublishedFile, ...],
    parts: Mapping[str, tuple[PublishedFile, ...]], place: HubPlace, before: Mapping[str, str],
) -> ReleaseBundle:
    """Make the card, the page and the other files.

    Args:
        parts: those of models that were split.
        before: the record of what was published there before and stays.
    """
    manifest = release_manifest(release, parts)
    context = release_card_context(release, publish, licence, legal, place)
    apps = tuple(made_release_file(path, text) for path, text in card_app_files(manifest, context).items())
    entries = [FileEntry(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256) for file in apps]
    manifest = manifest.model_copy(update={"app_files": entries})
    words = (
        made_release_file(CARD, render_card(manifest, context)),
        *apps,
        made_release_file(PAGE, render_report_page(manifest, release.suite, place)),
        *release_report_files(release),
        *(made_release_file(path, text) for path, text in card_eval_results(manifest, context).items()),
    )
    published = {**before, **{file.path: git_blob_name(file.read()) for file in (*legal, *words)}}
    manifest = manifest.model_copy(update={"published": dict(sorted(published.items()))})
    words = (*words, made_release_file(MANIFEST, manifest.model_dump_json(indent=2) + "\n"))
    models = {quant: parts.get(quant) or (whole_release_file(release, quant),) for quant in release.quants}
    return ReleaseBundle(models, release.projectors, release.imatrices, legal, words)
