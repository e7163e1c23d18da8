"""Turns argv, the environment and the settings file into the frozen request; no other module does.

Make passes its variables on as environment variables, so `make build MODEL=x` and `quantyard build --model x` use the
same row of the settings.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from quantyard.cli.cluster_request import typed_cluster_request
from quantyard.cli.commands import COMMANDS
from quantyard.cli.measure_request import (
    typed_choose_request,
    typed_imatrix_chunks,
    typed_measure_request,
    typed_serve_request,
    typed_tune_request,
)
from quantyard.cli.network_request import (
    command_hub_token,
    configure_http_libraries,
    typed_ca_bundle,
    typed_extra_ca,
    typed_proxies,
)
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
    password_setting_error,
    plain_setting,
    readable_file_setting,
    size_setting,
    token_setting,
    whole_list_setting,
)
from quantyard.engines.images import RECIPES
from quantyard.errors import BadRequest
from quantyard.files.own_files import typed_file_path
from quantyard.formatting.printable import url_has_user_info
from quantyard.paths import REPO_DIR, local_venv_path, read_pins
from quantyard.quants.catalog import Quant
from quantyard.quants.selection import parse_quants, quant_of_recipe
from quantyard.requests import (
    ENGINES,
    BuildRequest,
    CheckRequest,
    ForeignRequest,
    GarbageRequest,
    ImageSettings,
    PackRequest,
    PublishRequest,
    RunEnvironment,
)

if TYPE_CHECKING:  # most commands use none of these models
    from quantyard.protocol.builder import Parts



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
    proxies = typed_proxies(values, environment, getattr(args, "HTTPS_PROXY", None) or "")
    extra_ca = typed_extra_ca(values, environment)
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
            ca_bundle=typed_ca_bundle(extra_ca, artifacts), memory_bytes=_typed_memory_limit(values["MEMORY"]),
            set_up={name: values[name] for name in ("LLAMA_WHEEL", "LLAMA_WHEEL_INDEX")}
            | ({"EXTRA_CA": str(extra_ca)} if extra_ca else {}),
        ),
        images=ImageSettings(bases, extra_ca, proxies, reverse_proxy),
        nodes=integer_setting("NODES", values, 1, 10_000) if values["NODES"] else 0,
        measure=typed_measure_request(values) if hasattr(args, "SUITE") else None,
        serve=typed_serve_request(values) if hasattr(args, "PORT") else None,
        pack=PackRequest(values["TAG"], flag_setting("PUSH", values)) if hasattr(args, "TAG") else None,
        publish=_typed_publish_request(values, environment) if hasattr(args, "GATE") else None,
        check=_typed_check_request(given, values) if hasattr(args, "REBUILD") else None,
        choose=typed_choose_request(values, "" if given["QUANT"].origin == "default" else values["QUANT"])
        if hasattr(args, "MIN_TPS") else None,
        tune=typed_tune_request(values) if hasattr(args, "TARGET_KLD") else None,
        matrix_quants=values["QUANTS"] if hasattr(args, "QUANTS") else "",
        llama_cpp=values["LLAMA_CPP"],
        garbage=GarbageRequest(integer_setting("KEEP_DAYS", values, 0, 36_500), flag_setting("DRY_RUN", values))
        if hasattr(args, "KEEP_DAYS") else None,
        cluster=typed_cluster_request(values, environment, command_hub_token(environment), values["ENGINE"].lower()),
        foreign=_typed_foreign_request(values, environment) if hasattr(args, "REPOS") else None,
        adapter=values["ADAPTER"], base=values["BASE"],
        imatrix=_typed_imatrix(values), chunks=typed_imatrix_chunks(values, 0),
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


def _typed_check_request(given: Mapping[str, GivenSetting], values: Mapping[str, str]) -> CheckRequest:
    """What to verify. A FILE that was typed wins over the repo of the settings file."""
    repo = "" if values["FILE"] and given["REPO"].origin == "file" else values["REPO"]
    file = typed_file_path(values["FILE"]).absolute() if values["FILE"] else None
    return CheckRequest(repo_id=repo, file=file, rebuild=flag_setting("REBUILD", values))


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


def _typed_foreign_request(values: Mapping[str, str], environment: Mapping[str, str]) -> ForeignRequest:
    places, wanted = (
        tuple(name.strip() for name in values[setting].split(",") if name.strip()) for setting in ("REPOS", "FILES")
    )
    store = typed_file_path(environment.get("OLLAMA_MODELS") or "~/.ollama/models")
    return ForeignRequest(places, wanted, store, _docker_config(environment))


def _typed_memory_limit(text: str) -> int | None:
    return size_setting("MEMORY", text, 256 * 2**20, "256 MiB") if text else None
