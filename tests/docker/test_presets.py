"""The architectures of the presets against the converter of the image in use."""

from __future__ import annotations

import re
import subprocess

import pytest

from quantyard.sources.presets import Preset, shipped_presets

# As a stage runs it: none of the image's own Python paths, which lead to other versions of its libraries.
CONVERTER = 'env -i PATH="$PATH" HOME=/tmp "$CONVERTER_PYTHON" "$LLAMA_CONVERTER" --print-supported-models 2>&1'


@pytest.fixture(scope="module")
def supported(builder_image: str) -> set[str]:
    """Every architecture that becomes a language model; what only becomes a picture encoder is listed apart."""
    docker = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "sh", builder_image, "-c", CONVERTER]
    run = subprocess.run(docker, capture_output=True, text=True, timeout=300, check=False)
    listed = run.stdout.partition("TEXT models:")[2].partition("MMPROJ models:")[0]
    found = set(re.findall(r"^.*?- (\S+)$", listed, re.MULTILINE))
    assert {"LlamaForCausalLM", "T5ForConditionalGeneration"} <= found, f"has its layout changed? {run.stdout[-2000:]}"
    return found


@pytest.mark.parametrize("preset", shipped_presets(), ids=lambda preset: preset.name)
def test_the_converter_knows_the_architecture_unless_the_preset_says_that_it_does_not(
    preset: Preset, supported: set[str]
) -> None:
    marked = preset.unsupported is not None
    known = preset.architecture in supported
    assert known != marked, f"{preset.architecture} is {'' if known else 'not '}supported: correct models.toml"
