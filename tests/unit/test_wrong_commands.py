"""What a new user types wrong: each command ends with the right sentence and exit code, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantyard import cli
from quantyard.cli.settings import BY_NAME
from quantyard.cli.variables import CALLED_BY_MAKE
from quantyard.sources.resolve import Source
from quantyard.workflows import planning
from tests.unit.fake_engine import FakeEngine

# What is typed: after `make`, after `quantyard`, or with a variable in front of it; the sentence, what to type next.
WRONG = [
    ("quantyard bulid", "'bulid' is not a command.", "Did you mean build?"),
    ("quantyard help bulid", "'bulid' is not a command.", "Did you mean build?"),
    ("quantyard build --modle x", "'--modle' is not an option of build.", "Did you mean --model?"),
    ("quantyard build QUANT=Q8_0", "'QUANT' is not an option of build.", "Did you mean --quant Q8_0?"),
    ("quantyard plan --quant Q4_K_M, Q8_0", "'Q8_0' is not an option", "A list has no spaces: Q4_K_M,Q8_0."),
    ("quantyard plan --target-size 4GiB", "'--target-size' is not an option of plan.", "quantyard plan --help"),
    ("SUIT=smoke quantyard plan --model x", "The environment holds SUIT", "Did you mean SUITE=…?"),
    ("DRYRUN=1 quantyard publish --model x", "The environment holds DRYRUN", "Did you mean DRY_RUN=…?"),
    ("make publish MODEL=x DRYRUN=1", "an unknown variable: DRYRUN.", "Did you mean DRY_RUN=…?"),
    ("make build MODLE=x", "an unknown variable: MODLE.", "Did you mean MODEL=…?"),
    ("make plan MODEL=x SUIT=smoke", "an unknown variable: SUIT.", "Did you mean SUITE=…?"),
    ("make plan MODEL=x QUANT=Q4_K_M,", "QUANT=Q4_K_M, ends with a comma", "without spaces, or quote it"),
    ("make build MODEL=x QUANTS=Q8_0", "build does not take QUANTS; plan and matrix do.", "Did you mean QUANT=…?"),
    ("make matrix MODEL=x QUANT=Q8_0", "matrix does not take QUANT", "Did you mean QUANTS=…?"),
    ("make plan MODEL=x TARGET_SIZE=4GiB", "plan does not take TARGET_SIZE; tune does.", "make plan-help"),
    ("make build", "MODEL is not given.", "make build MODEL=org/name"),
    ("make choose RAM=8GiB", "MODEL is not given.", "make choose MODEL=org/name"),
    ("make build MODEL=x QUANT=Q4_KM", "Unknown quant 'Q4_KM'. Did you mean 'Q4_K_M'?", "make quants"),
    ("make tune MODEL=x TARGET_SIZE=foo", "TARGET_SIZE=foo is neither a size nor a quant", "TARGET_SIZE=4GiB"),
    ("make tune MODEL=x", "Neither TARGET_SIZE nor TARGET_KLD is given.", "TARGET_SIZE=Q4_K_M"),
    ("make eval MODEL=x SUITE=quik", "Unknown suite 'quik'. Did you mean 'quick'?", "smoke, quick, standard, full"),
    ("make build MODEL=x THREADS=many", "THREADS=many is not a whole number", "THREADS=8"),
    ("make choose MODEL=x RAM=lots", "RAM=lots is not a size", "RAM=16GiB"),
    ("make build MODEL=x ENGINE=podman", "ENGINE=podman is not one of auto, docker, local, slurm", "ENGINE=auto"),
    ("make build MODEL=x ENGINE=dcker", "ENGINE=dcker is not one of", "Did you mean ENGINE=docker?"),
    ("make build MODEL=x PARITY=twn", "PARITY=twn is not one of twin, full, off.", "Did you mean PARITY=twin?"),
    ("make build MODEL=x OUTTYPE=Q4_K_M", "OUTTYPE=q4_k_m is not one of auto, bf16", "OUTTYPE=auto"),
    ("make build MODEL=x IMATRIX=auot", "IMATRIX=auot is not a file.", "IMATRIX=auto"),
    ("make eval MODEL=x SUITE=Q4_K_M", "Unknown suite 'Q4_K_M'.", "smoke, quick, standard, full"),
    ("make build MODEL=x QUANT=smoke", "Unknown quant 'smoke'. The usual choice is 'Q4_K_M'.", "make quants"),
    ("make choose MODEL=x RAM=Q4_K_M", "RAM=Q4_K_M is not a size", "RAM=16GiB"),
    ("quantyard help hlep", "'hlep' is not a command.", "quantyard --help"),
    ("make report MODEL=x", "Nothing is built", "make release"),
    ("make publish MODEL=x REPO=me/x", "Publishing needs a yes", "YES=1"),
    ("make serve QUANT=Q8_0", "QUANT is given without MODEL.", "make serve MODEL=org/name"),
    ("make serve MODEL=x", "Nothing is built", "make build MODEL=x"),
    ("make serve MODEL_FILE=typo.gguf", "typo.gguf is not a GGUF", "make build MODEL=org/name"),
    ("make image MODEL=x", "TAG is not given.", "make image MODEL=… TAG="),
    ("make verify", "Neither REPO nor FILE is given.", "make verify REPO=me/name-GGUF"),
]


@pytest.mark.parametrize(("typed", "says", "hint"), WRONG, ids=[typed for typed, *_ in WRONG])
def test_a_wrong_command_ends_with_the_right_sentence(
    typed: str, says: str, hint: str, local_source: Source, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in (*BY_NAME, "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "MAKEFLAGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    engine = FakeEngine()
    monkeypatch.setattr(planning, "_source_of_request", lambda _request: local_source)
    monkeypatch.setattr(planning, "choose_engine", lambda *_: (engine, "asked for"))
    with pytest.raises(SystemExit) as ended:
        cli.main(_typed(typed, monkeypatch))
    captured = capsys.readouterr()
    assert ended.value.code == 2 and captured.out == "", captured.err
    assert says in captured.err and hint in captured.err
    assert engine.ran == [] and "Traceback" not in captured.err
    assert len(captured.err.splitlines()) <= 3


def _typed(line: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The argv of the program; variables are in the environment, as make and a shell put them there."""
    words = line.split(" ")
    if words[0] == "quantyard":
        return words[1:]
    assigned = [word for word in words if word.partition("=")[0].isupper()]
    for name, _, value in (word.partition("=") for word in assigned):
        monkeypatch.setenv(name, value)
    if words[0] == "make":
        for name, value in ((CALLED_BY_MAKE, "1"), ("MAKELEVEL", "1"), ("MAKEFLAGS", f" -- {' '.join(assigned)}")):
            monkeypatch.setenv(name, value)
    return [word for word in words if word not in ("make", "quantyard", *assigned)]
