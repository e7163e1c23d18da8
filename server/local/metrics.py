"""The metrics of several models in one answer, each line with its model's name, as server/proxy/metrics.js has them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_LOADED: Final = "quantyard_model_loaded"
_ABOUT: Final = [f"# HELP {_LOADED} Whether the model is loaded.", f"# TYPE {_LOADED} gauge"]
_NAME: Final = re.compile(r"(?:# (?:HELP|TYPE) )?([a-zA-Z_:][\w:]*)", re.ASCII)
_SAMPLE: Final = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?( .*)", re.ASCII)


def merge_model_metrics(models: Mapping[str, str | None]) -> str:
    """The text of all. `models`: name → its metrics as llama-server writes them, None if it is not loaded."""
    about: dict[str, list[str]] = {_LOADED: _ABOUT}
    samples: dict[str, list[str]] = {_LOADED: []}
    for model, text in models.items():
        label = f"model={json.dumps(model, ensure_ascii=False)}"
        samples[_LOADED].append(f"{_LOADED}{{{label}}} {int(text is not None)}")
        for name, lines in _metric_lines_by_name(text or "").items():
            about.setdefault(name, [line for line in lines if line.startswith("#")])
            samples.setdefault(name, []).extend(
                _labelled_metric(line, label) for line in lines if not line.startswith("#")
            )
    return "".join(f"{line}\n" for name in about for line in (*about[name], *samples[name]))


def _metric_lines_by_name(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := _NAME.match(line):
            found.setdefault(match[1], []).append(line)
    return found


def _labelled_metric(line: str, label: str) -> str:
    match = _SAMPLE.match(line)
    return f"{match[1]}{{{','.join(filter(None, (label, match[2])))}}}{match[3]}" if match else line
