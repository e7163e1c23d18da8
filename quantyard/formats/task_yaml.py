"""A task of a user's suite, read with the files that it includes: on the host, and where lm-eval measures it.

lm-eval's own reader follows aliases and any path, so it only gets what this reader has read from the user's files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from quantyard.formats.strict_yaml import OnFunction, YamlProblem, read_strict_yaml

MAX_BYTES: Final = 128 * 1024  # of one file; examples written out make the longest
_MAX_FILES: Final = 50  # read for one task; files that include others twice double at every step


def read_task_yaml(path: Path, top: Path, on_function: OnFunction) -> dict[str, Any]:
    """The mapping in a file, merged over those it includes; nothing outside the folder `top` is read.

    Args:
        on_function: what stands for `!function module.name`.

    Raises:
        YamlProblem: it is not a valid task; the message begins with the file's name.
    """
    return _Reader(top, on_function).read(path)


class _Reader:
    def __init__(self, top: Path, on_function: OnFunction) -> None:
        self._top, self._on_function, self._n_files = top.resolve(), on_function, 0

    def read(self, path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
        self._n_files += 1
        if path.resolve() in above:
            raise YamlProblem(f"{path.name} includes itself")
        if self._n_files > _MAX_FILES:
            raise YamlProblem(f"{(above or (path,))[0].name} includes more than {_MAX_FILES} files")
        own = self._own(path)
        merged: dict[str, Any] = {}
        for name in _task_yaml_names(own.pop("include", None), path.name):
            included = self.read(self._inside(path, name), (*above, path.resolve()))
            included.pop("task_list", None)  # as lm-eval has it
            merged |= included
        return merged | own

    def _own(self, path: Path) -> dict[str, Any]:
        try:
            data = read_strict_yaml(path, max_bytes=MAX_BYTES, on_function=self._on_function)
        except YamlProblem as problem:
            raise YamlProblem(f"{path.name} is not valid YAML: {problem}") from problem
        except OSError as error:
            raise YamlProblem(f"{path.name} cannot be read: {error.strerror}") from error
        if not isinstance(data, dict):
            raise YamlProblem(f"{path.name} is not a task: it does not hold a mapping")
        return data

    def _inside(self, path: Path, name: str) -> Path:
        included = path.parent / name
        if "\0" in name or not included.is_file():
            raise YamlProblem(f"{path.name} includes {name}, which is not there")
        if not included.resolve().is_relative_to(self._top):
            raise YamlProblem(f"{path.name} includes {name}, which lies outside of {self._top.name}")
        return included


def _task_yaml_names(value: Any, where: str) -> list[str]:
    names = value if isinstance(value, list) else [] if value is None else [value]
    for name in names:
        if not isinstance(name, str):
            raise YamlProblem(f"{where} includes {str(name)[:60]!r}, which is not a file name")
    return names
