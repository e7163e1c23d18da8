"""What make does beside the program's commands: each target, and the variables that it takes."""

from __future__ import annotations

from typing import Final

from quantyard.cli.commands import MACHINE, Command

# A test compares it with the options of server.client.chat.
_CHAT: Final = ("PORT", "BASE_URL", "KEY_FILE", "MODEL_NAME", "TEMPERATURE", "TOP_P", "TOP_K", "MAX_TOKENS", "NO_COLOR")
_IMAGES: Final = (
    "LLAMA_CPP_IMAGE", "LLAMA_CPP_TAG", "LLAMA_CPP_SERVER_TAG", "EVAL_BASE_IMAGE", "EVAL_BASE_TAG", "WHEELS_BASE_IMAGE",
    "WHEELS_BASE_TAG", "WHEELS_GLIBC", "STANDIN_SUITE", "PROXY_IMAGE", "PROXY_TAG", "LLAMA_CPP_SDIST",
)  # fmt: skip
_TESTS: Final = (
    "JOBS", "THREADS", "REQUIRE_DOCKER", "REQUIRE_BROWSER", "REQUIRE_TOKENIZERS", "HYPOTHESIS_PROFILE", *_IMAGES,
    *(name for name in MACHINE if name not in ("ENGINE", "ARTIFACTS", "MEMORY")),
)  # fmt: skip


def _make_target(name: str, settings: tuple[str, ...] = ()) -> Command:
    return Command(name, "", "", tuple(dict.fromkeys(settings)))


# To add a target: add a row, and begin its recipe in the Makefile with $(CHECK) (a test compares the two).
MAKE_TARGETS: Final = (
    _make_target("chat", _CHAT),
    _make_target("test", ("TIER", *_TESTS)),
    *(_make_target(f"test-{tier}", _TESTS) for tier in ("fast", "docker", "e2e", "all")),
    _make_target("cluster-demo", tuple(name for name in MACHINE if name not in ("ENGINE", "NODE_ENGINE"))),
    _make_target("base-images", _IMAGES),
    *(_make_target(name) for name in ("help", "lint", "reference", "docs", "clean")),
)
