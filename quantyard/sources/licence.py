"""Whether a quantized file of a model may be shared, and which notices and files must go with it.

The table holds only what an identifier tells. It is not legal advice: the licence's own text decides.
If the table does not know the licence, the source names none, or the licence forbids sharing derived files, a release
is published only once the user states the licence with LICENSE=<id>.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal

from quantyard.errors import BadRequest, NeedsPermission
from quantyard.hub.files import LEGAL_FILES

Derivatives = Literal["yes", "no", "ask"]


@dataclass(frozen=True)
class LicenceRule:
    """The terms that an identifier stands for.

    Attributes:
        id: the Hub's identifier, in lower case; or, not `on_hub`, a usual `license_name` of `license: other`.
        derivatives: whether files made of the model may be shared: "yes" (under the licence's terms), "no", or "ask",
            where it depends on who asks and for what.
        notices: what the licence requires the card to say; in quotes if the licence gives the exact words.
    """

    id: str
    derivatives: Derivatives
    notices: tuple[str, ...] = ()
    on_hub: bool = True


@dataclass(frozen=True)
class Licence:
    """The licence of a release, who stated it, and the notices that go with it."""

    id: str
    stated_by: Literal["source", "user"]
    notices: tuple[str, ...]

    @property
    def hub_id(self) -> str:
        """What a card's `license` may hold: "other" for names that the Hub has no identifier for."""
        rule = _rule_of_licence(self.id)
        return rule.id if rule and rule.on_hub else "other"


_CHANGED: Final = "The files were changed: converted to GGUF and quantized."
_KEEP: Final = "The text of the licence and its copyright notices stay with every copy."
_CREDIT: Final = "Whoever shares these files names the makers of the original model and links to its licence."
_ALIKE: Final = "What is made of these files may be shared under the same licence only."
_SOURCE: Final = "Whoever shares these files offers what they were made of under the same licence."
_NO_TRADE: Final = "Not for commercial use."
_RESEARCH: Final = "For research only."
_NO_CHANGE: Final = "The licence lets nobody share changed versions; who published these files states to have leave."
_USE: Final = "The licence restricts what the model may be used for; the restrictions are passed on with every copy."
_BY: Final = (_CREDIT, _CHANGED)
_FREE: Final = (_KEEP,)
_COPYLEFT: Final = (_KEEP, _CHANGED, _ALIKE, _SOURCE)
_RAIL: Final = (_USE, _KEEP, _CHANGED)


def _llama_terms(version: str, licence: str, built: str, begin: str, policy: str, sign: str = "©") -> tuple[str, ...]:
    """Meta's agreements: words to show, words for a NOTICE file, a policy, and from Llama 3 on how names begin."""
    name = f'A model made of it has a name that begins with "{begin}".'
    return (
        *((f'"{built}"', name) if built else ()),
        f'"{version} is licensed under the {licence}, Copyright {sign} Meta Platforms, Inc. All Rights Reserved."',
        f"Its use follows the Acceptable Use Policy: {policy}", _KEEP,
    )  # fmt: skip


def _qwen_terms(name: str) -> tuple[str, ...]:
    agreement = f"the {name} LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All Rights Reserved."
    return f'"{name} is licensed under {agreement}"', _KEEP, _CHANGED


_GEMMA: Final = '"Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"'


# To add a licence: add a row. The Hub's identifiers are listed at https://huggingface.co/docs/hub/repositories-licenses.
_TABLE: Final[tuple[LicenceRule, ...]] = (
    LicenceRule("apache-2.0", "yes", (_KEEP, _CHANGED)),
    LicenceRule("mit", "yes", _FREE),
    LicenceRule("openrail", "yes", _RAIL),
    LicenceRule("openrail++", "yes", _RAIL),
    LicenceRule("bigscience-openrail-m", "yes", _RAIL),
    LicenceRule("creativeml-openrail-m", "yes", _RAIL),
    LicenceRule("bigscience-bloom-rail-1.0", "yes", _RAIL),
    LicenceRule("bigcode-openrail-m", "yes", _RAIL),
    LicenceRule("afl-3.0", "yes", (_KEEP, _CHANGED)),
    LicenceRule("artistic-2.0", "yes", (_KEEP, _CHANGED)),
    LicenceRule("bsl-1.0", "yes", _FREE),
    LicenceRule("bsd", "yes", _FREE),
    LicenceRule("bsd-2-clause", "yes", _FREE),
    LicenceRule("bsd-3-clause", "yes", _FREE),
    LicenceRule("bsd-3-clause-clear", "yes", _FREE),
    LicenceRule("c-uda", "ask"),
    LicenceRule("cc", "ask"),  # the family; the identifier does not say which one
    LicenceRule("cc0-1.0", "yes"),
    LicenceRule("cc-by-2.0", "yes", _BY),
    LicenceRule("cc-by-2.5", "yes", _BY),
    LicenceRule("cc-by-3.0", "yes", _BY),
    LicenceRule("cc-by-4.0", "yes", _BY),
    LicenceRule("cc-by-sa-3.0", "yes", (*_BY, _ALIKE)),
    LicenceRule("cc-by-sa-4.0", "yes", (*_BY, _ALIKE)),
    LicenceRule("cc-by-nc-2.0", "yes", (_NO_TRADE, *_BY)),
    LicenceRule("cc-by-nc-3.0", "yes", (_NO_TRADE, *_BY)),
    LicenceRule("cc-by-nc-4.0", "yes", (_NO_TRADE, *_BY)),
    LicenceRule("cc-by-nc-sa-2.0", "yes", (_NO_TRADE, *_BY, _ALIKE)),
    LicenceRule("cc-by-nc-sa-3.0", "yes", (_NO_TRADE, *_BY, _ALIKE)),
    LicenceRule("cc-by-nc-sa-4.0", "yes", (_NO_TRADE, *_BY, _ALIKE)),
    LicenceRule("cc-by-nd-4.0", "no", (_NO_CHANGE, *_BY)),
    LicenceRule("cc-by-nc-nd-3.0", "no", (_NO_CHANGE, _NO_TRADE, *_BY)),
    LicenceRule("cc-by-nc-nd-4.0", "no", (_NO_CHANGE, _NO_TRADE, *_BY)),
    LicenceRule("cdla-sharing-1.0", "yes", (_KEEP, _CHANGED, _ALIKE)),
    LicenceRule("cdla-permissive-1.0", "yes", (_KEEP, _CHANGED)),
    LicenceRule("cdla-permissive-2.0", "yes", _FREE),
    LicenceRule("wtfpl", "yes"),
    LicenceRule("ecl-2.0", "yes", (_KEEP, _CHANGED)),
    LicenceRule("epl-1.0", "yes", _COPYLEFT),
    LicenceRule("epl-2.0", "yes", _COPYLEFT),
    LicenceRule("etalab-2.0", "yes", (_CREDIT,)),
    LicenceRule("eupl-1.1", "yes", _COPYLEFT),
    LicenceRule("eupl-1.2", "yes", _COPYLEFT),
    LicenceRule("agpl-3.0", "yes", _COPYLEFT),
    LicenceRule("gfdl", "yes", (_KEEP, _CHANGED, _ALIKE)),
    LicenceRule("gpl", "yes", _COPYLEFT),
    LicenceRule("gpl-2.0", "yes", _COPYLEFT),
    LicenceRule("gpl-3.0", "yes", _COPYLEFT),
    LicenceRule("lgpl", "yes", _COPYLEFT),
    LicenceRule("lgpl-2.1", "yes", _COPYLEFT),
    LicenceRule("lgpl-3.0", "yes", _COPYLEFT),
    LicenceRule("lgpl-lr", "ask"),
    LicenceRule("isc", "yes", _FREE),
    LicenceRule("h-research", "ask", (_RESEARCH,)),
    LicenceRule("intel-research", "ask", (_RESEARCH,)),
    LicenceRule("lppl-1.3c", "yes", (_KEEP, _CHANGED)),
    LicenceRule("ms-pl", "yes", _FREE),
    LicenceRule("apple-ascl", "yes", _FREE),
    LicenceRule("apple-amlr", "ask", (_RESEARCH,)),
    LicenceRule("mpl-2.0", "yes", _COPYLEFT),
    LicenceRule("odc-by", "yes", (_CREDIT,)),
    LicenceRule("odbl", "yes", (_CREDIT, _ALIKE)),
    LicenceRule("openmdw-1.0", "yes", _FREE),
    LicenceRule("osl-3.0", "yes", _COPYLEFT),
    LicenceRule("postgresql", "yes", _FREE),
    LicenceRule("ofl-1.1", "yes", (_KEEP, _ALIKE)),
    LicenceRule("ncsa", "yes", _FREE),
    LicenceRule("unlicense", "yes"),
    LicenceRule("zlib", "yes", (_KEEP, _CHANGED)),
    LicenceRule("pddl", "yes"),
    LicenceRule("deepfloyd-if-license", "ask", (_RESEARCH,)),
    LicenceRule("fair-noncommercial-research-license", "ask", (_NO_TRADE, _RESEARCH)),
    LicenceRule("llama2", "yes", _llama_terms("Llama 2", "LLAMA 2 Community License", "", "",
                                              "https://ai.meta.com/llama/use-policy", "(c)")),
    LicenceRule("llama3", "yes", _llama_terms("Meta Llama 3", "Meta Llama 3 Community License",
                                              "Built with Meta Llama 3", "Llama 3",
                                              "https://llama.meta.com/llama3/use-policy")),
    LicenceRule("llama3.1", "yes", _llama_terms("Llama 3.1", "Llama 3.1 Community License", "Built with Llama", "Llama",
                                                "https://llama.meta.com/llama3_1/use-policy")),
    LicenceRule("llama3.2", "yes", _llama_terms("Llama 3.2", "Llama 3.2 Community License", "Built with Llama", "Llama",
                                                "https://www.llama.com/llama3_2/use-policy")),
    LicenceRule("llama3.3", "yes", _llama_terms("Llama 3.3", "Llama 3.3 Community License", "Built with Llama", "Llama",
                                                "https://www.llama.com/llama3_3/use-policy")),
    LicenceRule("llama4", "yes", _llama_terms("Llama 4", "Llama 4 Community License", "Built with Llama", "Llama",
                                              "https://www.llama.com/llama4/use-policy")),
    LicenceRule("grok2-community", "ask"),
    LicenceRule("gemma", "yes", (_GEMMA, *_RAIL)),
    LicenceRule("qwen", "yes", _qwen_terms("Qwen"), on_hub=False),
    LicenceRule("qwen-research", "ask", (_NO_TRADE, _KEEP, _CHANGED), on_hub=False),
    LicenceRule("tongyi-qianwen", "yes", _qwen_terms("Tongyi Qianwen"), on_hub=False),
    LicenceRule("deepseek", "yes", _RAIL, on_hub=False),
)  # fmt: skip
RULES: Final = {rule.id: rule for rule in _TABLE}
# SPDX's identifiers (https://spdx.org/licenses) whose name on the Hub is another. To add one: add a row.
_ON_HUB: Final = {
    "odbl-1.0": "odbl", "odc-by-1.0": "odc-by", "pddl-1.0": "pddl", "c-uda-1.0": "c-uda", "lgpllr": "lgpl-lr",
    "gpl-1.0": "gpl", "lgpl-2.0": "lgpl", "gfdl-1.1": "gfdl", "gfdl-1.2": "gfdl", "gfdl-1.3": "gfdl",
    "llama-2": "llama2", "deepseek-license": "deepseek",
}  # fmt: skip
_SUFFIX: Final = re.compile(r"(?:-or-later|-only|\+)$")  # of SPDX: which versions of the licence apply
_SPDX_VERSIONED: Final = re.compile(r"(?:a|l)?gpl-\d|gfdl-\d|eupl-\d")  # those that SPDX gives such a suffix
_NO_NAME: Final = frozenset({"", "unknown", "other", "none"})
_IDENTIFIER: Final = re.compile(r"[a-z0-9](?:[a-z0-9.+_-]{0,94}[a-z0-9+])?")
_SHOWN: Final = 60  # characters of a value that is not an identifier


def _rule_of_licence(name: str) -> LicenceRule | None:
    """The rule of an identifier of the Hub or of SPDX. "gpl-3.0-or-later" stands under that of "gpl-3.0"."""
    plain = _SUFFIX.sub("", name) if _SPDX_VERSIONED.match(name) else name
    return next((RULES[key] for key in (name, plain, _ON_HUB.get(plain, "")) if key in RULES), None)


def source_licence(license_id: str | None, stated: str, license_name: str = "") -> Licence:
    """The licence to publish under.

    Args:
        license_id: what the source names; None or "" if nothing.
        stated: what the user states with LICENSE, or "".
        license_name: what the source calls it where `license_id` is "other".

    Raises:
        NeedsPermission: the user must state the licence, and has not.
        BadRequest: LICENSE is not an identifier, or differs from the source's licence.
    """
    source = _licence_identifier(license_id or "")
    if source == "other":
        source = _licence_identifier(license_name)
    user = _stated_licence(stated, source)
    if source in _NO_NAME:
        if not user:
            raise _nameless_licence(license_id or "", license_name)
        return Licence(user, "user", _licence_notices(user))
    if user and user != source and not (_rule_of_licence(user) and _rule_of_licence(user) is _rule_of_licence(source)):
        hint = f"Leave LICENSE out, or type LICENSE={source}."
        raise BadRequest(f"The source's licence is {source}, and LICENSE says {user}.", hint)
    if _may_share_under_licence(source):
        return Licence(source, "source", _licence_notices(source))
    if not user:
        raise _licence_not_allowed(source)
    return Licence(user, "user", _licence_notices(user))


def source_licence_files(names: Iterable[str]) -> list[str]:
    """Which of a source's files travel with every release: licence, notice and use policy, from its top folder."""
    patterns = [pattern.lower() for pattern in LEGAL_FILES if pattern != "README.md"]
    top = (name for name in dict.fromkeys(names) if name.isprintable() and not set(name) & set("/\\"))
    return [name for name in top if any(fnmatchcase(name.lower(), pattern) for pattern in patterns)]


def _licence_identifier(text: str) -> str:
    """In lower case; "" if it is not an identifier, so that line breaks, Markdown or YAML never reach the card."""
    name = text.strip(" ").lower()
    return name if _IDENTIFIER.fullmatch(name) else ""


def _stated_licence(text: str, source: str) -> str:
    """The licence that the user states; "" without one."""
    if not text.strip():
        return ""
    name = _licence_identifier(text)
    if name in _NO_NAME:
        message = f"LICENSE={_shown_licence(text)} is not a licence identifier."
        raise BadRequest(message, "Type one that the Hub knows, such as LICENSE=apache-2.0.")
    near = difflib.get_close_matches(name, RULES, n=1, cutoff=0.8)
    if name != source and not _rule_of_licence(name) and near:
        raise BadRequest(f"Unknown licence {name!r}. Did you mean {near[0]!r}?", f"Type LICENSE={near[0]}")
    return name


def _may_share_under_licence(name: str) -> bool:
    rule = _rule_of_licence(name)
    return rule is not None and rule.derivatives == "yes"


def _licence_notices(name: str) -> tuple[str, ...]:
    rule = _rule_of_licence(name)
    return rule.notices if rule else ()


def _nameless_licence(license_id: str, license_name: str) -> NeedsPermission:
    said = " ".join(f"{_shown_licence(text)}" for text in (license_id, license_name) if text.strip())
    what = f"The source's licence, {said}, is not a licence identifier" if said else "The source names no licence"
    hint = "Find out which one applies, and that it lets you share quantized files; then state it: LICENSE=apache-2.0"
    return NeedsPermission(f"{what}.", hint)


def _licence_not_allowed(name: str) -> NeedsPermission:
    rule = _rule_of_licence(name)
    if rule is None:
        message = f"The licence {name} is not one that Quantyard knows."
    elif rule.derivatives == "no":
        message = f"The licence {name} forbids sharing files made of the model, such as quantized ones."
    else:
        message = f"Whether a quantized file may be shared under {name} depends on who shares it, and what for."
    return NeedsPermission(message, f"Read it. If you may publish, say so: LICENSE={name}")


def _shown_licence(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
