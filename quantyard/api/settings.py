"""The keyword arguments of each function: the settings of its command, in lower case.

A test compares them with the table of settings: names, kinds, and commands. That table documents each argument;
`help(quantyard.build)` shows it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, TypedDict

Names = str | Sequence[str]
File = str | os.PathLike[str]
Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Size = int | str  # bytes, or text such as "16GiB"


class MachineSettings(TypedDict, total=False):
    """Settings of the machine, which every function takes."""

    engine: Literal["auto", "docker", "local", "slurm", "kubernetes"]
    store: str
    scratch: str
    node_engine: Literal["local", "docker", "podman"]
    node_registry: str
    network_stages: Literal["nodes", "here"]
    slurm_partition: str
    slurm_account: str
    slurm_qos: str
    slurm_constraint: str
    slurm_gres: str
    slurm_cpus_per_stage: int
    slurm_time: str
    slurm_options: str
    kube_image: str
    kube_namespace: str
    kube_context: str
    kube_queue: str
    kube_nodes: Names
    kube_claim: str
    kube_s3_secret: str
    kube_store_cidr: str
    kube_hf_secret: str
    kube_pull_secret: str
    kube_cpus_per_stage: int
    kube_memory_per_stage: Size
    kube_time: str
    llama_wheel: str
    artifacts: File
    memory: Size
    hf_token: str
    hf_endpoint: str
    llama_wheel_index: str
    https_proxy: str
    extra_ca: File
    llama_cpp_image: str
    llama_cpp_tag: str
    llama_cpp_server_tag: str
    eval_base_image: str
    eval_base_tag: str


class _Making(TypedDict, total=False):
    recipe: Files
    outtype: Literal["auto", "bf16", "f16", "f32", "q8_0"]
    parity: Literal["twin", "full", "off"]
    parts: Literal["all", "text"]
    gguf_file: str
    imatrix: File
    calibration: Files
    chunks: int
    threads: int
    workers: int
    allow_pickle: bool
    allow_requantize: bool
    allow_mismatch: Names
    allow_twin_mismatch: bool


class _Measuring(TypedDict, total=False):
    suite: File
    baseline: str
    tasks: Names
    limit: int
    num_fewshot: int
    seed: int
    datasets: File
    allow_unsafe_code: bool
    n_gpu_layers: int
    max_length: int
    shards: int
    mix_nodes: bool
    cache_type: Names
    runtime: str


class BuildSettings(MachineSettings, _Making, total=False):
    """Settings of a build."""

    quant: Names


class EvaluateSettings(BuildSettings, _Measuring, total=False):
    """Settings of an evaluation."""


class PlanSettings(EvaluateSettings, total=False):
    """Settings of a plan: of a build, with `suite` of an evaluation, with `quants` of a matrix."""

    quants: Names
    nodes: int


class MatrixSettings(MachineSettings, _Making, _Measuring, total=False):
    """Settings of a matrix."""

    quants: Names


class BumpSettings(EvaluateSettings, total=False):
    """The other llama.cpp, and how the files are measured."""

    llama_cpp: str


class CompareSettings(EvaluateSettings, total=False):
    """Which files of others are compared, and how they are measured."""

    files: Names


class TuneSettings(MachineSettings, total=False):
    """Settings of a search: its goal and its precision."""

    target_size: Size
    target_kld: float
    depth_parts: int
    types: Names
    outtype: Literal["auto", "bf16", "f16", "f32", "q8_0"]
    gguf_file: str
    calibration: Files
    chunks: int
    threads: int
    workers: int
    allow_pickle: bool
    allow_mismatch: Names
    allow_twin_mismatch: bool
    parity: Literal["twin", "full", "off"]
    parts: Literal["all", "text"]


class ChooseSettings(MachineSettings, total=False):
    """The limits of a choice."""

    quant: Names
    gguf_file: str
    suite: File
    ram: Size
    min_tps: float
    max_kld: float
    context_size: int
    parallel: int
    cache_type: Names


class _Judging(TypedDict, total=False):
    gate: File
    license: str


class _Writing(_Judging, total=False):
    repo: str
    oci: str
    split_above: Size


class _Publishing(_Writing, total=False):
    dry_run: bool
    public: bool
    hub_branch: str
    hub_pr: bool
    cosign_key: File
    agree: Names
    allow_fail: bool


class _Files(MachineSettings, total=False):
    quant: Names
    gguf_file: str
    suite: File


class GateSettings(_Files, _Judging, total=False):
    """The files to judge, and the budgets."""


class ReportSettings(_Files, _Writing, total=False):
    """The files to report on, what the card says of them, and whether the folder holds no others."""

    only: bool


class PublishSettings(_Files, _Publishing, total=False):
    """The files to publish, the destination, and the budgets."""


class ReleaseSettings(EvaluateSettings, _Publishing, total=False):
    """Settings of a release: evaluation and publishing."""


class VerifySettings(MachineSettings, total=False):
    """Settings of a verification: `repo` or `file`."""

    repo: str
    file: File
    rebuild: bool
    model: File
    allow_pickle: bool
    allow_requantize: bool
    allow_mismatch: Names
    threads: int


class LoraSettings(MachineSettings, total=False):
    """The adapter's base model, and how it is fetched."""

    base: File
    allow_pickle: bool
    workers: int
