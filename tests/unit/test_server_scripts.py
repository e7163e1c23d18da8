"""The server's shell scripts, run as they are: what they read of a GGUF, what they decide, and the key they make."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantyard.formats.gguf import read_gguf_header
from quantyard.formats.purpose import gguf_pooling, gguf_purpose
from quantyard.paths import REPO_DIR
from tests.gguf_files import SMALL_TENSORS, TensorSpec, Value
from tests.gguf_files import gguf as gguf_bytes

SCRIPTS = REPO_DIR / "server" / "image"


def shell(script: str, *argv: str, **variables: str) -> str:
    """What the script says with defaults.sh sourced and these as $1, $2 …"""
    text = f'set -eu; say() {{ echo "$*" >&2; }}; . {SCRIPTS}/defaults.sh; {script}'
    done = subprocess.run(
        ["sh", "-c", text, "sh", *argv], env={"PATH": os.environ["PATH"]} | variables, capture_output=True, text=True,
        check=True,
    )
    return done.stdout.strip()


def gguf(folder: Path, keys: Mapping[str, Value]) -> str:
    path = folder / "m.gguf"
    path.write_bytes(gguf_bytes(keys, SMALL_TENSORS))
    return str(path)


LLAMA: Mapping[str, Value] = {
    "general.architecture": "llama", "llama.attention.head_count_kv": 3, "llama.attention.head_count": 9,
    "llama.block_count": 30, "llama.context_length": 8192, "llama.embedding_length": 576,
    "tokenizer.ggml.tokens": ["a"] * 500,
}


@pytest.mark.commands
@given(st.integers(1, 10**6), st.integers(1, 10**6))
@settings(max_examples=20)
def test_numbers_are_read_from_the_metadata_whatever_they_are(
    tmp_path_factory: pytest.TempPathFactory, context: int, heads: int
) -> None:
    keys = {**LLAMA, "llama.context_length": context, "llama.attention.head_count": heads}
    path = gguf(tmp_path_factory.mktemp("g"), keys)
    assert shell('gguf_number "$1" context_length', path) == str(context)
    assert shell('gguf_number "$1" attention.head_count', path) == str(heads)
    assert shell('gguf_number "$1" attention.head_count_kv', path) == "3"


def test_what_is_not_there_or_no_single_number_is_nothing(tmp_path: Path) -> None:
    path = gguf(tmp_path, {**LLAMA, "llama.attention.head_count_kv": [3, 3, 0]})
    assert shell('gguf_number "$1" attention.key_length', path) == ""
    assert shell('gguf_number "$1" attention.head_count_kv', path) == ""
    assert shell('kv_bytes_per_token "$1"', path) == "0"


def test_the_kv_cache_of_a_token_is_what_llama_cpp_allocates(tmp_path: Path) -> None:
    assert shell('kv_bytes_per_token "$1"', gguf(tmp_path, LLAMA)) == str(30 * 3 * 64 * 2 * 2)
    given_lengths = {**LLAMA, "llama.attention.key_length": 128, "llama.attention.value_length": 96}
    assert shell('kv_bytes_per_token "$1"', gguf(tmp_path, given_lengths)) == str(30 * 3 * (128 + 96) * 2)


@pytest.mark.commands
def test_an_importance_matrix_beside_a_model_is_not_served(tmp_path: Path) -> None:
    model = gguf(tmp_path, LLAMA)
    (tmp_path / "m.imatrix.gguf").write_bytes(gguf_bytes({"general.type": "imatrix"}, SMALL_TENSORS))
    given = {"PATH": os.environ["PATH"], "MODEL": str(tmp_path), "API_KEY": "off", "LLAMA_SERVER": "echo"}
    done = subprocess.run([SCRIPTS / "entrypoint.sh"], env=given, capture_output=True, text=True, check=True)
    assert f"--model {model} --alias m " in done.stdout and "--models-dir" not in done.stdout


@pytest.mark.commands
@pytest.mark.parametrize("how", ["another", "same name"])
def test_a_server_ends_to_be_started_anew_when_its_folder_holds_other_files(tmp_path: Path, how: str) -> None:
    folder, new = tmp_path / "served", tmp_path / "new.gguf"
    folder.mkdir()
    model = Path(gguf(folder, LLAMA))
    new.write_bytes(gguf_bytes(LLAMA, SMALL_TENSORS))
    os.utime(new, (0, 0))  # one that was written just now may still be written
    (folder / ".note").write_text("m-Q8_0 is not served.\n")
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    given = {"PATH": os.environ["PATH"], "MODEL": str(folder), "API_KEY": "off", "LLAMA_SERVER": str(program)}
    argv = [str(SCRIPTS / "entrypoint.sh")]
    with subprocess.Popen(argv, env=given, stderr=subprocess.PIPE, text=True) as running:
        time.sleep(1)
        if how == "another":
            model.unlink()
        new.replace(folder / ("m.gguf" if how == "same name" else "n.gguf"))
        _out, said = running.communicate(timeout=30)
    names = {"another": "n", "same name": "m"}[how]
    assert running.returncode == 0 and f"other files are served from now on: {names}; starting anew" in said
    assert "[serve] note: m-Q8_0 is not served." in said


def decided(memory_bytes: int, *models: str, **variables: str) -> tuple[int, int, int]:
    """The models that stay loaded, the requests of each at once, and their tokens together."""
    script = f'memory_bytes() {{ echo {memory_bytes}; }}; decide "$1"; echo "$KEPT $PARALLEL $CONTEXT_SIZE"'
    kept, parallel, tokens = shell(script, "\n".join(models), **variables).split()
    return int(kept), int(parallel), int(tokens)


@pytest.mark.commands
@pytest.mark.parametrize(("memory", "slots", "tokens"), [
    (64 * 2**30, 4, 32_768), (400 * 2**20, 4, 9102), (200 * 2**20, 2, 4550), (100 * 2**20, 1, 2275), (2**20, 1, 512),
])  # fmt: skip
def test_the_context_fits_training_and_memory_and_each_request_has_a_part_of_use(
    tmp_path: Path, memory: int, slots: int, tokens: int
) -> None:
    kept, parallel, found = decided(memory, gguf(tmp_path, LLAMA))
    assert (kept, parallel) == (1, slots) and found == pytest.approx(tokens, abs=2)


@pytest.mark.commands
@pytest.mark.parametrize(("memory", "kept", "slots"), [
    (64 * 2**30, 3, 4), (1200 * 2**20, 3, 4), (800 * 2**20, 2, 4), (400 * 2**20, 1, 4), (200 * 2**20, 1, 2),
])  # fmt: skip
def test_several_models_share_the_memory_or_fewer_stay_loaded(
    tmp_path: Path, memory: int, kept: int, slots: int
) -> None:
    models = []
    for name in "abc":
        (tmp_path / name).mkdir()
        models.append(gguf(tmp_path / name, LLAMA))
    found_kept, found_slots, tokens = decided(memory, *models)
    assert (found_kept, found_slots) == (kept, slots)
    assert tokens >= 2048 * slots and tokens * kept * 23_040 <= memory // 2


@pytest.mark.commands
@pytest.mark.parametrize(("memory", "count", "says", "says_not"), [
    (64 * 2**30, 2, ["loaded at once: 2 of 2"], ["too little", "waits until"]),
    (64 * 2**30, 6, ["loaded at once: 4 of 6", "waits until"], ["too little"]),
    (400 * 2**20, 2, ["loaded at once: 1 of 2", "400 MiB are too little", "MEMORY", "waits until"], []),
])  # fmt: skip
def test_how_many_models_stay_loaded_is_said_with_the_reason(
    tmp_path: Path, memory: int, count: int, says: list[str], says_not: list[str]
) -> None:
    models = "\n".join([gguf(tmp_path, LLAMA)] * count)
    said = shell(f'say() {{ echo "$*"; }}; memory_bytes() {{ echo {memory}; }}; decide "$1"', models)
    assert all(words in said for words in says) and not any(words in said for words in says_not)


def test_the_weights_of_the_models_that_stay_loaded_count_too_with_every_part(tmp_path: Path) -> None:
    for part, n_mib in (("00001", 0), ("00002", 700), ("00003", 100)):
        with Path(gguf(tmp_path, LLAMA)).rename(tmp_path / f"m-{part}-of-00003.gguf").open("r+b") as file:
            file.truncate(file.seek(0, os.SEEK_END) + n_mib * 2**20)
    split = str(tmp_path / "m-00001-of-00003.gguf")
    assert int(shell('weight_bytes "$1"', split)) >= 800 * 2**20
    assert decided(1000 * 2**20, split) == (1, 2, pytest.approx(4550, abs=9))
    assert decided(1000 * 2**20, split, gguf(tmp_path, LLAMA))[0] == 1


@pytest.mark.commands
@pytest.mark.parametrize(("variables", "wanted"), [
    ({"PARALLEL": "7", "CONTEXT_SIZE": "999"}, (2, 7, 999)),
    ({"CONTEXT_SIZE": "4096"}, (2, 2, 4096)),
    ({"CONTEXT_SIZE": "0"}, (2, 4, 32_768)),
    ({"PARALLEL": "64"}, (2, 64, 32_768)),
    ({"CONTEXT_SIZE": "500000"}, (1, 4, 500_000)),
    ({"LLAMA_ARG_MODELS_MAX": "1"}, (1, 4, 32_768)),
    ({"LLAMA_ARG_MODELS_MAX": "0"}, (2, 4, 32_768)),
])  # fmt: skip
def test_what_the_user_decides_is_left_alone(
    tmp_path: Path, variables: dict[str, str], wanted: tuple[int, int, int]
) -> None:
    (tmp_path / "b").mkdir()
    models = gguf(tmp_path, LLAMA), gguf(tmp_path / "b", LLAMA)
    assert decided(16 * 2**30, *models, **variables) == wanted
    assert shell('decide "$1"; echo "$THREADS"', models[0], THREADS="3") == "3"


def test_an_embedding_model_beside_a_generating_one_does_not_shorten_its_context(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    assert decided(64 * 2**30, gguf(tmp_path, LLAMA), gguf(tmp_path / "b", _NOT_CAUSAL)) == (2, 4, 32_768)
    assert decided(64 * 2**30, gguf(tmp_path / "b", _NOT_CAUSAL)) == (1, 4, 2048)


@pytest.mark.commands
@pytest.mark.parametrize("server", [
    "trap '' TERM; sleep 30 & wait; wait", "sleep 30", "trap 'exit 143' TERM; sleep 30 & wait",
], ids=["waits for its answers", "ends at once", "says so"])
def test_a_stop_ends_the_server_within_seconds_whatever_it_waits_for(tmp_path: Path, server: str) -> None:
    program = tmp_path / "server"
    program.write_text(f"#!/bin/sh\necho started\n{server}\n")
    program.chmod(0o755)
    given = {"PATH": os.environ["PATH"], "MODEL": gguf(tmp_path, LLAMA), "API_KEY": "off", "LLAMA_SERVER": str(program)}
    process = subprocess.Popen(
        [SCRIPTS / "entrypoint.sh"], env=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, process_group=0
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"started\n"
        process.terminate()
        assert process.wait(timeout=5) == 0
    finally:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("files", "cores"),
    [({"cpu.max": "150000 100000"}, "2"), ({"cpu.max": "max 100000"}, ""), ({}, ""),
     ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, "1"),
     ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "")],
)
def test_the_share_of_the_cpu_is_read_from_either_cgroup(tmp_path: Path, files: dict[str, str], cores: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert shell(f"CGROUP={tmp_path}; cpu_share") == cores


def test_a_key_is_made_once_readable_to_its_owner_alone(tmp_path: Path) -> None:
    key = tmp_path / "api-key"
    for _ in range(2):
        subprocess.run([SCRIPTS / "make-key.sh", key], check=True, capture_output=True)
        first = key.read_text()
    assert key.read_text() == first and len(first.strip()) == len("qy-") + 48
    assert key.stat().st_mode & 0o777 == 0o600
    subprocess.run([SCRIPTS / "make-key.sh", tmp_path / "other"], check=True, capture_output=True)
    assert (tmp_path / "other").read_text() != first


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_parses_in_the_plainest_shell(path: Path) -> None:
    subprocess.run(["sh", "-n", path], check=True)
    assert os.access(path, os.X_OK) == (path.name not in ("address.sh", "defaults.sh"))


_NOT_CAUSAL: Mapping[str, Value] = {
    "general.architecture": "bert", "bert.context_length": 512, "bert.attention.causal": False,
    "tokenizer.ggml.tokens": ["a"] * 500,
}
_EMBEDDERS: Mapping[str, tuple[Mapping[str, Value], str, str]] = {
    "a text generator": (LLAMA, "", "generate"),
    "a causal model that says so": ({**LLAMA, "llama.attention.causal": True}, "", "generate"),
    "a BERT without pooling": (_NOT_CAUSAL, "", "embed mean"),
    "a BERT that pools its first token": ({**_NOT_CAUSAL, "bert.pooling_type": 2}, "", "embed cls"),
    "a decoder that pools its last token": ({**LLAMA, "llama.pooling_type": 3}, "", "embed last"),
    "a decoder that ranks": ({**LLAMA, "llama.pooling_type": 4}, "", "rerank rank"),
    "a BERT with a head": (_NOT_CAUSAL, "cls.output.weight", "rerank rank"),
    "a BERT with a head of one label": (
        {**_NOT_CAUSAL, "bert.classifier.output_labels": ["LABEL_0"]}, "cls.output.weight", "rerank rank",
    ),
    "a BERT with a head of two labels": (
        {**_NOT_CAUSAL, "bert.classifier.output_labels": ["no", "yes"]}, "cls.output.weight", "embed mean",
    ),
}  # fmt: skip


@pytest.mark.commands
@pytest.mark.parametrize("kind", _EMBEDDERS)
def test_the_purpose_of_a_model_is_told_as_python_tells_it(tmp_path: Path, kind: str) -> None:
    keys, head, wanted = _EMBEDDERS[kind]
    tensors = [*SMALL_TENSORS, *([TensorSpec(head, (32, 1))] if head else [])]
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(keys, tensors))
    purpose, _, pooling = wanted.partition(" ")
    header = read_gguf_header(path)
    assert shell('purpose_of "$1"', str(path)) == purpose == gguf_purpose(header)
    assert not pooling or gguf_pooling(header) == pooling
    said = shell('CONTEXT_SIZE=2048 PARALLEL=1; flags_for "$1"', str(path))
    assert (f"pooling {pooling}" in said) == (purpose == "embed")
    assert ("reranking true" in said) == (purpose == "rerank")
    assert not said or f"ubatch-size {512 if 'BERT' in kind else 2048}" in said


@pytest.mark.commands
def test_a_router_is_told_of_the_models_that_do_not_generate(tmp_path: Path) -> None:
    gguf(tmp_path, LLAMA)
    (tmp_path / "e.gguf").write_bytes(gguf_bytes(_NOT_CAUSAL, SMALL_TENSORS))
    (tmp_path / "server").write_text(
        '#!/bin/sh\necho "$@"\ncat "$(echo "$@" | sed "s/.*--models-preset //; s/ .*//")"\n'
    )
    (tmp_path / "server").chmod(0o755)
    given = {"PATH": os.environ["PATH"], "MODEL": str(tmp_path), "API_KEY": "off", "CONTEXT_SIZE": "4096",
             "LLAMA_SERVER": str(tmp_path / "server")}  # fmt: skip
    said = subprocess.run([SCRIPTS / "entrypoint.sh"], env=given, capture_output=True, text=True, check=True).stdout
    assert "[e]\nembeddings = true\npooling = mean\nbatch-size = 512\nubatch-size = 512" in said
    assert "[m]" not in said


@pytest.mark.parametrize(("told", "found"), [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5")])
def test_threads_that_wait_sleep_soon_unless_another_time_is_asked_for(
    told: Mapping[str, str], found: str, tmp_path: Path
) -> None:
    server = tmp_path / "server"
    server.write_text("#!/bin/sh\necho spins $GOMP_SPINCOUNT\n")
    server.chmod(0o755)
    given = {"PATH": os.environ["PATH"], "MODEL": gguf(tmp_path, LLAMA), "API_KEY": "off", "LLAMA_SERVER": str(server)}
    done = subprocess.run([SCRIPTS / "entrypoint.sh"], env=given | told, capture_output=True, text=True, check=True)
    assert done.stdout == f"spins {found}\n"


_TLS = {"LLAMA_ARG_SSL_KEY_FILE": "/k", "LLAMA_ARG_SSL_CERT_FILE": "/c"}


@pytest.mark.parametrize(("variables", "address"), [
    ({}, "http://127.0.0.1:8080"),
    ({"PORT": "9000"}, "http://127.0.0.1:9000"),
    ({"PORT": "8080", "LLAMA_ARG_PORT": "9001"}, "http://127.0.0.1:9001"),
    ({"LLAMA_ARG_API_PREFIX": "/llm"}, "http://127.0.0.1:8080/llm"),
    ({**_TLS, "LLAMA_ARG_API_PREFIX": "/llm"}, "https://127.0.0.1:8080/llm"),
    ({"LLAMA_ARG_SSL_KEY_FILE": "/k"}, "http://127.0.0.1:8080"),
    ({"HOST": "::"}, "http://[::1]:8080"),
    ({"LLAMA_ARG_HOST": "::1"}, "http://[::1]:8080"),
    ({"LLAMA_ARG_HOST": "127.0.0.2,10.0.0.1"}, "http://127.0.0.2:8080"),
    ({"LLAMA_ARG_HOST": "0.0.0.0", "HOST": "localhost"}, "http://127.0.0.1:8080"),  # noqa: S104
])  # fmt: skip
def test_the_servers_own_address_follows_every_variable_that_moves_it(variables: dict[str, str], address: str) -> None:
    script = f'. "{SCRIPTS}/address.sh"; settle_address; own_address'
    assert shell(script, **variables) == address


@pytest.mark.parametrize(("text", "variables", "key"), [
    ("# mine\n\nfirst\nsecond\n", {}, "first"),
    ("first\n", {"LLAMA_API_KEY": "other,third"}, "other"),
    ("# none\n", {}, ""),
])  # fmt: skip
def test_the_servers_own_key_is_the_first(tmp_path: Path, text: str, variables: dict[str, str], key: str) -> None:
    (tmp_path / "keys").write_text(text)
    said = shell(f'. "{SCRIPTS}/address.sh"; own_key "$1"', str(tmp_path / "keys"), **variables)
    assert said == (f'header = "Authorization: Bearer {key}"' if key else "")


def start(folder: Path, model: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The entrypoint, with a server that says how it was called."""
    given = {"PATH": os.environ["PATH"], "MODEL": str(model), "API_KEY": "off", "LLAMA_SERVER": "echo"} | variables
    return subprocess.run([SCRIPTS / "entrypoint.sh"], env=given, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("name", "called"), [
    ("my model.gguf", "my model"), ("a,b.gguf", "a_b"), ("it's.gguf", "it's"), ("ü [1].gguf", "ü [1]"),
    ("x-00001-of-00002.gguf", "x"),
])  # fmt: skip
@pytest.mark.commands
def test_a_file_is_served_under_its_name_whatever_letters_it_has(tmp_path: Path, name: str, called: str) -> None:
    (tmp_path / name).write_bytes(gguf_bytes(LLAMA, SMALL_TENSORS))
    for model in (tmp_path, tmp_path / name):
        assert f"--model {tmp_path / name} --alias {called} " in start(tmp_path, model).stdout


@pytest.mark.parametrize(("mounted", "given", "folder"), [
    ("model", "/data/x-00001-of-00003.gguf", "/data"), ("model", "/data/x-00003-of-00003.gguf", "/data"),
    ("model", "x-00002-of-00003.gguf", "."), ("x-00002-of-00003.gguf", "", "{}"),
])  # fmt: skip
def test_a_part_of_a_model_is_refused_with_the_folder_to_give(
    tmp_path: Path, mounted: str, given: str, folder: str
) -> None:
    path = tmp_path / mounted
    path.write_bytes(gguf_bytes(LLAMA, SMALL_TENSORS))
    done = start(tmp_path, path, MODEL_FILE=given)
    assert done.returncode == 2 and f"MODEL_FILE={folder.format(tmp_path)}\n" in done.stderr


def test_a_model_whose_only_part_is_given_is_served(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(gguf_bytes(LLAMA, SMALL_TENSORS))
    assert "--alias x " in start(tmp_path, path, MODEL_FILE="x-00001-of-00001.gguf").stdout


@pytest.mark.parametrize("prefix", ["llm", "/llm/", "/"])
def test_a_prefix_that_leads_nowhere_is_refused(tmp_path: Path, prefix: str) -> None:
    done = start(tmp_path, Path(gguf(tmp_path, LLAMA)), LLAMA_ARG_API_PREFIX=prefix)
    assert done.returncode == 2 and "LLAMA_ARG_API_PREFIX" in done.stderr


def test_tls_is_for_the_server_that_clients_meet_and_not_for_what_it_starts(tmp_path: Path) -> None:
    server = tmp_path / "server"
    server.write_text("#!/bin/sh\nenv\necho called $*\n")
    server.chmod(0o755)
    said = start(tmp_path, Path(gguf(tmp_path, LLAMA)), LLAMA_SERVER=str(server), **_TLS).stdout
    assert " --ssl-key-file /k --ssl-cert-file /c " in said and "LLAMA_ARG_SSL" not in said


# ---- the KV cache --------------------------------------------------------------------------------------------------


def _started_with(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """What the entrypoint starts in place of llama-server, which only says its arguments."""
    environment = {
        "PATH": os.environ["PATH"], "LLAMA_SERVER": "/bin/echo", "MODEL": gguf(folder, LLAMA), "API_KEY": "off",
        "THREADS": "1", "START_TIMEOUT": "1", "HOST": "127.0.0.1", "PORT": "1",
    }  # fmt: skip
    return subprocess.run(
        ["sh", str(SCRIPTS / "entrypoint.sh")], env=environment | variables, capture_output=True, text=True, timeout=30
    )


@pytest.mark.commands
@pytest.mark.parametrize(("typed", "k", "v"), [("q8_0", "q8_0", "q8_0"), ("q8_0/f16", "q8_0", "f16")])
def test_the_type_of_the_cache_reaches_llama_server(tmp_path: Path, typed: str, k: str, v: str) -> None:
    done = _started_with(tmp_path, CACHE_TYPE=typed)
    assert f"--cache-type-k {k} --cache-type-v {v}" in done.stdout, done.stderr
    assert "--cache-type" not in _started_with(tmp_path).stdout


@pytest.mark.parametrize("typed", ["q8", "q4_k", "q8_0/", "q8_0 --host 0.0.0.0", "q8_0\nf16", "f16/q8_0/f16"])
def test_what_is_not_a_type_of_a_cache_is_refused_before_the_start(tmp_path: Path, typed: str) -> None:
    done = _started_with(tmp_path, CACHE_TYPE=typed)
    assert done.returncode == 2 and "is not a type of a KV cache" in done.stderr and not done.stdout
