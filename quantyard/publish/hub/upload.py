"""Sends files to the Hub: each is watched while it is read, and gets a freshly signed address.

The client gets them as streams, so that the progress and the hash of what was sent are known. Streams go by
LFS, never by Xet, and an object that the Hub has already is not sent again, in this run or the next.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from logging import ERROR
from typing import TYPE_CHECKING

from quantyard.publish.files import PublishedFile
from quantyard.publish.hub import errors

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

OnProgress = Callable[[str, int, int], None]

IN_MEMORY_BYTES = 10_000_000  # what is larger, the Hub takes by LFS only
# The Hub silently leaves out files that the repo's .gitignore names, unless the request brings another one.
NOTHING_IGNORED = "# everything is published\n"


class SentFile(io.BufferedReader):
    """One file as the client reads it. Once `watched`, it reports its progress and hashes what is read."""

    def __init__(self, file: PublishedFile, on_progress: OnProgress) -> None:
        small = isinstance(file.content, bytes) or file.size_bytes <= IN_MEMORY_BYTES
        super().__init__(io.BytesIO(file.read()) if small else io.FileIO(os.fspath(file.content)))
        self.file = file
        self.watched = False
        self._on_progress = on_progress
        self._hash, self._hashed_bytes = hashlib.sha256(), 0
        # The hash state at each position that the client may seek to: a part sent again is hashed again.
        self._marks = {0: self._hash.copy()}

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes of the file."""
        start = self.tell()
        data = super().read(size)
        if self.watched and data:
            if start == self._hashed_bytes:
                self._hash.update(data)
                self._hashed_bytes += len(data)
            self.report(start + len(data))
        return data

    def report(self, done_bytes: int) -> None:
        """Report the position in this file."""
        self._on_progress(self.file.path, done_bytes, self.file.size_bytes)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Seek to another position of the file."""
        position = super().seek(offset, whence)
        if self.watched:
            self._marks[self._hashed_bytes] = self._hash.copy()
            if position in self._marks:
                self._hash, self._hashed_bytes = self._marks[position].copy(), position
        return position

    def sent_other_bytes(self) -> bool:
        """Whether the bytes read while watched differ from the file to publish."""
        marks = self._marks | {self._hashed_bytes: self._hash}
        farthest = max(marks)
        whole = farthest == self.file.size_bytes and marks[farthest].hexdigest() == self.file.sha256
        return farthest > 0 and not whole


def open_hub_upload(file: PublishedFile, on_progress: OnProgress, stack: ExitStack) -> CommitOperationAdd:
    """A file, ready to be sent: read and hashed once.

    Raises:
        FileChanged: it differs from the file to publish.
        BadRequest: a file on the Hub cannot have this name.
    """
    from huggingface_hub import CommitOperationAdd

    try:
        reader = stack.enter_context(SentFile(file, on_progress))
        operation = CommitOperationAdd(file.path, reader)
    except ValueError as error:
        raise errors.publish_bad_path(file.path) from error
    except OSError as error:
        raise errors.publish_unreadable_file(file, error) from error
    if operation.path_in_repo != file.path:
        raise errors.publish_bad_path(file.path)
    if (operation.upload_info.size, operation.upload_info.sha256.hex()) != (file.size_bytes, file.sha256):
        raise errors.published_file_changed(file)
    reader.watched = True
    return operation


def upload_to_hub(
    api: HfApi, repo_id: str, revision: str, operations: Sequence[CommitOperationAdd], *, create_pr: bool
) -> None:
    """Upload what the Hub stores with LFS, one file after another: a signed address lasts for minutes only.

    Raises:
        FileChanged: a file has changed since it was hashed. No commit refers to the bytes sent.
    """
    for operation in operations:
        reader = operation.path_or_fileobj
        assert isinstance(reader, SentFile)
        try:
            api.preupload_lfs_files(
                repo_id, [operation], revision=revision, create_pr=create_pr, num_threads=1, free_memory=False,
                gitignore_content=NOTHING_IGNORED,
            )  # fmt: skip
        except Exception:
            if reader.sent_other_bytes() and _size_of_file_sent_to_hub(reader) != reader.file.size_bytes:
                raise errors.published_file_changed(reader.file) from None  # a longer or shorter body cannot be sent
            raise
        if reader.sent_other_bytes():
            raise errors.published_file_changed(reader.file)
        reader.report(reader.file.size_bytes)  # also for files that the Hub had already


def _size_of_file_sent_to_hub(reader: SentFile) -> int:
    return io.BufferedReader.seek(reader, 0, os.SEEK_END)


def check_card_on_hub(api: HfApi, files: Sequence[PublishedFile]) -> None:
    """Let the Hub read the card's metadata, before anything is made or sent.

    Raises:
        UploadRefused: the Hub rejects it.
    """
    from huggingface_hub import get_session

    for card in (file for file in files if file.path == "README.md"):
        said = {"content": card.read().decode(), "repoType": "model"}
        response = get_session().post(f"{api.endpoint}/api/validate-yaml", json=said)
        if response.status_code == 400:
            raise errors.publish_bad_card(response)


@contextmanager
def silent_hub_client() -> Iterator[None]:
    """Silence huggingface_hub: its log would show signed addresses."""
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    verbosity, without_bars = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity(ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            disable_progress_bars()
            yield
    finally:
        logging.set_verbosity(verbosity)
        if not without_bars:
            enable_progress_bars()
