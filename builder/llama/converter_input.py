"""What the converter is given: the model's folder as it is, or a view of it where it would not read that right.

Three things need a view, a folder of links that is gone afterwards. No weight is copied.

- Weights of names that the converter does not look for: it reads `model*.safetensors`, and one name of an index.
- Names of tensors that a wrapper of training left (`_orig_mod.`): the converter runs in renamed_converter.py.
- A config.json that speaks of quantized weights where there are none, or where the converter does not look for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quantyard.formats.finite_json import dump_finite_json
from quantyard.formats.quantized_weights import config_for_converter
from quantyard.formats.safetensors import INDEX_NAME, SafetensorsFile
from quantyard.formats.wrapped_names import unwrapped_names

_PREFIX: Final = "model"  # of the weights that the converter finds without an index
_INDEX_ENDING: Final = ".safetensors.index.json"
_LAUNCHER: Final = Path(__file__).with_name("renamed_converter.py")


@dataclass(frozen=True)
class ConverterInput:
    """The folder to convert, and the arguments that stand before the converter's own."""

    folder: Path
    launcher: tuple[str, ...] = ()


@contextmanager
def open_converter_input(
    source: Path, weights: Sequence[SafetensorsFile], config: Mapping[str, Any], names: Mapping[str, str] | None = None
) -> Iterator[ConverterInput]:
    """The input for a model with these weights (none: pickle files, which are given as they are).

    Args:
        config: config.json.
        names: of tensors to convert by other names, besides those that a wrapper changed.
    """
    renamed = {**unwrapped_names([name for file in weights for name in file.tensors]), **(names or {})}
    told = config_for_converter(config, {name: tensor for file in weights for name, tensor in file.tensors.items()})
    if not renamed and told is None and _converter_finds_weights(source, weights):
        yield ConverterInput(source)
        return
    with tempfile.TemporaryDirectory(prefix="converter-") as folder:
        view = Path(folder) / "source"
        _link_converter_files(source, view, weights)
        if told is not None:
            _replace_converter_config(view, told)
        launcher: tuple[str, ...] = ()
        if renamed:
            mapping = Path(folder) / "names.json"
            mapping.write_text(dump_finite_json(renamed))
            launcher = (str(_LAUNCHER), str(mapping))
        yield ConverterInput(view, launcher)


def _converter_finds_weights(source: Path, weights: Sequence[SafetensorsFile]) -> bool:
    """Whether the converter finds these weights by itself, and no others."""
    return (source / INDEX_NAME).is_file() or all(file.path.name.startswith(_PREFIX) for file in weights)


def _link_converter_files(source: Path, view: Path, weights: Sequence[SafetensorsFile]) -> None:
    """Link every file but the index, whose names are others now."""
    view.mkdir()
    taken = {file.path.name for file in weights}
    for entry in sorted(source.iterdir()):
        if entry.name not in taken and not entry.name.endswith(_INDEX_ENDING):
            (view / entry.name).symlink_to(entry)
    for number, file in enumerate(weights, start=1):
        name = f"{_PREFIX}-{number:05}-of-{len(weights):05}.safetensors"
        (view / name).symlink_to(file.path)


def _replace_converter_config(view: Path, config: Mapping[str, Any]) -> None:
    """Give the view another config.json. One of ModelOpt speaks of quantized weights too, and goes with it."""
    (view / "config.json").unlink()
    (view / "config.json").write_text(dump_finite_json(dict(config)))
    if "quantization_config" not in config:
        (view / "hf_quant_config.json").unlink(missing_ok=True)
