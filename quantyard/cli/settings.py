"""Everything a user can decide, in one table; argv and the environment are read here and nowhere else.

Make passes its variables on as environment variables, so `make build MODEL=x` and `quantyard build --model x`
meet in the same row. An option on the command line wins over the environment.
"""

from __future__ import annotations

import argparse
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantyard.cli.values import (
    endpoint,
    flag,
    integer,
    one_of,
    optional,
    plain,
    proxy,
    readable,
    size,
    token,
    with_password,
)
from quantyard.engines import Surroundings
from quantyard.engines.images import RECIPES, ImageSettings
from quantyard.errors import BadRequest, UnknownQuant
from quantyard.files.own_files import kind_of, path_of, read_named
from quantyard.formatting.printable import has_user_info
from quantyard.quants.catalog import Quant, find, of_recipe, parse_list
from quantyard.requests import (
    BuildRequest,
    CheckRequest,
    ChooseRequest,
    MeasureRequest,
    PackRequest,
    PublishRequest,
    ServeRequest,
    TuneRequest,
)

REPO_DIR = Path(__file__).resolve().parents[2]
# Where a CA is named for this machine's own programs, the containers need it just the same.
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
_PEM = re.compile(rb"-----BEGIN [^-]+-----.+?-----END [^-]+-----", re.DOTALL)
_MAX_PEM_BYTES = 16 * 2**20  # of a bundle; all of the world's authorities have a quarter of a MiB
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")


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


def add_options(parser: argparse.ArgumentParser, names: Sequence[str] | None = None) -> None:
    """Give a parser the options of these settings (all of them by default)."""
    for setting in SETTINGS:
        if setting.secret or (names is not None and setting.name not in names):
            continue
        option = "--" + setting.name.lower().replace("_", "-")
        text = f"{setting.help} [{setting.name}={setting.default}]".replace("%", "%%")
        if setting.flag:
            parser.add_argument(option, dest=setting.name, action="store_const", const="1", help=text)
        else:
            parser.add_argument(option, dest=setting.name, metavar="X", help=text)


def read_request(args: argparse.Namespace, environment: Mapping[str, str]) -> BuildRequest:
    """The frozen request of this command line in this environment.

    Raises:
        BadRequest: a value that cannot be.
    """
    values = {s.name: _value(s, args, environment) for s in SETTINGS}
    for setting in SETTINGS:
        if not (setting.secret or setting.private):
            plain(setting.name, values[setting.name])
    for name in ("OCI", "TAG", "LLAMA_CPP_IMAGE", "EVAL_BASE_IMAGE"):  # addresses without https://
        if has_user_info(values[name]):
            raise with_password(name)
    pins = read_pins(REPO_DIR / "versions.env")
    proxies = _proxies(values, environment, getattr(args, "HTTPS_PROXY", None) or "")
    extra_ca = _extra_ca(values["EXTRA_CA"] or _first(environment, _CA_VARIABLES))
    artifacts = path_of(values["ARTIFACTS"]).absolute()
    pinned = {name: values[name] or pin for name, pin in pins.items() if name in values}
    bases = {name: ":".join(pinned[pin] for pin in recipe.pin) for name, recipe in RECIPES.items()}
    reverse_proxy = environment.get("PROXY") or f"{pins['PROXY_IMAGE']}:{pins['PROXY_TAG']}"  # as compose.yaml has it
    hf_token = token("HF_TOKEN", values["HF_TOKEN"]) or _stored_token(environment)
    return BuildRequest(
        model=values["MODEL"], quants=_quants(values, args, environment),
        outtype=one_of("OUTTYPE", values["OUTTYPE"].lower(), ("auto", "bf16", "f16", "f32", "q8_0")),  # type: ignore[arg-type]
        engine=one_of("ENGINE", values["ENGINE"].lower(), ("auto", "docker", "local")),  # type: ignore[arg-type]
        artifacts=artifacts, gguf_file=values["GGUF_FILE"] or None,
        allow_pickle=flag("ALLOW_PICKLE", values), allow_requantize=flag("ALLOW_REQUANTIZE", values),
        allow_mismatch=flag("ALLOW_MISMATCH", values),
        threads=integer("THREADS", values, 0, 1024), workers=integer("WORKERS", values, 1, 32),
        json=flag("JSON", values), endpoint=endpoint(values["HF_ENDPOINT"]), hf_token=hf_token,
        surroundings=Surroundings(
            repo_dir=REPO_DIR, hf_token=hf_token, proxies=proxies,
            ca_bundle=_ca_bundle(extra_ca, artifacts), memory_bytes=_memory(values["MEMORY"]),
        ),
        images=ImageSettings(bases, extra_ca, proxies, reverse_proxy),
        measure=_measure(values) if hasattr(args, "SUITE") else None,
        serve=_serve(values) if hasattr(args, "PORT") else None,
        pack=PackRequest(values["TAG"], flag("PUSH", values)) if hasattr(args, "TAG") else None,
        publish=_publish(values, environment) if hasattr(args, "GATE") else None,
        check=_check(values) if hasattr(args, "REBUILD") else None,
        choose=_choose(values, getattr(args, "QUANT", None) or environment.get("QUANT", ""))
        if hasattr(args, "MIN_TPS") else None,
        tune=_tune(values) if hasattr(args, "TARGET_KLD") else None,
        matrix_quants=values["QUANTS"] if hasattr(args, "QUANTS") else "",
        adapter=values["ADAPTER"], base=values["BASE"],
        imatrix=_imatrix(values), chunks=_chunks(values, 0),
        calibration=tuple(Path(name.strip()) for name in values["CALIBRATION"].split(",") if name.strip()),
    )


def _publish(values: Mapping[str, str], environment: Mapping[str, str]) -> PublishRequest:
    docker = path_of(environment.get("DOCKER_CONFIG") or "~/.docker")
    return PublishRequest(
        repo_id=values["REPO"], gate=readable("GATE", values), dry_run=flag("DRY_RUN", values),
        allow_fail=flag("ALLOW_FAIL", values), license=values["LICENSE"], public=flag("PUBLIC", values),
        branch=values["HUB_BRANCH"], pull_request=flag("HUB_PR", values),
        split_above_bytes=size("SPLIT_ABOVE", values["SPLIT_ABOVE"], 1, "1 byte", of_file=True),
        oci=values["OCI"], cosign_key=readable("COSIGN_KEY", values), docker_config=docker / "config.json",
    )


def _imatrix(values: Mapping[str, str]) -> str:
    text = values["IMATRIX"] or ("auto" if values["CALIBRATION"] else "")
    return text.lower() if text.lower() in ("auto", "none") else text


def _chunks(values: Mapping[str, str], default: int) -> int:
    return integer("CHUNKS", values, 0, 10_000) if values["CHUNKS"] else default


def _check(values: Mapping[str, str]) -> CheckRequest:
    file = path_of(values["FILE"]).absolute() if values["FILE"] else None
    return CheckRequest(repo_id=values["REPO"], file=file, rebuild=flag("REBUILD", values))


def _choose(values: Mapping[str, str], quants: str) -> ChooseRequest:
    return ChooseRequest(
        quants=tuple(quant.name for quant in parse_list(quants)) if quants else (),
        ram_bytes=size("RAM", values["RAM"], 2**20, "1 MiB") if values["RAM"] else None,
        min_tokens_per_s=_decimal("MIN_TPS", values),
        max_kld=_decimal("MAX_KLD", values) if values["MAX_KLD"] else None,
        context_tokens=integer("CONTEXT_SIZE", values, 0, 2**24), parallel=integer("PARALLEL", values, 1, 256),
    )


def _quants(values: Mapping[str, str], args: argparse.Namespace, environment: Mapping[str, str]) -> tuple[Quant, ...]:
    """QUANT, which may name recipes, and RECIPE; without QUANT the recipes alone."""
    if not values["RECIPE"]:
        return parse_list(values["QUANT"])
    from quantyard.quants.recipe import read_recipe, refuse_doubles  # imported late: it needs a YAML parser

    own = [read_recipe(path_of(name.strip())) for name in values["RECIPE"].split(",") if name.strip()]
    refuse_doubles(own)
    asked = getattr(args, "QUANT", None) or environment.get("QUANT")
    found = {quant.name: quant for quant in (*(parse_list(asked, own) if asked else ()), *map(of_recipe, own))}
    return tuple(found.values())


def _tune(values: Mapping[str, str]) -> TuneRequest:
    target = values["TARGET_SIZE"]
    quant = _named_quant("TARGET_SIZE", target).name if target and not target[0].isdigit() else ""
    kld = _decimal("TARGET_KLD", values) if values["TARGET_KLD"] else None
    if kld == 0:
        raise BadRequest("TARGET_KLD=0 is reached by the unquantized model alone.", "Type: TARGET_KLD=0.05")
    return TuneRequest(
        target_bytes=size("TARGET_SIZE", target, 1, "1 byte", of_file=True) if target and not quant else None,
        target_quant=quant, target_kld=kld, parts=integer("PARTS", values, 1, 100),
        chunks=_chunks(values, 16),
        types=tuple(name.strip().upper() for name in values["TYPES"].split(",") if name.strip()),
    )


def _decimal(name: str, values: Mapping[str, str]) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,18})?|\.[0-9]{1,18}", values[name]):
        message = f"{name}={values[name][:80]} is not a number of at least 0."
        raise BadRequest(message, f"Write it like this: {name}=0.05")
    return float(values[name])


def _serve(values: Mapping[str, str]) -> ServeRequest:
    path = path_of(values["MODEL_FILE"]).absolute() if values["MODEL_FILE"] else None
    return ServeRequest(
        model_file=path, port=integer("PORT", values, 1, 65_535),
        context_size=integer("CONTEXT_SIZE", values, 0, 2**24),
        n_gpu_layers=integer("N_GPU_LAYERS", values, -1, 10_000),
    )


def _measure(values: Mapping[str, str]) -> MeasureRequest:
    return MeasureRequest(
        suite=values["SUITE"], baseline=_named_quant("BASELINE", values["BASELINE"]) if values["BASELINE"] else None,
        tasks=tuple(dict.fromkeys(name for name in re.split(r"[,\s]+", values["TASKS"]) if name)),
        limit=optional("LIMIT", values, 1, 10**9), num_fewshot=optional("NUM_FEWSHOT", values, 0, 1000),
        seed=optional("SEED", values, 0, 2**32 - 1), datasets=_datasets(values["DATASETS"]),
        allow_unsafe_code=flag("ALLOW_UNSAFE_CODE", values),
        n_gpu_layers=integer("N_GPU_LAYERS", values, -1, 10_000), max_length=integer("MAX_LENGTH", values, 0, 2**24),
    )


def read_pins(path: Path) -> dict[str, str]:
    """The pins of versions.env."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def _value(setting: Setting, args: argparse.Namespace, environment: Mapping[str, str]) -> str:
    given = getattr(args, setting.name, None)
    if given is None:
        given = environment.get(setting.name) or setting.default
    return str(given)


def _proxies(values: Mapping[str, str], environment: Mapping[str, str], option: str) -> dict[str, str]:
    if "@" in option:
        message = "The option --https-proxy holds a user's name or password, and every user of this machine sees it."
        raise BadRequest(message, "Set the variable HTTPS_PROXY in its place.")
    found = {name: environment[name] for name in _spellings(_PROXIES) if environment.get(name)}
    if values["HTTPS_PROXY"]:
        found["HTTPS_PROXY"] = values["HTTPS_PROXY"]
    return {name: url if name.upper() == "NO_PROXY" else proxy(name, url) for name, url in found.items()}


def _stored_token(environment: Mapping[str, str]) -> str | None:
    """The token that `hf auth login` left, where huggingface_hub keeps it (its constants.HF_TOKEN_PATH)."""
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or f"{cache}/huggingface"
    path = path_of(environment.get("HF_TOKEN_PATH") or f"{home}/token")
    try:
        return token(str(path), path.read_text().strip())
    except (OSError, UnicodeDecodeError):
        return None


def _first(environment: Mapping[str, str], names: Sequence[str]) -> str:
    return next((environment[name] for name in names if environment.get(name)), "")


def _spellings(names: Sequence[str]) -> list[str]:
    return [*names, *(name.lower() for name in names)]


def _named_quant(name: str, text: str) -> Quant:
    try:
        return find(text)
    except UnknownQuant as error:
        raise UnknownQuant(f"{name}={text[:80]}: {error.message}", error.hint) from error


def _datasets(text: str) -> Path | None:
    path = path_of(text).absolute() if text else None
    if path is not None and not path.is_dir():
        hint = "Give a copy of the folder `files` that the stage `datasets` left on a machine with a network."
        raise BadRequest(f"DATASETS={text} is not a folder.", hint)
    return path


def _memory(text: str) -> int | None:
    return size("MEMORY", text, 256 * 2**20, "256 MiB") if text else None


def _extra_ca(text: str) -> Path | None:
    if not text:
        return None
    path = path_of(text).absolute()
    if kind_of(path) != "file" or b"-----BEGIN" not in _bundle_bytes(path):
        raise BadRequest(f"EXTRA_CA={text} is not a PEM file.", "Give the file with the proxy's certificate.")
    return path


def _bundle_bytes(path: Path) -> bytes:
    try:
        return read_named(path, _MAX_PEM_BYTES)
    except ValueError:
        return b""


def _ca_bundle(extra_ca: Path | None, artifacts: Path) -> Path | None:
    """The system's certificates and EXTRA_CA in one file: the libraries take one bundle, and it replaces theirs."""
    if extra_ca is None:
        return None
    import certifi  # comes with requests, which the Docker SDK needs

    system = Path(ssl.get_default_verify_paths().cafile or certifi.where())
    bundle = artifacts / ".ca-bundle.pem"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    # Each once: a second request of this process finds the bundle of the first where the system's is named.
    content = b"\n".join(dict.fromkeys(_PEM.findall(system.read_bytes() + b"\n" + extra_ca.read_bytes()))) + b"\n"
    if not (bundle.is_file() and bundle.read_bytes() == content):
        temporary = bundle.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(content)
        temporary.rename(bundle)
    return bundle
