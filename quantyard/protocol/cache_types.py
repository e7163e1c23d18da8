"""The types of a KV cache, by llama.cpp's names (`--cache-type-k`, `--cache-type-v`), and how they are measured.

A choice is written `q8_0` for keys and values alike, or `q8_0/f16` for keys and values apart.
"""

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from quantyard.formats.ggml_types import TYPE_BY_NAME, TensorType
from quantyard.protocol.base import Frozen, RelativePath

# llama.cpp's `kv_cache_types` (common/arg.cpp).
CACHE_TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
DEFAULT_CACHE: Final = "f16"
CacheRefusal = Literal[
    "", "NO_KV_CACHE", "NO_V_CACHE", "HEAD_SIZE", "NO_FLASH_ATTENTION", "ENCODER_DECODER", "REFUSED"
]
# Reason → what it means, after "is not measured: ".
CACHE_REFUSALS: Final[dict[CacheRefusal, str]] = {
    "NO_KV_CACHE": "the model is recurrent, and its state has one type",
    "NO_V_CACHE": "the model keeps no values of its own (latent attention): choose one type for keys and values",
    "HEAD_SIZE": "the length of a head is not a multiple of the type's block",
    "NO_FLASH_ATTENTION": "quantized values need flash attention, which this model or backend does not have",
    "ENCODER_DECODER": "the attention of an encoder-decoder adds a bias that flash attention does not have",
    "REFUSED": "llama.cpp refuses it",
}


def cache_type_pair(text: str) -> tuple[str, str]:
    """The types of keys and of values in `q8_0` or `q8_0/f16`.

    Raises:
        ValueError: it names no type of a KV cache, or more than two.
    """
    parts = text.strip().lower().split("/")
    if len(parts) > 2 or not set(parts) <= set(CACHE_TYPES):
        raise ValueError(f"name a type ({', '.join(CACHE_TYPES)}), or two for keys and values, such as q8_0/f16")
    return parts[0], parts[-1]


def cache_type_name(text: str) -> str:
    """The one spelling of a choice: `q8_0` for `Q8_0/q8_0`.

    Raises:
        ValueError: see `cache_type_pair`.
    """
    k, v = cache_type_pair(text)
    return k if k == v else f"{k}/{v}"


def cache_tensor_type(name: str) -> TensorType:
    """The block of one type of a cache."""
    return TYPE_BY_NAME[name.upper()]


CacheName = Annotated[str, AfterValidator(cache_type_name)]


class CacheSettings(Frozen):
    """How types of the KV cache are measured, each beside f16. `text` None: the text that comes with Quantyard."""

    types: Annotated[tuple[CacheName, ...], Field(min_length=1)] = (
        "q8_0", "q8_0/f16", "f16/q8_0", "q4_0", "q4_0/f16", "f16/q4_0",
    )  # fmt: skip
    text: RelativePath | None = None  # a plain text file beside the suite
    n_ctx: Annotated[int, Field(ge=64)] = 4096  # tokens of a chunk, at most what the model was trained for
    n_chunks: Annotated[int, Field(ge=0)] = 2  # 0: the whole text
    prompt_tokens: Annotated[int, Field(ge=1)] = 128  # timed after each chunk, as llama-bench's pp128 @ d4096
    generated_tokens: Annotated[int, Field(ge=1)] = 16  # as tg16 @ d4096
    repeats: Annotated[int, Field(ge=0)] = 3  # of either, for each chunk; 0: speed is not measured
