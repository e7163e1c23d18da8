"""The stage `split`: splits a GGUF above a size limit into shards, which llama.cpp loads by the name of the first.

In the image `llama-gguf-split` does it; where llama.cpp's programs are not installed, the package `gguf` writes the
same shards. Both count only tensors against the limit, so the stage reserves room for the header. The shards are then
compared with the source: every tensor must be in exactly one shard, byte for byte.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from builder.llama.run_tool import refuse_exhausted_tool, run_llama_tool
from builder.llama.toolchain import LlamaTools, llama_tools
from quantyard.formats.gguf import (
    DEFAULT_ALIGNMENT_BYTES,
    GgufError,
    GgufHeader,
    MetadataValue,
    TensorInfo,
    read_gguf_model,
)
from quantyard.formats.gguf_values import GgufArray
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import SplitRequest
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage

_UNIT_BYTES: Final = 1_000_000  # llama-gguf-split's M
_SPLIT_KEYS_BYTES: Final = 256  # three keys, their values and the padding after them
_CHUNK_BYTES: Final = 4 * 1024 * 1024
_MAX_NAMED: Final = 5
_N_SHARDS: Final = re.compile(r"^n_split: (\d+)")
_VERSION: Final = re.compile(r"^version: (.+)")
_REPORT: Final = "Report it, with the log: this should never happen."


def split(stage: Stage, request: SplitRequest) -> StageOutcome:
    """Split `/in/source/<model_file>` into `/out/files/<prefix>-00001-of-0000N.gguf` and so on.

    Raises:
        StageFailure: 2 if the file is not a GGUF above the limit, or one of its tensors does not fit in a shard; 3 if
            it cannot be split; 5 if disk or memory ran out; 70 if the shards do not match the source.
    """
    source = _read_gguf_to_split(stage.in_dir / "source" / request.model_file)
    tensors_bytes = split_tensor_bytes(source, request.max_size_bytes)
    tools = llama_tools(stage)
    if tools.llama_bin is not None:
        outcome = _split_with_program(
            stage, request, tools.llama_bin / "llama-gguf-split", tools, source, tensors_bytes
        )
    else:
        outcome = _split_with_package(stage, request, source, tensors_bytes)
    shards = _read_shards(stage, request)
    check_split_shards(stage, source, shards, request.max_size_bytes)
    facts = {"shards": len(shards.paths), "tensors": len(shards.tensors), "tensor_bytes": shards.tensor_bytes}
    return StageOutcome(facts=facts, tools=outcome.tools, argv=outcome.argv)


def split_tensor_bytes(source: GgufHeader, max_size_bytes: int) -> int:
    """How many bytes of tensors a shard may hold: a whole number of megabytes, as llama-gguf-split requires.

    Raises:
        StageFailure: 2, the file is within the limit or split already, or its header or one of its tensors does not
            fit; 3, llama-gguf-split would pad its tensors wrongly.
    """
    file = source.paths[0].name
    if len(source.paths) > 1:
        raise _refused_split(
            "already-split", f"{file} is one of {len(source.paths)} shards already.", "Name a whole file."
        )
    if source.file_size <= max_size_bytes:
        message = f"{file} is {source.file_size:,} bytes, within the limit of {max_size_bytes:,}."
        raise _refused_split("not-above-limit", message, "Use it as it is.")
    if source.alignment != DEFAULT_ALIGNMENT_BYTES:
        message = f"{file} aligns its tensors to {source.alignment} bytes; llama-gguf-split would damage them."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "alignment", message, "Use it as it is.")
    # The first shard's header is the largest: it has all metadata. `gguf` counts tensors without their padding, so one
    # alignment is reserved for each.
    overhead = source.data_offset + _SPLIT_KEYS_BYTES + len(source.tensors) * source.alignment
    left = (max_size_bytes - overhead) // _UNIT_BYTES * _UNIT_BYTES
    largest = max(source.tensors, key=lambda tensor: tensor.size_bytes)
    if largest.size_bytes > left:
        raise _tensor_too_large_to_split(largest, max_size_bytes, overhead)
    return left


def _tensor_too_large_to_split(tensor: TensorInfo, max_size_bytes: int, overhead: int) -> StageFailure:
    needed = -(-tensor.size_bytes // _UNIT_BYTES) * _UNIT_BYTES + overhead
    message = (
        f"Tensor {tensor.name} is {tensor.size_bytes:,} bytes, and a tensor is never split: "
        f"with its header it does not fit in {max_size_bytes:,} bytes."
    )
    return _refused_split("tensor-too-large", message, f"Allow shards of {needed:,} bytes or more.")


def _refused_split(kind: str, message: str, hint: str) -> StageFailure:
    return StageFailure(ExitCode.BAD_REQUEST, kind, message, hint)


def _read_gguf_to_split(path: Path) -> GgufHeader:
    try:
        source = read_gguf_model(path)
    except (GgufError, FileNotFoundError) as error:
        raise _refused_split(
            "bad-gguf", f"{path.name} is not a usable GGUF: {error}", "Build the model again."
        ) from error
    if not source.tensors:
        raise _refused_split("no-tensors", f"{path.name} holds no tensors.", "Use it as it is.")
    return source


# ---- the two ways to write the shards ----------------------------------------------------------------


class _Log:
    """Turns llama-gguf-split's lines into progress. Writing the shards is half of the work, checking them the other."""

    def __init__(self, stage: Stage, source: GgufHeader) -> None:
        self._stage, self._bytes = stage, source.tensor_bytes
        self._n_shards = self._done = 0

    def __call__(self, line: str) -> None:
        if match := _N_SHARDS.match(line):
            self._n_shards = int(match[1])
        elif line.startswith("Writing file") and self._n_shards:
            self._done += 1
            self._stage.progress(self._bytes * self._done // self._n_shards, 2 * self._bytes, "bytes")


def _split_with_program(
    stage: Stage, request: SplitRequest, program: Path, tools: LlamaTools, source: GgufHeader, tensors_bytes: int
) -> StageOutcome:
    target = stage.files_dir / request.prefix
    size = f"{tensors_bytes // _UNIT_BYTES}M"
    argv = [str(program), "--split", "--split-max-size", size, str(source.paths[0]), str(target)]
    run = run_llama_tool(argv, tools.clean_env, _Log(stage, source))
    if run.exit_code != 0:
        refuse_exhausted_tool(run, stage.out_dir, program.name)
        raise _split_failure(f"{program.name} cannot split this model ({run.end}).", run.tail)
    return StageOutcome(tools={"llama.cpp": _split_program_version(program, tools)}, argv=(run.argv,))


def _split_program_version(program: Path, tools: LlamaTools) -> str:
    lines: list[str] = []
    run = run_llama_tool([str(program), "--version"], tools.clean_env, lines.append)
    found = [match[1].strip() for line in lines if (match := _VERSION.match(line))]
    return found[0] if found and run.exit_code == 0 else "unknown"


def _split_with_package(stage: Stage, request: SplitRequest, source: GgufHeader, tensors_bytes: int) -> StageOutcome:
    import gguf

    target = stage.files_dir / f"{request.prefix}.gguf"
    try:
        reader = gguf.GGUFReader(source.paths[0])
        writer = gguf.GGUFWriter(target, source.architecture, split_max_size=tensors_bytes)
        _copy_metadata_to_shards(reader, writer)
        _copy_tensors_to_shards(stage, reader, writer, source)
    except (ValueError, KeyError, struct.error) as error:  # gguf's exceptions for values that it cannot write
        raise _split_failure(f"The package gguf cannot rewrite this model: {error}.", "") from error
    argv = ("gguf.GGUFWriter", str(target), f"split_max_size={tensors_bytes}")
    return StageOutcome(tools={"gguf": version("gguf")}, argv=(argv,))


def _copy_metadata_to_shards(reader: Any, writer: Any) -> None:
    """Copy strings as raw bytes: a tokenizer's vocabulary need not be UTF-8."""
    from gguf import GGUFValueType, Keys

    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "split.")) or name == Keys.General.ARCHITECTURE:  # the writer adds these
            continue
        kind, inner = field.types[0], field.types[-1]
        is_array, is_text = kind == GGUFValueType.ARRAY, inner == GGUFValueType.STRING
        found = [field.parts[index].tobytes() for index in field.data] if is_text else field.contents()
        value = found if is_array or not is_text else found[0]
        writer.add_key_value(name, value, kind, inner if is_array else None)


def _copy_tensors_to_shards(stage: Stage, reader: Any, writer: Any, source: GgufHeader) -> None:
    """Copy the tensors one by one: the reader maps the file, so only one is in memory."""
    for tensor in reader.tensors:
        writer.add_tensor_info(tensor.name, tensor.data.shape, tensor.data.dtype, tensor.n_bytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done = 0
    for tensor in reader.tensors:
        writer.write_tensor_data(tensor.data)
        done += tensor.n_bytes
        stage.progress(done, 2 * source.tensor_bytes, "bytes")
    writer.close()


def _split_failure(message: str, detail: str) -> StageFailure:
    hint = "Its last output says why." if detail else "Use the file as it is, or split it with ENGINE=docker."
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "split-failed", message, hint, detail)


# ---- the check ---------------------------------------------------------------------------------------


def _read_shards(stage: Stage, request: SplitRequest) -> GgufHeader:
    """All shards as one header. `read_gguf_model` finds them by the first, and refuses missing or foreign ones."""
    made = sorted(stage.files_dir.glob("*"))
    first = next((path for path in made if path.name.startswith(f"{request.prefix}-00001-of-")), None)
    if first is None:
        raise _wrong_shards(
            [f"{request.prefix}-00001-of-….gguf is missing; the folder has {[path.name for path in made]}"]
        )
    try:
        shards = read_gguf_model(first)
    except GgufError as error:
        raise _wrong_shards([str(error)]) from error
    if strangers := {path.name for path in made} - {path.name for path in shards.paths}:
        raise _wrong_shards([f"{name} is not one of the expected shards" for name in sorted(strangers)])
    return shards


def check_split_shards(stage: Stage, source: GgufHeader, shards: GgufHeader, max_size_bytes: int) -> None:
    """Compare the shards with the file they were made from; reads both completely.

    Raises:
        StageFailure: 70, a shard is above the limit, or tensors or metadata differ from the source's.
    """
    sizes = {path.name: path.stat().st_size for path in shards.paths}
    wrong = [f"{name} is {size:,} bytes, above the limit" for name, size in sizes.items() if size > max_size_bytes]
    wrong += _metadata_differences_of_shards(source.metadata, shards.metadata)
    wrong += _tensor_differences_of_shards(stage, source, shards)
    if wrong:
        raise _wrong_shards(wrong)


def _wrong_shards(wrong: list[str]) -> StageFailure:
    named = "; ".join(wrong[:_MAX_NAMED])
    message = f"The shards do not match the source: {named}. ({len(wrong)} differences in all.)"
    return StageFailure(ExitCode.BUG, "verify-shards", message, _REPORT)


def _metadata_differences_of_shards(
    source: Mapping[str, MetadataValue], shards: Mapping[str, MetadataValue]
) -> list[str]:
    before, after = (
        {k: _comparable_shard_value(v) for k, v in d.items() if not k.startswith("split.")} for d in (source, shards)
    )
    names = sorted(before.keys() | after.keys())
    return [f"metadata {name} differs" for name in names if before.get(name) != after.get(name)]


def _comparable_shard_value(value: MetadataValue) -> tuple[object, ...]:
    """A value in comparable form: with its type (True is not 1), NaN equal to NaN, an array without its offset."""
    if isinstance(value, GgufArray):
        return (value.element_type, value.length, value.sha256)
    return (type(value), repr(value))


def _tensor_differences_of_shards(stage: Stage, source: GgufHeader, shards: GgufHeader) -> list[str]:
    """The differences between tensors. `read_gguf_model` has already refused a tensor name in two shards."""
    before, after = ({tensor.name: tensor for tensor in header.tensors} for header in (source, shards))
    wrong = [f"tensor {name} is only in the source" for name in sorted(before.keys() - after.keys())]
    wrong += [f"tensor {name} is only in the shards" for name in sorted(after.keys() - before.keys())]
    done = 0
    for name in (name for name in before if name in after):
        if not _is_same_shard_tensor(before[name], after[name]):
            wrong.append(f"tensor {name} differs")
        done += before[name].size_bytes
        stage.progress(source.tensor_bytes + done, 2 * source.tensor_bytes, "bytes")
    return wrong


def _is_same_shard_tensor(one: TensorInfo, other: TensorInfo) -> bool:
    if (one.shape, one.type_id) != (other.shape, other.type_id):
        return False
    left = one.size_bytes
    with one.path.open("rb") as first, other.path.open("rb") as second:
        first.seek(one.offset)
        second.seek(other.offset)
        while left:
            size = min(left, _CHUNK_BYTES)
            block = first.read(size)
            if len(block) != size or block != second.read(size):
                return False
            left -= size
    return True


def main() -> None:
    """Entry point of the stage."""
    run_stage(SplitRequest, split)


if __name__ == "__main__":
    main()
