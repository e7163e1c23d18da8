"""The lm-eval model `llama-cpp`: a GGUF in this process, with no server between.

    lm_eval.simple_evaluate(model="llama-cpp", model_args="path=model.gguf", tasks=["arc_easy"])

Texts become tokens as lm-eval's `hf` model has it (`TemplateLM._encode_pair`, left truncation, rolling windows), so
that its scores are those of `hf` on the same weights. The one difference: a rolling text begins with one BOS,
never two, so that its score is that of the same text as a continuation of nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from eval.llama.chat import ChatTemplate
from eval.llama.generator import Generator, Prompt, Sampling
from eval.llama.model import NO_TOKEN, GgufModel
from eval.llama.prefix_tree import Request
from eval.llama.scorer import Scorer
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure

DEFAULT_MAX_LENGTH: Final = 4096  # tokens; where the model was trained on more, memory is the limit
DEFAULT_MAX_GEN_TOKENS: Final = 256  # lm-eval's
PART: Final = 8192  # requests whose tokens are in memory at once; neighbours share their prefixes, distant ones rarely
_SHOWN: Final = 60

Encoded = tuple[tuple[str, str], list[int], list[int]]


@register_model("llama-cpp")
class LlamaLM(TemplateLM):  # type: ignore[misc]
    """A GGUF as lm-eval sees it.

    Args:
        path: the GGUF, or a model that is loaded already.
        max_length: longest request in tokens; 0: the model's own, at most `DEFAULT_MAX_LENGTH`.
        threads: 0: one per physical core.
        n_gpu_layers: layers on the GPU, -1 for all.
        seed: of sampled generation.

    Raises:
        StageFailure: the file cannot be measured (see `GgufModel.load`), or a request cannot be answered.
    """

    def __init__(
        self, path: str | Path | GgufModel, max_length: int = 0, threads: int = 0, n_gpu_layers: int = 0,
        seed: int = 0, batch_size: object = None, max_batch_size: object = None, device: object = None,
    ) -> None:
        super().__init__()
        del batch_size, max_batch_size, device  # lm-eval gives these to every model; batches are always full here
        self.model = path if isinstance(path, GgufModel) else GgufModel.load(Path(path), n_gpu_layers)
        self._max_length = max_length or min(self.model.n_ctx_train, DEFAULT_MAX_LENGTH)
        self._seed = seed
        self.scorer = Scorer(self.model, threads)
        self.generator = Generator(self.model, threads)
        self.n_requests = 0
        self.n_truncated = 0
        self.on_progress: Callable[[int, int], None] = lambda _done, _total: None  # requests of one call
        self._asked = (0, 0, 0)  # of this call: requests before this part, in it, and in all
        self._template: ChatTemplate | None = None

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.model.eos

    @property
    def prefix_token_id(self) -> int:
        """What a text without context is conditioned on: BOS, or EOS where there is none."""
        token = self.model.bos if self.model.bos != NO_TOKEN else self.model.eos
        if token == NO_TOKEN:
            raise _bad("The vocabulary has neither BOS nor EOS, so a text without context has no score.")
        return token

    @property
    def max_length(self) -> int:
        """Longest request, in tokens."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """Tokens to generate where a task does not say."""
        return DEFAULT_MAX_GEN_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """Names the chat template in lm-eval's request cache."""
        return self.model.path.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Token ids; BOS in front if the metadata wants it and the text has none (never with `False`)."""
        tokens = self.model.tokenize(string, add_special=False)
        bos = self.model.bos
        wants_bos = self.model.adds_bos if add_special_tokens is None else add_special_tokens
        if wants_bos and bos != NO_TOKEN and tokens[:1] != [bos]:
            return [bos, *tokens]
        return tokens

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """See `LM.loglikelihood`: (nats, whether greedy decoding gives the continuation) per request."""
        for number, request in enumerate(requests):
            if not request.args[1]:
                raise _bad(f"Request {number} ({_shown(request.args[0])}) has an empty continuation: nothing to score.")
        return self._in_parts(requests, lambda part: super(LlamaLM, self).loglikelihood(part, disable_tqdm))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """See `LM.loglikelihood_rolling`: nats per text, conditioned on one BOS (or EOS)."""
        del disable_tqdm
        return self._in_parts(requests, self._rolling)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """See `LM.generate_until`: texts, cut before their first stop string."""
        del disable_tqdm
        prompts = [self._prompt(*request.args) for request in requests]
        self.n_requests += len(prompts)
        texts = self.generator.generate(prompts, self.on_progress)
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation in the GGUF's own template."""
        return self._chat().render(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template itself, for lm-eval's results."""
        return self._chat().text if chat_template else ""

    def tokens(self) -> tuple[int, int]:
        """Tokens decoded so far, and what asking one by one would have decoded."""
        decoded = self.scorer.n_tokens_decoded + self.generator.n_tokens_decoded
        return decoded, self.scorer.n_tokens_requested + self.generator.n_tokens_decoded

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval's results say of the model."""
        facts = self.model.facts("")
        return {
            "model_num_parameters": facts.n_params, "model_architecture": facts.architecture,
            "bits_per_weight": facts.bits_per_weight, "max_length": self.max_length,
        }

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **_: object) -> list[tuple[float, bool]]:
        encoded = [self._request(context, target, texts) for texts, context, target in requests]
        results = self._score(encoded)
        for (texts, _context, _target), result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def _rolling(self, requests: Sequence[Instance]) -> list[float]:
        windows = [self._windows(request.args[0]) for request in requests]
        flat = [self._request(context, target) for text in windows for context, target in text]
        sums = iter(self._score(flat))
        results = [sum(next(sums)[0] for _ in text) for text in windows]
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
        return results

    def _in_parts(self, requests: Sequence[Instance], ask: Callable[[Sequence[Instance]], list[Any]]) -> list[Any]:
        """Answers to all, asked `PART` at a time, so that memory does not grow with their number."""
        results: list[Any] = []
        for start in range(0, len(requests), PART):
            part = requests[start : start + PART]
            self._asked = (start, len(part), len(requests))
            results += ask(part)
        return results

    def _score(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        self.n_requests += len(requests)
        before, part, total = self._asked
        return self.scorer.score(requests, lambda done, n: self.on_progress(before + part * done // n, total)).sums()

    def _request(self, context: list[int], target: list[int], texts: tuple[str, str] = ("", "")) -> Request:
        """Both cut from the left to what the model can hold, as lm-eval's `hf` does."""
        if not target:
            what = f"The continuation {_shown(texts[1])} has no tokens of its own"
            raise _bad(f"{what}: the tokenizer joins it to its context {_shown(texts[0][-_SHOWN:])}.")
        if len(target) > self.max_length:
            what = f"The continuation {_shown(texts[1])} has {len(target)} tokens"
            raise _bad(f"{what}, the model holds {self.max_length}.")
        whole = context + target
        self.n_truncated += len(whole) > self.max_length + 1
        return Request(whole[-(self.max_length + 1) :][:-1], target)

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        if not text:
            raise _bad("A text to score is empty.")
        tokens = self.tok_encode(text, add_special_tokens=False)
        windows: Iterable[Any] = utils.get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
        return [utils.make_disjoint_window(window) for window in windows]

    def _prompt(self, context: str, options: dict[str, Any]) -> Prompt:
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(options, self.max_gen_toks))
        stop = handle_stop_sequences(kwargs["until"], self.model.special_text(self.eot_token_id))
        max_tokens = kwargs["max_gen_toks"]
        room = self.max_length - max_tokens
        if room <= 0:
            raise _bad(f"A task generates up to {max_tokens} tokens, and the model holds {self.max_length} in all.")
        tokens = self.tok_encode(context) or [self.prefix_token_id]
        self.n_truncated += len(tokens) > room
        return Prompt(tokens[-room:], max_tokens, tuple(text for text in stop if text), self._sampling(kwargs))

    def _sampling(self, kwargs: dict[str, Any]) -> Sampling:
        if not kwargs.get("do_sample"):
            return Sampling(seed=self._seed)
        return Sampling(
            temperature=float(kwargs.get("temperature", 1.0)), top_k=int(kwargs.get("top_k", 0)),
            top_p=float(kwargs.get("top_p", 1.0)), min_p=float(kwargs.get("min_p", 0.0)), seed=self._seed,
        )

    def _chat(self) -> ChatTemplate:
        if self._template is None:
            self._template = ChatTemplate(self.model)
        return self._template


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def _bad(message: str) -> StageFailure:
    return StageFailure(ExitCode.BAD_REQUEST, "bad-task", message, "Change the task or its data.")
