"""Open language models in, measured and verified GGUF files out.

    import quantyard

    built = quantyard.build("org/name", quant="Q4_K_M", progress=print)
    print(built.files[0].path)

Each function does what the command of its name does, and returns objects; none of them prints. Errors are
`QuantyardError` and its subclasses. Importing the package is cheap: a function is loaded when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantyard.api import (
        build,
        bump,
        choose,
        compare,
        contract,
        demo,
        doctor,
        evaluate,
        gate,
        lora,
        matrix,
        plan,
        publish,
        release,
        report,
        tune,
        verify,
    )
    from quantyard.errors import QuantyardError
    from quantyard.store.manifest import Manifest, read_manifest
    from quantyard.version import __version__

__all__ = (
    "Manifest", "QuantyardError", "__version__", "build", "bump", "choose", "compare", "contract", "demo", "doctor",
    "evaluate", "gate", "lora", "matrix", "plan", "publish", "read_manifest", "release", "report", "tune", "verify",
)  # fmt: skip
# Where each name is that is not of `quantyard.api`.
_ELSEWHERE = {
    "QuantyardError": "quantyard.errors", "Manifest": "quantyard.store.manifest",
    "read_manifest": "quantyard.store.manifest", "__version__": "quantyard.version",
}  # fmt: skip


if not TYPE_CHECKING:  # else every name would be known to a type checker, a misspelt one too

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(_ELSEWHERE.get(name, "quantyard.api")), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps the functions of the API where rooms have the same names: `quantyard.choose` is the function, and
    `from quantyard.choose.pick import Choice` reads the room.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):  # the import system binds every room here
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
