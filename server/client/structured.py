"""Structured answers with Outlines, over HTTP and in process: from a pydantic model to a validated instance of it.

The schema constrains the generation (schema_subset.py says which parts), and the finished answer is validated against
the whole schema by jsonschema, which coerces nothing, and by the pydantic model, which may require more. If a part that
could not be enforced is broken, the model is asked again, with the reason, a few times. An answer that fails either
validation is never returned.

    StructuredError         a ClientError
    ├── LibraryMissing        a library is missing, without which Outlines silently generates unconstrained text
    ├── CannotConstrain       a part of the schema cannot be enforced; says which
    ├── NotConstrained        the constraint failed during generation
    ├── AnswerCut             max_tokens or the context cut the answer
    └── AnswerInvalid         every answer broke the schema; says what and with which value
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import httpx2
import outlines
from jsonschema import Draft202012Validator
from outlines.exceptions import APIError
from outlines.types import JsonSchema
from pydantic import BaseModel, ValidationError

from server.client.client import Client, ClientError, Sampling
from server.client.schema_subset import Constrainer, SchemaRefused, client_wire_schema

RETRIES: Final = 3
_USUAL: Final = Sampling()
_QUOTED_CHARACTERS: Final = 300  # of a wrong answer, in an error or in the next prompt
_IN_PROCESS_CONTEXT: Final = 4096
M = TypeVar("M", bound=BaseModel)
Ask = Callable[[str, Sampling], tuple[str, str]]  # prompt, sampling → text, finish reason


class StructuredError(ClientError):
    """Base class of errors of structured answers."""


class LibraryMissing(StructuredError):
    """A library is missing, without which Outlines silently generates unconstrained text."""


class CannotConstrain(StructuredError):
    """A part of the schema cannot be enforced."""


class NotConstrained(StructuredError):
    """The constraint failed during generation."""


class AnswerCut(StructuredError):
    """The answer was cut by max_tokens or the context."""


class AnswerInvalid(StructuredError):
    """Every answer broke the schema."""


def structured_over_http(
    client: Client, model_class: type[M], prompt: str, sampling: Sampling = _USUAL, retries: int = RETRIES
) -> M:
    """An instance of `model_class`, written by a served model.

    Args:
        retries: how often to ask again if an answer breaks a constraint that cannot be enforced during generation.

    Raises:
        StructuredError: see the module.
        ClientError: a request to the server failed.
    """
    task = _Task.of(model_class, "llama-server")
    seen: dict[str, str] = {}

    def note(response: httpx2.Response) -> None:
        """Keep the finish reason of the HTTP response, since Outlines returns only the text."""
        if response.is_success:
            seen["finish_reason"] = json.loads(response.read())["choices"][0]["finish_reason"]

    # `client.model` sends its request through the plain client, so that `note` sees only answers.
    model = outlines.from_openai(client.heard_by(note), client.model)
    generator: Any = outlines.Generator(model, JsonSchema(task.wire))

    def ask(words: str, how: Sampling) -> tuple[str, str]:
        with client.our_errors():
            try:
                return str(generator(words, **how.arguments())), seen["finish_reason"]
            except APIError as error:
                raise error.original_exception or error from error

    return task.solve(ask, prompt, sampling, retries)


def structured_in_process(
    gguf_path: Path, model_class: type[M], prompt: str, sampling: Sampling = _USUAL, retries: int = RETRIES
) -> M:
    """The same with a GGUF in this process, without a server. For several questions, open one `InProcess`.

    Raises:
        StructuredError: see the module.
    """
    return InProcess(gguf_path).ask(model_class, prompt, sampling, retries)


class InProcess:
    """A GGUF loaded in this process for structured answers.

    Raises:
        LibraryMissing: llama-cpp-python or numba is not installed.
        StructuredError: the file cannot be loaded.
    """

    def __init__(self, gguf_path: Path, threads: int | None = None) -> None:
        for name, package in (("llama_cpp", "llama-cpp-python"), ("outlines_core.kernels.numpy", "numba")):
            _need_client_package(name, package)
        import llama_cpp

        try:
            loaded = llama_cpp.Llama(str(gguf_path), n_ctx=_IN_PROCESS_CONTEXT, n_threads=threads, verbose=False)
        except ValueError as error:
            raise StructuredError(f"{gguf_path} cannot be loaded: {error}.", "Verify it: make build") from error
        self._model = outlines.from_llamacpp(loaded)
        self._finish_reason = ""
        self._note_finish_reason(loaded)
        self._generators: dict[str, Any] = {}  # cached by schema: building an automaton takes seconds

    def ask(
        self, model_class: type[M], prompt: str, sampling: Sampling = _USUAL, retries: int = RETRIES
    ) -> M:
        """An instance of `model_class`.

        Raises:
            StructuredError: see the module.
        """
        task = _Task.of(model_class, "in process")
        return task.solve(lambda words, how: self._answer(task.wire, words, how), prompt, sampling, retries)

    def _answer(self, wire: dict[str, Any], words: str, how: Sampling) -> tuple[str, str]:
        generator = self._generator(wire)
        watched = generator.logits_processor
        arguments = {"temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k, "seed": how.seed}
        try:
            text = generator(words, max_tokens=how.max_tokens, stop=list(how.stop), **arguments)
        except ValueError as error:  # the prompt has more tokens than the context
            raise StructuredError(f"llama.cpp refuses the prompt: {error}.", "Shorten it.") from error
        if watched.failure is not None:
            message = f"The constraint failed during generation: {watched.failure!r}."
            raise NotConstrained(message, "The answer was discarded. Please report this.") from watched.failure
        return str(text), self._finish_reason

    def _generator(self, wire: dict[str, Any]) -> Any:
        key = json.dumps(wire)
        if key not in self._generators:
            try:
                generator: Any = outlines.Generator(self._model, JsonSchema(wire))
            except (ValueError, TypeError) as error:
                raise CannotConstrain(f"Outlines refuses the schema: {error}.", "Change that part.") from error
            generator.logits_processor = _Watched(generator.logits_processor)
            self._generators[key] = generator
        return self._generators[key]

    def _note_finish_reason(self, loaded: Any) -> None:
        """Wrap the method that Outlines calls, to keep the finish reason: Outlines returns only the text."""
        chat = loaded.create_chat_completion

        def noting(*args: Any, **kwargs: Any) -> Any:
            found = chat(*args, **kwargs)
            self._finish_reason = found["choices"][0]["finish_reason"]
            return found

        loaded.create_chat_completion = noting


class _Watched:
    """Outlines' mask, which keeps its first failure: llama.cpp calls it from C, where exceptions are lost."""

    def __init__(self, mask: Any) -> None:
        self._mask = mask
        self.failure: BaseException | None = None

    def reset(self) -> None:
        self.failure = None
        self._mask.reset()

    def __call__(self, input_ids: Any, logits: Any) -> Any:
        try:
            return self._mask(input_ids, logits)
        except BaseException as error:
            self.failure = self.failure or error
            raise


@dataclass(frozen=True)
class _Task(Generic[M]):
    """One model class, its schema, and the reduced schema for the constrainer."""

    model_class: type[M]
    schema: dict[str, Any]
    wire: dict[str, Any]

    @classmethod
    def of(cls, model_class: type[M], constrainer: Constrainer) -> _Task[M]:
        schema = model_class.model_json_schema()
        try:
            return cls(model_class, schema, client_wire_schema(schema, constrainer))
        except SchemaRefused as error:
            message = f"{model_class.__name__} cannot be enforced during generation: at {error.where}, {error.reason}."
            raise CannotConstrain(message, "Write that part in another way.") from error

    def solve(self, ask: Ask, prompt: str, sampling: Sampling, retries: int) -> M:
        words, how, broken, text = prompt, sampling, "", ""
        for number in range(retries + 1):
            text, finish_reason = ask(words, how)
            if finish_reason == "length":
                raise _answer_cut_error(text, sampling)
            found, broken = parse_client_answer(self.model_class, self.schema, text)
            if found is not None:
                return found
            words = f"{prompt}\n\nThis answer was wrong: {_quoted_answer(text)}\nThe reason: {broken}\nAnswer again."
            how = sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + number + 1)
        message = f"{retries + 1} answers broke {self.model_class.__name__}; the last: {broken}."
        raise AnswerInvalid(message, f"It was: {_quoted_answer(text)}")


def parse_client_answer(model_class: type[M], schema: dict[str, Any], text: str) -> tuple[M | None, str]:
    """The instance and "", or None and what is broken: the place, the constraint and the value."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return None, f"it is not JSON ({error})"
    checker = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    for broken in checker.iter_errors(value):
        return None, f"{broken.json_path}: {broken.message} ({broken.validator})"
    try:
        return model_class.model_validate_json(text), ""
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        return None, f"{place}: {first['msg']} ({first['type']}, the value is {_quoted_answer(repr(first['input']))})"


def _answer_cut_error(text: str, sampling: Sampling) -> AnswerCut:
    message = f"The answer was cut at {sampling.max_tokens} tokens, or by the context: {_quoted_answer(text)}"
    return AnswerCut(message, "Allow more tokens (MAX_TOKENS), or bound long fields (max_length, max_items).")


def _quoted_answer(text: str) -> str:
    return text if len(text) <= _QUOTED_CHARACTERS else f"{text[:_QUOTED_CHARACTERS]} …"


def _need_client_package(module: str, package: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        message = f"{package} is not installed ({error})."
        hint = f"Structured answers in process need it: pip install {package}"
        raise LibraryMissing(message, hint) from error
