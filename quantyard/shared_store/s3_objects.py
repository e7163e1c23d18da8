"""A shared store in a bucket of S3, or of what speaks its protocol and keeps `If-None-Match: *`.

Keys come from the usual places of AWS: the environment, ~/.aws, the instance. AWS_ENDPOINT_URL names another server.
fsspec and s3fs are of the optional group `s3`; they are imported here alone, and only when a bucket is opened.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from quantyard.errors import BadRequest, QuantyardError, StoreUnreachable
from quantyard.files.unique_names import new_process_mark
from quantyard.shared_store.objects import ObjectStatus, ObjectStore, checked_object_name

_PART_BYTES: Final = 64 * 2**20
_PARTS_AT_ONCE: Final = 4  # each is in memory
_TAKEN: Final = ("PreconditionFailed", "412")
_CONFLICT: Final = ("ConditionalRequestConflict", "409", "OperationAborted")  # two writes of one name: again
_NO_ACCESS: Final = ("NoCredentialsError", "PartialCredentialsError", "InvalidAccessKeyId")
_TRIES: Final = 20
_STEP_S: Final = 0.2


def open_s3_objects(place: str) -> ObjectStore:
    """The store in `bucket/prefix`.

    Raises:
        BadRequest: s3fs is not installed, or there is no bucket in the name.
    """
    bucket, _, prefix = place.strip("/").partition("/")
    if not bucket:
        raise BadRequest("STORE=s3:// names no bucket.", "Name one, and a prefix: STORE=s3://bucket/prefix")
    try:
        import s3fs
    except ImportError as error:
        hint = "pip install 'quantyard[s3]'; in a checkout: scripts/setup-venv.sh s3"
        raise BadRequest("STORE=s3://… needs s3fs, which is not installed.", hint) from error
    timeouts = {"connect_timeout": 10, "read_timeout": 60}
    files = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True, config_kwargs=timeouts)
    return S3Objects(files, bucket, prefix)


class S3Objects(ObjectStore):
    """The objects below one prefix of a bucket. `files` is an s3fs.S3FileSystem."""

    def __init__(self, files: Any, bucket: str, prefix: str, part_bytes: int = _PART_BYTES) -> None:
        self._files, self._bucket, self._prefix, self._part_bytes = files, bucket, prefix, part_bytes

    def with_parts_of(self, size_bytes: int) -> S3Objects:
        """The same store; files of twice this size are sent in parts of it."""
        return S3Objects(self._files, self._bucket, self._prefix, size_bytes)

    @property
    def url(self) -> str:
        """Bucket and prefix."""
        return "s3://" + "/".join(part for part in (self._bucket, self._prefix) if part)

    def put_if_absent(self, name: str, content: bytes | Path) -> bool:
        """See ObjectStore."""
        for _ in range(_TRIES):
            try:
                self._write(name, content, "create")
            except Exception as error:
                if isinstance(error, FileExistsError) or _s3_code(error) in _TAKEN:
                    return False
                if _s3_code(error) not in _CONFLICT:
                    raise self._fault(error) from error
                time.sleep(_STEP_S)
            else:
                return True
        raise StoreUnreachable(f"{self.url} says of {name} again and again that it is being written.", "Try again.")

    def put(self, name: str, content: bytes | Path) -> None:
        """See ObjectStore."""
        with self._faults():
            self._write(name, content, "overwrite")

    def read_bytes(self, name: str) -> bytes:
        """See ObjectStore."""
        with self._faults():
            return bytes(self._files.cat_file(self._key(name)))

    def read_to_file(self, name: str, target: Path) -> None:
        """See ObjectStore."""
        with self._faults():
            self._files.get_file(self._key(name), str(target))

    def status(self, name: str) -> ObjectStatus | None:
        """See ObjectStore."""
        try:
            with self._faults():
                found = self._files.call_s3("head_object", Bucket=self._bucket, Key=self._key_in_bucket(name))
        except FileNotFoundError:
            return None
        return ObjectStatus(name, int(found["ContentLength"]), found["LastModified"])

    def statuses(self, prefix: str) -> Iterator[ObjectStatus]:
        """See ObjectStore."""
        with self._faults():
            found = self._files.find(self._key(prefix.rstrip("/")) + "/", detail=True)
        begin = len(self._key("x")) - 1
        for key, entry in found.items():
            if entry["type"] == "file":
                yield ObjectStatus(key[begin:], int(entry["size"]), entry["LastModified"])

    def remove(self, name: str) -> None:
        """See ObjectStore."""
        with self._faults():
            self._files.call_s3("delete_object", Bucket=self._bucket, Key=self._key_in_bucket(name))

    def now(self) -> datetime:
        """See ObjectStore."""
        name = f"clock/{new_process_mark()}"
        self.put(name, b"")
        found = self.status(name)
        self.remove(name)
        if found is None:
            raise StoreUnreachable(f"{self.url} lost an object that was just written.", "quantyard doctor --store …")
        return found.modified_at

    def clear_temporary(self, before: datetime) -> int:
        """See ObjectStore: uploads in parts that were never completed."""
        removed = 0
        with self._faults():
            own = f"{self._prefix}/" if self._prefix else ""  # not those of a store whose name begins alike
            found = self._files.call_s3("list_multipart_uploads", Bucket=self._bucket, Prefix=own)
            for upload in found.get("Uploads", ()):
                if upload["Initiated"] < before:
                    self._files.call_s3(
                        "abort_multipart_upload", Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                    removed += 1
        return removed + self._clear_clocks(before)

    def _clear_clocks(self, before: datetime) -> int:
        old = [status.name for status in self.statuses("clock/") if status.modified_at < before]
        for name in old:
            self.remove(name)
        return len(old)

    def _write(self, name: str, content: bytes | Path, mode: str) -> None:
        if isinstance(content, bytes):
            self._files.pipe_file(self._key(name), content, mode=mode)
        else:
            self._files.put_file(
                str(content), self._key(name), mode=mode, chunksize=self._part_bytes, max_concurrency=_PARTS_AT_ONCE
            )

    def _key(self, name: str) -> str:
        return f"{self._bucket}/{self._key_in_bucket(name)}"

    def _key_in_bucket(self, name: str) -> str:
        checked_object_name(name)
        return f"{self._prefix}/{name}" if self._prefix else name

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # botocore's errors have no common base with those of s3fs
            if isinstance(error, FileNotFoundError) and _s3_code(error) != "NoSuchBucket":
                raise
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> QuantyardError:
        """The error as one of ours. The server's text may hold the id of a key, so only its code is shown."""
        code = _s3_code(error) or type(error).__name__
        if code == "NoSuchBucket":
            return BadRequest(f"{self.url}: there is no such bucket.", "Make it, or name another: STORE=s3://bucket/prefix")
        if isinstance(error, PermissionError) or code in _NO_ACCESS:
            hint = "Set keys that may list, read, write and delete there: AWS_ACCESS_KEY_ID …, AWS_PROFILE, or ~/.aws"
            return BadRequest(f"{self.url} refuses access: {code}.", hint)
        return StoreUnreachable(f"{self.url} failed: {code}.", "Check AWS_ENDPOINT_URL, AWS_REGION and the network.")


def _s3_code(error: BaseException | None) -> str:
    """The code of the server's answer ("PreconditionFailed"); "" if there was none."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""
