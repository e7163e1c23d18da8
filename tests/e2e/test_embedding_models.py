"""Models that embed texts or rank documents: built, compared with the original, measured, and served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantyard.paths import REPO_DIR
from tests.architectures.tiny import Kitchen
from tests.conftest import run_json
from tests.tiny_embedders import make_embedder, make_reranker

VENV = REPO_DIR / ".venv-local"
_MAKERS: dict[str, Callable[[Kitchen], Path]] = {"embed": make_embedder, "rerank": make_reranker}


@pytest.mark.parametrize("purpose", ["embed", pytest.param("rerank", marks=pytest.mark.slow)])
def test_a_model_without_text_of_its_own_is_verified_measured_and_served(
    local_tools: None, demo_source: Path, tmp_path: Path, purpose: str
) -> None:
    model = _MAKERS[purpose](Kitchen(tmp_path, VENV / "bin" / "python", demo_source))
    asked = {
        "MODEL": str(model), "QUANT": "Q8_0", "ENGINE": "local", "ARTIFACTS": str(tmp_path / "artifacts"),
        "SUITE": "smoke", "PARITY": "twin" if purpose == "rerank" else "off",  # other tests have twins of encoders
    }  # fmt: skip
    _check_measured(run_json("eval", **asked)["report"], purpose)
    (report,) = run_json("contract", **asked)["contracts"]
    assert [check for check in report["checks"] if check["status"] == "failed"] == []
    assert {"ranking" if purpose == "rerank" else "vectors"} <= {check["name"] for check in report["checks"]}
    (manifest,) = (tmp_path / "artifacts").rglob("manifest.json")
    _check_verified(json.loads(manifest.read_bytes())["stages"]["verify Q8_0"]["facts"], purpose)


def _check_verified(facts: dict[str, Any], purpose: str) -> None:
    assert facts["purpose"] == purpose
    english = next(found for found in facts["scripts"] if found["script"] == "english")
    assert english["agreement"] > 0.99
    assert ("hangul" in facts["scripts_below"]) == (purpose == "embed"), "BERT's Korean is tokenized otherwise"


def _check_measured(report: dict[str, Any], purpose: str) -> None:
    baseline, file = (measurement["similarity"] for measurement in report["measurements"])
    assert (file["purpose"], file["n_queries"]) == (purpose, baseline["n_queries"])
    assert baseline["kendall_tau"] is None and file["kendall_tau"]["value"] > 0.8
    assert (file["mean_cosine"] is not None) == (purpose == "embed")
