"""The lm-eval model `llama-cpp`: a GGUF loaded in this process, without a server.

    lm_eval.simple_evaluate(model="llama-cpp", model_args="path=model.gguf", tasks=["arc_easy"])

Texts are tokenized as in lm-eval's `hf` model (`TemplateLM._encode_pair`, left truncation, rolling windows), so the
scores equal those of `hf` on the same weights. There is one difference: a rolling text begins with one BOS, never two,
so that its loglikelihood equals that of the same text after an empty context.

An encoder-decoder is asked as in lm-eval's `AutoModelForSeq2SeqLM`: the encoder reads the context with the EOS that the
tokenizer adds, and the decoder scores or writes the continuation, after its start token. Of a window of a rolling text
the encoder reads the context, which is EOS for the first. Three things differ from `hf`: a rolling text ends
without EOS, as above; an answer ends after `max_gen_toks` tokens, where `hf` also adds the prompt's length; and
contexts of equal text are read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from eval.llama.prefix_tree import Request, answer_request
from eval.llama.question_units import UnitAnswers, question_units
from eval.llama.scorer import Scorer
from eval.llama.thoughts import opens_thoughts, thought_marks
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure

DEFAULT_MAX_LENGTH: Final = 4096  # tokens; longer contexts, also where the model allows them, cost memory
DEFAULT_MAX_GEN_TOKENS: Final = 256  # lm-eval's default
_SHOWN: Final = 60

Encoded = tuple[tuple[str, str], list[int], list[int]]


@register_model("llama-cpp")
class LlamaLM(TemplateLM):  # type: ignore[misc]
    """A GGUF as an lm-eval model.

    Args:
        path: the GGUF, or a loaded model.
        max_length: longest request in tokens; 0: the model's own context, at most `DEFAULT_MAX_LENGTH`.
        threads: 0: one per physical core.
        n_gpu_layers: layers on the GPU, -1 for all.
        seed: for sampled generation.
        thought_tokens: room for the thoughts of a model that thinks, before each generated answer and beyond
            `max_length`; 0: its questions come without its chat template, and what it thinks is a part of the answer.

    Raises:
        StageFailure: the file cannot be measured (see `GgufModel.load`), or a request cannot be answered.
    """

    def __init__(
        self, path: str | Path | GgufModel, max_length: int = 0, threads: int = 0, n_gpu_layers: int = 0,
        seed: int = 0, thought_tokens: int = 0, batch_size: object = None, max_batch_size: object = None,
        device: object = None,
    ) -> None:
        super().__init__()
        del batch_size, max_batch_size, device  # lm-eval passes these to every model; the batch size is fixed here
        self.model = path if isinstance(path, GgufModel) else GgufModel.load(Path(path), n_gpu_layers)
        self._max_length = max_length or min(self.model.n_ctx_train, DEFAULT_MAX_LENGTH)
        self._seed = seed
        self._marks = thought_marks(self.model.chat_template) if thought_tokens else None
        self._thought_tokens = thought_tokens if self._marks else 0
        if self.model.has_encoder:
            self.backend = "seq2seq"  # by which `_encode_pair` tokenizes context and continuation on their own
        self.scorer = Scorer(self.model, threads)
        self.generator = Generator(self.model, threads)
        self.n_requests = 0
        self.n_truncated = 0
        self.n_unanswered = 0  # generations that ended within thoughts
        self.blocks: Mapping[str, Mapping[int, int]] = {}  # task → number of a question → its block
        self.answered: Mapping[str, UnitAnswers] = {}  # by other runs, by the unit's name
        self.answered_s = 0.0  # what the answers of other runs took that were used
        self.on_progress: Callable[[int, int], None] = lambda _done, _total: None  # requests of one call
        self._asked = (0, 0, 0)  # requests of this call: before the current part, in it, in total
        self._template: ChatTemplate | None = None

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.model.eos

    @property
    def prefix_token_id(self) -> int:
        """The token that a text without context is conditioned on: BOS, or EOS if there is no BOS."""
        token = self.model.bos if self.model.bos != NO_TOKEN else self.model.eos
        if token == NO_TOKEN:
            raise _bad_lm_request("The vocabulary has neither BOS nor EOS, so a text without context cannot be scored.")
        return token

    @property
    def max_length(self) -> int:
        """Longest request, in tokens."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """Tokens to generate if a task does not set it."""
        return DEFAULT_MAX_GEN_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """Identifies the chat template in lm-eval's request cache."""
        return self.model.path.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Token ids, after BOS if the metadata asks for it and the text does not begin with it (never with `False`).

        A text for an encoder ends with EOS in the same way.
        """
        tokens = self.model.tokenize(string, add_special=False)
        if self.model.has_encoder and self.model.adds_eos and add_special_tokens is not False:
            tokens.append(self.model.eos)
        wants_bos = self.model.adds_bos if add_special_tokens is None else add_special_tokens
        return self.model.with_bos(tokens) if wants_bos else tokens

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """See `LM.loglikelihood`: (nats, whether greedy decoding gives the continuation) per request."""
        for number, request in enumerate(requests):
            if not request.args[1]:
                raise _bad_lm_request(
                    f"Request {number} ({_shown_lm_text(request.args[0])}) has an empty continuation."
                )
        ask = super().loglikelihood
        return self._in_blocks("loglikelihood", requests, lambda part: ask(part, disable_tqdm))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """See `LM.loglikelihood_rolling`: nats per text, conditioned on one BOS (or EOS)."""
        del disable_tqdm
        return self._in_blocks("loglikelihood_rolling", requests, self._rolling)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """See `LM.generate_until`: texts, cut before their first stop string."""
        del disable_tqdm
        return self._in_blocks("generate_until", requests, self._generate)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation, rendered with the GGUF's own template."""
        return self._chat().render(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template itself, for lm-eval's results."""
        return self._chat().text if chat_template else ""

    def tokens(self) -> tuple[int, int]:
        """Tokens decoded so far, and the tokens that decoding each request alone would have taken."""
        decoded = self.scorer.n_tokens_decoded + self.generator.n_tokens_decoded
        return decoded, self.scorer.n_tokens_requested + self.generator.n_tokens_decoded

    def counts(self) -> tuple[int, int, int, int, int]:
        """Of all so far: requests, tokens decoded and requested (see `tokens`), truncated and unanswered requests."""
        return self.n_requests, *self.tokens(), self.n_truncated, self.n_unanswered

    def get_model_info(self) -> dict[str, Any]:
        """The model's entry in lm-eval's results."""
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

    def _generate(self, requests: Sequence[Instance]) -> list[str]:
        prompts = [self._prompt(*request.args) for request in requests]
        self.n_requests += len(prompts)
        generated = self.generator.generate(prompts, self._report_part)
        self.n_unanswered += sum(not found.is_answered for found in generated)
        texts = [found.text for found in generated]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _in_blocks(
        self, kind: str, requests: Sequence[Instance], ask: Callable[[Sequence[Instance]], list[Any]]
    ) -> list[Any]:
        """Answer all requests, each unit on its own, so that memory does not grow with their number, and what is
        computed together depends on the unit alone. What another run has answered is not asked again.
        """
        results: list[Any] = [None] * len(requests)
        done = 0
        for name, part in question_units(kind, requests, self.blocks):
            self._asked = (done, len(part), len(requests))
            known = self.answered.get(name)
            answers = self._take_answers(known) if known else ask([requests[number] for number in part])
            for number, answer in zip(part, answers, strict=True):
                results[number] = answer
            done += len(part)
        return results

    def _take_answers(self, known: UnitAnswers) -> list[Any]:
        """The answers of another run, counted as its own."""
        n_requests, n_decoded, n_requested, n_truncated, n_unanswered = known.counts
        self.n_requests += n_requests
        self.scorer.n_tokens_decoded += n_decoded
        self.scorer.n_tokens_requested += n_requested
        self.n_truncated += n_truncated
        self.n_unanswered += n_unanswered
        self.answered_s += known.duration_s
        return known.values()

    def _report_part(self, done: int, n: int) -> None:
        before, part, total = self._asked
        self.on_progress(before + part * done // n, total)

    def _score(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        self.n_requests += len(requests)
        return self.scorer.score(requests, self._report_part).sums()

    def request(self, context: str, target: str) -> Request:
        """What is scored for a context and its continuation."""
        encoded, continued = self._encode_pair(context, target)
        return self._request(encoded, continued, (context, target))

    def _request(self, context: list[int], target: list[int], texts: tuple[str, str] = ("", "")) -> Request:
        """Context and continuation, cut from the left to `max_length` as in lm-eval's `hf`."""
        if not target:
            what = f"The continuation {_shown_lm_text(texts[1])} has no tokens of its own"
            raise _bad_lm_request(
                f"{what}: the tokenizer joins it to its context {_shown_lm_text(texts[0][-_SHOWN:])}."
            )
        if len(target) > self.max_length:
            what = f"The continuation {_shown_lm_text(texts[1])} has {len(target)} tokens"
            raise _bad_lm_request(f"{what}; the longest request is {self.max_length}.")
        if self.model.has_encoder:
            self.n_truncated += len(context) > self.max_length
            return answer_request(context[-self.max_length :], target, self.model.decoder_start)
        whole = context + target
        self.n_truncated += len(whole) > self.max_length + 1
        return Request(whole[-(self.max_length + 1) :][:-1], target)

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        if not text:
            raise _bad_lm_request("A text to score for its perplexity is empty.")
        tokens = self.tok_encode(text, add_special_tokens=False)
        windows: Iterable[Any] = utils.get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
        return [utils.make_disjoint_window(window) for window in windows]

    def _prompt(self, context: str, options: dict[str, Any]) -> Prompt:
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(options, self.max_gen_toks))
        stop = handle_stop_sequences(kwargs["until"], self.model.special_text(self.eot_token_id))
        max_tokens = kwargs["max_gen_toks"]
        stop = tuple(text for text in stop if text)
        if self.model.has_encoder:
            read = self.tok_encode(context) or [self.prefix_token_id]
            self.n_truncated += len(read) > self.max_length
            encoded = tuple(read[-self.max_length :])
            return Prompt([self.model.decoder_start], max_tokens, stop, self._sampling(kwargs), encoded)
        room, thoughts = self._room_before(max_tokens)
        if room <= 0:
            raise _bad_lm_request(
                f"A task generates up to {max_tokens} tokens; the longest request is {self.max_length} in all."
            )
        tokens = self.tok_encode(context) or [self.prefix_token_id]
        self.n_truncated += len(tokens) > room
        begun = self._marks is not None and opens_thoughts(context, self._marks)
        return Prompt(
            tokens[-room:], max_tokens, stop, self._sampling(kwargs), marks=self._marks, is_thinking=begun,
            max_thought_tokens=thoughts,
        )

    def _room_before(self, max_tokens: int) -> tuple[int, int]:
        """Tokens for the prompt and for thoughts, before so many of the answer: thoughts go beyond `max_length`, but
        not beyond the model's context, of which they take half at most.
        """
        longest = max(self.max_length, min(self.model.n_ctx_train, self.max_length + self._thought_tokens))
        thoughts = min(self._thought_tokens, max(longest - self.max_length, (longest - max_tokens) // 2))
        return longest - thoughts - max_tokens, thoughts

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


def _shown_lm_text(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def _bad_lm_request(message: str) -> StageFailure:
    return StageFailure(ExitCode.BAD_REQUEST, "bad-task", message, "Change the task or its data.")
