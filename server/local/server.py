"""The server of ENGINE=local: llama-cpp-python's own, on loopback, behind the checks of `guard` and `connections`.

Usage: python -m server.local.server CONFIG      CONFIG is written by `protocol.api_tests.protocol_bindings_config`
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import Any, Final

import llama_cpp
import numpy as np
import uvicorn
from fastapi.exceptions import RequestValidationError
from llama_cpp._internals import LlamaContext, LlamaSampler
from llama_cpp.llama_grammar import json_schema_to_gbnf
from llama_cpp.server import app as bindings
from llama_cpp.server.errors import RouteErrorHandler
from llama_cpp.server.settings import ConfigFileSettings, ServerSettings

from server.limits.grammar_size import NotRead, read_gbnf_grammar
from server.local.connections import Connections, LimitedProtocol
from server.local.guard import Guard, is_local_request_over, local_error_body

_HEAD_BYTES: Final = 16384
_DEEPEST: Final = 2000  # nested groups of a grammar; the bindings write one for each character that maxLength allows
_STDERR: Final = 2
_PARSER: Final = threading.Lock()
# Exceptions of the bindings for an invalid request; by themselves they would answer 500.
_OF_THE_REQUEST: Final = (AssertionError, LookupError, TypeError, ValueError)


class NoLongerWanted(Exception):
    """The client of this request is gone."""


def serve_local_bindings(config: Path) -> None:
    """Run the server until it gets a signal."""
    told = ConfigFileSettings.model_validate_json(config.read_bytes())
    key, told.api_key = told.api_key, None  # the guard checks the key
    app = bindings.create_app(server_settings=ServerSettings.model_validate(told), model_settings=told.models)
    stop_for_gone_clients()
    refuse_dead_end_grammars()
    RouteErrorHandler.error_message_wrapper = bindings_error_message
    props = {
        "server": f"llama-cpp-python {llama_cpp.__version__}",
        "default_generation_settings": {"n_ctx": bindings._llama_proxy().n_ctx()},  # noqa: SLF001
    }
    _allow_many_connections()
    guard = Guard(app, key, told.models[0].model_alias, props, local_grammar_refusal)
    uvicorn.run(
        guard, host=told.host, port=told.port, http=partial(LimitedProtocol, Connections()), ws="none",
        h11_max_incomplete_event_size=_HEAD_BYTES, server_header=False, access_log=False,
    )  # fmt: skip


def stop_for_gone_clients() -> None:
    """Stop computing for a client that is gone; the bindings would go on to max_tokens while all others wait."""
    for owner, name in ((LlamaContext, "decode"), (llama_cpp.Llama, "detokenize")):
        setattr(owner, name, _while_wanted(getattr(owner, name)))


def _while_wanted(function: Any) -> Any:
    @wraps(function)
    def wanted(*args: Any, **kwargs: Any) -> Any:
        if is_local_request_over():
            raise NoLongerWanted
        return function(*args, **kwargs)

    return wanted


def refuse_dead_end_grammars() -> None:
    """Raise ValueError when a grammar allows no further token; llama.cpp would sample a forbidden one and abort."""
    add_grammar, sample = LlamaSampler.add_grammar, LlamaSampler.sample

    def add_and_note(self: Any, *args: Any) -> None:
        add_grammar(self, *args)
        self.has_grammar = True

    def sample_what_fits(self: Any, context: Any, idx: int = -1) -> int:
        has_grammar = getattr(self, "has_grammar", False)
        return _sample_what_fits(self, context, idx) if has_grammar else int(sample(self, context, idx))

    LlamaSampler.add_grammar, LlamaSampler.sample = add_and_note, sample_what_fits


def _sample_what_fits(sampler: Any, context: Any, idx: int) -> int:
    """llama_sampler_sample, with a check of the chosen token before it is accepted."""
    n_tokens = context.model.n_vocab()
    candidates = (llama_cpp.llama_token_data * n_tokens)()
    table = np.frombuffer(candidates, np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)]))
    table["id"] = np.arange(n_tokens)
    table["logit"] = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context.ctx, idx), (n_tokens,))
    found = llama_cpp.llama_token_data_array(data=candidates, size=n_tokens, selected=-1, sorted=False)
    llama_cpp.llama_sampler_apply(sampler.sampler, ctypes.byref(found))
    chosen = found.data[found.selected]
    if not math.isfinite(chosen.logit):
        raise ValueError("the grammar allows no further token")
    llama_cpp.llama_sampler_accept(sampler.sampler, chosen.id)
    return int(chosen.id)


def bindings_error_message(handler: Any, error: Exception, body: Any = None) -> tuple[int, Any]:
    """The bindings' answer to an exception: 400 if the request caused it, and never a path of this machine."""
    if isinstance(error, RequestValidationError):
        return 400, local_error_body(400, _say_invalid(error))
    for words, answer_of in handler.pattern_and_formatters.items():
        if found := words.search(str(error)):
            status, said = answer_of(body, found)
            return int(status), said
    if isinstance(error, _OF_THE_REQUEST):
        return 400, local_error_body(400, str(error) or "the request cannot be answered")
    if not isinstance(error, NoLongerWanted):
        traceback.print_exception(error)
    return 500, local_error_body(500, f"the server failed: {type(error).__name__}")


def _say_invalid(error: RequestValidationError) -> str:
    found = [f"{'.'.join(str(part) for part in one['loc'][1:])}: {one['msg']}" for one in error.errors()[:3]]
    return "; ".join(found)


def local_grammar_refusal(asked: Mapping[str, Any]) -> str:
    """Why llama.cpp would refuse the grammars of a request; "": it would not.

    The bindings do not check the result of its parser, and crash with the first grammar that it cannot parse.
    """
    for where, grammar in _grammars(asked):
        try:
            text = grammar if isinstance(grammar, str) else json_schema_to_gbnf(json.dumps(grammar))
        except Exception as error:
            return f"{where} cannot be converted to a grammar: {str(error)[:200]}"
        if not _parses(text):
            return f"{where} is not a grammar that llama.cpp can parse"
    return ""


def _allow_many_connections() -> None:
    """Raise the limit of open files: each connection is one, and the usual limit is below ours."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * Connections.in_all
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(hard, wanted), hard))


def _grammars(asked: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every grammar and schema of a request that may reach llama.cpp's parser."""
    if asked.get("grammar"):
        yield "grammar", asked["grammar"]
    wanted = asked.get("response_format")
    if isinstance(wanted, dict) and "schema" in wanted:
        yield "response_format.schema", wanted["schema"]
    tools = [*(asked.get("functions") or ()), *(tool.get("function") for tool in asked.get("tools") or ())]
    for tool in tools:
        if isinstance(tool, dict) and "parameters" in tool:
            yield "a tool's parameters", tool["parameters"]


def _parses(grammar: str) -> bool:
    try:
        if read_gbnf_grammar(grammar).depth > _DEEPEST:
            return False
    except NotRead:
        return False
    with _nothing_said():
        sampler = llama_cpp.llama_sampler_init_grammar(None, grammar.encode(), b"root")
        if sampler:
            llama_cpp.llama_sampler_free(sampler)
    return bool(sampler)


@contextlib.contextmanager
def _nothing_said() -> Iterator[None]:
    """Silence stderr: llama.cpp prints a grammar that it cannot parse, including terminal escapes in it."""
    with _PARSER, Path(os.devnull).open("wb") as nowhere:
        stderr = os.dup(_STDERR)
        os.dup2(nowhere.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(stderr, _STDERR)
            os.close(stderr)


if __name__ == "__main__":
    serve_local_bindings(Path(sys.argv[1]))
