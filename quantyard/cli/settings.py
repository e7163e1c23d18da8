"""Everything a user can decide, in one table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One thing a user can decide."""

    name: str  # the environment variable; the option is --name-in-lower-case
    default: str
    help: str
    flag: bool = False
    secret: bool = False  # never an option: command lines are visible to every user of the machine
    private: bool = False  # may hold a password, and is shown nowhere


# To add a setting: add a row, and a line to the table in README.md (a test compares the two).
SETTINGS = (
    Setting("MODEL", "", "org/name[@revision], a folder in Hugging Face format, a .gguf, or a name of `make models`"),
    Setting("QUANT", "Q4_K_M", "one or more quantization types, comma-separated; `make quants` lists them"),
    Setting("RECIPE", "", "recipes of mixed precision, file.yaml[,…], to make beside QUANT, or in its place"),
    Setting("OUTTYPE", "auto", "what to convert to: auto (bf16 unless it would lose bits), bf16, f16, f32, q8_0"),
    Setting("IMATRIX", "", "importance matrix: none, auto (used where better; a matrix' default), or a file.gguf"),
    Setting("CALIBRATION", "", "text files to make the matrix of, comma-separated; default: our own text"),
    Setting("CHUNKS", "", "chunks of 512 tokens that are read of it; 0, or not given: all (tune: 16)"),
    Setting("ENGINE", "auto", "auto (docker if a daemon answers), docker, or local"),
    Setting("ARTIFACTS", "artifacts", "the folder that keeps everything that is made"),
    Setting("GGUF_FILE", "", "which file of a repo that holds several GGUFs"),
    Setting("ALLOW_PICKLE", "", "1: convert pickle checkpoints (.bin, .pt), which can run code", flag=True),
    Setting("ALLOW_REQUANTIZE", "", "1: quantize a GGUF that is quantized already", flag=True),
    Setting("ALLOW_MISMATCH", "", "1: pass verify though tokenizer or chat template differ, and record it", flag=True),
    Setting("THREADS", "0", "threads of a stage; 0: all cores, and one per physical core for measuring"),
    Setting("WORKERS", "4", "files to download at once"),
    Setting("MEMORY", "", "memory limit of a stage, such as 16GiB (docker engine); default: all but 512 MiB"),
    Setting("JSON", "", "1: print one JSON object on stdout and nothing else there", flag=True),
    Setting("EXTRA_CA", "", "PEM file with the CA of a TLS-inspecting proxy; SSL_CERT_FILE and the like count too"),
    Setting("HF_TOKEN", "", "Hub token for gated and private models; `hf auth login` works too", secret=True),
    Setting("HF_ENDPOINT", "", "another Hub address, such as a mirror"),
    Setting(
        "HTTPS_PROXY", "", "proxy for stages with a network; HTTP_PROXY, ALL_PROXY, NO_PROXY likewise", private=True
    ),
    Setting("LLAMA_CPP_IMAGE", "", "base image of the builder; default in versions.env"),
    Setting("LLAMA_CPP_TAG", "", "its tag; default in versions.env"),
    Setting("LLAMA_CPP_SERVER_TAG", "", "the tag of the server image's base, as server-cuda; default in versions.env"),
    Setting("EVAL_BASE_IMAGE", "", "base image of the eval image; default in versions.env"),
    Setting("EVAL_BASE_TAG", "", "its tag; default in versions.env"),
    Setting("SUITE", "", "what to measure: smoke, quick (the default of `eval`), standard, full, or a file.yaml"),
    Setting("BASELINE", "", "the quant to compare with; default: the unquantized file the others are made of"),
    Setting("TASKS", "", "tasks of lm-eval in place of the suite's own, comma-separated"),
    Setting("LIMIT", "", "at most this many questions of each task"),
    Setting("NUM_FEWSHOT", "", "solved examples before each question; default: as the suite and the task say"),
    Setting("SEED", "", "seed of every random choice; default: the suite's"),
    Setting("DATASETS", "", "folder of data sets brought from elsewhere, for a site without a network"),
    Setting("ALLOW_UNSAFE_CODE", "", "1: allow tasks that run code which the model has written", flag=True),
    Setting("N_GPU_LAYERS", "0", "layers to put on the GPU while measuring; -1: all"),
    Setting("TAG", "", "the name of the image that `make image` makes, such as registry.example/team/model:q4"),
    Setting("PUSH", "", "1: push that image to its registry", flag=True),
    Setting("ADAPTER", "", "a LoRA adapter in PEFT format: org/name[@revision], or a folder"),
    Setting("BASE", "", "the model it was trained on: org/name[@revision], or a folder; default: as the adapter says"),
    Setting("MODEL_FILE", "", "what to serve: a .gguf or a folder of several; default: what was built last"),
    Setting("PORT", "8080", "the port to serve on, on the loopback interface"),
    Setting("CONTEXT_SIZE", "0", "tokens of context to serve with; 0: what fits; `choose`: as trained, up to 8192"),
    Setting("REPO", "", "where to publish, or what to verify: me/name-GGUF"),
    Setting("GATE", "", "budgets that must hold before anything is published, a file.yaml; default: ours"),
    Setting("DRY_RUN", "", "1: show what would be published where, and send nothing", flag=True),
    Setting("ALLOW_FAIL", "", "1: publish although the gate says no, and say so on the card", flag=True),
    Setting("LICENSE", "", "the licence, where the source names none: apache-2.0, mit, ..."),
    Setting("PUBLIC", "", "1: create the Hub repo public; default: private", flag=True),
    Setting("HUB_BRANCH", "", "the branch to publish to; default: main"),
    Setting("HUB_PR", "", "1: open a pull request in place of a commit", flag=True),
    Setting("SPLIT_ABOVE", "45GiB", "split files larger than this into parts, as the Hub's limit for a file asks for"),
    Setting("OCI", "", "publish to this registry too, for `docker model pull`: registry/name[:tag]"),
    Setting("COSIGN_KEY", "", "private key to sign the registry's artifact with, by cosign"),
    Setting("FILE", "", "a GGUF, or a folder of a release, to verify"),
    Setting("REBUILD", "", "1: let `verify` repeat the recorded steps and compare every byte", flag=True),
    Setting("QUANTS", "", "the types of a matrix, comma-separated; default: as the preset says, or one of each size"),
    Setting("RAM", "", "memory of the machine that will serve, such as 8GiB; default: this machine's"),
    Setting("MIN_TPS", "0", "the file must generate so many tokens/s, where it was measured"),
    Setting("MAX_KLD", "", "the file's mean KL divergence from the baseline must not be above this, in nats"),
    Setting("TARGET_SIZE", "", "tune: the file must not be larger, such as 4GiB, or Q4_K_M: as large as that one"),
    Setting("TARGET_KLD", "", "tune: its mean KL divergence must not be above this, in nats"),
    Setting("PARTS", "3", "tune: into how many parts the depth is cut, each with types of its own"),
    Setting("TYPES", "", "tune: tensor types to choose from, such as Q4_K,Q6_K; by default all that it knows"),
    Setting("PARALLEL", "4", "requests answered at once when serving"),
    Setting("MAX_LENGTH", "0", "longest request in tokens; 0: what the model was trained for, at most 4096"),
)


# The settings that only commands which measure have a use for.
MEASURING = (
    "SUITE", "BASELINE", "TASKS", "LIMIT", "NUM_FEWSHOT", "SEED", "DATASETS", "ALLOW_UNSAFE_CODE", "N_GPU_LAYERS",
    "MAX_LENGTH", "EVAL_BASE_IMAGE", "EVAL_BASE_TAG",
)  # fmt: skip


SERVING = ("MODEL_FILE", "PORT", "CONTEXT_SIZE")
PACKING = ("TAG", "PUSH")
ADAPTING = ("ADAPTER", "BASE")
PUBLISHING = (
    "REPO", "GATE", "DRY_RUN", "ALLOW_FAIL", "LICENSE", "PUBLIC", "HUB_BRANCH", "HUB_PR", "SPLIT_ABOVE", "OCI",
    "COSIGN_KEY",
)  # fmt: skip
# What a build may be allowed, and a rebuild therefore too.
ALLOWING = ("ALLOW_PICKLE", "ALLOW_REQUANTIZE", "ALLOW_MISMATCH")
CHECKING = ("REPO", "FILE", "REBUILD")
COMPARING = ("QUANTS",)
TUNING = ("TARGET_SIZE", "TARGET_KLD", "PARTS", "TYPES")
CHOOSING = ("RAM", "MIN_TPS", "MAX_KLD", "PARALLEL")
