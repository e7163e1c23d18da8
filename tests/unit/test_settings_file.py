"""quantyard.toml and [tool.quantyard]: what one always sets, and what may never stand in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantyard.cli.settings import SETTINGS
from quantyard.cli.settings_file import SettingsFile, read_settings_file
from quantyard.errors import BadRequest


def _read(folder: Path, text: str, name: str = "quantyard.toml") -> SettingsFile:
    (folder / name).write_text(text)
    return read_settings_file(folder)


def _refused(folder: Path, text: str, name: str = "quantyard.toml") -> str:
    with pytest.raises(BadRequest) as error:
        _read(folder, text, name)
    return f"{error.value.message} {error.value.hint}"


def test_a_folder_without_a_file_sets_nothing(tmp_path: Path) -> None:
    assert read_settings_file(tmp_path) == SettingsFile()
    assert _read(tmp_path, "[project]\nname = 'x'\n[tool.ruff]\n", "pyproject.toml") == SettingsFile()


def test_every_kind_of_value_is_read_as_one_writes_it_in_toml(tmp_path: Path) -> None:
    text = 'quant = ["Q4_K_M", "Q8_0"]\nthreads = 8\nmax-kld = 0.00005\nmin-tps = 20\njson = true\nram = "8GiB"\n'
    assert _read(tmp_path, text).values == {
        "QUANT": "Q4_K_M,Q8_0", "THREADS": "8", "MAX_KLD": "0.00005", "MIN_TPS": "20", "JSON": "1", "RAM": "8GiB",
    }


def test_pyproject_has_a_table_for_it_and_quantyard_toml_wins_whole(tmp_path: Path) -> None:
    file = _read(tmp_path, '[tool.quantyard]\nquant = "Q8_0"\nthreads = 2\n', "pyproject.toml")
    assert (file.where, dict(file.values)) == ("pyproject.toml [tool.quantyard]", {"QUANT": "Q8_0", "THREADS": "2"})
    assert dict(_read(tmp_path, 'quant = "Q4_K_M"').values) == {"QUANT": "Q4_K_M"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('qaunt = "Q8_0"', ("'qaunt' is unknown", "Did you mean 'quant'?")),
        ('gguf_file = "x"', ("'gguf_file'", "Did you mean 'gguf-file'?")),
        ('QUANT = "x"', ("'QUANT'", "Did you mean 'quant'?")),
        ("zebra = 1", ("'zebra' is unknown", "quantyard config")),
        ('[build]\nquant = "x"', ("the table 'build' is unknown",)),
        ('threads = "8"', ("'threads' must be an integer, not text", "threads = 8")),
        ("threads = true", ("'threads' must be an integer, not true or false",)),
        ("threads = 1.5", ("'threads' must be an integer, not a number",)),
        ("json = 1", ("'json' must be true or false, not an integer",)),
        ('json = "yes"', ("'json' must be true or false, not text",)),
        ("quant = 4", ("'quant' must be text or a list of texts, not an integer",)),
        ("quant = [4]", ("'quant' must be text or a list of texts, not a list",)),
        ("model = ['a']", ("'model' must be text, not a list",)),
        ("max-kld = '0.1'", ("'max-kld' must be a number, not text", "max-kld = 0.05")),
        ("seed = 2026-01-01", ("'seed' must be an integer, not a date or a time",)),
        ("quant = ", ("is not valid TOML",)),
        ('quant = "a"\nquant = "b"', ("is not valid TOML",)),
    ],
)
def test_what_cannot_be_names_the_file_the_key_and_what_was_meant(
    text: str, says: tuple[str, ...], tmp_path: Path
) -> None:
    for file, wrapped in (("pyproject.toml", f"[tool.quantyard]\n{text}"), ("quantyard.toml", text)):
        if text.startswith("[") and file == "pyproject.toml":
            continue
        told = _refused(tmp_path, wrapped, file)
        assert file in told
        for words in says:
            assert words in told


def test_a_table_in_pyproject_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "[tool.quantyard] is not a table" in _refused(tmp_path, "[tool]\nquantyard = 1", "pyproject.toml")


@pytest.mark.parametrize("setting", [s for s in SETTINGS if not s.in_file], ids=lambda s: s.name)
def test_neither_secrets_nor_what_decides_whose_code_runs_may_stand_in_a_file(
    setting: object, tmp_path: Path
) -> None:
    told = _refused(tmp_path, f'{setting.key} = "hf_secret"')
    assert f"set the variable {setting.name}" in told.lower().replace(setting.name.lower(), setting.name)
    assert "hf_secret" not in told


def test_the_settings_that_a_file_may_not_hold_are_these() -> None:
    assert {s.name for s in SETTINGS if not s.in_file} == {
        "ALLOW_PICKLE", "ALLOW_UNSAFE_CODE", "HF_TOKEN", "HF_ENDPOINT", "HTTPS_PROXY", "EXTRA_CA", "LLAMA_CPP_IMAGE",
        "LLAMA_CPP_TAG", "LLAMA_CPP_SERVER_TAG", "EVAL_BASE_IMAGE", "EVAL_BASE_TAG", "YES", "AGREE", "LLAMA_WHEEL",
        "LLAMA_WHEEL_INDEX", "LLAMA_CPP", "STORE", "NODE_REGISTRY", "SLURM_OPTIONS",
        "KUBE_IMAGE", "KUBE_NAMESPACE", "KUBE_CONTEXT", "KUBE_CLAIM",
        "KUBE_S3_SECRET", "KUBE_STORE_CIDR", "KUBE_HF_SECRET", "KUBE_PULL_SECRET",
    }


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "quantyard.toml").write_bytes(b'quant = "\xff"')
    with pytest.raises(BadRequest, match=r"quantyard.toml is not a text file in UTF-8"):
        read_settings_file(tmp_path)
    (tmp_path / "quantyard.toml").write_text("#" * (2**20 + 1))
    with pytest.raises(BadRequest, match=r"at most 1 MiB"):
        read_settings_file(tmp_path)
    (tmp_path / "quantyard.toml").unlink()
    (tmp_path / "quantyard.toml").mkdir()
    with pytest.raises(BadRequest, match=r"quantyard.toml"):
        read_settings_file(tmp_path)
