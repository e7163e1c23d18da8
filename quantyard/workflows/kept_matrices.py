"""Keeps the importance matrix that a file was made with: without IMATRIX, a file that exists is planned as it was made.

Otherwise `build`, `eval` or `release` would replace a file of a matrix run, whose name tells nothing of the matrix, by
one with other bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from quantyard.errors import BadRequest
from quantyard.plan.steps import BuildPlan
from quantyard.protocol.base import files_digest
from quantyard.requests import BuildRequest
from quantyard.sources.resolve import Source
from quantyard.store.manifest import ImatrixRecord, Manifest, StageRecord, read_manifest
from quantyard.store.stages import ModelStore

_AGAIN: Final = "Give it again, or make the file anew without a matrix: IMATRIX=none"


def kept_matrices(request: BuildRequest, source: Source) -> Mapping[str, ImatrixRecord]:
    """The matrices that built files of this source were made with, by quant; none if the request says which to use."""
    if request.imatrix or request.calibration:
        return {}
    manifest = _manifest_of_kept_matrices(request, source)
    built = manifest.quants if manifest else {}
    return {name: record.imatrix for name, record in built.items() if record.imatrix}


def plan_with_kept_matrices(request: BuildRequest, plan: BuildPlan) -> BuildPlan:
    """The plan with the matrix of each file that was made with one.

    Raises:
        BadRequest: a matrix, or the text of one, was the user's, and is not given again.
    """
    kept = kept_matrices(request, plan.source)
    names = [target.quant.name for target in plan.targets if target.quant.name in kept]
    if not names:
        return plan
    from quantyard.plan.imatrix import CALIBRATE, Calibration, plan_with_imatrix  # imported late: most have no matrix

    manifest = _manifest_of_kept_matrices(request, plan.source)
    made = manifest.stages.get(CALIBRATE) if manifest else None
    _refuse_users_kept_matrix(names, kept, made)
    assert made is not None, "it was looked at"
    calibration = Calibration(threads=request.threads, n_chunks=int(str(made.request.get("n_chunks", 0))))
    return plan_with_imatrix(plan, calibration, names)


def _refuse_users_kept_matrix(
    names: Sequence[str], kept: Mapping[str, ImatrixRecord], made: StageRecord | None
) -> None:
    digest = files_digest(tuple(made.outputs)) if made else ""
    for name in names:
        if made is None or files_digest(tuple(kept[name].given)) != digest:
            message = f"{name} was made with the importance matrix {kept[name].file}, which was given with IMATRIX."
            raise BadRequest(message, _AGAIN)
    if made is not None and made.request.get("text_files"):
        message = f"{', '.join(names)}: made with an importance matrix of the text that was given with CALIBRATION."
        raise BadRequest(message, _AGAIN)


def _manifest_of_kept_matrices(request: BuildRequest, source: Source) -> Manifest | None:
    return read_manifest(ModelStore(request.artifacts, source.model).folder / "manifest.json")
