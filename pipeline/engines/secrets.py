"""Hands a secret to a stage: a 0600 file in a 0700 folder that lives as long as the stage."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.engines import Surroundings
from pipeline.plan import StageSpec


@contextmanager
def secrets_folder(spec: StageSpec, around: Surroundings) -> Iterator[Path]:
    """A folder holding the secrets this stage may see, and no others; removed when the stage has ended."""
    with tempfile.TemporaryDirectory(prefix="quantyard-", dir=os.environ.get("XDG_RUNTIME_DIR")) as name:
        folder = Path(name)
        if "HF_TOKEN" in spec.row.secrets and around.hf_token:
            path = folder / "HF_TOKEN"
            path.touch(mode=0o600)
            path.write_text(around.hf_token)
        yield folder
