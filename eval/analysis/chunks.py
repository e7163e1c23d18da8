"""The text that divergence is measured on, cut into chunks (as in llama-perplexity) or windows (as in lm-eval)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from eval.llama.prefix_tree import Request, answer_request
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure

OUR_PROSE: Final = "Quantyard's prose"
_PROSE_FILE: Final = Path(__file__).parents[1] / "suites" / "smoke" / "prose.jsonl"
_BETWEEN: Final = "\n\n"  # between documents of our prose
_FORM_FEED: Final = "\f"  # between documents of a user's text


@dataclass(frozen=True)
class DivergenceText:
    """A text, whole and as its documents.

    `whole` of a user's file is what `llama-perplexity -f` reads, byte for byte. Form feeds separate its documents; a
    file without form feeds is one document.
    """

    name: str
    whole: str
    documents: tuple[str, ...]


def read_divergence_text(suite_dir: Path, file: str | None) -> DivergenceText:
    """The user's text beside the suite, or our prose.

    Raises:
        StageFailure: `bad-text` (2): no such file, not UTF-8, or empty.
    """
    if file is None:
        return _our_divergence_text()
    try:
        whole = (suite_dir / file).read_bytes().decode()
    except OSError as error:
        raise _bad_divergence_text(f"The text {file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        what = f"byte {error.start:,} is 0x{error.object[error.start]:02x}"
        raise _bad_divergence_text(f"The text {file} is not UTF-8: {what}.") from error
    documents = tuple(part for part in whole.split(_FORM_FEED) if part.strip())
    if not documents:
        raise _bad_divergence_text(f"The text {file} is empty.")
    return DivergenceText(file, whole.removesuffix("\n"), documents)  # llama-perplexity drops the last newline too


def _our_divergence_text() -> DivergenceText:
    lines = _PROSE_FILE.read_text(encoding="utf-8").splitlines()
    documents = tuple(json.loads(line)["text"] for line in lines if line)
    return DivergenceText(OUR_PROSE, _BETWEEN.join(documents), documents)


def divergence_text_chunks(tokens: Sequence[int], n_ctx: int, n_chunks: int, bos: int | None) -> npt.NDArray[np.int32]:
    """The first `n_chunks` chunks of the text (0: all), shape (chunks, n_ctx); `bos`, if any, replaces the first token.

    Raises:
        StageFailure: `bad-text` (2): the text is too short for one chunk.
    """
    n_whole = len(tokens) // n_ctx
    if not n_whole:
        message = f"The text has {len(tokens):,} tokens, and one chunk needs {n_ctx:,}."
        raise _bad_divergence_text(message, "Give a longer text, or set a smaller `divergence: n_ctx` in the suite.")
    n_read = min(n_chunks or n_whole, n_whole)
    cut = np.asarray(tokens[: n_read * n_ctx], np.int32).reshape(n_read, n_ctx)
    if bos is not None:
        cut[:, 0] = bos
    return cut


def divergence_text_windows(
    documents: Sequence[Sequence[int]], n_ctx: int, n_windows: int, prefix: int, decoder_start: int | None = None
) -> list[Request]:
    """The first `n_windows` of lm-eval's rolling windows over the documents (0: all).

    Each token of a document is scored once. The context of the first window is `prefix`, that of the next ones is the
    token before them, and the last, shorter one is filled up with the tokens before it. Source: lm_eval/utils.py,
    0.4.13. With the `decoder_start` of an encoder-decoder, its encoder reads the context.
    """
    return list(islice(_token_windows(documents, n_ctx, prefix, decoder_start), n_windows or None))


def _token_windows(
    documents: Sequence[Sequence[int]], n_ctx: int, prefix: int, decoder_start: int | None
) -> Iterator[Request]:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for tokens in documents:
        for window in get_rolling_token_windows(list(tokens), prefix, max_seq_len=n_ctx, context_len=1):
            context, target = make_disjoint_window(window)
            if decoder_start is None:
                yield Request([*context, *target[:-1]], target)
            else:
                yield answer_request(context, target, decoder_start)


def _bad_divergence_text(
    message: str, hint: str = "Give a UTF-8 text file in the suite's `divergence: text`."
) -> StageFailure:
    return StageFailure(ExitCode.BAD_REQUEST, "bad-text", message, hint)
