"""What a stage needs of its node, from its request and the sizes of its inputs.

The memory is what its largest programs take: the files that they map, and room for what is computed. A stage that needs
more is tried again with more, see RetryRules; MEMORY sets it for all stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from quantyard.engines.capacity import Capacity
from quantyard.plan.steps import StageSpec
from quantyard.protocol.builder import FetchRequest
from quantyard.protocol.node_spec import NodeResources
from quantyard.requests import RunEnvironment
from quantyard.store.artifact import Artifact

_BASE_BYTES: Final = 3 * 2**30
_TIMED: Final = ("speed", "cache", "openvino", "contract")  # their times count, so nothing may run beside them

# Memory in sizes of the inputs, and the size of the outputs in sizes of the inputs. To add a stage: add a row.
_SHARES: Final[Mapping[str, tuple[float, float]]] = {
    "convert": (1.0, 1.2), "parity": (3.0, 0.1), "calibrate": (1.3, 0.1), "quantize": (1.3, 1.0), "verify": (1.3, 0.1),
    "verify_foreign": (1.3, 0.1), "evaluate": (1.3, 0.2), "behaviour": (1.3, 0.2), "divergence": (1.5, 0.5),
    "domains": (1.5, 0.5), "dequantize": (3.0, 4.0), "split": (0.2, 1.0),
}  # fmt: skip
_OTHER: Final = (1.5, 1.0)


def stage_node_resources(
    spec: StageSpec, inputs: Mapping[str, Artifact], capacity: Capacity, environment: RunEnvironment,
) -> NodeResources:
    """The resources of one stage, at most those of a node."""
    size = sum({artifact.digest: artifact.size_bytes for artifact in inputs.values()}.values())
    memory, outputs = _SHARES.get(spec.row.name, _OTHER)
    wanted = environment.memory_bytes or int(_BASE_BYTES + memory * size)
    fetched = sum(entry.size_bytes for entry in spec.request.files) if isinstance(spec.request, FetchRequest) else 0
    settings = getattr(spec.request, "runtime", None)
    layers = getattr(spec.request, "n_gpu_layers", 0) or getattr(settings, "n_gpu_layers", 0)
    return NodeResources(
        cpus=capacity.cpus, memory_bytes=min(wanted, capacity.memory_bytes), gpus=1 if layers else 0,
        scratch_bytes=int(outputs * size) + fetched, exclusive=spec.row.name in _TIMED, node_class=capacity.machine,
    )
