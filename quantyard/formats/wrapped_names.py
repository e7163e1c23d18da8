"""Names of tensors as wrappers of training leave them, and the names that the model itself has.

    unwrapped_names(["_orig_mod.model.norm.weight"])    # {"_orig_mod.model.norm.weight": "model.norm.weight"}

torch.compile, DistributedDataParallel, FSDP, Accelerate and Lightning put a word before the names of what they wrap; a
checkpoint that was saved through the wrapper keeps it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

# To strip one more: a word that no architecture uses, wherever it stands in a name …
_ANYWHERE: Final = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
# … or one that counts only where every name of the model begins with it.
_BEFORE_ALL: Final = ("module.", "base_model.model.", "_model.", "state_dict.")
_DEPTH: Final = 4  # wrappers around one another
_DOUBLED: Final = ("model.model.", "model.lm_head.")  # "model." before names that begin with it already


def unwrapped_names(names: Collection[str]) -> dict[str, str]:
    """The names that a wrapper changed, and what they are without it; empty where there is none.

    Nothing is renamed where two tensors would have one name.
    """
    found = {name: _tensor_name_without_wrapper(name) for name in names}
    for _ in range(_DEPTH):
        prefix = _common_wrapper(found.values())
        if not prefix:
            break
        found = {name: _tensor_name_without_wrapper(bare.removeprefix(prefix)) for name, bare in found.items()}
    if len(set(found.values())) < len(found) or "" in found.values():
        return {}
    return {name: bare for name, bare in found.items() if name != bare}


def wrapper_words(renamed: dict[str, str]) -> str:
    """What was stripped from the first of the names: `_orig_mod.`."""
    name, bare = next(iter(renamed.items()))
    return name.removesuffix(bare) if name.endswith(bare) else next(word for word in _ANYWHERE if word in name)


def _tensor_name_without_wrapper(name: str) -> str:
    for word in _ANYWHERE:
        name = name.replace(word, "")
    return name


def _common_wrapper(names: Collection[str]) -> str:
    """The wrapper that every name begins with; "" where there is none."""
    if names and all(name.startswith(_DOUBLED) for name in names):
        return "model."
    return next((prefix for prefix in _BEFORE_ALL if names and all(name.startswith(prefix) for name in names)), "")
