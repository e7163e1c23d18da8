"""What tests of clusters share."""

from __future__ import annotations

from tests.cluster.slurm_nodes import slurm  # noqa: F401  (a fixture)
