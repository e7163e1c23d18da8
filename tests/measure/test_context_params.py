"""The parameters of a context, whose layout is found by its defaults, against the struct of llama-cpp-python."""

from __future__ import annotations

import llama_cpp
import pytest

from quantyard.llama.library import LlamaLibrary, llama_library_path

FULL = {"flash_attn_type": 0, "type_k": 0, "type_v": 0}
LAST = 3  # LLAMA_POOLING_TYPE_LAST


@pytest.mark.parametrize(
    ("calls", "changed"),
    [
        ((), {}),
        ((("set_full_precision",),), FULL),
        ((("set_embeddings", LAST),), {"pooling_type": LAST}),
        ((("set_embeddings", LAST), ("set_full_precision",)), FULL | {"pooling_type": LAST}),
        ((("set_full_precision",), ("set_embeddings", LAST)), FULL | {"pooling_type": LAST}),
        ((("set_embeddings", LAST), ("set_embeddings", 0)), {"pooling_type": 0}),
    ],
)
def test_what_is_set_is_set_in_any_order_and_nothing_else(
    calls: tuple[tuple[str, int], ...], changed: dict[str, int]
) -> None:
    params = LlamaLibrary(llama_library_path(None)).llama_context_default_params()
    for name, *arguments in calls:
        getattr(params, name)(*arguments)
    found = llama_cpp.llama_context_params.from_buffer_copy(bytes(params.block))
    default = llama_cpp.llama_context_default_params()
    names = [name for name, *_ in default._fields_]
    plain = [name for name in names if isinstance(getattr(default, name), int | float)]
    assert {n: getattr(found, n) for n in plain} == {n: getattr(default, n) for n in plain} | changed
