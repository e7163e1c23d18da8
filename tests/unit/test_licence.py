"""Which licences let a quantized file be shared, and what has to be said with it."""

from __future__ import annotations

import re

import pytest

from quantyard.errors import BadRequest, NeedsPermission
from quantyard.sources.licence import RULES, source_licence, source_licence_files

# Of the Hub's list, without its two words for "I do not know"; Quantyard's own rows are checked one by one below.
HUB_TEXT = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0
artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0
epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql
ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1
llama3.2 llama3.3 llama4 grok2-community gemma
"""
HUB = HUB_TEXT.split()
HOSTILE = [
    "apache-2.0\nlicense: mit", "mit\n", "[mit](https://lagoon.example)", "<script>", "mit: {}", "{{ 7 * 7 }}",
    "mit\x1b[2J", "mi\u202et", "x" * 200, "-mit", "mit, apache-2.0", "ＭＩＴ",
]  # fmt: skip


def test_the_table_holds_the_hubs_identifiers_each_once() -> None:
    assert sorted(HUB) == sorted(rule.id for rule in RULES.values() if rule.on_hub)


@pytest.mark.parametrize("name", ["apache-2.0", "mit", "llama3.2", "gemma", "cc-by-nc-4.0", "openrail++", "gpl-3.0"])
def test_a_licence_that_lets_files_be_shared_needs_no_word(name: str) -> None:
    found = source_licence(name, "")
    assert (found.id, found.stated_by, found.hub_id) == (name, "source", name)


def test_repeating_the_sources_licence_changes_nothing() -> None:
    assert source_licence("Apache-2.0", " apache-2.0 ") == source_licence("apache-2.0", "")


@pytest.mark.parametrize("missing", [None, "", " ", "unknown", "other", "none", "Other", *HOSTILE])
def test_a_source_that_names_no_licence_needs_the_users_word(missing: str | None) -> None:
    with pytest.raises(NeedsPermission, match="source") as caught:
        source_licence(missing, "")
    assert "LICENSE=apache-2.0" in caught.value.hint
    assert caught.value.message.isprintable()
    stated = source_licence(missing, "apache-2.0")
    assert (stated.id, stated.stated_by) == ("apache-2.0", "user")


@pytest.mark.parametrize("name", sorted(rule.id for rule in RULES.values() if rule.derivatives != "yes"))
def test_a_licence_that_may_forbid_sharing_has_to_be_repeated_exactly(name: str) -> None:
    with pytest.raises(NeedsPermission) as caught:
        source_licence(name, "")
    assert f"LICENSE={name}" in caught.value.hint
    assert source_licence(name, name).stated_by == "user"
    with pytest.raises(BadRequest, match="LICENSE says"):
        source_licence(name, "mit")


def test_all_no_derivatives_licences_are_known_as_such() -> None:
    assert {rule.id for rule in RULES.values() if rule.derivatives == "no"} == {n for n in HUB if "-nd-" in n}


def test_another_licence_than_the_sources_is_refused() -> None:
    with pytest.raises(BadRequest) as caught:
        source_licence("apache-2.0", "mit")
    assert caught.value.message == "The source's licence is apache-2.0, and LICENSE says mit."
    assert "LICENSE=apache-2.0" in caught.value.hint


@pytest.mark.parametrize("arguments", [("other", "", "lfm1.0"), ("lfm1.0", "", "")])
def test_a_named_licence_that_the_table_lacks_has_to_be_repeated(arguments: tuple[str, str, str]) -> None:
    with pytest.raises(NeedsPermission, match=r"lfm1\.0") as caught:
        source_licence(*arguments)
    assert "LICENSE=lfm1.0" in caught.value.hint
    found = source_licence(arguments[0], "lfm1.0", arguments[2])
    assert (found.id, found.stated_by, found.hub_id, found.notices) == ("lfm1.0", "user", "other", ())


def test_other_by_a_known_name_is_that_licence() -> None:
    found = source_licence("other", "", "qwen")
    assert (found.id, found.stated_by, found.hub_id) == ("qwen", "source", "other")
    assert found.notices[0].startswith('"Qwen is licensed under the Qwen LICENSE AGREEMENT')


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_of_a_licence_is_none(name: str) -> None:
    with pytest.raises(NeedsPermission):
        source_licence("other", "", name)


@pytest.mark.parametrize("stated", [*HOSTILE[:1], *HOSTILE[2:], "unknown", "other", "none"])
def test_a_statement_that_names_no_licence_is_refused(stated: str) -> None:
    with pytest.raises(BadRequest, match="is not a licence identifier") as caught:
        source_licence("mit", stated)
    assert caught.value.message.isprintable()


def test_a_misspelt_statement_is_told_the_nearest_licence() -> None:
    with pytest.raises(BadRequest, match=r"Did you mean 'apache-2\.0'"):
        source_licence(None, "apache2.0")


def test_a_licence_of_ones_own_may_be_stated() -> None:
    assert source_licence("", "house-terms-of-lagoon").hub_id == "other"


META = "Copyright {} Meta Platforms, Inc. All Rights Reserved."


@pytest.mark.parametrize(("name", "words"), [
    ("llama2", f'"Llama 2 is licensed under the LLAMA 2 Community License, {META.format("(c)")}"'),
    ("llama3", '"Built with Meta Llama 3"'),
    ("llama3.1", f'"Llama 3.1 is licensed under the Llama 3.1 Community License, {META.format("©")}"'),
    ("llama4", '"Built with Llama"'),
    ("gemma", '"Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"'),
    ("cc-by-nc-sa-4.0", "Not for commercial use."),
    ("apache-2.0", "The files were changed: converted to GGUF and quantized."),
])  # fmt: skip
def test_what_a_licence_wants_said_is_said(name: str, words: str) -> None:
    assert words in source_licence(name, "").notices


def test_every_notice_is_one_plain_line() -> None:
    for rule in RULES.values():
        assert all(notice.isprintable() and not re.search(r"[<>\[\]{}|`]", notice) for notice in rule.notices)


def test_legal_files_of_the_top_folder_travel_and_no_others() -> None:
    names = [
        "LICENSE", "license.md", "LICENCE-MIT", "Copying", "NOTICE.txt", "Notice", "USE_POLICY.md", "LICENSE",
        "README.md", "config.json", "sub/LICENSE", "..\\LICENSE", "../LICENSE", "LICENSE\n.md", "MY_LICENSE",
    ]  # fmt: skip
    assert source_licence_files(names) == [
        "LICENSE", "license.md", "LICENCE-MIT", "Copying", "NOTICE.txt", "Notice", "USE_POLICY.md",
    ]  # fmt: skip


@pytest.mark.parametrize(("named", "hub_id"), [
    ("GPL-3.0-or-later", "gpl-3.0"), ("GPL-3.0-only", "gpl-3.0"), ("GPL-2.0+", "gpl-2.0"), ("GPL-1.0-or-later", "gpl"),
    ("AGPL-3.0-or-later", "agpl-3.0"), ("LGPL-2.1-only", "lgpl-2.1"), ("LGPL-2.0-or-later", "lgpl"),
    ("GFDL-1.3-or-later", "gfdl"), ("Apache-2.0", "apache-2.0"), ("BSD-3-Clause", "bsd-3-clause"), ("ODbL-1.0", "odbl"),
    ("ODC-By-1.0", "odc-by"), ("PDDL-1.0", "pddl"), ("CC-BY-SA-4.0", "cc-by-sa-4.0"), ("CDLA-Permissive-2.0",
    "cdla-permissive-2.0"), ("EUPL-1.2", "eupl-1.2"),
])  # fmt: skip
def test_a_licence_by_its_spdx_name_has_the_hubs_and_keeps_its_notices(named: str, hub_id: str) -> None:
    found = source_licence(named, "")
    assert (found.id, found.hub_id, found.stated_by) == (named.lower(), hub_id, "source")
    assert found.notices == source_licence(hub_id, "").notices


@pytest.mark.parametrize("stated", ["gpl-3.0", "GPL-3.0-only", "gpl-3.0-or-later"])
def test_a_licence_stated_under_another_of_its_names_is_the_same(stated: str) -> None:
    assert source_licence("GPL-3.0-or-later", stated).id == "gpl-3.0-or-later"
    with pytest.raises(BadRequest, match="LICENSE says"):
        source_licence("GPL-2.0-or-later", stated)


@pytest.mark.parametrize("named", ["MIT-or-later", "apache-2.0-only", "GPL-9.0-or-later", "acme-1.0"])
def test_a_suffix_makes_no_licence_of_a_name_that_has_none(named: str) -> None:
    with pytest.raises(NeedsPermission, match="not one that Quantyard knows"):
        source_licence(named, "")
    assert source_licence(named, named).hub_id == "other"
