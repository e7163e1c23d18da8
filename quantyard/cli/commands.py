"""The table of commands: name, help and options of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple

from quantyard.cli.settings import SETTINGS

if TYPE_CHECKING:
    import argparse

# Of engines whose stages run on other machines.
CLUSTER = (
    "STORE", "SCRATCH", "NODE_ENGINE", "NODE_REGISTRY", "NETWORK_STAGES", "SLURM_PARTITION", "SLURM_ACCOUNT",
    "SLURM_QOS", "SLURM_CONSTRAINT", "SLURM_GRES", "SLURM_CPUS_PER_STAGE", "SLURM_TIME", "SLURM_OPTIONS", "KUBE_IMAGE",
    "KUBE_NAMESPACE", "KUBE_CONTEXT", "KUBE_QUEUE", "KUBE_NODES", "KUBE_CLAIM", "KUBE_S3_SECRET", "KUBE_STORE_CIDR",
    "KUBE_HF_SECRET", "KUBE_PULL_SECRET", "KUBE_CPUS_PER_STAGE", "KUBE_MEMORY_PER_STAGE", "KUBE_TIME",
)  # fmt: skip
MACHINE = (
    *CLUSTER, "ENGINE", "LLAMA_WHEEL", "ARTIFACTS", "MEMORY", "EXTRA_CA", "HF_ENDPOINT", "LLAMA_WHEEL_INDEX",
    "HTTPS_PROXY", "LLAMA_CPP_IMAGE", "LLAMA_CPP_TAG", "EVAL_BASE_IMAGE", "EVAL_BASE_TAG", "LLAMA_CPP_SERVER_TAG",
)  # fmt: skip
# The settings of commands that measure.
MEASURING = (
    "SUITE", "BASELINE", "TASKS", "LIMIT", "NUM_FEWSHOT", "SEED", "DATASETS", "ALLOW_UNSAFE_CODE", "N_GPU_LAYERS",
    "MAX_LENGTH", "SHARDS", "MIX_NODES", "CACHE_TYPE", "RUNTIME", "EVAL_BASE_IMAGE", "EVAL_BASE_TAG",
)  # fmt: skip
SERVING = ("MODEL_FILE", "MMPROJ_FILE", "PORT", "CONTEXT_SIZE", "CACHE_TYPE")
PACKING = ("TAG", "PUSH")
ADAPTING = ("ADAPTER", "BASE")
PUBLISHING = (
    "REPO", "GATE", "DRY_RUN", "YES", "AGREE", "ALLOW_FAIL", "LICENSE", "PUBLIC", "HUB_BRANCH", "HUB_PR", "SPLIT_ABOVE",
    "OCI", "COSIGN_KEY",
)  # fmt: skip
# The permissions of a build, and so of a rebuild.
ALLOWING = ("ALLOW_PICKLE", "ALLOW_REQUANTIZE", "ALLOW_MISMATCH")
CHECKING = ("REPO", "FILE", "REBUILD")
COMPARING = ("QUANTS",)
FOREIGN = ("REPOS", "FILES")
WATCHING = ("LLAMA_CPP",)
TUNING = ("TARGET_SIZE", "TARGET_KLD", "DEPTH_PARTS", "TYPES")
LOOKING = ("FIND",)
REPORTING = ("ONLY",)
PLANNING = ("NODES",)
CLEANING = ("KEEP_DAYS",)
CHOOSING = ("RAM", "MIN_TPS", "MAX_KLD", "PARALLEL", "CACHE_TYPE")

_NOT_BUILDING = {
    *MEASURING, *SERVING, *PACKING, *ADAPTING, *COMPARING, *PUBLISHING, *CHECKING, *CHOOSING, *TUNING, *LOOKING,
    *REPORTING, *FOREIGN, *WATCHING, *PLANNING, *CLEANING,
}  # fmt: skip
_BUILDING = tuple(setting.name for setting in SETTINGS if setting.name not in _NOT_BUILDING)
_SERVE = ("THREADS", "N_GPU_LAYERS", *MACHINE)
_EVALUATING = (*_BUILDING, *MEASURING)
_MATRIX = (*(name for name in _EVALUATING if name != "QUANT"), *COMPARING)
_LORA = (*ADAPTING, "ALLOW_PICKLE", "WORKERS", "JSON", *MACHINE)
_CHOOSE = ("MODEL", "QUANT", "GGUF_FILE", "SUITE", "CONTEXT_SIZE", "JSON", *MACHINE, *CHOOSING)
_PUBLISH = ("MODEL", "QUANT", "GGUF_FILE", "SUITE", "JSON", *MACHINE, *PUBLISHING)
_GATE = ("MODEL", "QUANT", "GGUF_FILE", "SUITE", "JSON", *MACHINE, "GATE", "LICENSE")
_REPORT = (*_GATE, "REPO", "OCI", "SPLIT_ABOVE", *REPORTING)
_TUNE = (
    "MODEL", "OUTTYPE", "PARITY", "PARTS", "CALIBRATION", "CHUNKS", "GGUF_FILE", "ALLOW_PICKLE", "ALLOW_MISMATCH",
    "ALLOW_TWIN_MISMATCH", "THREADS", "WORKERS",
    "JSON", *TUNING, *MACHINE,
)  # fmt: skip
# What `init` writes down: not what is meant for one call.
_ONCE = ("FIND", "FILE", "REBUILD", "DRY_RUN", "PUSH", "MODEL_FILE", "MMPROJ_FILE", "JSON")
KEPT = tuple(setting.name for setting in SETTINGS if setting.in_file and setting.name not in _ONCE)
_INIT = (*KEPT, "YES", "JSON", "HF_ENDPOINT", "HTTPS_PROXY", "EXTRA_CA")


class Command(NamedTuple):
    """One command of the program, and of make."""

    name: str
    function: str  # module and function in quantyard.cli, imported only when the command is typed
    help: str
    settings: Sequence[str] | None  # its options; None: all settings
    typical: Sequence[str] = ()  # the options that `--help` shows first
    group: str = ""  # its heading in `quantyard --help`


# To add a command: add a row and a target to the Makefile (a test compares the two), and run `make reference`.
COMMANDS: Final = (
    Command(
        "build", "build.build_command",
        "Fetch, convert, quantize and verify a model; ends with GGUF files and a manifest.",
        _BUILDING, ("MODEL", "QUANT", "IMATRIX", "ENGINE", "ARTIFACTS", "JSON"), "make",
    ),
    Command(
        "eval", "build.eval_command", "Measure what quantization cost; missing files are built first.",
        _EVALUATING, ("MODEL", "QUANT", "SUITE", "BASELINE", "TASKS", "LIMIT", "ENGINE", "ARTIFACTS", "JSON"),
        "measure",
    ),
    Command(
        "serve", "serve.serve_command",
        "Serve what is in artifacts/served, or from now on the files of MODEL: docker compose up, or ENGINE=local.",
        ("MODEL", "QUANT", "GGUF_FILE", *_SERVE, *SERVING),
        ("MODEL", "QUANT", "MODEL_FILE", "PORT", "CONTEXT_SIZE", "ENGINE", "ARTIFACTS"), "serve",
    ),
    Command(
        "contract", "serve.contract_command", "Serve each file on loopback and test its API.",
        _BUILDING, ("MODEL", "QUANT", "ENGINE", "ARTIFACTS", "JSON"), "serve",
    ),
    Command(
        "image", "serve.image_command", "Make one server image with the GGUF inside.",
        (*_BUILDING, *PACKING, "PORT"), ("MODEL", "QUANT", "TAG", "PUSH", "PORT", "ARTIFACTS", "JSON"), "serve",
    ),
    Command(
        "plan", "build.plan_command",
        "Show stages, disk, memory and time of a build (SUITE: of an eval; QUANTS: of a matrix); run nothing.",
        (*_EVALUATING, *COMPARING, *PLANNING), ("MODEL", "QUANT", "SUITE", "QUANTS", "ENGINE", "ARTIFACTS", "JSON"),
        "make",
    ),
    Command(
        "matrix", "matrix.matrix_command",
        "Make and measure many quants in one run; a failed quant does not stop the others.",
        _MATRIX, ("MODEL", "QUANTS", "SUITE", "ENGINE", "ARTIFACTS", "JSON"), "make",
    ),
    Command(
        "compare", "compare.compare_command",
        "Measure GGUF files that others made of MODEL beside ours, against our baseline, after checking them.",
        (*_EVALUATING, *FOREIGN), ("MODEL", "REPOS", "FILES", "QUANT", "SUITE", "ENGINE", "ARTIFACTS", "JSON"),
        "measure",
    ),
    Command(
        "bump", "bump.bump_command",
        "Build and measure with another llama.cpp beside the recorded one; say what changed, and replace nothing.",
        (*_EVALUATING, *WATCHING), ("MODEL", "LLAMA_CPP", "QUANT", "SUITE", "ENGINE", "ARTIFACTS", "JSON"),
        "measure",
    ),
    Command(
        "publish", "release.publish_command",
        "Publish what was built and measured: to the Hub, to a registry, or both.",
        _PUBLISH, ("MODEL", "QUANT", "REPO", "OCI", "GATE", "DRY_RUN", "YES", "PUBLIC", "ARTIFACTS", "JSON"), "publish",
    ),
    Command(
        "release", "release.release_command",
        "Build, measure, test, compare with the budgets and publish; skip finished stages.",
        (*_EVALUATING, *PUBLISHING),
        ("MODEL", "QUANT", "SUITE", "REPO", "OCI", "GATE", "DRY_RUN", "YES", "PUBLIC", "ENGINE", "ARTIFACTS", "JSON"),
        "publish",
    ),
    Command(
        "verify", "verify.verify_command", "Check a published repo, a folder or a file against its manifest.",
        (*CHECKING, "MODEL", *ALLOWING, "THREADS", "JSON", *MACHINE), ("REPO", "FILE", "REBUILD", "JSON"), "publish",
    ),
    Command(
        "choose", "choose.choose_command", "Name the best of the measured files for a memory size and a speed.",
        _CHOOSE, ("MODEL", "QUANT", "RAM", "MIN_TPS", "MAX_KLD", "CONTEXT_SIZE", "ARTIFACTS", "JSON"), "measure",
    ),
    Command(
        "tune", "tune.tune_command",
        "Search a mix of tensor types for a file size or a divergence; make and measure it.",
        _TUNE, ("MODEL", "TARGET_SIZE", "TARGET_KLD", "ENGINE", "ARTIFACTS", "JSON"), "make",
    ),
    Command(
        "lora", "lora.lora_command", "Convert a LoRA adapter to GGUF, to be served on top of its base model.",
        _LORA, ("ADAPTER", "BASE", "ENGINE", "ARTIFACTS", "JSON"), "make",
    ),
    Command(
        "gate", "release.gate_command", "Compare what was measured with the budgets; publish nothing.",
        _GATE, ("MODEL", "QUANT", "GATE", "ARTIFACTS", "JSON"), "measure",
    ),
    Command(
        "report", "release.report_command", "Write the model card and the report page, and show the page.",
        _REPORT, ("MODEL", "QUANT", "SUITE", "ARTIFACTS", "JSON"), "measure",
    ),
    Command(
        "quants", "lookup.quants_command", "List every quantization type, and when to choose it.", ("JSON", *LOOKING),
        ("FIND", "JSON"), "look up",
    ),
    Command(
        "models", "lookup.models_command", "List the models that have a short name for MODEL; with FIND, their notes.",
        ("JSON", *LOOKING), ("FIND", "JSON"), "look up",
    ),
    Command(
        "init", "init.init_command",
        "Write quantyard.toml for this folder's model, with what was given and what can be found.",
        _INIT, ("MODEL", "QUANT", "SUITE", "REPO", "GATE", "YES", "JSON"), "set up",
    ),
    Command(
        "doctor", "machine.doctor_command", "Check this machine; every finding comes with a remedy.",
        ("JSON", *MACHINE), ("ENGINE", "ARTIFACTS", "JSON"), "set up",
    ),
    Command(
        "demo", "machine.demo_command", "Build and measure a real 135M model; needs no account.",
        ("JSON", *MACHINE), ("ENGINE", "ARTIFACTS", "JSON"), "set up",
    ),
    Command(
        "images", "machine.images_command", "Prepare the tools: the images (docker), or a virtual environment (local).",
        MACHINE, ("ENGINE",), "set up",
    ),
    Command(
        "rates", "rates.rates_command",
        "Time the stages on a model of random weights, so that plans can forecast their time.",
        ("THREADS", "JSON", *MACHINE), ("THREADS", "ENGINE", "JSON"), "set up",
    ),
    Command(
        "node", "node.node_command",
        "On a node of a cluster: run one stage of the shared store; jobs of ENGINE=slurm and kubernetes call it.",
        MACHINE, ("STORE", "SCRATCH", "ENGINE"), "set up",
    ),
    Command(
        "gc", "garbage.garbage_command",
        "Remove what nobody needs from a shared store (killed attempts, unnamed contents) and old second results.",
        ("STORE", "ARTIFACTS", "DRY_RUN", "JSON", *CLEANING),
        ("STORE", "KEEP_DAYS", "DRY_RUN", "ARTIFACTS", "JSON"), "set up",
    ),
    Command(
        "completion", "completion.completion_command", "Print the shell script that completes commands and options.",
        (), (),
        "set up",
    ),
    Command(
        "config", "config.config_command", "Show the value of each setting, and its origin.", None, ("JSON",),
        "look up",
    ),
)  # fmt: skip

# The headings of `quantyard --help`, in this order.
COMMAND_GROUPS: Final = {
    "make": "Make models", "measure": "Measure and choose", "serve": "Serve", "publish": "Publish and verify",
    "set up": "Set up", "look up": "Look up",
}  # fmt: skip


def find_command(function: str) -> Callable[[argparse.Namespace], None]:
    """The function of a row of COMMANDS."""
    module, _, name = function.partition(".")
    found: Callable[[argparse.Namespace], None] = getattr(import_module(f"quantyard.cli.{module}"), name)
    return found
