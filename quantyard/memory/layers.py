"""The memory that each layer needs for a context, from a GGUF's metadata: attention, windows, recurrent states.

From llama.cpp's `load_hparams` (src/llama-model.cpp), the `load_arch_hparams` of each architecture (src/models/) and
`create_memory`, which selects the kind of memory. An architecture that is not in the tables below is unknown, because a
guess would look exact.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Final

from quantyard.formats.gguf import GgufArray, GgufHeader
from quantyard.records import dataclass

MAX_LAYERS: Final = 512  # LLAMA_MAX_LAYERS
_BLOCK: Final = 32  # elements of a block of q8_0 and q4_0
_FORMATS: Final = {"uint8": "B", "int8": "b", "uint16": "H", "int16": "h", "uint32": "I", "int32": "i", "bool": "?"}

# To add an architecture whose layers all attend to the whole context: add its name.
PLAIN: Final = frozenset({
    "apertus", "arcee", "arctic", "baichuan", "bailingmoe", "bailingmoe2", "bitnet", "bloom", "chameleon", "chatglm",
    "codeshell", "command-r", "dbrx", "deci", "deepseek", "deepseek2", "dots1", "ernie4_5", "ernie4_5-moe", "exaone",
    "falcon", "gemma", "glm4", "glm4moe", "gpt2", "gptneox", "granite", "granitemoe", "grovemoe", "hunyuan-dense",
    "hunyuan-moe", "internlm2", "jais", "llama", "maincoder", "minicpm", "minicpm3", "minimax-m2", "mistral3", "mpt",
    "nemotron", "olmo", "olmoe", "openelm", "orion", "pangu-embedded", "phi2", "phi3", "phimoe", "plamo", "qwen",
    "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "refact", "seed_oss", "smollm3",
    "stablelm", "starcoder", "starcoder2", "xverse",
})  # fmt: skip
# One compressed vector for K and V if the metadata says so (DeepSeek's latent attention).
_LATENT: Final = frozenset({"deepseek2"})
_RECURRENT: Final = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
# A layer without KV heads is recurrent; in nemotron_h only if it has no feed-forward network either.
_BY_KV_HEADS: Final = frozenset({"jamba", "granitehybrid", "lfm2", "lfm2moe", "plamo2", "nemotron_h", "nemotron_h_moe"})
# Every n-th layer attends, the others are recurrent.
_BY_INTERVAL: Final = frozenset({"qwen3next", "qwen35", "qwen35moe"})
_BOTH: Final = frozenset({"falcon-h1"})  # every layer attends and is recurrent


@dataclass(frozen=True)
class _Window:
    """The layers with a sliding window, if the metadata does not list them."""

    every: int = 0  # in each group of so many layers, one attends to everything; 0: the metadata must list them
    full_first: bool = False  # that layer is the first of its group, not the last
    absent: int = 0  # tokens of the window if the metadata has none; 0: no window
    fixed: int = 0  # tokens of the window, in place of any nonzero value of the metadata
    kv_layers: int = 0  # number of layers with a cache, which the later ones share; 0: all


# To add an architecture with sliding windows: add a row.
_WINDOWED: Final = {
    "afmoe": _Window(4), "cohere2": _Window(4), "cohere2moe": _Window(4, full_first=True),
    "exaone4": _Window(4, absent=4096), "exaone-moe": _Window(4), "gemma2": _Window(2, absent=4096),
    "gemma3": _Window(6), "gemma3n": _Window(5, kv_layers=20), "gemma4": _Window(), "gpt-oss": _Window(2),
    "granite_swa": _Window(), "laguna": _Window(4, full_first=True), "llama4": _Window(4, absent=8192, fixed=8192),
    "mellum": _Window(4), "mimo2": _Window(), "olmo2": _Window(4), "plamo3": _Window(8),
    "smallthinker": _Window(4, full_first=True, fixed=4096),
}  # fmt: skip
_EXAONE4_WINDOWED_LAYERS: Final = 64  # the 32B model; the small one has no windows


@dataclass(frozen=True)
class Layer:
    """The cache of one layer: elements of K and of V per token, and whether it has a recurrent state.

    `in_blocks`: the length of a head is a multiple of 32, as an 8-bit cache requires.
    """

    k: int
    v: int
    windowed: bool = False
    recurrent: bool = False
    in_blocks: bool = True


@dataclass(frozen=True)
class ModelLayers:
    """All layers; `window` in tokens; states in f32 elements per recurrent layer and sequence."""

    layers: tuple[Layer, ...]
    window: int = 0
    r_state: int = 0
    s_state: int = 0


def read_cache_layers(header: GgufHeader) -> ModelLayers | None:
    """The layers of this model; None if its architecture or its metadata are not known exactly.

    Raises:
        OSError: the file cannot be read for the elements of an array.
    """
    try:
        return _Metadata(header).layers()
    except _UnknownError:
        return None


class _UnknownError(Exception):
    """The metadata lacks a value."""


class _Metadata:
    """The metadata of one architecture, as llama.cpp reads it."""

    def __init__(self, header: GgufHeader) -> None:
        self._header, self.arch = header, header.architecture
        self._arrays: dict[GgufArray, tuple[int, ...]] = {}
        self.n_all = self.number("block_count")
        self.n_layers = self.n_all - self.number("nextn_predict_layers", 0)  # these layers only draft tokens
        if not 0 < self.n_layers <= self.n_all <= MAX_LAYERS:
            raise _UnknownError

    def layers(self) -> ModelLayers:
        """The layers that take memory."""
        if self.arch in _RECURRENT:
            return self._with_states(tuple(Layer(0, 0, recurrent=True) for _ in range(self.n_layers)))
        if self.arch in _BY_KV_HEADS | _BY_INTERVAL | _BOTH:
            return self._hybrid()
        if self.arch in _WINDOWED:
            return self._windowed(_WINDOWED[self.arch])
        if self.arch in PLAIN:
            return ModelLayers(tuple(self._attention(il) for il in range(self.n_layers)))
        raise _UnknownError

    def number(self, key: str, default: int | None = None) -> int:
        """An integer from the architecture's metadata."""
        value = self._header.metadata.get(f"{self.arch}.{key}", default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise _UnknownError
        return value

    def per_layer(self, key: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """A value for each layer: one number for all, or an array."""
        value = self._header.metadata.get(f"{self.arch}.{key}")
        if isinstance(value, GgufArray):
            if value not in self._arrays:
                self._arrays[value] = self._elements(value)
            return self._arrays[value]
        if value is None and default is not None:
            return default
        return (self.number(key),) * self.n_all

    def _elements(self, array: GgufArray) -> tuple[int, ...]:
        """The elements of an array, at least one for each layer; the header's reader skips them."""
        if array.element_type not in _FORMATS or not self.n_all <= array.length <= MAX_LAYERS:
            raise _UnknownError
        with self._header.paths[0].open("rb") as stream:
            stream.seek(array.offset)
            content = stream.read(array.size_bytes)
        elements = struct.unpack(f"<{array.length}{_FORMATS[array.element_type]}", content)
        if min(elements) < 0:
            raise _UnknownError
        return tuple(int(element) for element in elements)

    # ---- attention -----------------------------------------------------------------------------------

    def _attention(self, il: int, *, windowed: bool = False) -> Layer:
        k, v = (self._head_length(name, windowed=windowed) for name in ("key", "value"))
        kv_heads = self.per_layer("attention.head_count_kv", self._heads())[il]
        in_blocks = k % _BLOCK == 0 and v % _BLOCK == 0
        return Layer(k * kv_heads, 0 if self._is_latent() else v * kv_heads, windowed, in_blocks=in_blocks)

    def _heads(self) -> tuple[int, ...]:
        return self.per_layer("attention.head_count")

    def _head_length(self, name: str, *, windowed: bool) -> int:
        heads = self._heads()[0]
        usual = self.number(f"attention.{name}_length", self.number("embedding_length") // heads) if heads else 0
        return self.number(f"attention.{name}_length_swa", usual) if windowed else usual

    def _is_latent(self) -> bool:
        names = ("attention.key_length_mla", "attention.value_length_mla")
        return self.arch in _LATENT and all(self.number(name, 0) for name in names)

    # ---- sliding windows -----------------------------------------------------------------------------

    def _windowed(self, rule: _Window) -> ModelLayers:
        tokens = self._window_tokens(rule)
        n_kv = rule.kv_layers or self.n_all - self.number("attention.shared_kv_layers", 0)
        pattern = self._pattern(rule) if tokens else (0,) * self.n_all
        counted = range(min(self.n_layers, n_kv))
        return ModelLayers(tuple(self._attention(il, windowed=bool(pattern[il])) for il in counted), tokens)

    def _window_tokens(self, rule: _Window) -> int:
        if self.arch == "exaone4" and self.n_layers != _EXAONE4_WINDOWED_LAYERS:
            return 0
        given = self.number("attention.sliding_window", rule.absent)
        return rule.fixed if given and rule.fixed else given

    def _pattern(self, rule: _Window) -> tuple[int, ...]:
        """1 for each layer with a window (`load_swa_pattern`, `set_swa_pattern`)."""
        key = "attention.sliding_window_pattern"
        if isinstance(self._header.metadata.get(f"{self.arch}.{key}"), GgufArray):
            return self.per_layer(key)
        every = self.number(key, rule.every or None)
        full = 0 if rule.full_first else every - 1
        return tuple(int(every == 0 or il % every != full) for il in range(self.n_all))

    # ---- recurrent states ----------------------------------------------------------------------------

    def _hybrid(self) -> ModelLayers:
        window = self.number("attention.sliding_window", 0) if self.arch == "lfm2" else 0
        layers = tuple(self._hybrid_layer(il, windowed=window > 0) for il in range(self.n_layers))
        return self._with_states(layers, window)

    def _hybrid_layer(self, il: int, *, windowed: bool) -> Layer:
        attention = self._attention(il, windowed=windowed)
        if self.arch in _BOTH:
            return replace(attention, recurrent=True)
        if self.arch.startswith("nemotron_h") and self.per_layer("feed_forward_length")[il]:
            return Layer(0, 0)
        return Layer(0, 0, recurrent=True) if self._is_recurrent(il) else attention

    def _is_recurrent(self, il: int) -> bool:
        if self.arch in _BY_KV_HEADS:
            return self.per_layer("attention.head_count_kv")[il] == 0
        key = "attention.recurrent_layers"
        if f"{self.arch}.{key}" in self._header.metadata:
            return bool(self.per_layer(key)[il])
        return (il + 1) % (self.number("full_attention_interval", 4) or 1) != 0

    def _with_states(self, layers: tuple[Layer, ...], window: int = 0) -> ModelLayers:
        """`n_embd_r` and `n_embd_s` of src/llama-hparams.cpp."""
        width, head = self.number("embedding_length"), self.number("wkv.head_size", 0)
        if head:
            return ModelLayers(layers, window, self.number("token_shift_count", 2) * width, head * width)
        if short := self.number("shortconv.l_cache", 0):
            return ModelLayers(layers, window, width * (short - 1))
        inner, state, kernel = (self.number(f"ssm.{name}") for name in ("inner_size", "state_size", "conv_kernel"))
        convolved = inner + 2 * self.number("ssm.group_count", 0) * state
        return ModelLayers(layers, window, max(0, kernel - 1) * convolved, state * inner)
