"""What the user asked for, checked and frozen. Made by cli/request.py; no module below it reads the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from quantyard.protocol.cache_types import DEFAULT_CACHE
from quantyard.quants.catalog import Quant
from quantyard.records import dataclass

if TYPE_CHECKING:  # most commands use none of these models
    from quantyard.protocol.builder import OutType, Parity, Parts
    from quantyard.protocol.openvino import RuntimeName

EngineName = Literal["auto", "docker", "local", "slurm", "kubernetes"]
ENGINES: Final = ("auto", "docker", "local", "slurm", "kubernetes")
QUEUES: Final = ("slurm", "kubernetes")  # engines whose stages are jobs of a cluster


@dataclass(frozen=True)
class RunEnvironment:
    """What the machine and the user give to every stage; the same for every engine."""

    repo_dir: Path  # where the stage packages are
    hf_token: str | None = field(default=None, repr=False)
    # HTTPS_PROXY, NO_PROXY …, for stages with a network
    proxies: Mapping[str, str] | None = field(default=None, repr=False)
    ca_bundle: Path | None = None  # system certificates plus EXTRA_CA, in one PEM file
    memory_bytes: int | None = None  # None: all of the machine but a reserve
    local_venv: Path | None = None  # of ENGINE=local; None: .venv-local in repo_dir
    openvino_venv: Path | None = None  # of the stage `openvino`; None: .venv-openvino in repo_dir
    brought_venv: bool = False  # `local_venv` is the user's own: it is used as it is
    set_up: Mapping[str, str] = field(default_factory=dict)  # LLAMA_WHEEL …, for the scripts that fill it

    def set_up_argv(self, script: str, *arguments: str) -> list[str]:
        """Runs a script of `scripts/` that fills the environment, with these settings beside what it inherits."""
        given = (f"{name}={value}" for name, value in self.set_up.items())
        return ["env", *given, str(self.repo_dir / "scripts" / script), *arguments]

    @property
    def venv(self) -> Path:
        """The virtual environment of ENGINE=local."""
        return self.local_venv or self.repo_dir / ".venv-local"


@dataclass(frozen=True)
class ImageSettings:
    """Which base images, and what a build needs to reach the network. Environment wins over versions.env."""

    bases: Mapping[str, str]  # image → its base: {"builder": "ghcr.io/ggml-org/llama.cpp:full", …}
    extra_ca: Path | None
    proxies: Mapping[str, str] = field(repr=False)
    reverse_proxy: str = ""  # the image that the contract image takes its proxy from


@dataclass(frozen=True)
class KubeRequest:
    """How stages run as Jobs of Kubernetes (ENGINE=kubernetes). Secrets are named; the user made them."""

    namespace: str = ""  # "": that of the context
    context: str = ""  # of the kubeconfig; "": the current one
    image: str = ""  # of nodes: repository@sha256:…
    queue: str = ""  # of Kueue; "": no queue
    nodes: Mapping[str, str] = field(default_factory=dict)  # labels of the nodes that may run Jobs
    claim: str = ""  # the volume claim that STORE is on, and a folder in it: name/folder; "": STORE is s3://…
    s3_secret: str = ""  # with the key `credentials`, a file of AWS
    hf_secret: str = ""  # with the key HF_TOKEN
    pull_secret: str = ""  # of the registry
    store_cidr: str = ""  # the addresses of a store in S3; "": any
    cpus: int = 0  # of one stage; 0: most of a node
    memory_bytes: int = 0  # that one stage may have at most; 0: most of a node
    time_limit_s: float | None = None
    user: tuple[int, int] = (65532, 65532)  # uid and gid of pods


@dataclass(frozen=True)
class ClusterRequest:
    """How stages run as jobs of a cluster (ENGINE=slurm, kubernetes). An empty value leaves the choice to the queue."""

    store: str = ""  # of what machines share: a folder or s3://bucket/prefix; "": below ARTIFACTS
    scratch: str = "/tmp/quantyard-node"  # noqa: S108  (a folder of each node's own disk)
    node_engine: Literal["local", "docker", "podman"] = "local"
    registry: str = ""  # that nodes pull images from: host:port/path; "": they have their tools
    network_stages: Literal["nodes", "here"] = "nodes"  # where stages with a network run
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    gres: str = "gpu:1"  # for stages that use a GPU
    options: tuple[str, ...] = ()  # of sbatch, for every job
    cpus: int = 0  # of one stage; 0: all of a node
    time_limit_s: float | None = None  # None: as the stage's table says, at most the partition's
    python: Path = Path("python3")  # of the environment with Quantyard, on the nodes
    variables: Mapping[str, str] = field(default_factory=dict)  # of jobs; none is a secret
    kube: KubeRequest = field(default_factory=KubeRequest, repr=False)
    nodes_lack_token: bool = False  # the Hub token is set for this process, and in no file that nodes read


@dataclass(frozen=True)
class GarbageRequest:
    """What `gc` leaves: what is younger; and whether it only shows what it would remove."""

    keep_days: int
    dry_run: bool


@dataclass(frozen=True)
class MeasureRequest:
    """What the user wants measured. Where a value is None, the suite decides."""

    suite: str = ""
    baseline: Quant | None = None
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    num_fewshot: int | None = None
    seed: int | None = None
    datasets: Path | None = None
    allow_unsafe_code: bool = False
    n_gpu_layers: int = 0
    max_length: int = 0
    cache_types: tuple[str, ...] = ()  # of the KV cache; (): as the suite says
    runtime: RuntimeName | None = None  # measured beside llama.cpp; None: as the suite says
    shards: int | None = None  # that each measurement is divided into; None: by the number of nodes and files
    mix_nodes: bool = False  # compare speeds that were measured on machines of several kinds


@dataclass(frozen=True)
class ServeRequest:
    """How to serve without containers; compose.yaml reads the environment directly."""

    model_file: Path | None  # None: what was built last
    mmproj_file: Path | None  # what reads pictures or sound for it; None: one that lies beside it
    port: int
    context_size: int  # tokens; 0: as the model was trained
    n_gpu_layers: int
    cache_type: str = DEFAULT_CACHE  # of the KV cache


@dataclass(frozen=True)
class PackRequest:
    """What to call the image of a served model, and whether to push it."""

    tag: str
    push: bool


# What a publication may do once the user agrees, by the names that AGREE takes. To add one: add a row, and a function
# in publish/objections.py that finds it.
OBJECTIONS: Final = {
    "card": "replace a card that somebody wrote or edited",
    "files": "replace other files that Quantyard did not put there",
    "old-files": "leave older files of the same types beside the new ones",
    "private-source": "name a private source on a public card",
    "open-registry": "push files of a gated source where anybody may pull, or where that is not known",
}


@dataclass(frozen=True)
class PublishRequest:
    """Where a release is published, and the conditions for it."""

    repo_id: str = ""  # "": not on the Hub
    gate: Path | None = None  # None: the built-in budgets
    dry_run: bool = False
    yes: bool = False  # publish without asking
    allow_fail: bool = False
    agree: tuple[str, ...] = ()  # kinds of objections, see publish/objections.py
    license: str = ""  # "": as the source says
    public: bool = False
    branch: str = ""
    pull_request: bool = False
    split_above_bytes: int = 45 * 2**30
    oci: str = ""  # registry/repository[:tag]
    cosign_key: Path | None = None
    docker_config: Path = Path("~/.docker/config.json")  # with the logins of registries
    only: bool = False  # the folder `release` holds these files alone


@dataclass(frozen=True)
class CheckRequest:
    """What `verify` checks."""

    repo_id: str
    file: Path | None
    rebuild: bool


@dataclass(frozen=True)
class ForeignRequest:
    """The files that other people made, for `compare`.

    Attributes:
        places: repos `org/name[@revision]`, folders, GGUF files, `ollama:name:tag` of the store, `ollama://name:tag` of
            Ollama's registry.
        wanted: quants, patterns of file names, or `all`; (): the quants of our own files.
        ollama: the folder of Ollama's store.
        docker_config: with the logins of registries.
    """

    places: tuple[str, ...]
    wanted: tuple[str, ...]
    ollama: Path
    docker_config: Path = Path("~/.docker/config.json")


@dataclass(frozen=True)
class ChooseRequest:
    """The limits that the file named by `choose` must meet, and how it will be served."""

    quants: tuple[str, ...] = ()  # to choose from; (): all that were measured
    ram_bytes: int | None = None  # None: as much as this machine has
    min_tokens_per_s: float = 0.0  # generated
    max_kld: float | None = None  # mean KL divergence, nats
    context_tokens: int = 0  # 0: as the model was trained, at most 8,192
    parallel: int = 4  # requests answered at once
    cache_type: str = DEFAULT_CACHE  # of the KV cache to serve with, see protocol.cache_types


@dataclass(frozen=True)
class TuneRequest:
    """The goal of a search of tensor types, a size or a divergence, and how fine the search is."""

    target_bytes: int | None = None
    target_quant: str = ""  # the size of this stock quant
    target_kld: float | None = None  # mean KL divergence, nats
    parts: int = 3  # of the depth, each with its own types
    chunks: int = 16  # of 512 tokens that a probe reads; 0: the whole text
    types: tuple[str, ...] = ()  # of tensors, to choose from; (): all that the search knows


@dataclass(frozen=True)
class BuildRequest:
    """The whole request of one command. Parts that a command does not use are None."""

    model: str
    quants: tuple[Quant, ...]  # the default if `quants_given` is false
    outtype: OutType
    engine: EngineName
    artifacts: Path
    gguf_file: str | None
    allow_pickle: bool
    allow_requantize: bool
    allow_mismatch: tuple[str, ...]
    threads: int
    workers: int
    json: bool
    endpoint: str | None
    hf_token: str | None = field(repr=False)
    environment: RunEnvironment
    images: ImageSettings
    measure: MeasureRequest | None  # None: nothing
    serve: ServeRequest | None
    pack: PackRequest | None
    publish: PublishRequest | None
    check: CheckRequest | None
    choose: ChooseRequest | None
    matrix_quants: str  # "": as the preset says, or one of each size
    adapter: str
    base: str  # "": what the adapter names
    command: str = "build"  # for hints
    nodes: int = 0  # machines that a plan is shown for; 0: this one
    garbage: GarbageRequest | None = None
    find: str = ""  # what the rows of a list must hold
    quants_given: bool = True  # False: commands on built files take all of them
    parity: Parity = "twin"
    allow_twin_mismatch: bool = False
    parts: Parts = "all"
    tune: TuneRequest | None = None
    foreign: ForeignRequest | None = None
    cluster: ClusterRequest = field(default_factory=ClusterRequest)
    llama_cpp: str = ""  # of `bump`: a tag, an image, or with ENGINE=local a virtual environment
    imatrix: str = ""  # auto, none, or a file; "": auto for a matrix, else none
    chunks: int = 0  # of 512 tokens that are read for it; 0: the whole text
    calibration: tuple[Path, ...] = ()  # texts to make the matrix of; (): Quantyard's text
