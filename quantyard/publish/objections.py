"""What speaks against publishing as asked, and what the user may agree to: to replace somebody's edits, to leave older
files beside the new ones, to name a private source on a public card, to push a gated source where anybody may pull.

Each is told before anything is sent. A yes on a terminal agrees to all that was shown; without one, AGREE names them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from quantyard.errors import NeedsPermission
from quantyard.formats.names import shown_names
from quantyard.publish.bundle import CARD, ReleaseBundle, ReleaseDestination
from quantyard.publish.files import PublishedFile
from quantyard.publish.hub.target import HubTarget
from quantyard.publish.hub.there import MANIFEST, HubThere
from quantyard.publish.registry.readers import RegistryReaders
from quantyard.store.manifest import SourceCard

_SHARD: Final = r"-\d{5}-of-\d{5}"
_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]*")


@dataclass(frozen=True)
class Objection:
    """One thing to agree to: `kind` is a key of `OBJECTIONS` (requests.py), `hint` another way than to agree."""

    kind: str
    fact: str
    hint: str


class NeedsAgreement(NeedsPermission):
    """The user has not agreed to what publishing would do."""

    kind = "needs-agreement"


def refuse_objections(found: Sequence[Objection]) -> None:
    """Raise if there is anything to agree to.

    Raises:
        NeedsAgreement: there is; nothing was sent.
    """
    if not found:
        return
    more = [f"{one.fact} {one.hint}" for one in found[1:]]
    agree = ",".join(dict.fromkeys(one.kind for one in found))
    # A hint may end with a command, which nothing may follow.
    hint = f"To publish so all the same: AGREE={agree}. Or {found[0].hint[0].lower()}{found[0].hint[1:]}"
    raise NeedsAgreement(f"{found[0].fact} Nothing was sent.", hint, "\n".join(more))


def without_agreed(found: Iterable[Objection], agreed: Collection[str]) -> tuple[Objection, ...]:
    """Those that the user has not agreed to by name."""
    return tuple(one for one in found if one.kind not in agreed)


def source_objections(
    where: ReleaseDestination, there: HubThere, source: str, card: SourceCard, readers: RegistryReaders | None
) -> Iterator[Objection]:
    """What speaks against these destinations for this source (org/name; "" for a local one).

    Args:
        readers: who may pull from the registry; None: there is none, or the source is not gated.
    """
    if where.hub and source and card.private and there.is_public(where.hub):
        fact = f"The source {source} is private, and the card of the public repo {where.hub.repo_id} names it."
        yield Objection("private-source", fact, "Publish to a private repo, or build from a local copy of the model.")
    if where.oci and card.gated and readers and readers.who != "members":
        yield _open_registry_objection(f"{where.oci.registry}/{where.oci.repository}", card.gated, readers)


def _open_registry_objection(place: str, gated: str, readers: RegistryReaders) -> Objection:
    """A gate's terms are accepted by name, and who pulls without a login has none."""
    fact = f"The source is gated ({gated}), and "
    if readers.who == "anybody":
        fact += f"anybody may pull from {place}, without accepting its terms: {readers.why}."
        return Objection("open-registry", fact, "Leave OCI out, or push to a repository that needs a login.")
    fact += f"whether anybody may pull from {place} is not known: {readers.why}."
    hint = "Make it a private repository first, in the web page of its registry, and log in: docker login "
    return Objection("open-registry", fact, f"{hint}{place.partition('/')[0]}; or leave OCI out.")


def card_objections(where: ReleaseDestination, there: HubThere) -> Iterator[Objection]:
    """Whether the card there is somebody's own, or was edited."""
    hub = where.hub
    if hub is None or hub.pull_request or not there.has_branch or CARD not in there.files:
        return
    known = there.known(CARD)
    if known == "ours":
        return
    what = (
        "was not written by Quantyard" if there.manifest is None
        else "may have been edited: the version of Quantyard that published it kept no record of it"
        if known == "earlier" else "was edited since it was published"
    )  # fmt: skip
    fact = f"{CARD} in {hub.repo_id} {what}, and would be replaced."
    yield Objection("card", fact, "Publish beside it, and merge by hand: HUB_PR=1, or HUB_BRANCH=name.")


def file_objections(where: ReleaseDestination, there: HubThere, bundle: ReleaseBundle) -> Iterator[Objection]:
    """Which other files there are somebody's own and would be replaced, and which would stay beside the new ones."""
    hub = where.hub
    if hub is None:
        return
    if not hub.pull_request and there.has_branch:
        theirs = [file.path for file in bundle.files if _is_published_by_others(there, file)]
        if theirs:
            fact = f"{hub.repo_id} holds files that Quantyard did not put there, and that would be replaced: "
            yield Objection("files", f"{fact}{shown_names(theirs)}.",
                            "Publish beside them: HUB_PR=1, or HUB_BRANCH=name; or to another repo.")  # fmt: skip
    yield from _old_objections(hub, there, {quant: {f.path for f in files} for quant, files in bundle.models.items()})


def named_objections(where: ReleaseDestination, there: HubThere, stems: Mapping[str, str]) -> Iterator[Objection]:
    """Which older files would stay beside files that are not made yet, whole or in parts: quant → their names' stem."""
    if where.hub is None:
        return
    ours = {
        quant: {path for path in there.files if re.fullmatch(rf"{re.escape(stem)}(?:{_SHARD})?\.gguf", path)}
        for quant, stem in stems.items()
    }
    yield from _old_objections(where.hub, there, ours)


def _old_objections(hub: HubTarget, there: HubThere, ours: Mapping[str, Collection[str]]) -> Iterator[Objection]:
    if old := [path for quant, names in ours.items() for path in _older_published_models(there, quant, names)]:
        fact = f"{hub.repo_id} holds older files of the same types, which stay: {shown_names(old)}. Programs that "
        yield Objection("old-files", f"{fact}choose by the type's name may take them.", _published_removal(hub, old))


def _published_removal(hub: HubTarget, paths: Sequence[str]) -> str:
    """How to remove files there. Their names are somebody's: a command has those that are safe to type."""
    if not all(map(_PLAIN.fullmatch, paths)):
        return f"Remove them first, in the files of {hub.repo_id}."
    branch = f" --revision {hub.branch}" if hub.branch else ""
    return f"Remove them first: hf repos delete-files {hub.repo_id} {' '.join(paths)}{branch}"


def _is_published_by_others(there: HubThere, file: PublishedFile) -> bool:
    if file.path == CARD or file.path not in there.files or not there.replaced(file):
        return False
    return there.manifest is None if file.path == MANIFEST else there.known(file.path) == "theirs"


def _older_published_models(there: HubThere, quant: str, ours: Collection[str]) -> Iterator[str]:
    """Models of this type there under names other than ours: whole beside parts, other parts, another naming."""
    named = re.compile(rf"(?:.*[-._])?{re.escape(quant)}(?:{_SHARD})?\.gguf", re.IGNORECASE)
    for path in sorted(there.files):
        name = PurePosixPath(path).name
        if path not in ours and named.fullmatch(name) and not name.lower().startswith("mmproj"):
            yield path
