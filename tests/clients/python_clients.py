"""What one Python client library can do with a served model. A program of its own, which needs `locks/clients.txt`:

    python tests/clients/python_clients.py CLIENT ADDRESS KEY MODEL [FEATURE …]

prints a line of JSON, {feature: "works", or what it said instead}. Every use is the one that the library documents for
a server with OpenAI's API; `ADDRESS` has no path ("http://127.0.0.1:8080").
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

N_TOKENS = 12
SAY = "Say hi."
ASK = "Where is the ferry? Answer as JSON with the keys city and pier."
# The words and the tool of server/api_checks/structured_output.py, which lead even a weak model to a call: llama.cpp's
# grammar lets text come before a call that is required.
CALL = "Call get_weather for Paris and 3 days. Write nothing else."
WEATHER = {
    "type": "object", "required": ["city", "days"], "additionalProperties": False, "properties": {
        "city": {"type": "string", "maxLength": 24}, "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
}  # fmt: skip
TOOL = {"name": "get_weather", "description": "The weather of the next days", "parameters": WEATHER}


class Place(pydantic.BaseModel):
    """What structured answers have to be."""

    city: str = pydantic.Field(max_length=20)
    pier: int = pydantic.Field(ge=0, le=99)


class Weather(pydantic.BaseModel):
    """The weather of the next days"""

    city: str
    days: int


class Server(NamedTuple):
    """Where it is, and what it serves."""

    address: str
    key: str
    model: str

    @property
    def v1(self) -> str:
        return self.address + "/v1"


# To add a client: a function for each feature, named CLIENT_FEATURE, which raises where it does not work. What is
# returned has to be true. A feature without a function does not apply.


def openai_chat(server: Server) -> Any:
    answer = _openai(server).chat.completions.create(
        model=server.model, messages=[{"role": "user", "content": SAY}], max_tokens=N_TOKENS
    )
    return answer.choices[0].message.content


def openai_stream(server: Server) -> Any:
    stream = _openai(server).chat.completions.create(
        model=server.model, messages=[{"role": "user", "content": SAY}], max_tokens=N_TOKENS, stream=True
    )
    chunks = [chunk.choices[0] for chunk in stream if chunk.choices]
    return len(chunks) > 2 and chunks[-1].finish_reason in {"stop", "length"}


def openai_tools(server: Server) -> Any:
    answer = _openai(server).chat.completions.create(
        model=server.model, messages=[{"role": "user", "content": CALL}], max_tokens=100, temperature=0,
        tools=[{"type": "function", "function": TOOL}], tool_choice="required",
    )  # fmt: skip
    call = answer.choices[0].message.tool_calls[0].function
    return call.name == "get_weather" and "city" in json.loads(call.arguments)


def openai_schema(server: Server) -> Any:
    answer = _openai(server).chat.completions.parse(
        model=server.model, messages=[{"role": "user", "content": ASK}], max_tokens=100, response_format=Place
    )
    return answer.choices[0].message.parsed


def _openai(server: Server) -> Any:
    import openai

    return openai.OpenAI(base_url=server.v1, api_key=server.key, max_retries=0)


def anthropic_chat(server: Server) -> Any:
    answer = _anthropic(server).messages.create(
        model=server.model, messages=[{"role": "user", "content": SAY}], max_tokens=N_TOKENS
    )
    return answer.content[0].text


def anthropic_stream(server: Server) -> Any:
    with _anthropic(server).messages.stream(
        model=server.model, messages=[{"role": "user", "content": SAY}], max_tokens=N_TOKENS,
        extra_body={"temperature": 0},  # a sampled answer may be a word, and come at once
    ) as stream:
        texts = list(stream.text_stream)
        return len(texts) > 2 and stream.get_final_message().stop_reason in {"end_turn", "max_tokens"}


def anthropic_tools(server: Server) -> Any:
    answer = _anthropic(server).messages.create(
        model=server.model, messages=[{"role": "user", "content": CALL}], max_tokens=100, extra_body={"temperature": 0},
        tools=[{"name": TOOL["name"], "description": TOOL["description"], "input_schema": WEATHER}],
        tool_choice={"type": "any"},
    )  # fmt: skip
    return any(part.type == "tool_use" and "city" in part.input for part in answer.content)


def anthropic_schema(server: Server) -> Any:
    answer = _anthropic(server).messages.parse(
        model=server.model, messages=[{"role": "user", "content": ASK}], max_tokens=100, output_format=Place
    )
    return answer.parsed_output


def _anthropic(server: Server) -> Any:
    import anthropic

    return anthropic.Anthropic(base_url=server.address, auth_token=server.key, max_retries=0)


def litellm_chat(server: Server) -> Any:
    return _litellm(server, messages=[{"role": "user", "content": SAY}]).choices[0].message.content


def litellm_stream(server: Server) -> Any:
    chunks = list(_litellm(server, messages=[{"role": "user", "content": SAY}], stream=True))
    return len(chunks) > 2 and chunks[-1].choices[0].finish_reason in {"stop", "length"}


def litellm_tools(server: Server) -> Any:
    answer = _litellm(
        server, messages=[{"role": "user", "content": CALL}], max_tokens=100, temperature=0,
        tools=[{"type": "function", "function": TOOL}], tool_choice="required",
    )  # fmt: skip
    return "city" in json.loads(answer.choices[0].message.tool_calls[0].function.arguments)


def litellm_schema(server: Server) -> Any:
    answer = _litellm(
        server, messages=[{"role": "user", "content": ASK}], max_tokens=100, response_format=Place
    )
    return Place.model_validate_json(answer.choices[0].message.content)


def _litellm(server: Server, **asked: Any) -> Any:
    import litellm

    return litellm.completion(
        model=f"openai/{server.model}", api_base=server.v1, api_key=server.key, num_retries=0,
        **({"max_tokens": N_TOKENS} | asked),
    )  # fmt: skip


def langchain_openai_chat(server: Server) -> Any:
    return _langchain(server).invoke(SAY).content


def langchain_openai_stream(server: Server) -> Any:
    return len([chunk for chunk in _langchain(server).stream(SAY) if chunk.content]) > 2


def langchain_openai_tools(server: Server) -> Any:
    from langchain_core.tools import tool

    @tool
    def get_weather(city: str, days: int) -> str:
        """The weather of the next days"""
        return f"{city} {days}"

    answer = _langchain(server, 100).bind_tools([get_weather], tool_choice="required").invoke(CALL)
    return "city" in answer.tool_calls[0]["args"]


def langchain_openai_schema(server: Server) -> Any:
    return _langchain(server, 100).with_structured_output(Place, method="json_schema").invoke(ASK).city is not None


def _langchain(server: Server, n_tokens: int = N_TOKENS) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        model=server.model, base_url=server.v1, api_key=server.key, max_tokens=n_tokens, max_retries=0, temperature=0
    )


def llama_index_chat(server: Server) -> Any:
    return _llama_index(server).complete(SAY).text


def llama_index_stream(server: Server) -> Any:
    return len(list(_llama_index(server).stream_complete(SAY))) > 2


def llama_index_tools(server: Server) -> Any:
    from llama_index.core.tools import FunctionTool

    def get_weather(city: str, days: int) -> str:
        """The weather of the next days"""
        return f"{city} {days}"

    llm = _llama_index(server, 100)
    answer = llm.chat_with_tools([FunctionTool.from_defaults(get_weather)], CALL, tool_required=True)
    return "city" in llm.get_tool_calls_from_response(answer)[0].tool_kwargs


def llama_index_schema(server: Server) -> Any:
    from llama_index.core.prompts import PromptTemplate

    return _llama_index(server, 100).structured_predict(Place, PromptTemplate(ASK)).city is not None


def _llama_index(server: Server, n_tokens: int = N_TOKENS) -> Any:
    from llama_index.llms.openai_like import OpenAILike

    return OpenAILike(
        model=server.model, api_base=server.v1, api_key=server.key, is_chat_model=True,
        is_function_calling_model=True, should_use_structured_outputs=True, max_tokens=n_tokens, max_retries=0,
        temperature=0, timeout=600,
    )  # fmt: skip


def pydantic_ai_chat(server: Server) -> Any:
    return _pydantic_ai(server).run_sync(SAY, model_settings={"max_tokens": N_TOKENS}).output


def pydantic_ai_stream(server: Server) -> Any:
    async def run() -> int:
        async with _pydantic_ai(server).run_stream(SAY, model_settings={"max_tokens": N_TOKENS}) as answer:
            return len([text async for text in answer.stream_text(delta=True, debounce_by=None)])

    return asyncio.run(run()) > 2


def pydantic_ai_tools(server: Server) -> Any:
    from pydantic_ai import ToolOutput

    output = ToolOutput(Weather, name="get_weather", description="The weather of the next days")  # a required call
    asked = {"max_tokens": 100, "temperature": 0}
    return _pydantic_ai(server, output_type=output).run_sync(CALL, model_settings=asked).output.city


def pydantic_ai_schema(server: Server) -> Any:
    from pydantic_ai import NativeOutput

    agent = _pydantic_ai(server, output_type=NativeOutput(Place))
    return agent.run_sync(ASK, model_settings={"max_tokens": 200}).output.city is not None


def _pydantic_ai(server: Server, **more: Any) -> Any:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.profiles.openai import OpenAIModelProfile
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=server.v1, api_key=server.key)
    profile = OpenAIModelProfile(supports_json_schema_output=True)
    return Agent(OpenAIChatModel(server.model, provider=provider, profile=profile), **more)


def instructor_tools(server: Server) -> Any:
    return _instructor(server, "TOOLS", CALL.replace("get_weather", "Weather"), Weather).city


def instructor_schema(server: Server) -> Any:
    return _instructor(server, "JSON_SCHEMA", ASK, Place).city


def _instructor(server: Server, mode: str, text: str, form: type[pydantic.BaseModel]) -> Any:
    import instructor

    client = instructor.from_openai(_openai(server), mode=instructor.Mode[mode])
    return client.chat.completions.create(
        model=server.model, messages=[{"role": "user", "content": text}], max_tokens=100, response_model=form,
        max_retries=1, temperature=0,
    )  # fmt: skip


def outlines_chat(server: Server) -> Any:
    return _outlines(server)(SAY, max_tokens=N_TOKENS)


def outlines_stream(server: Server) -> Any:
    return len(list(_outlines(server).stream(SAY, max_tokens=N_TOKENS))) > 2


def outlines_schema(server: Server) -> Any:
    return Place.model_validate_json(_outlines(server)(ASK, Place, max_tokens=100))


def _outlines(server: Server) -> Any:
    import outlines

    return outlines.from_openai(_openai(server), server.model)


def inspect_ai_chat(server: Server) -> Any:
    return asyncio.run(_inspect(server, SAY)).completion


def inspect_ai_tools(server: Server) -> Any:
    from inspect_ai.tool import ToolInfo, ToolParams

    tool = ToolInfo(
        name="get_weather", description="The weather of the next days",
        parameters=ToolParams(
            properties={"city": {"type": "string"}, "days": {"type": "integer"}}, required=["city", "days"]
        ),
    )  # fmt: skip
    answer = asyncio.run(_inspect(server, CALL, 100, tools=[tool], tool_choice="any"))
    return "city" in answer.message.tool_calls[0].arguments


def inspect_ai_schema(server: Server) -> Any:
    from inspect_ai.model import ResponseSchema
    from inspect_ai.util import json_schema

    schema = ResponseSchema(name="place", json_schema=json_schema(Place))
    return Place.model_validate_json(asyncio.run(_inspect(server, ASK, 100, response_schema=schema)).completion)


async def _inspect(server: Server, text: str, n_tokens: int = N_TOKENS, **more: Any) -> Any:
    from inspect_ai.model import GenerateConfig, get_model

    schema = more.pop("response_schema", None)
    config = GenerateConfig(max_tokens=n_tokens, max_retries=0, temperature=0, response_schema=schema)
    model = get_model(f"openai-api/quantyard/{server.model}", base_url=server.v1, api_key=server.key, config=config)
    return await model.generate(text, **more)


def lm_eval_chat(server: Server) -> Any:
    return _lm_eval("local-chat-completions", f"{server.v1}/chat/completions", server, "generate_until", True)


def lm_eval_completions(server: Server) -> Any:
    return _lm_eval("local-completions", f"{server.v1}/completions", server, "generate_until", False)


def lm_eval_loglikelihood(server: Server) -> Any:
    return _lm_eval("local-completions", f"{server.v1}/completions", server, "loglikelihood", False)


def _lm_eval(kind: str, address: str, server: Server, method: str, is_chat: bool) -> Any:
    import lm_eval.models  # noqa: F401 (registers them)
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    os.environ["OPENAI_API_KEY"] = server.key
    model = get_model(kind)(
        base_url=address, model=server.model, tokenizer_backend=None, tokenized_requests=False, max_retries=1,
        num_concurrent=1, max_gen_toks=N_TOKENS,
    )  # fmt: skip
    prompt: Any = SAY
    if is_chat:
        prompt = model.apply_chat_template([{"role": "user", "content": SAY}])
    arguments = (prompt, {"until": ["\n\n"], "max_gen_toks": N_TOKENS}) if method == "generate_until" else (SAY, " Hi.")
    found = getattr(model, method)([Instance(method, {}, arguments, 0)])
    return len(found) == 1 and found[0] is not None


def features(client: str) -> dict[str, Callable[[Server], Any]]:
    """The checks of a client, by feature."""
    prefix = client.replace("-", "_") + "_"
    return {name.removeprefix(prefix): check for name, check in globals().items() if name.startswith(prefix)}


def measured(check: Callable[[Server], Any], server: Server) -> str:
    """ "works", or what it said instead."""
    try:
        return "works" if check(server) else "it answered otherwise"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main() -> None:
    client, address, key, model, *wanted = sys.argv[1:]
    server = Server(address, key, model)
    with tempfile.TemporaryDirectory() as home:  # some write caches
        os.environ |= {"HOME": home, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "INSPECT_EVAL_LOG_FILE": "none"}
        os.chdir(Path(home))
        checks = {name: check for name, check in features(client).items() if not wanted or name in wanted}
        found = {name: measured(check, server) for name, check in checks.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
