"""The command that checks what was published."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from quantyard.cli.output import data, people, print_json, reporter_for
from quantyard.cli.render import release as say
from quantyard.cli.run import plan_of, request_of, run_plan
from quantyard.errors import BadRequest
from quantyard.hub.client import HubAccess
from quantyard.hub.download import download_release
from quantyard.publish.rebuild import check_source, compare_rebuilt, rebuild_request, with_recorded_imatrices
from quantyard.publish.verify import Check, CheckedRelease, check, find_subject, worst
from quantyard.requests import BuildRequest, CheckRequest
from quantyard.store.manifest import read_manifest

_DOWNLOADS = "verified"  # a folder of the store


def verify(args: argparse.Namespace) -> None:
    """Check a file, a folder or a repo against its manifest."""
    request = request_of(args)
    asked, access = request.check, HubAccess(request.endpoint, request.hf_token)
    assert asked is not None
    subject = _subject(request, asked, access)
    with reporter_for(people()) as reporter:
        checks = list(check(subject, access, asked.repo_id, lambda name: reporter.note(f"checking {name}")))
    if asked.rebuild:
        checks += _rebuilt(request, subject)
    if request.json:
        print_json({"checks": [found.__dict__ for found in checks], "state": worst(checks)})
    else:
        data().print(say.checks_text(checks), soft_wrap=True)
    if worst(checks) != "ok":
        sys.exit(1)


def _subject(request: BuildRequest, asked: CheckRequest, access: HubAccess) -> CheckedRelease:
    if bool(asked.repo_id) == (asked.file is not None):
        given = "REPO and FILE are both given" if asked.repo_id else "Neither REPO nor FILE is given"
        raise BadRequest(f"{given}.", "Type: make verify REPO=me/name-GGUF, or FILE=path")
    if asked.file is not None:
        return find_subject(asked.file)
    with reporter_for(people()) as reporter:
        reporter.note(f"downloading {asked.repo_id}")
        return find_subject(download_release(access, asked.repo_id, request.artifacts / _DOWNLOADS))


def _rebuilt(request: BuildRequest, subject: CheckedRelease) -> Iterator[Check]:
    """In a store of its own, which is gone afterwards."""
    request.artifacts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=request.artifacts, prefix=".rebuild-") as folder:
        again = rebuild_request(request, subject, Path(folder))
        plan = plan_of(again)
        check_source(subject, plan.source.model)
        plan = with_recorded_imatrices(plan, subject, Path(folder) / ".imatrices")
        builder, built = run_plan(replace(again, imatrix="none"), plan)  # they are in the plan already
        manifest = read_manifest(builder.store.folder / "manifest.json")
        assert manifest is not None
        yield from compare_rebuilt(subject, {file.quant: file.record for file in built}, manifest.stages)
