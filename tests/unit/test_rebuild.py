"""`make verify REBUILD=1`: which build would make the same bytes, and what a difference proves."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantyard.cli.request import read_command_request
from quantyard.errors import BadRequest, NeedsPermission
from quantyard.publish.rebuild import (
    PERMISSIONS,
    check_rebuild_source,
    compare_rebuilt_release,
    release_rebuild_request,
)
from quantyard.publish.verify import CheckedRelease
from quantyard.requests import BuildRequest
from quantyard.store.artifact import ModelId
from quantyard.store.manifest import Manifest, QuantRecord, StageRecord
from tests.manifests import COMMIT, manifest_of

NAME = "Lagoon-1B-Instruct"


@pytest.fixture
def request_(monkeypatch: pytest.MonkeyPatch) -> BuildRequest:
    """What `verify` reads of its command line; no quant and no permission is named there."""
    return read_command_request(argparse.Namespace(MODEL="", QUANT="Q2_K"), {"PATH": os.environ["PATH"]})


def subject(manifest: Manifest | None = None, quants: tuple[str, ...] = ("Q8_0", "Q4_K_M")) -> CheckedRelease:
    return CheckedRelease(Path("release"), manifest or manifest_of(), quants)


def asked(manifest: Manifest, label: str, **request: Any) -> Manifest:
    """The manifest, this stage having been asked for this."""
    record = manifest.stages[label]
    changed = record.model_copy(update={"request": record.request | request})
    return manifest.model_copy(update={"stages": manifest.stages | {label: changed}})


# ---- the request -------------------------------------------------------------------------------------


def test_a_rebuild_is_of_the_recorded_commit_and_files_in_a_store_of_its_own(
    request_: BuildRequest, tmp_path: Path
) -> None:
    again = release_rebuild_request(request_, subject(quants=("Q4_K_M",)), tmp_path)
    assert again.model == f"lagoon/{NAME}@{COMMIT}"
    assert [quant.name for quant in again.quants] == ["Q4_K_M"]
    assert (again.artifacts, again.measure, again.outtype) == (tmp_path, None, "bf16")
    assert (again.allow_pickle, again.allow_requantize, again.allow_mismatch) == (False, False, ())


@pytest.mark.parametrize(("label", "what", "recorded", "typed", "given"), [
    ("convert", "allow_pickle", True, "ALLOW_PICKLE=1", True),
    ("quantize Q4_K_M", "allow_requantize", True, "ALLOW_REQUANTIZE=1", True),
    ("verify Q8_0", "allow_mismatch", ["script:thai", "plain-text"], "ALLOW_MISMATCH=script:thai,plain-text",
     ("plain-text", "script:thai", "normalization")),
    ("verify Q8_0", "allow_mismatch", True, "ALLOW_MISMATCH=plain-text", ("plain-text",)),  # before it had kinds
])  # fmt: skip
def test_what_the_build_was_allowed_the_rebuild_is_only_if_the_user_says_so_again(
    request_: BuildRequest, label: str, what: str, recorded: object, typed: str, given: object
) -> None:
    made = subject(asked(manifest_of(), label, **{what: recorded}))
    with pytest.raises(NeedsPermission) as refused:
        release_rebuild_request(request_, made, Path("x"))
    assert typed in refused.value.message and f"REBUILD=1 {typed}" in refused.value.hint
    again = release_rebuild_request(replace(request_, **{what: given}), made, Path("x"))  # type: ignore[arg-type]
    assert {name for name in PERMISSIONS if getattr(again, name)} == {what}


@pytest.mark.parametrize("outtype", ["f16", "f32", "q8_0", "auto"])
def test_the_type_to_convert_to_is_the_recorded_one(request_: BuildRequest, outtype: str) -> None:
    manifest = asked(manifest_of(), "convert", outtype=outtype)
    assert release_rebuild_request(request_, subject(manifest), Path("x")).outtype == outtype


def test_the_gguf_that_was_chosen_of_a_repo_is_chosen_again(request_: BuildRequest) -> None:
    manifest = manifest_of()
    manifest.source = manifest.source.model_copy(update={"kind": "gguf", "gguf_file": "a-BF16.gguf"})
    manifest.stages.pop("convert")
    again = release_rebuild_request(request_, subject(manifest), Path("x"))
    assert (again.gguf_file, again.outtype) == ("a-BF16.gguf", "auto")


def test_of_a_local_model_the_user_must_say_where_it_is_now(request_: BuildRequest) -> None:
    manifest = manifest_of()
    manifest.source = manifest.source.model_copy(update={"repo_id": "", "title": NAME})
    with pytest.raises(BadRequest, match=rf"a local model, {NAME}: MODEL must name its folder") as refused:
        release_rebuild_request(request_, subject(manifest), Path("x"))
    assert "MODEL=folder" in refused.value.hint
    assert release_rebuild_request(replace(request_, model="/m/x"), subject(manifest), Path("x")).model == "/m/x"


# ---- the source --------------------------------------------------------------------------------------


def test_the_very_source_that_is_recorded_is_accepted() -> None:
    check_rebuild_source(subject(asked(manifest_of(), "convert", name=NAME)), ModelId("lagoon", NAME, COMMIT))


@pytest.mark.parametrize(("model", "says"), [
    (ModelId("local", NAME, "f" * 64), f"digest {'f' * 12}, recorded {COMMIT[:12]}"),
    (ModelId("local", "Other", COMMIT), f"MODEL is called Other, but was called '{NAME}' when the files were built"),
])  # fmt: skip
def test_another_source_or_name_is_refused(model: ModelId, says: str) -> None:
    with pytest.raises(BadRequest, match=says) as refused:
        check_rebuild_source(subject(asked(manifest_of(), "convert", name=NAME)), model)
    assert refused.value.hint


# ---- the comparison ----------------------------------------------------------------------------------


def compared(change: Callable[[StageRecord], StageRecord] | None, sha256: str = "0" * 64) -> tuple[str, str]:
    """State and finding, where the second making gave these bytes by means that were changed so."""
    manifest = manifest_of()
    record: QuantRecord = manifest.quants["Q8_0"].model_copy(update={"sha256": sha256})
    stage = manifest.stages["quantize Q8_0"]
    stages = {"quantize Q8_0": change(stage)} if change else {}
    (check,) = compare_rebuilt_release(subject(manifest, ("Q8_0",)), {"Q8_0": record}, stages)
    assert check.what == f"rebuilt {NAME}-Q8_0.gguf"
    return check.state, check.finding


def ran_by(**other: str) -> Callable[[StageRecord], StageRecord]:
    return lambda stage: stage.model_copy(update={"ran_by": stage.ran_by | other})


def test_the_same_bytes_are_the_same_by_whatever_means() -> None:
    same = manifest_of().quants["Q8_0"].sha256
    assert compared(lambda stage: stage, same) == ("ok", "the same bytes")
    assert compared(ran_by(engine="local"), same) == ("ok", "the same bytes")


def test_other_bytes_by_the_same_means_are_a_failure_with_both_hashes() -> None:
    state, finding = compared(lambda stage: stage)
    assert state == "failed" and "by the same means" in finding
    assert "0" * 64 in finding and manifest_of().quants["Q8_0"].sha256 in finding


@pytest.mark.parametrize(("change", "which"), [
    (lambda stage: stage.model_copy(update={"cpu": "arm64 Apple M4"}), "CPU"),
    (ran_by(engine="local"), "engine"),
    (ran_by(base_digest="sha256:" + "1" * 64), "base image"),
    (ran_by(packages="2" * 64), "set of packages"),
    (lambda stage: ran_by(engine="local")(stage).model_copy(update={"cpu": "arm64"}), "CPU, engine"),
    (None, "record"),
])  # fmt: skip
def test_other_bytes_by_other_means_prove_nothing_and_the_means_are_named(
    change: Callable[[StageRecord], StageRecord] | None, which: str
) -> None:
    state, finding = compared(change)
    assert state == "not checked"
    assert finding.endswith(f"That proves nothing, since it was made now with another {which}")


def test_every_file_is_compared_for_itself() -> None:
    manifest = manifest_of()
    again = manifest.quants | {"Q8_0": manifest.quants["Q8_0"].model_copy(update={"sha256": "0" * 64})}
    checks = compare_rebuilt_release(subject(manifest), again, manifest.stages)
    assert [check.state for check in checks] == ["failed", "ok"]
