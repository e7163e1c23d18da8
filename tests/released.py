"""A real store of a tiny model that was built, measured and contract-tested, and a Hub to publish it to.

The GGUFs, the source folder, its hashes and the store's layout are real; what was measured is simulated.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from quantyard import cli
from quantyard.cli.settings import SETTINGS
from quantyard.hub.client import HubAccess
from quantyard.paths import REPO_DIR
from quantyard.protocol.base import FileEntry
from quantyard.protocol.runner import file_sha256
from quantyard.quants.catalog import find_quant
from quantyard.sources.resolve import Source, find_source
from quantyard.store.hash_cache import HashCache
from quantyard.store.manifest import Manifest, SourceRecord, StageRecord
from quantyard.store.stages import stored_stage_folder
from tests.gguf_files import TensorSpec, gguf
from tests.hub_repo import Repo
from tests.hub_server import HubServer, Request
from tests.manifests import manifest_of
from tests.manifests import sha256_of as hash_of
from tests.tiny_model import write_safetensors

REPO = "me/Lagoon-GGUF"
SOURCE_REPO = "org/Lagoon"
SUITE = "standard"
TASKS = ("arc_easy", "hellaswag")
PLOTS = ("tradeoff-light.svg", "tradeoff-dark.svg", "tradeoff.png")
BUILT = (("BF16", 16.0, 0.0), ("Q8_0", 8.51, 0.0012), ("Q6_K", 6.6, 0.004), ("Q4_K_M", 6.17, 0.031))
README = "---\nlicense: apache-2.0\nlanguage: [en]\ntags: [lagoon]\n---\n# Lagoon\n"
LEGAL = {"LICENSE": "Apache License, Version 2.0\n", "NOTICE": "Lagoon, by its makers\n"}
PASSES = "defaults: {max_mean_kld: 5}\n"
_TOKENS = {"tokenizer.json": "{}", "tokenizer_config.json": "{}"}


@dataclass
class Yard:
    """The source, the store, the Hub, and commands that run in this process."""

    root: Path
    hub: HubServer
    monkeypatch: pytest.MonkeyPatch
    source: Source
    model: str  # what MODEL must be

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def folder(self) -> Path:
        """The model's, in the store."""
        return self.artifacts / self.source.model.folder

    @property
    def release(self) -> Path:
        return self.folder / "release"

    @property
    def access(self) -> HubAccess:
        return HubAccess(self.hub.endpoint, self.hub.writer)

    @property
    def repo(self) -> Repo:
        """What was published to."""
        return self.hub.repos[REPO]

    def published(self, branch: str = "main") -> dict[str, bytes]:
        """The files of the repo, as the Hub has them."""
        head = self.repo.at(branch)
        assert head is not None
        return {name: b"".join(blob.blocks()) for name, blob in head.files.items() if name != ".gitattributes"}

    def manifest(self) -> Manifest:
        """The store's."""
        return Manifest.model_validate_json((self.folder / "manifest.json").read_bytes())

    def keep(self, manifest: Manifest) -> None:
        """Make it the store's."""
        (self.folder / "manifest.json").write_text(manifest.model_dump_json(indent=2))

    def file(self, quant: str) -> Path:
        """The GGUF of this type in the store."""
        return self.folder / f"{self.source.model.name}-{quant}.gguf"

    def budgets(self, text: str) -> str:
        """The option that names a file of these budgets."""
        (self.root / "gate.yaml").write_text(text)
        return f"--gate={self.root / 'gate.yaml'}"

    def run(self, command: str, *argv: str) -> Said:
        """A command on this machine's own: no setting, token or login of whoever runs the test."""
        out, err = io.StringIO(), io.StringIO()
        given = (f"--artifacts={self.artifacts}", "--engine=local", f"--hf-endpoint={self.hub.endpoint}")
        with pytest.raises(SystemExit) as ended, redirect_stdout(out), redirect_stderr(err):
            cli.main([command, *given, *argv])
        return Said(int(ended.value.code or 0), out.getvalue(), err.getvalue())

    def publish(self, *argv: str, quants: str = "Q8_0,Q4_K_M", gate: str = PASSES, command: str = "publish") -> Said:
        """`publish` to REPO, past budgets that all files keep; arguments given later win."""
        ours = (f"--model={self.model}", f"--quant={quants}", f"--repo={REPO}", self.budgets(gate))
        return self.run(command, *ours, *(["--yes"] if command in ("publish", "release") else []), *argv)

    def verify(self, *argv: str) -> Said:
        return self.run("verify", *argv)

    def written(self) -> list[Request]:
        """What was asked of the Hub that changes something, or begins to."""
        return [r for r in self.hub.requests if r.method in ("POST", "PUT") and "paths-info" not in r.path]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A Hub with nothing on it."""
    with HubServer() as running:
        yield running


@pytest.fixture
def yard(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Yard:
    """A model that is ready to be published to it."""
    return lay_out(tmp_path, hub, monkeypatch)


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Stdout, which holds one object and nothing else."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


def lay_out(
    root: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, *, readme: str = README,
    legal: Mapping[str, str] = LEGAL, name: str = "Lagoon", on_hub: bool = False, gated: bool | str = False,
) -> Yard:  # fmt: skip
    """Everything but a gate: `make build`, `make eval` and `make contract` have been there."""
    alone(monkeypatch, root, hub)
    folder = root / "models" / name
    _write_source(folder, readme, legal)
    if on_hub:
        hub.add_repo(SOURCE_REPO, folder=folder, gated=gated, license="apache-2.0")
    model = SOURCE_REPO if on_hub else str(folder)
    access, hashes = HubAccess(hub.endpoint, hub.writer), HashCache(root / "artifacts" / ".hashes.json")
    source = find_source(model, access, hashes, allow_pickle=False, gguf_file=None)
    yard = Yard(root, hub, monkeypatch, source, model)
    _fill(yard, folder)
    return yard


def alone(monkeypatch: pytest.MonkeyPatch, root: Path, hub: HubServer) -> None:
    names = [setting.name for setting in SETTINGS]
    for name in (*names, "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_HOME", "DOCKER_CONFIG"):
        monkeypatch.setenv(name, str(root / "nobody"))
    monkeypatch.setenv("HF_TOKEN", hub.writer)
    monkeypatch.setattr("quantyard.hub.client.time.sleep", lambda seconds: None)


def _write_source(folder: Path, readme: str, legal: Mapping[str, str]) -> None:
    folder.mkdir(parents=True)
    texts = {"config.json": '{"model_type": "llama"}', **_TOKENS, **legal, "README.md": readme}
    for name, text in texts.items():
        (folder / name).write_text(text)
    write_safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": (32, 8)})


def _fill(yard: Yard, source_folder: Path) -> None:
    yard.folder.mkdir(parents=True)
    manifest = _recorded(_with_files(simulated(), yard), yard, source_folder)
    yard.keep(manifest)
    plots = yard.folder / "eval" / SUITE / "plots"
    plots.mkdir(parents=True)
    for name in PLOTS:
        (plots / name).write_text(f"<svg>{name}</svg>")
    (plots.parent / "report.md").write_text("# The report\n")
    (plots.parent / "report.json").write_text(manifest.evaluations[SUITE].model_dump_json())


@cache
def simulated() -> Manifest:
    """Numbers of a model with four files, the first of which is the baseline."""
    return manifest_of(BUILT, n_tasks=5, suite=SUITE, title="Lagoon")


def tiny(quant: str, n_tensors: int = 3, made_with: str = "") -> bytes:
    """A GGUF whose header says that it is of this type."""
    tensors = [TensorSpec(f"blk.{i}.weight", (256, 4), "F32", f"{quant}{made_with}".encode().ljust(4096)) for i in
               range(n_tensors)]  # fmt: skip
    return gguf({"general.architecture": "llama", "general.file_type": find_quant(quant).ftype or 0}, tensors)


def _with_files(manifest: Manifest, yard: Yard) -> Manifest:
    """With real files in the store, where the numbers were of none."""
    manifest = manifest.model_copy(deep=True)
    for number, (quant, record) in enumerate(manifest.quants.items(), 3):
        path = yard.file(quant)
        path.write_bytes(tiny(quant, n_tensors=number))
        facts = {"file": path.name, "size_bytes": path.stat().st_size, "sha256": file_sha256(path)}
        manifest.quants[quant] = record.model_copy(update=facts)
    report = manifest.evaluations[SUITE]
    measured = []
    for m in report.measurements:
        record = manifest.quants.get(m.file.label)
        facts = {"sha256": record.sha256, "size_bytes": record.size_bytes} if record else {}
        measured.append(m.model_copy(update={"file": m.file.model_copy(update=facts)}))
    manifest.evaluations[SUITE] = report.model_copy(update={"measurements": tuple(measured)})
    return manifest


def _recorded(manifest: Manifest, yard: Yard, source_folder: Path) -> Manifest:
    """With the real source, and with stages that left files."""
    found = yard.source
    manifest.source = SourceRecord(
        kind=found.kind, title=found.title, repo_id=found.repo_id, revision=found.revision,
        commit=found.model.commit, license=found.license, files=list(found.files), dtypes=dict(found.dtypes),
        card=found.card,
    )  # fmt: skip
    stages = manifest.stages
    for quant, record in manifest.quants.items():
        made = FileEntry(path="model.gguf", size_bytes=record.size_bytes, sha256=record.sha256)
        stages[f"quantize {quant}"] = stages[f"quantize {quant}"].model_copy(update={"outputs": [made]})
    checkout = REPO_DIR
    named = (source_folder / "config.json", yard.folder / "stages" / "x", yard.artifacts / "y", Path.home() / "tools",
             checkout / "builder", source_folder, yard.folder, checkout)  # fmt: skip
    program = ["/usr/bin/python3", *(str(path) for path in named), f"--from={source_folder}"]
    request = {"stage": "convert", "outtype": "bf16", "name": found.model.name, "allow_pickle": False}
    stages["convert"] = stages["convert"].model_copy(update={"argv": [program], "request": request})
    tasks = [entry.model_dump(mode="json") for entry in manifest.evaluations[SUITE].suite.tasks]
    for label in ("BF16", *manifest.quants):
        stages[f"evaluate {label}"] = _evaluated(yard, stages["convert"], label, tasks)
    if yard.source.repo_id:
        stages["fetch"] = _left(yard, stages["convert"], "fetch", {n: (source_folder / n).read_text() for n in LEGAL})
    return manifest


def _evaluated(yard: Yard, like: StageRecord, label: str, tasks: Sequence[Any]) -> StageRecord:
    """Results of each task, and the questions, which are nobody's to publish."""
    files = {f"{task}/model.gguf/results_2026-11-20T12-00-00.json": f'{{"{label}": "{task}"}}' for task in TASKS}
    files |= {f"{task}/model.gguf/samples_{task}.jsonl": "a question of somebody's" for task in TASKS}
    record = _left(yard, like, f"evaluate {label}", files)
    return record.model_copy(update={"request": {"stage": "evaluate", "label": label, "tasks": list(tasks)}})


def _left(yard: Yard, like: StageRecord, label: str, files: Mapping[str, str]) -> StageRecord:
    """A finished stage that left these files."""
    key = hash_of(label)
    folder, entries = stored_stage_folder(yard.folder, label, key) / "files", []
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        entries.append(FileEntry(path=name, size_bytes=len(text), sha256=file_sha256(path)))
    request = {"stage": label.partition(" ")[0]}
    return like.model_copy(update={"key": key, "outputs": entries, "argv": [], "request": request})
