"""The proxy's files agree with each other, with compose.yaml and with the guide to serving."""

from __future__ import annotations

import json
import re
from typing import Final

import pytest

from quantyard.paths import REPO_DIR

PROXY: Final = REPO_DIR / "server" / "proxy"
GUIDE: Final = (REPO_DIR / "docs" / "how-to" / "serve.md").read_text()
LIMITS: Final = json.loads((REPO_DIR / "server" / "limits" / "request_limits.json").read_text())
SCRIPTS: Final = sorted(PROXY.glob("*.js"))


def _conf() -> str:
    return (PROXY / "nginx.conf").read_text()


def test_every_limit_has_a_number_and_words() -> None:
    for name, limit in LIMITS.items():
        assert set(limit) == {"most", "what"}, name
        assert isinstance(limit["most"], int) and limit["most"] > 0 and limit["what"], name


def test_every_limit_is_kept_and_no_other_is_named() -> None:
    text = "".join(path.read_text() for path in SCRIPTS)
    named = set(re.findall(r"(?:atMost|number|mostOf)\('([a-z_]+)'", text))
    both = re.findall(r"atMost\(`\$\{(?:this\.)?kind\}_([a-z_]+)`", text)
    named |= {f"{kind}_{name}" for kind in ("grammar", "pattern") for name in both}
    assert named == set(LIMITS) - {"body_bytes"}  # nginx itself keeps that one


def test_nginx_takes_a_body_as_large_as_the_limit_says() -> None:
    most = LIMITS["body_bytes"]["most"]
    assert f"client_max_body_size {most};" in _conf()
    assert f"client_body_buffer_size {most};" in _conf()
    assert f"larger than {most:,} bytes" in (PROXY / "errors.conf").read_text()


def test_what_one_client_and_all_may_have_is_said_as_it_is_held() -> None:
    one, everyone = (re.search(rf"limit_conn {zone} (\d+);", _conf()) for zone in ("client", "all"))
    assert one and everyone and f"max_conns={everyone[1]} " in _conf()
    for text in ((PROXY / "errors.conf").read_text(), GUIDE):
        assert one[1] in text and everyone[1] in text
    pids = re.search(r"pids_limit: (\d+) # a thread for each request", (REPO_DIR / "compose.yaml").read_text())
    assert pids and int(pids[1]) >= 2 * int(everyone[1]) + 5 * 32  # router and children, each with 32 to begin with
    assert "--threads-http 32 " in (REPO_DIR / "server" / "image" / "entrypoint.sh").read_text()


def test_the_guide_to_serving_lists_the_routes() -> None:
    routes = re.findall(r"^    '(/[^']*)': \{", (PROXY / "routes.js").read_text(), re.MULTILINE)
    said = set(re.findall(r"`(/[a-z0-9/_-]+)`", GUIDE))
    assert len(routes) > 15
    for route in routes:
        forms = {route, f"/v1{route}", route.removeprefix("/v1"), "/" + route.rpartition("/")[2]}
        assert forms & said, f"{route} is not in the guide"


@pytest.mark.parametrize("status", [401, 403, 404, 405, 413, 429, 503])
def test_every_refusal_of_nginx_is_json_that_says_what_to_do(status: int) -> None:
    found = re.search(rf"return {status} '(.*)'; }}$", (PROXY / "errors.conf").read_text(), re.MULTILINE)
    assert found
    error = json.loads(found[1])["error"]
    assert error["code"] == status and error["message"].count(".") >= 1


def test_a_body_is_checked_on_every_route_that_takes_one() -> None:
    rows = re.findall(r"^    '/[^']*': \{(.*?)\},(?: //.*)?$", (PROXY / "routes.js").read_text(), re.MULTILINE)
    assert all(re.fullmatch(r"GET: '(?:model|inner)'(, open: true)?|POST: 'inner'", row) for row in rows)
