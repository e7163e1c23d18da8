"""Turns argv, the environment and the settings file into the frozen request; no other module does.

Make passes its variables on as environment variables, so `make build MODEL=x` and `quantyard build --model x` use the
same row of the settings.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantyard.cli.cluster_request import typed_cluster_request
from quantyard.cli.commands import COMMANDS
from quantyard.cli.precedence import NO_FILE, GivenSetting, resolve_settings
from quantyard.cli.settings import SETTINGS
from quantyard.cli.settings_file import SettingsFile, read_settings_file
from quantyard.cli.values import (
    agree_setting,
    endpoint_setting,
    flag_setting,
    integer_setting,
    mismatch_setting,
    one_of_setting,
    optional_integer_setting,
    password_setting_error,
    plain_setting,
    proxy_setting,
    readable_file_setting,
    size_setting,
    token_setting,
    whole_list_setting,
)
from quantyard.engines.images import RECIPES
from quantyard.errors import BadRequest, UnknownQuant
from quantyard.files.own_files import kind_of_path, read_named_file, typed_file_path
from quantyard.formatting.printable import url_has_user_info
from quantyard.paths import REPO_DIR, local_venv_path, read_pins
from quantyard.protocol.cache_types import DEFAULT_CACHE, cache_type_name
from quantyard.quants.catalog import Quant, find_quant, nearest_quant_name
from quantyard.quants.selection import parse_quants, quant_of_recipe
from quantyard.requests import (
    ENGINES,
    BuildRequest,
    CheckRequest,
    ChooseRequest,
    ForeignRequest,
    GarbageRequest,
    ImageSettings,
    MeasureRequest,
    PackRequest,
    PublishRequest,
    RunEnvironment,
    ServeRequest,
    TuneRequest,
)

if TYPE_CHECKING:  # most commands use none of these models
    from quantyard.protocol.builder import Parts
    from quantyard.protocol.openvino import RuntimeName

# Variables with which programs of this machine name a CA; the containers need it too.
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
_PEM = re.compile(rb"-----BEGIN [^-]+-----.+?-----END [^-]+-----", re.DOTALL)
_MAX_PEM_BYTES = 16 * 2**20  # of a bundle; that of all public authorities has a quarter of a MiB
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")


def command_request(args: argparse.Namespace) -> BuildRequest:
    """The request of a command; configures proxies and certificates for the libraries of this process."""
    request = read_command_request(args, os.environ, read_settings_file(Path.cwd()))
    configure_http_libraries(request)
    return request


def read_command_request(
    args: argparse.Namespace, environment: Mapping[str, str], file: SettingsFile = NO_FILE
) -> BuildRequest:
    """The frozen request of this command line, environment and settings file.

    Raises:
        BadRequest: a value is not valid.
    """
    given = resolve_settings(args, environment, file)
    try:
        return _typed_build_request(given, args, environment)
    except BadRequest as error:
        named = re.match(r"[A-Z_]+", error.message)
        if named and named[0] in given and given[named[0]].origin == "file":
            raise type(error)(f"{file.where}: {error.message}", error.hint) from error
        raise


def _typed_build_request(
    given: Mapping[str, GivenSetting], args: argparse.Namespace, environment: Mapping[str, str]
) -> BuildRequest:
    values = {name: one.text for name, one in given.items()}
    for setting in SETTINGS:
        if not (setting.secret or setting.private):
            plain_setting(setting.name, values[setting.name])
        if setting.kind in ("list", "paths"):
            whole_list_setting(setting.name, values[setting.name])
    for name in ("OCI", "TAG", "LLAMA_CPP_IMAGE", "EVAL_BASE_IMAGE"):  # addresses without https://
        if url_has_user_info(values[name]):
            raise password_setting_error(name)
    pins = read_pins(REPO_DIR / "versions.env")
    proxies = _typed_proxies(values, environment, getattr(args, "HTTPS_PROXY", None) or "")
    extra_ca = _extra_ca(values["EXTRA_CA"] or _first_variable_set(environment, _CA_VARIABLES))
    artifacts = typed_file_path(values["ARTIFACTS"]).absolute()
    pinned = {name: values[name] or pin for name, pin in pins.items() if name in values}
    bases = {name: ":".join(pinned[pin] for pin in recipe.pin) for name, recipe in RECIPES.items()}
    reverse_proxy = environment.get("PROXY") or f"{pins['PROXY_IMAGE']}:{pins['PROXY_TAG']}"  # as compose.yaml has it
    hf_token = token_setting("HF_TOKEN", values["HF_TOKEN"]) or command_hub_token(environment)
    return BuildRequest(
        model=values["MODEL"], quants=_typed_quants(values, asked=given["QUANT"].origin != "default"),
        command=next((row.name for row in COMMANDS if row.function == getattr(args, "command", "")), "build"),
        find=values["FIND"],
        quants_given=given["QUANT"].origin != "default" or bool(values["RECIPE"]),
        outtype=one_of_setting("OUTTYPE", values["OUTTYPE"].lower(), ("auto", "bf16", "f16", "f32", "q8_0")),  # type: ignore[arg-type]
        engine=one_of_setting("ENGINE", values["ENGINE"].lower(), ENGINES),  # type: ignore[arg-type]
        artifacts=artifacts, gguf_file=values["GGUF_FILE"] or None,
        allow_pickle=flag_setting("ALLOW_PICKLE", values), allow_requantize=flag_setting("ALLOW_REQUANTIZE", values),
        allow_mismatch=mismatch_setting("ALLOW_MISMATCH", values),
        parity=one_of_setting("PARITY", values["PARITY"].lower(), ("twin", "full", "off")),  # type: ignore[arg-type]
        allow_twin_mismatch=flag_setting("ALLOW_TWIN_MISMATCH", values), parts=_typed_tune_parts(values["PARTS"]),
        threads=integer_setting("THREADS", values, 0, 1024), workers=integer_setting("WORKERS", values, 1, 32),
        json=flag_setting("JSON", values), endpoint=endpoint_setting(values["HF_ENDPOINT"]), hf_token=hf_token,
        environment=RunEnvironment(
            repo_dir=REPO_DIR, local_venv=local_venv_path(environment),
            openvino_venv=local_venv_path(environment, "openvino"), hf_token=hf_token, proxies=proxies,
            ca_bundle=_ca_bundle(extra_ca, artifacts), memory_bytes=_typed_memory_limit(values["MEMORY"]),
            set_up={name: values[name] for name in ("LLAMA_WHEEL", "LLAMA_WHEEL_INDEX")}
            | ({"EXTRA_CA": str(extra_ca)} if extra_ca else {}),
        ),
        images=ImageSettings(bases, extra_ca, proxies, reverse_proxy),
        nodes=integer_setting("NODES", values, 1, 10_000) if values["NODES"] else 0,
        measure=_typed_measure_request(values) if hasattr(args, "SUITE") else None,
        serve=_typed_serve_request(values) if hasattr(args, "PORT") else None,
        pack=PackRequest(values["TAG"], flag_setting("PUSH", values)) if hasattr(args, "TAG") else None,
        publish=_typed_publish_request(values, environment) if hasattr(args, "GATE") else None,
        check=_typed_check_request(given, values) if hasattr(args, "REBUILD") else None,
        choose=_typed_choose_request(values, "" if given["QUANT"].origin == "default" else values["QUANT"])
        if hasattr(args, "MIN_TPS") else None,
        tune=_typed_tune_request(values) if hasattr(args, "TARGET_KLD") else None,
        matrix_quants=values["QUANTS"] if hasattr(args, "QUANTS") else "",
        llama_cpp=values["LLAMA_CPP"],
        garbage=GarbageRequest(integer_setting("KEEP_DAYS", values, 0, 36_500), flag_setting("DRY_RUN", values))
        if hasattr(args, "KEEP_DAYS") else None,
        cluster=typed_cluster_request(values, environment, command_hub_token(environment), values["ENGINE"].lower()),
        foreign=_typed_foreign_request(values, environment) if hasattr(args, "REPOS") else None,
        adapter=values["ADAPTER"], base=values["BASE"],
        imatrix=_typed_imatrix(values), chunks=_typed_imatrix_chunks(values, 0),
        calibration=tuple(Path(name.strip()) for name in values["CALIBRATION"].split(",") if name.strip()),
    )


def _typed_tune_parts(text: str) -> Parts:
    """PARTS. A number was once what DEPTH_PARTS is now.

    Raises:
        BadRequest: it is neither.
    """
    if text.strip().isdigit():
        hint = f"For the parts of the depth, type: DEPTH_PARTS={text.strip()}"
        raise BadRequest(f"PARTS={text} is not all or text.", hint)
    return one_of_setting("PARTS", text.lower(), ("all", "text"))  # type: ignore[return-value]


def configure_http_libraries(request: BuildRequest) -> None:
    """Set proxies and certificates in the environment of this process, where its libraries read them."""
    os.environ.update(request.environment.proxies or {})
    if bundle := request.environment.ca_bundle:
        os.environ.update(SSL_CERT_FILE=str(bundle), PIP_CERT=str(bundle))


def _docker_config(environment: Mapping[str, str]) -> Path:
    """Where docker keeps the logins of registries."""
    return typed_file_path(environment.get("DOCKER_CONFIG") or "~/.docker") / "config.json"


def _typed_publish_request(values: Mapping[str, str], environment: Mapping[str, str]) -> PublishRequest:
    return PublishRequest(
        repo_id=values["REPO"], gate=readable_file_setting("GATE", values), dry_run=flag_setting("DRY_RUN", values),
        yes=flag_setting("YES", values), agree=agree_setting("AGREE", values),
        allow_fail=flag_setting("ALLOW_FAIL", values), license=values["LICENSE"], public=flag_setting("PUBLIC", values),
        branch=values["HUB_BRANCH"], pull_request=flag_setting("HUB_PR", values),
        split_above_bytes=size_setting("SPLIT_ABOVE", values["SPLIT_ABOVE"], 1, "1 byte", of_file=True),
        oci=values["OCI"], cosign_key=readable_file_setting("COSIGN_KEY", values),
        docker_config=_docker_config(environment), only=flag_setting("ONLY", values),
    )


def _typed_imatrix(values: Mapping[str, str]) -> str:
    text = values["IMATRIX"] or ("auto" if values["CALIBRATION"] else "")
    return text.lower() if text.lower() in ("auto", "none") else text


def _typed_imatrix_chunks(values: Mapping[str, str], default: int) -> int:
    return integer_setting("CHUNKS", values, 0, 10_000) if values["CHUNKS"] else default


def _typed_check_request(given: Mapping[str, GivenSetting], values: Mapping[str, str]) -> CheckRequest:
    """What to verify. A FILE that was typed wins over the repo of the settings file."""
    repo = "" if values["FILE"] and given["REPO"].origin == "file" else values["REPO"]
    file = typed_file_path(values["FILE"]).absolute() if values["FILE"] else None
    return CheckRequest(repo_id=repo, file=file, rebuild=flag_setting("REBUILD", values))


def _typed_choose_request(values: Mapping[str, str], quants: str) -> ChooseRequest:
    return ChooseRequest(
        quants=tuple(quant.name for quant in parse_quants(quants)) if quants else (),
        ram_bytes=size_setting("RAM", values["RAM"], 2**20, "1 MiB") if values["RAM"] else None,
        min_tokens_per_s=_typed_decimal("MIN_TPS", values),
        max_kld=_typed_decimal("MAX_KLD", values) if values["MAX_KLD"] else None,
        context_tokens=integer_setting("CONTEXT_SIZE", values, 0, 2**24),
        parallel=integer_setting("PARALLEL", values, 1, 256), cache_type=_typed_cache_type(values),
    )


def _typed_cache_type(values: Mapping[str, str]) -> str:
    """The one type to serve with; f16 if none is given."""
    names = _typed_cache_types(values)
    if len(names) > 1:
        message = f"CACHE_TYPE={values['CACHE_TYPE'][:80]} names {len(names)} types, and a server has one."
        raise BadRequest(message, f"Name one: CACHE_TYPE={names[0]}")
    return names[0] if names else DEFAULT_CACHE


def _typed_cache_types(values: Mapping[str, str]) -> tuple[str, ...]:
    """The types in CACHE_TYPE, each in its one spelling."""
    names = [name for name in re.split(r"[,\s]+", values["CACHE_TYPE"]) if name]
    try:
        return tuple(dict.fromkeys(cache_type_name(name) for name in names))
    except ValueError as error:
        message = f"CACHE_TYPE={values['CACHE_TYPE'][:80]} is not a type of a KV cache."
        raise BadRequest(message, f"{str(error).capitalize()}.") from error


def _typed_quants(values: Mapping[str, str], *, asked: bool) -> tuple[Quant, ...]:
    """QUANT, which may name recipes, and RECIPE; without QUANT the recipes alone."""
    if not values["RECIPE"]:
        return parse_quants(values["QUANT"])
    from quantyard.quants.recipe_files import (  # imported late: it needs a YAML parser
        read_quant_recipe,
        refuse_double_recipes,
    )

    own = [read_quant_recipe(typed_file_path(name.strip())) for name in values["RECIPE"].split(",") if name.strip()]
    refuse_double_recipes(own)
    stock = parse_quants(values["QUANT"], own) if asked else ()
    found = {quant.name: quant for quant in (*stock, *map(quant_of_recipe, own))}
    return tuple(found.values())


def _typed_tune_request(values: Mapping[str, str]) -> TuneRequest:
    target = values["TARGET_SIZE"]
    quant = _typed_target_quant(target) if target and not target[0].isdigit() else ""
    kld = _typed_decimal("TARGET_KLD", values) if values["TARGET_KLD"] else None
    if kld == 0:
        raise BadRequest("Only the unquantized model reaches TARGET_KLD=0.", "Type: TARGET_KLD=0.05")
    return TuneRequest(
        target_bytes=size_setting("TARGET_SIZE", target, 1, "1 byte", of_file=True) if target and not quant else None,
        target_quant=quant, target_kld=kld, parts=integer_setting("DEPTH_PARTS", values, 1, 100),
        chunks=_typed_imatrix_chunks(values, 16),
        types=tuple(name.strip().upper() for name in values["TYPES"].split(",") if name.strip()),
    )


def _typed_target_quant(text: str) -> str:
    try:
        return find_quant(text).name
    except UnknownQuant as error:
        near = nearest_quant_name(text)
        meant = f" Did you mean {near!r}?" if near else ""
        message = f"TARGET_SIZE={text[:80]} is neither a size nor a quantization type.{meant}"
        hint = "Write a size: TARGET_SIZE=4GiB; or a type, for the size that it has: TARGET_SIZE=Q4_K_M"
        raise BadRequest(message, hint) from error


def _typed_foreign_request(values: Mapping[str, str], environment: Mapping[str, str]) -> ForeignRequest:
    places, wanted = (
        tuple(name.strip() for name in values[setting].split(",") if name.strip()) for setting in ("REPOS", "FILES")
    )
    store = typed_file_path(environment.get("OLLAMA_MODELS") or "~/.ollama/models")
    return ForeignRequest(places, wanted, store, _docker_config(environment))


def _typed_decimal(name: str, values: Mapping[str, str]) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,18})?|\.[0-9]{1,18}", values[name]):
        message = f"{name}={values[name][:80]} is not a number of at least 0."
        raise BadRequest(message, f"Write it like this: {name}=0.05")
    return float(values[name])


def _typed_serve_request(values: Mapping[str, str]) -> ServeRequest:
    files = [
        typed_file_path(values[name]).absolute() if values[name] else None for name in ("MODEL_FILE", "MMPROJ_FILE")
    ]
    return ServeRequest(
        model_file=files[0], mmproj_file=files[1], port=integer_setting("PORT", values, 1, 65_535),
        context_size=integer_setting("CONTEXT_SIZE", values, 0, 2**24),
        n_gpu_layers=integer_setting("N_GPU_LAYERS", values, -1, 10_000), cache_type=_typed_cache_type(values),
    )


def _typed_measure_request(values: Mapping[str, str]) -> MeasureRequest:
    return MeasureRequest(
        suite=values["SUITE"],
        baseline=_typed_named_quant("BASELINE", values["BASELINE"]) if values["BASELINE"] else None,
        tasks=tuple(dict.fromkeys(name for name in re.split(r"[,\s]+", values["TASKS"]) if name)),
        limit=optional_integer_setting("LIMIT", values, 1, 10**9),
        num_fewshot=optional_integer_setting("NUM_FEWSHOT", values, 0, 1000),
        seed=optional_integer_setting("SEED", values, 0, 2**32 - 1),
        datasets=_typed_datasets_folder(values["DATASETS"]),
        allow_unsafe_code=flag_setting("ALLOW_UNSAFE_CODE", values),
        n_gpu_layers=integer_setting("N_GPU_LAYERS", values, -1, 10_000),
        mix_nodes=flag_setting("MIX_NODES", values),
        max_length=integer_setting("MAX_LENGTH", values, 0, 2**24),
        shards=optional_integer_setting("SHARDS", values, 1, 1000),
        cache_types=_typed_cache_types(values),
        runtime=_typed_runtime(values["RUNTIME"]),
    )


def _typed_runtime(text: str) -> RuntimeName | None:
    """The second runtime; None if none is given, or llama.cpp, in which all is measured anyway."""
    match text.strip().lower():
        case "" | "llama.cpp":
            return None
        case "openvino":
            return "openvino"
    from quantyard.protocol.openvino import RUNTIMES

    message = f"RUNTIME={text[:80]} is not a runtime that Quantyard measures in."
    raise BadRequest(message, f"Name one: {', '.join(RUNTIMES)}; or leave it out for llama.cpp alone.")


def _typed_proxies(values: Mapping[str, str], environment: Mapping[str, str], option: str) -> dict[str, str]:
    if "@" in option:
        message = "The option --https-proxy contains a user name or password, which every user of this machine sees."
        raise BadRequest(message, "Set the variable HTTPS_PROXY instead.")
    found = {name: environment[name] for name in _variable_spellings(_PROXIES) if environment.get(name)}
    if values["HTTPS_PROXY"]:
        found["HTTPS_PROXY"] = values["HTTPS_PROXY"]
    return {name: url if name.upper() == "NO_PROXY" else proxy_setting(name, url) for name, url in found.items()}


def command_hub_token(environment: Mapping[str, str]) -> str | None:
    """The token of `hf auth login`, from huggingface_hub's constants.HF_TOKEN_PATH; None without one."""
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or f"{cache}/huggingface"
    path = typed_file_path(environment.get("HF_TOKEN_PATH") or f"{home}/token")
    try:
        return token_setting(str(path), path.read_text())
    except (OSError, UnicodeDecodeError):
        return None


def _first_variable_set(environment: Mapping[str, str], names: Sequence[str]) -> str:
    return next((environment[name] for name in names if environment.get(name)), "")


def _variable_spellings(names: Sequence[str]) -> list[str]:
    return [*names, *(name.lower() for name in names)]


def _typed_named_quant(name: str, text: str) -> Quant:
    try:
        return find_quant(text)
    except UnknownQuant as error:
        raise UnknownQuant(f"{name}={text[:80]}: {error.message}", error.hint) from error


def _typed_datasets_folder(text: str) -> Path | None:
    path = typed_file_path(text).absolute() if text else None
    if path is not None and not path.is_dir():
        hint = "Give a copy of the folder `files` that the stage `datasets` left on a machine with a network."
        raise BadRequest(f"DATASETS={text} is not a folder.", hint)
    return path


def _typed_memory_limit(text: str) -> int | None:
    return size_setting("MEMORY", text, 256 * 2**20, "256 MiB") if text else None


def _extra_ca(text: str) -> Path | None:
    if not text:
        return None
    path = typed_file_path(text).absolute()
    if kind_of_path(path) != "file" or b"-----BEGIN" not in _typed_ca_bundle_bytes(path):
        raise BadRequest(f"EXTRA_CA={text} is not a PEM file.", "Give the file with the proxy's certificate.")
    return path


def _typed_ca_bundle_bytes(path: Path) -> bytes:
    try:
        return read_named_file(path, _MAX_PEM_BYTES)
    except ValueError:
        return b""


def _ca_bundle(extra_ca: Path | None, artifacts: Path) -> Path | None:
    """The system's certificates and EXTRA_CA in one file: the libraries take one bundle, and it replaces theirs."""
    if extra_ca is None:
        return None
    import ssl

    import certifi  # comes with requests, which the Docker SDK needs

    system = Path(ssl.get_default_verify_paths().cafile or certifi.where())
    bundle = artifacts / ".ca-bundle.pem"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    # Without duplicates: for a second request of this process, the system's bundle is that of the first.
    content = b"\n".join(dict.fromkeys(_PEM.findall(system.read_bytes() + b"\n" + extra_ca.read_bytes()))) + b"\n"
    if not (bundle.is_file() and bundle.read_bytes() == content):
        temporary = bundle.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(content)
        temporary.rename(bundle)
    return bundle
