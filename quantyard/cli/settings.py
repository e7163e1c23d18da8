"""The table of settings: everything that a user can decide."""

from __future__ import annotations

from typing import Final, Literal

from quantyard.records import dataclass

# The kind of a value decides the placeholder in `--help` and the type in quantyard.toml.
Kind = Literal["text", "list", "flag", "integer", "decimal", "size", "path", "paths"]


@dataclass(frozen=True)
class Setting:
    """One setting."""

    name: str  # the environment variable
    default: str
    group: str  # its heading in `--help`
    help: str
    kind: Kind = "text"
    secret: bool = False  # neither an option nor in a file: command lines are visible to all, files are committed
    private: bool = False  # may hold a password, and is never shown
    # Decides whose code runs here, who sees a token, or what is published. Not allowed in quantyard.toml, which a
    # downloaded folder may contain.
    trusted: bool = False
    placeholder: str = ""  # in `--help`, where the kind says too little

    @property
    def key(self) -> str:
        """Its name in quantyard.toml."""
        return self.name.lower().replace("_", "-")

    @property
    def option(self) -> str:
        """Its option on the command line; empty for a secret."""
        return "" if self.secret else f"--{self.key}"

    @property
    def flag(self) -> bool:
        """Whether its value is on or off."""
        return self.kind == "flag"

    @property
    def in_file(self) -> bool:
        """Whether quantyard.toml may hold it."""
        return not (self.secret or self.private or self.trusted)


# The headings of `--help`, in this order.
GROUPS: Final = (
    "model", "importance matrix", "tuning", "measuring", "comparing", "choosing", "serving", "publishing", "verifying",
    "running", "cluster", "looking up", "permissions", "network", "base images",
)  # fmt: skip

# To add a setting: add a row, name it in commands.py, and run `make reference`.
SETTINGS: Final = (
    Setting(
        "MODEL", "", "model",
        "org/name[@revision], a folder in Hugging Face format, a .gguf file, or a name of `make models`",
        placeholder="NAME|PATH",
    ),
    Setting(
        "QUANT", "Q4_K_M", "model",
        "types, comma-separated; `make quants` lists them; without it, commands on built files take all of them",
        "list",
        placeholder="TYPE,…",
    ),
    Setting(
        "QUANTS", "", "model", "the types of a matrix, comma-separated; default: the preset's, or one of each size",
        "list",
        placeholder="TYPE,…",
    ),
    Setting(
        "REPOS", "", "comparing",
        "GGUF files of others: org/name[@revision], folders, .gguf files, ollama:name:tag (Ollama's store), "
        "ollama://name:tag (its registry), comma-separated",
        "list",
        placeholder="PLACE,…",
    ),
    Setting(
        "FILES", "", "comparing",
        "which of them: quants (UD-Q4_K_XL), patterns (*IQ4*) or all; default: the quants of our own files", "list",
        placeholder="NAME,…",
    ),
    Setting("RECIPE", "", "model", "recipes of mixed precision (file.yaml), with or instead of QUANT", "paths"),
    Setting(
        "OUTTYPE", "auto", "model", "what to convert to: auto (bf16 unless it would lose bits), bf16, f16, f32, q8_0",
        placeholder="TYPE",
    ),
    Setting(
        "PARITY", "twin", "model",
        "compare with Transformers: twin (a small random model of the same kind), full (the model itself too), or off",
        placeholder="twin|full|off",
    ),
    Setting(
        "PARTS", "all", "model",
        "of a model that reads pictures or sound: all (with a projector), or text (its text model alone)",
        placeholder="all|text",
    ),
    Setting("GGUF_FILE", "", "model", "which file of a repo that holds several GGUFs"),
    Setting(
        "ADAPTER", "", "model", "a LoRA adapter in PEFT format: org/name[@revision], or a folder",
        placeholder="NAME|PATH",
    ),
    Setting(
        "BASE", "", "model", "the adapter's base model: org/name[@revision], or a folder; default: as the adapter says",
        placeholder="NAME|PATH",
    ),
    Setting(
        "IMATRIX", "", "importance matrix",
        "none, auto (used where it helps; the default of `matrix`), or a file.gguf; default: as the file was made",
        placeholder="none|auto|PATH",
    ),
    Setting(
        "CALIBRATION", "", "importance matrix", "text files to compute it from; default: the shipped text", "paths",
    ),
    Setting(
        "CHUNKS", "", "importance matrix", "chunks of 512 tokens to read; 0 or not given: all (tune: 16)", "integer"
    ),
    Setting(
        "TARGET_SIZE", "", "tuning", "the largest file allowed, such as 4GiB, or Q4_K_M: as large as that one", "text",
        placeholder="BYTES|TYPE",
    ),
    Setting("TARGET_KLD", "", "tuning", "the largest mean KL divergence allowed, in nats", "decimal"),
    Setting("DEPTH_PARTS", "3", "tuning", "number of parts of the depth, each with its own types", "integer"),
    Setting("TYPES", "", "tuning", "tensor types to choose from, such as Q4_K,Q6_K; default: all", "list"),
    Setting(
        "SUITE", "", "measuring",
        "smoke, quick (the default of `eval`), standard, full, behaviour, cache, or a file.yaml",
        placeholder="NAME|PATH",
    ),
    Setting(
        "BASELINE", "", "measuring", "the quant to compare with; default: the unquantized file", placeholder="TYPE",
    ),
    Setting("TASKS", "", "measuring", "tasks of lm-eval instead of the suite's, comma-separated", "list"),
    Setting("LIMIT", "", "measuring", "at most this many questions of each task", "integer"),
    Setting(
        "NUM_FEWSHOT", "", "measuring", "solved examples before each question; default: as the suite and task say",
        "integer",
    ),
    Setting("SEED", "", "measuring", "seed of every random choice; default: the suite's", "integer"),
    Setting(
        "DATASETS", "", "measuring", "folder of data sets from another machine, for use without a network", "path",
    ),
    Setting("N_GPU_LAYERS", "0", "measuring", "layers to put on the GPU; -1: all", "integer"),
    Setting(
        "MAX_LENGTH", "0", "measuring",
        "longest request in tokens; 0: what the model was trained for, at most 4096", "integer",
    ),
    Setting(
        "SHARDS", "", "measuring",
        "parts that each measurement is divided into, its numbers stay the same; default: nodes / files, at most 8",
        "integer",
    ),
    Setting(
        "MIX_NODES", "", "measuring", "compare speeds that were measured on machines of several kinds", "flag",
    ),
    Setting(
        "RAM", "", "choosing", "memory of the machine that will serve, such as 8GiB; default: this machine's", "size",
    ),
    Setting("MIN_TPS", "0", "choosing", "the least generated tokens/s, on the machine that measured", "decimal"),
    Setting("MAX_KLD", "", "choosing", "the largest mean KL divergence from the baseline, in nats", "decimal"),
    Setting("PARALLEL", "4", "choosing", "requests answered at once when serving", "integer"),
    Setting(
        "RUNTIME", "", "measuring",
        "a second runtime to measure each file in, beside llama.cpp: openvino (with ENGINE=local)",
    ),
    Setting(
        "CACHE_TYPE", "", "measuring",
        "types of the KV cache, such as q8_0, or q8_0/f16 for keys/values; `choose` and `serve` take a measured one",
        "list",
    ),
    Setting(
        "MODEL_FILE", "", "serving",
        "what to serve this time: a .gguf or a folder of several; default: artifacts/served", "path",
    ),
    Setting(
        "MMPROJ_FILE", "", "serving",
        "what reads pictures or sound for it (mmproj-….gguf); default: the one in that folder, or of the last build",
        "path",
    ),
    Setting(
        "PORT", "8080", "serving", "the port to serve on, on the loopback interface; `image` prints it",
        "integer",
    ),
    Setting(
        "CONTEXT_SIZE", "0", "serving",
        "tokens of context; 0: what fits (`choose`: as trained, up to 8192)", "integer",
    ),
    Setting("REPO", "", "publishing", "the Hub repo to publish to, or to verify: me/name-GGUF", placeholder="ME/NAME"),
    Setting(
        "OCI", "", "publishing", "also publish to this registry, for `docker model pull`: registry/name[:tag]",
        placeholder="REGISTRY/NAME",
    ),
    Setting("GATE", "", "publishing", "budgets to meet before publishing, a file.yaml; default: ours", "path"),
    Setting("DRY_RUN", "", "publishing", "show what would be published, or removed (`gc`), and do nothing", "flag"),
    Setting(
        "YES", "", "publishing",
        "publish, or replace a file (`init`), without being asked; needed where there is no terminal to ask on", "flag",
        trusted=True,
    ),
    Setting(
        "AGREE", "", "publishing",
        "what may be done without asking, comma-separated: card, files (replaced there), old-files (left beside), "
        "private-source, open-registry", "list", trusted=True,
    ),
    Setting("PUBLIC", "", "publishing", "create the Hub repo public; default: private", "flag"),
    Setting("HUB_BRANCH", "", "publishing", "the branch to publish to; default: main"),
    Setting("HUB_PR", "", "publishing", "open a pull request instead of a commit", "flag"),
    Setting("LICENSE", "", "publishing", "the licence, where the source names none: apache-2.0, mit, ..."),
    Setting(
        "SPLIT_ABOVE", "45GiB", "publishing", "split larger files into parts, as the Hub's limit for a file requires",
        "size",
    ),
    Setting("COSIGN_KEY", "", "publishing", "private key with which cosign signs the registry's artifact", "path"),
    Setting("ALLOW_FAIL", "", "publishing", "publish although a budget is not met, and say so on the card", "flag"),
    Setting(
        "ONLY", "", "publishing", "take all but the files of QUANT out of the folder release; built ones stay", "flag",
    ),
    Setting(
        "TAG", "", "publishing", "the name of the image with the model inside, such as registry.example/team/model:q4",
        placeholder="REGISTRY/NAME",
    ),
    Setting("PUSH", "", "publishing", "push that image to its registry", "flag"),
    Setting("FILE", "", "verifying", "a GGUF, or the folder of a release", "path"),
    Setting("REBUILD", "", "verifying", "repeat the recorded steps and compare every byte", "flag"),
    Setting(
        "ENGINE", "auto", "running",
        "auto (docker if a daemon answers), docker, local; or slurm, kubernetes (jobs of a cluster)",
        placeholder="docker|local|slurm|kubernetes|auto",
    ),
    Setting(
        "LLAMA_WHEEL", "auto", "running",
        "llama.cpp of ENGINE=local: auto (upstream's wheel if it can be had, else compiled), compile, cpu, cu124, ...",
        trusted=True,
    ),
    Setting(
        "ARTIFACTS", "artifacts", "running", "the folder for results; default: $QUANTYARD_HOME/artifacts if set",
        "path",
    ),
    Setting(
        "THREADS", "0", "running", "threads of a stage; 0: all cores, and one per physical core to measure", "integer",
    ),
    Setting("WORKERS", "4", "running", "files to download at once", "integer"),
    Setting(
        "MEMORY", "", "running", "memory limit of a stage, such as 16GiB (docker engine); default: all but 512 MiB",
        "size",
    ),
    Setting("NODES", "", "running", "machines to plan for: shows waves, critical path and times", "integer"),
    Setting(
        "STORE", "", "cluster",
        "what machines share: a folder that all of them mount, or s3://bucket/prefix; default: below ARTIFACTS",
        trusted=True, placeholder="PATH|URL",
    ),
    Setting(
        "KEEP_DAYS", "7", "cluster",
        "what `gc` leaves: what is younger, such as attempts and second results (contents of a day always stay)",
        "integer",
    ),
    Setting(
        "SCRATCH", "/tmp/quantyard-node", "cluster",  # noqa: S108  (jobs may name another)
        "a folder of each node's own disk, for inputs and unfinished stages", placeholder="PATH",
    ),
    Setting(
        "NODE_ENGINE", "local", "cluster", "what runs a stage on a node: local (processes), docker or podman",
        placeholder="local|docker|podman",
    ),
    Setting(
        "NODE_REGISTRY", "", "cluster",
        "where docker and podman nodes pull images from, and this machine pushes them to, once",
        trusted=True, placeholder="HOST/PATH",
    ),
    Setting(
        "NETWORK_STAGES", "nodes", "cluster",
        "where models and data sets are downloaded: on nodes, or here, where the command is typed",
        placeholder="nodes|here",
    ),
    Setting("SLURM_PARTITION", "", "cluster", "the partition of ENGINE=slurm; default: Slurm's", placeholder="NAME"),
    Setting("SLURM_ACCOUNT", "", "cluster", "the account that its jobs are charged to", placeholder="NAME"),
    Setting("SLURM_QOS", "", "cluster", "their quality of service", placeholder="NAME"),
    Setting("SLURM_CONSTRAINT", "", "cluster", "features of the nodes that may run them", placeholder="FEATURES"),
    Setting("SLURM_GRES", "gpu:1", "cluster", "what stages with N_GPU_LAYERS ask for", placeholder="TYPE:N"),
    Setting(
        "SLURM_CPUS_PER_STAGE", "0", "cluster", "CPUs of one stage; 0: all of a node", "integer",
    ),
    Setting(
        "SLURM_TIME", "", "cluster",
        "the longest job, such as 12h or 1-12:00:00; default: as the stage and the partition", placeholder="12h",
    ),
    Setting(
        "SLURM_OPTIONS", "", "cluster", "more options of sbatch for every job, such as --reservation=NAME --nice=100",
        trusted=True, placeholder="--NAME=VALUE",
    ),
    Setting(
        "KUBE_IMAGE", "", "cluster", "the image of nodes of ENGINE=kubernetes, by digest: registry/name@sha256:…",
        trusted=True, placeholder="NAME@DIGEST",
    ),
    Setting(
        "KUBE_NAMESPACE", "", "cluster", "the namespace of its Jobs; default: the context's", trusted=True,
        placeholder="NAME",
    ),
    Setting(
        "KUBE_CONTEXT", "", "cluster", "the context of your kubeconfig; default: the current one", trusted=True,
        placeholder="NAME",
    ),
    Setting("KUBE_QUEUE", "", "cluster", "the LocalQueue of Kueue that its Jobs wait in", placeholder="NAME"),
    Setting(
        "KUBE_NODES", "", "cluster", "labels of the nodes that may run them", "list", placeholder="LABEL=VALUE,…",
    ),
    Setting(
        "KUBE_CLAIM", "", "cluster", "the volume claim that STORE is on, and the folder in it", trusted=True,
        placeholder="NAME/FOLDER",
    ),
    Setting(
        "KUBE_S3_SECRET", "", "cluster", "a Secret whose key `credentials` is a file of AWS, for STORE=s3://…",
        trusted=True, placeholder="NAME",
    ),
    Setting(
        "KUBE_STORE_CIDR", "", "cluster", "the addresses of that store; default: any, at its port", trusted=True,
        placeholder="RANGE",
    ),
    Setting(
        "KUBE_HF_SECRET", "", "cluster", "a Secret whose key HF_TOKEN is the Hub's token", trusted=True,
        placeholder="NAME",
    ),
    Setting(
        "KUBE_PULL_SECRET", "", "cluster", "a Secret for the registry of KUBE_IMAGE", trusted=True, placeholder="NAME",
    ),
    Setting(
        "KUBE_CPUS_PER_STAGE", "0", "cluster", "CPUs of one stage; 0: those of the smallest node but one", "integer",
    ),
    Setting(
        "KUBE_MEMORY_PER_STAGE", "", "cluster",
        "the most memory of one stage; default: nine tenths of the smallest node's", "size",
    ),
    Setting("KUBE_TIME", "", "cluster", "the longest Job, such as 12h; default: as the stage", placeholder="12h"),
    Setting("JSON", "", "running", "print one JSON object on stdout and nothing else there", "flag"),
    Setting("FIND", "", "looking up", "show only the rows that hold this text, with all their notes"),
    Setting(
        "ALLOW_PICKLE", "", "permissions", "convert pickle checkpoints (.bin, .pt), which can run code", "flag",
        trusted=True,
    ),
    Setting("ALLOW_REQUANTIZE", "", "permissions", "quantize a GGUF or a model that is already quantized", "flag"),
    Setting(
        "ALLOW_MISMATCH", "", "permissions",
        "kinds of texts that may differ from what the model's own files say, comma-separated: plain-text, script:NAME",
        "list",
    ),
    Setting(
        "ALLOW_TWIN_MISMATCH", "", "permissions",
        "build a model whose twin llama.cpp computes otherwise than Transformers, and record it", "flag",
    ),
    Setting(
        "ALLOW_UNSAFE_CODE", "", "permissions", "run tasks that execute code which the model wrote", "flag",
        trusted=True,
    ),
    Setting(
        "HF_TOKEN", "", "network", "Hub token for gated and private models; `hf auth login` works too", secret=True,
    ),
    Setting(
        "HF_ENDPOINT", "", "network", "another address of the Hub, such as a mirror", trusted=True, placeholder="URL",
    ),
    Setting(
        "LLAMA_WHEEL_INDEX", "", "network", "another address of upstream's index of wheels, such as a mirror",
        trusted=True,
    ),
    Setting(
        "HTTPS_PROXY", "", "network", "proxy for stages with a network; HTTP_PROXY, ALL_PROXY, NO_PROXY likewise",
        private=True,
        placeholder="URL",
    ),
    Setting(
        "EXTRA_CA", "", "network",
        "PEM file with the CA of a TLS-inspecting proxy; SSL_CERT_FILE and the like count too",
        "path", trusted=True,
    ),
    Setting(
        "LLAMA_CPP", "", "base images",
        "the llama.cpp to compare with the recorded one: a tag, an image, or with ENGINE=local a virtual environment; "
        "default: the configured one", trusted=True, placeholder="TAG|IMAGE|PATH",
    ),
    Setting("LLAMA_CPP_IMAGE", "", "base images", "base of the builder image; default in versions.env", trusted=True),
    Setting("LLAMA_CPP_TAG", "", "base images", "its tag; default in versions.env", trusted=True),
    Setting(
        "LLAMA_CPP_SERVER_TAG", "", "base images", "the server's tag, such as server-cuda; default in versions.env",
        trusted=True,
    ),
    Setting("EVAL_BASE_IMAGE", "", "base images", "base of the eval image; default in versions.env", trusted=True),
    Setting("EVAL_BASE_TAG", "", "base images", "its tag; default in versions.env", trusted=True),
)  # fmt: skip

BY_NAME: Final = {setting.name: setting for setting in SETTINGS}
BY_KEY: Final = {setting.key: setting for setting in SETTINGS}
