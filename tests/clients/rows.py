"""The client libraries that are tried with a served model, and the settings that people give them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from quantyard.paths import REPO_DIR

FOLDER: Final = Path(__file__).parent
# What is tried, and its heading. `tools` needs a chat template that knows tools, which is not the demo's.
FEATURES: Final = {
    "chat": "chat", "stream": "stream", "schema": "JSON schema", "tools": "tools", "completions": "completions",
    "loglikelihood": "log-likelihood of a prompt",
}  # fmt: skip
TOOLS_OF_A_TEMPLATE: Final = "tools of a template"  # that knows them; `tools` is with the demo's own, which does not
Environment = Literal["test", "clients", "oldclients", "bench", "npm", "promptfoo"]


@dataclass(frozen=True)
class Client:
    """One library.

    Attributes:
        packages: their names in the index.
        environment: what they are installed in: the group of a Python lock, or a folder of npm's here.
        settings: what it is told, with ADDRESS, KEY and MODEL.
        limits: why a feature does not work, where what the library says does not tell.
    """

    packages: tuple[str, ...]
    environment: Environment
    settings: str
    limits: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_python(self) -> bool:
        return self.environment in ("test", "clients", "oldclients", "bench")

    def versions(self) -> tuple[str, ...]:
        """Of its packages, as locked."""
        if self.is_python:
            text = (REPO_DIR / "locks" / f"{self.environment}.txt").read_text()
            found = {name: re.search(rf"^{re.escape(name)}==(\S+)", text, re.MULTILINE) for name in self.packages}
            return tuple(match[1] for match in found.values() if match)
        locked = json.loads((FOLDER / self.environment / "package-lock.json").read_text())["packages"]
        return tuple(str(locked[f"node_modules/{name}"]["version"]) for name in self.packages)


# To add a client: a row here, its package in pyproject.toml (`clients`, then scripts/lock.sh) or in npm/package.json,
# its checks in python_clients.py or node_clients.mjs, and: python -m tests.clients.sweep NAME
CLIENTS: Final = {
    "openai": Client(("openai",), "test", 'OpenAI(base_url="ADDRESS/v1", api_key="KEY")'),
    "anthropic": Client(
        ("anthropic",), "test", 'Anthropic(base_url="ADDRESS", auth_token="KEY")',
        {"schema": "this llama.cpp takes no schema in Anthropic's API: use a tool, or OpenAI's"},
    ),
    "litellm": Client(
        ("litellm",), "clients", 'completion(model="openai/MODEL", api_base="ADDRESS/v1", api_key="KEY")'
    ),
    "langchain-openai": Client(
        ("langchain-openai",), "clients", 'ChatOpenAI(model="MODEL", base_url="ADDRESS/v1", api_key="KEY")'
    ),
    "llama-index": Client(
        ("llama-index-llms-openai-like",), "oldclients",
        'OpenAILike(model="MODEL", api_base="ADDRESS/v1", api_key="KEY", is_chat_model=True, '
        "is_function_calling_model=True, should_use_structured_outputs=True)",
    ),
    "pydantic-ai": Client(
        ("pydantic-ai-slim",), "clients",
        'OpenAIChatModel("MODEL", provider=OpenAIProvider(base_url="ADDRESS/v1", api_key="KEY"), '
        "profile=OpenAIModelProfile(supports_json_schema_output=True))",
    ),
    "instructor": Client(
        ("instructor",), "oldclients",
        'from_openai(OpenAI(base_url="ADDRESS/v1", api_key="KEY"), mode=Mode.JSON_SCHEMA)',
        {TOOLS_OF_A_TEMPLATE: "Mode.TOOLS names the tool to call, which llama.cpp takes as tool_choice=auto; "
                              "Mode.JSON_SCHEMA works with every model"},
    ),
    "outlines": Client(
        ("outlines",), "clients", 'outlines.from_openai(OpenAI(base_url="ADDRESS/v1", api_key="KEY"), "MODEL")'
    ),
    "inspect-ai": Client(
        ("inspect-ai",), "clients", 'get_model("openai-api/quantyard/MODEL", base_url="ADDRESS/v1", api_key="KEY")'
    ),
    "lm-eval": Client(
        ("lm-eval",), "bench",
        "OPENAI_API_KEY=KEY lm_eval --model local-chat-completions --apply_chat_template --model_args "
        "model=MODEL,base_url=ADDRESS/v1/chat/completions,tokenizer_backend=None",
        {"loglikelihood": "it needs a tokenizer of its own, and llama.cpp returns none for the tokens of a prompt; "
                          "make eval measures them"},
    ),
    "openai-npm": Client(("openai",), "npm", 'new OpenAI({baseURL: "ADDRESS/v1", apiKey: "KEY"})'),
    "ai-sdk": Client(
        ("ai", "@ai-sdk/openai-compatible"), "npm",
        'createOpenAICompatible({name: "quantyard", baseURL: "ADDRESS/v1", apiKey: "KEY", '
        'supportsStructuredOutputs: true})("MODEL")',
    ),
    "promptfoo": Client(
        ("promptfoo",), "promptfoo", '{id: "openai:chat:MODEL", config: {apiBaseUrl: "ADDRESS/v1", apiKey: "KEY"}}'
    ),
}  # fmt: skip
