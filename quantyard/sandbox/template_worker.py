"""Renders one chat template as transformers does: each line of JSON on stdin asks, each on stdout answers.

    {"template": …, "bos_token": …, "eos_token": …}               first
    {"messages": […], "add_generation_prompt": true}              then → {"text": …}, {"refused": …} or {"fault": …}

A question may have "tools" too.

A script of its own process, which `chat_template` starts: the template was written by others. It may call
nothing but what a chat template needs, and each answer has its seconds and megabytes.
"""

from __future__ import annotations

import json
import runpy
import sys
from datetime import datetime
from pathlib import Path
from types import GeneratorType
from typing import Any

if __name__ == "__main__":
    sys.path.append(sys.argv[1])

import jinja2
import jinja2.ext
from jinja2.sandbox import SandboxedEnvironment

_BOUNDED = runpy.run_path(str(Path(__file__).with_name("bounded_process.py")))
_MAX_CHARACTERS = 2 << 20  # of a rendered conversation
_MAX_REASON = 500


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, by which transformers marks what the model wrote: rendered as if it were not there."""

    tags = {"generation"}  # noqa: RUF012  (as the base class has it)

    def parse(self, parser: Any) -> Any:
        """What stands between its beginning and its end."""
        parser.stream.skip(1)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def sandboxed_jinja() -> SandboxedEnvironment:
    """Jinja with the filters and functions that chat templates may use.

    Templates may change lists, as in llama.cpp: Kimi K2's collects the ids of calls. What they get is read anew for
    each conversation.
    """
    sandbox = SandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    sandbox.filters["tojson"] = _template_to_json
    sandbox.globals |= {"raise_exception": _refuse_from_template, "strftime_now": _template_time_now}
    return sandbox


def _template_to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    value = list(value) if isinstance(value, GeneratorType) else value  # of `map`, as in llama.cpp
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse_from_template(message: str) -> None:
    raise jinja2.TemplateError(message)


def _template_time_now(layout: str) -> str:
    return datetime.now().strftime(layout)  # noqa: DTZ005  (local time, as transformers has it)


def _template_answer(state: dict[str, Any], question: dict[str, Any]) -> dict[str, str]:
    try:
        if "template" in question:
            state.update(question)
            return {}
        if "compiled" not in state:
            state["compiled"] = sandboxed_jinja().from_string(state["template"])
        names = {name: state[name] for name in ("bos_token", "eos_token")}
        text = _rendered_question(state["compiled"], question | names)
        text.encode()  # refuse a lone surrogate
    except MemoryError:
        return {"fault": _BOUNDED["sandbox_memory_exceeded"]()}
    except Exception as error:  # templates raise what they like
        return {"refused": f"{type(error).__name__}: {error}"[:_MAX_REASON]}
    return {"text": text} if len(text) <= _MAX_CHARACTERS else {"fault": _BOUNDED["TOO_LARGE"]}


def _rendered_question(compiled: jinja2.Template, given: dict[str, Any]) -> str:
    """The text; what is not given is None, as in transformers, or, where that is refused, undefined as in llama.cpp."""
    try:
        return compiled.render({"tools": None, "documents": None} | given)
    except MemoryError:
        raise
    except Exception as error:
        if "tools" in given:
            raise
        try:
            return compiled.render(given)
        except Exception:
            raise error from None


def main() -> None:
    """Answer until stdin closes. The arguments: the folder that holds Jinja, and the seconds for each answer."""
    cpu_s = int(sys.argv[2])
    state: dict[str, Any] = {}
    for line in sys.stdin:
        _BOUNDED["sandbox_this_process"](cpu_s)
        sys.stdout.write(json.dumps(_template_answer(state, json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
