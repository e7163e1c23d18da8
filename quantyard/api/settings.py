"""The keyword arguments of each function: the settings of its command, in lower case.

A test compares them with the table of settings: names, kinds, and which command takes which. What an argument means is
said there once, and shown by `help(quantyard.build)`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, TypedDict

Names = str | Sequence[str]
File = str | os.PathLike[str]
Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Size = int | str  # bytes, or as one types it: "16GiB"


class MachineSettings(TypedDict, total=False):
    """Where and how things run: every function takes these."""

    engine: Literal["auto", "docker", "local"]
    artifacts: File
    memory: Size
    hf_token: str
    hf_endpoint: str
    https_proxy: str
    extra_ca: File
    llama_cpp_image: str
    llama_cpp_tag: str
    llama_cpp_server_tag: str
    eval_base_image: str
    eval_base_tag: str


class BuildSettings(MachineSettings, total=False):
    """What to make of a model."""

    quant: Names
    recipe: Files
    outtype: Literal["auto", "bf16", "f16", "f32", "q8_0"]
    gguf_file: str
    imatrix: File
    calibration: Files
    chunks: int
    threads: int
    workers: int
    allow_pickle: bool
    allow_requantize: bool
    allow_mismatch: bool


class EvaluateSettings(BuildSettings, total=False):
    """What to measure of it."""

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


class MatrixSettings(EvaluateSettings, total=False):
    """Of which quants."""

    quants: Names


class TuneSettings(MachineSettings, total=False):
    """What a search is to reach, and how closely it looks."""

    target_size: Size
    target_kld: float
    parts: int
    types: Names
    outtype: Literal["auto", "bf16", "f16", "f32", "q8_0"]
    gguf_file: str
    calibration: Files
    chunks: int
    threads: int
    workers: int
    allow_pickle: bool
    allow_mismatch: bool


class ChooseSettings(MachineSettings, total=False):
    """The limits that the file must meet."""

    quant: Names
    gguf_file: str
    suite: File
    ram: Size
    min_tps: float
    max_kld: float
    context_size: int
    parallel: int


class _Publishing(TypedDict, total=False):
    repo: str
    oci: str
    gate: File
    dry_run: bool
    public: bool
    hub_branch: str
    hub_pr: bool
    license: str
    split_above: Size
    cosign_key: File
    allow_fail: bool


class PublishSettings(MachineSettings, _Publishing, total=False):
    """Which files are published, where, and what must hold before."""

    quant: Names
    gguf_file: str
    suite: File


class ReleaseSettings(EvaluateSettings, _Publishing, total=False):
    """All that a release makes, measures and publishes."""


class VerifySettings(MachineSettings, total=False):
    """What is checked: `repo` or `file`."""

    repo: str
    file: File
    rebuild: bool
    model: File
    allow_pickle: bool
    allow_requantize: bool
    allow_mismatch: bool
    threads: int


class LoraSettings(MachineSettings, total=False):
    """What the adapter was trained on, and how it is fetched."""

    base: File
    allow_pickle: bool
    workers: int
