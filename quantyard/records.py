"""`dataclass` that is defined in a third of the time, for the classes that every command loads.

The standard library compiles up to six methods for each class, 1 ms in all; a command loads some eighty such classes
before it does anything. Only `__init__` depends on the fields: the others are shared here. What is made is a data class
still, for `fields`, `replace` and `asdict` as for type checkers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass  # noqa: PLC0414  (to type checkers it is the standard one)
else:

    def dataclass(cls: type | None = None, /, *, frozen: bool = False) -> Any:
        """As `dataclasses.dataclass`."""
        return partial(_record_class, frozen=frozen) if cls is None else _record_class(cls, frozen=frozen)


def _record_class(cls: type[Any], *, frozen: bool) -> type[Any]:
    own = set(vars(cls))
    made = dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
    methods: dict[str, object] = {"__init__": _init_of(made), "__eq__": _eq, "__repr__": _repr, "__hash__": None}
    if frozen:
        methods |= {"__hash__": _hash, "__setattr__": _refuse_change, "__delattr__": _refuse_change}
    for name, method in methods.items():
        if name not in own:
            setattr(made, name, method)
    return made


def _init_of(cls: type[Any]) -> Callable[..., None]:
    """The one method that is compiled for each class, so that calls are as quick and errors as plain as usual."""
    given, lines = ["self"], ["__made__ = self.__dict__"]
    known: dict[str, Any] = {"__missing__": dataclasses.MISSING}
    for each in dataclasses.fields(cls):
        name, default, made = each.name, f"__{each.name}__default__", each.default_factory
        known[default] = each.default if made is dataclasses.MISSING else made
        value = name if each.init else default
        if made is not dataclasses.MISSING:
            value = f"{default}() if {name} is __missing__ else {name}" if each.init else f"{default}()"
            default = "__missing__"
        if each.init:
            given.append(name if known[f"__{name}__default__"] is dataclasses.MISSING else f"{name}={default}")
        elif known[f"__{name}__default__"] is dataclasses.MISSING:
            continue
        lines.append(f"__made__[{name!r}] = {value}")
    lines += ["self.__post_init__()"] if hasattr(cls, "__post_init__") else []
    exec(f"def __init__({', '.join(given)}):\n " + "\n ".join(lines), known)  # noqa: S102  (names of fields alone)
    init: Callable[..., None] = known["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    return init


def _values(record: Any, *, shown: bool = False) -> tuple[tuple[str, object], ...]:
    return tuple(
        (each.name, getattr(record, each.name))
        for each in dataclasses.fields(record) if (each.repr if shown else each.compare)
    )  # fmt: skip


def _eq(self: Any, other: object) -> object:
    if self.__class__ is not other.__class__:
        return NotImplemented
    return _values(self) == _values(other)


def _hash(self: Any) -> int:
    return hash(_values(self))


def _repr(self: Any) -> str:
    return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in _values(self, shown=True))})"


def _refuse_change(self: Any, name: str, *_value: object) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot change field {name!r} of {type(self).__name__}")
