"""The border between orchestrator and stage."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from quantyard.protocol.base import FileEntry, files_digest, stage_request_digest
from quantyard.protocol.builder import FetchRequest, QuantizeRequest, VerifyRequest
from quantyard.protocol.evaluation import EvaluateRequest, Runtime, SpeedRequest


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "", ".", "./x", "a\\b", "a\0b", "a/./b"])
def test_a_path_that_leaves_its_folder_is_refused(path: str) -> None:
    with pytest.raises(ValidationError):
        FileEntry(path=path, size_bytes=1)


@pytest.mark.parametrize("path", ["config.json", "a/b.json", "..x", "LICENSE.txt"])
def test_a_path_inside_its_folder_is_taken(path: str) -> None:
    assert FileEntry(path=path, size_bytes=1).path == path


def test_what_cannot_change_the_bytes_is_not_in_the_key() -> None:
    one = QuantizeRequest(quant="Q4_K_M", ftype=15, threads=1)
    assert stage_request_digest(one) == stage_request_digest(one.model_copy(update={"threads": 8}))
    assert stage_request_digest(one) != stage_request_digest(one.model_copy(update={"quant": "Q8_0", "ftype": 7}))


def test_a_mirror_serves_the_same_download() -> None:
    files = (FileEntry(path="config.json", size_bytes=2, sha256="0" * 64),)
    one = FetchRequest(repo_id="a/b", commit="c" * 40, files=files)
    mirrored = one.model_copy(update={"endpoint": "https://mirror", "workers": 9})
    assert stage_request_digest(one) == stage_request_digest(mirrored)


def test_the_order_of_files_does_not_change_their_digest() -> None:
    a, b = FileEntry(path="a", size_bytes=1, sha256="0" * 64), FileEntry(path="b", size_bytes=1, sha256="1" * 64)
    assert files_digest((a, b)) == files_digest((b, a))
    assert files_digest((a,)) != files_digest((b,))


def test_an_unknown_field_of_a_request_is_refused() -> None:
    with pytest.raises(ValidationError):
        VerifyRequest.model_validate({"quant": "Q4_K_M", "surprise": 1})


def test_a_setting_inside_another_can_stay_out_of_the_key() -> None:
    one, other, gpu = (
        EvaluateRequest(label="Q", tasks=(), runtime=runtime)
        for runtime in (Runtime(threads=1), Runtime(threads=8), Runtime(n_gpu_layers=9))
    )
    assert stage_request_digest(one) == stage_request_digest(other) != stage_request_digest(gpu)


def test_threads_are_part_of_what_a_speed_is() -> None:
    one, other = (SpeedRequest(label="Q", machine="m", runtime=Runtime(threads=n)) for n in (1, 2))
    assert stage_request_digest(one) != stage_request_digest(other)
