"""Classes of `quantyard.records` behave as the standard library's data classes do."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import field, replace
from typing import Any

import pytest

from quantyard.records import dataclass


class Shape:
    name: str
    size: int = 3
    values: int = 4
    _size: int = 5
    parts: list[int] = field(default_factory=list)
    secret: str = field(default="x", repr=False)
    made: dict[str, int] = field(default_factory=dict, init=False)
    note: str = field(default="n", init=False, compare=False)

    def __post_init__(self) -> None:
        self.made["size"] = self.size


def _class_of(kind: Callable[..., Any], *, frozen: bool) -> Any:
    own = {name: value for name, value in vars(Shape).items() if name not in ("__dict__", "__weakref__")}
    return kind(frozen=frozen)(type("Shape", (), own | {"__qualname__": "Shape"}))


CALLS: list[tuple[tuple[object, ...], dict[str, object]]] = [
    (("a",), {}), (("a", 4), {}), (("a",), {"parts": [1]}), ((), {"name": "b", "size": 1, "secret": "y"}),
    ((), {}), (("a",), {"unknown": 1}), (("a", 1, 2, 3, [], "x", 5), {}), (("a",), {"made": {}}),
]  # fmt: skip


def _seen(kind: Any, args: tuple[object, ...], named: dict[str, object]) -> object:
    try:
        made = kind(*args, **named)
    except TypeError as error:
        return str(error)
    return repr(made), dataclasses.asdict(made), replace(made, size=9).size, made == copy.copy(made), made == 1


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(("args", "named"), CALLS)
def test_it_is_made_shown_and_compared_as_a_standard_one(
    args: tuple[object, ...], named: dict[str, object], *, frozen: bool
) -> None:
    ours, standard = _class_of(dataclass, frozen=frozen), _class_of(dataclasses.dataclass, frozen=frozen)
    assert _seen(ours, args, named) == _seen(standard, args, named)


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


@dataclass(frozen=True)
class Named(Point):
    name: str = ""


def test_a_frozen_one_is_hashed_pickled_and_never_changed() -> None:
    point = Named(1, 2, "p")
    assert {point: 1}[Named(1, 2, "p")] == 1 and point != Point(1, 2)
    assert pickle.loads(pickle.dumps(point)) == point  # noqa: S301
    with pytest.raises(dataclasses.FrozenInstanceError):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del point.x
