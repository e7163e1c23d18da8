"""Selects the weight files of a repo or folder: those that its index names; without an index, those that the converter
reads (`model*.safetensors`, `pytorch_model*.bin`).

Only the selected files are hashed, checked, downloaded, given to the stages and recorded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from quantyard.errors import BadSource
from quantyard.formats.file_kinds import HEAD_BYTES, spoiled_text
from quantyard.formats.names import shown_names
from quantyard.formats.safetensors import SafetensorsError, parse_weight_index
from quantyard.records import dataclass

ReadFile = Callable[[str], bytes]  # the content of a small file of the repo or folder

_SHARD: Final = re.compile(r"^(?P<stem>.+?)[-._](?P<number>\d{4,6})-of-(?P<count>\d{4,6})$")


@dataclass(frozen=True)
class WeightFormat:
    """A format of weights: the names of its files and of the index of shards."""

    prefix: str  # without an index the converter reads files with this prefix
    ending: str
    index: str


SAFETENSORS: Final = WeightFormat("model", ".safetensors", "model.safetensors.index.json")
PICKLE: Final = WeightFormat("pytorch_model", ".bin", "pytorch_model.bin.index.json")
_FORMATS: Final = (SAFETENSORS, PICKLE)


@dataclass(frozen=True)
class WeightFiles:
    """The weight files, their index ("" without one), and the other files of the format."""

    files: tuple[str, ...]
    index: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """A sentence on the selected files and those left out."""
        several = f"{self.files[0]} … {self.files[-1]} ({len(self.files)} files)"
        taken = self.files[0] if len(self.files) == 1 else several
        why = f", which {self.index} names" if self.index else ""
        left = f"; left out: {shown_names(self.left_out)}" if self.left_out else ""
        single = next((name for name in self.left_out if name in (f"{f.prefix}{f.ending}" for f in _FORMATS)), "")
        newer = f" If {single} is the newer save, which Transformers reads first, remove the index." if single else ""
        return f"The weights are {taken}{why}{left}.{newer}"


@dataclass(frozen=True)
class _Set:
    """The files of one copy of the model: a single file, or shards."""

    stem: str
    files: tuple[str, ...]
    n_shards: int  # from their names; 0 for a single file

    @property
    def missing(self) -> list[int]:
        numbers = {int(match["number"]) for name in self.files if (match := _hub_weight_shard(name))}
        first = 0 if 0 in numbers else 1  # some count from zero
        return sorted(set(range(first, self.n_shards + first)) - numbers)


def choose_weight_files(
    title: str, names: Iterable[str], weights: Sequence[str], form: WeightFormat, read: ReadFile | None
) -> WeightFiles:
    """Select the weights among the files of this format at the top of a repo or folder.

    Args:
        title: the name of the repo or folder in an error.
        names: all of its files.
        weights: those of this format that may be weights; without an index, at least one of a name that the converter
            reads.
        read: reads an index; None: the names alone decide.

    Raises:
        BadSource: the index is stale or cannot be read, shards are missing, or the names leave a choice.
    """
    index = weight_index_name(names, form)
    if not index or read is None:
        chosen = _hub_weights_by_names(title, weights, form)
        return WeightFiles(
            chosen.files, index if chosen.n_shards else "", _hub_weights_not_chosen(weights, chosen.files)
        )
    named = _hub_weights_named_by_index(title, index, form, read)
    if missing := sorted(named - set(names)):
        raise _incomplete_hub_weight_index(
            title, index, named, missing, [name for name in weights if name not in named]
        )
    return WeightFiles(tuple(sorted(named)), index, _hub_weights_not_chosen(weights, named))


def weight_index_name(names: Iterable[str], form: WeightFormat) -> str:
    """The converter's index, or the only one of this format at the top; "" without one."""
    indexes = [name for name in names if "/" not in name and name.endswith(f"{form.ending}.index.json")]
    return form.index if form.index in indexes else indexes[0] if len(indexes) == 1 else ""


def _hub_weights_named_by_index(title: str, index: str, form: WeightFormat, read: ReadFile) -> set[str]:
    text = read(index)
    if spoiled := spoiled_text(text[:HEAD_BYTES], index):
        raise BadSource(f"{index} of {title} is {spoiled.what}.", spoiled.hint)
    try:
        return set(parse_weight_index(text, index, form.ending).values())
    except SafetensorsError as error:
        hint = "Download it again; where the model is one file, or its shards are complete, it can be removed."
        raise BadSource(f"{title}: {error}.", hint) from error


def is_path_title(title: str) -> bool:
    """Whether a title is the path of a folder here, and not the id of a repo."""
    return title.startswith(("/", ".", "~"))


def _incomplete_hub_weight_index(
    title: str, index: str, named: set[str], missing: list[str], others: list[str]
) -> BadSource:
    """The error for an index that names missing files: it is of another save, or the download is not complete."""
    whole = [each for each in _hub_weight_sets(others) if not each.missing]
    if len(missing) == len(named) and whole:
        there = shown_names(whole[0].files)
        message = f"{index} of {title} is stale: it names {shown_names(missing)}, but the folder holds {there}."
        remove = f"Remove it (rm {index}), or fetch the files that it names."
        elsewhere = "Try another revision; or download the repo, remove the index and name the folder."
        return BadSource(message, f"It is of another save. {remove if is_path_title(title) else elsewhere}")
    message = f"{title} lacks {len(missing)} of the {len(named)} files that {index} names: {shown_names(missing)}."
    return BadSource(message, "The upload or download is not complete: fetch it again, or try another revision.")


def _hub_weights_by_names(title: str, weights: Sequence[str], form: WeightFormat) -> _Set:
    """The only copy of the model, or the one with the plain name."""
    readable = _hub_weight_sets([name for name in weights if name.startswith(form.prefix)])
    plain = [each for each in readable if each.stem in (form.prefix, form.prefix + form.ending)]
    single = [each for each in plain if not each.n_shards]  # shards without an index cannot be loaded by Transformers
    best = single or plain or readable
    if len(best) > 1:
        forms = "; ".join(shown_names(each.files) for each in best)
        hint = f"Keep one: move the others out of the folder, or give it the name {form.prefix}{form.ending}."
        raise BadSource(
            f"{title} holds {len(best)} forms of its weights, and none is plainly the model: {forms}.", hint
        )
    _refuse_missing_hub_weights(title, best[0])
    return best[0]


def _refuse_missing_hub_weights(title: str, shards: _Set) -> None:
    if missing := shards.missing:
        message = f"{title} lacks {len(missing)} of {shards.n_shards} shards, the first of them number {missing[0]}."
        raise BadSource(message, "The upload is not complete: try another revision, or tell the owner.")


def _hub_weight_sets(names: Iterable[str]) -> list[_Set]:
    """The names, grouped into copies of the model."""
    found: dict[tuple[str, int], list[str]] = {}
    for name in sorted(names):
        match = _hub_weight_shard(name)
        key = (match["stem"], int(match["count"])) if match else (name.rsplit(".", 1)[0], 0)
        found.setdefault(key, []).append(name)
    return [_Set(stem, tuple(files), count) for (stem, count), files in found.items()]


def _hub_weight_shard(name: str) -> re.Match[str] | None:
    return _SHARD.match(name.rsplit(".", 1)[0])


def _hub_weights_not_chosen(weights: Sequence[str], chosen: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(weights) - set(chosen)))
