"""The contract of a real llama-server with the demo model, behind the proxy: every promise kept, and what is not there
named.
"""

from __future__ import annotations

import httpx2
import pytest

from quantyard.protocol.api_tests import CheckRecord, ContractReport
from server.contract import run_contract_checks
from tests.serve_contract.conftest import Served

LIMIT_S = 240.0  # about 75 s on two idle cores
pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def report(served: Served) -> ContractReport:
    return run_contract_checks(served.address, served.key, label="Q8_0")


def _of(report: ContractReport, name: str) -> CheckRecord:
    return next(check for check in report.checks if check.name == name)


def test_llama_server_keeps_every_promise(report: ContractReport) -> None:
    assert [f"{check.name}: {check.finding}" for check in report.with_status("failed")] == []
    assert report.passed and report.server.startswith("llama-server ") and report.model == "demo"


def test_tools_pictures_and_sounds_are_not_supported_and_the_reasons_given(report: ContractReport) -> None:
    missing = {check.name: check.finding for check in report.with_status("not supported")}
    assert set(missing) == {"as-measured", "tool-calls", "picture", "sound"}
    assert "template has no tools" in missing["tool-calls"] and "reads no pictures" in missing["picture"]


def test_every_answer_conforms_to_its_schema(report: ContractReport) -> None:
    assert report.schemas is not None and report.schemas.n >= 50
    assert report.schemas.failures == () and report.schemas.low > 0.9


def test_the_checks_take_no_longer_than_stated(report: ContractReport) -> None:
    assert report.duration_s < LIMIT_S


def test_thirty_two_clients_are_timed(report: ContractReport) -> None:
    facts = _of(report, "concurrency").facts
    total_s, slowest_s = facts["total_s"], facts["slowest_s"]
    assert facts["clients"] == 32 and isinstance(total_s, float) and isinstance(slowest_s, float)
    assert slowest_s <= total_s


def test_the_report_holds_no_key(report: ContractReport, served: Served) -> None:
    assert served.key not in report.model_dump_json()


def test_an_address_where_nobody_answers_says_so() -> None:
    with pytest.raises(httpx2.ConnectError):
        run_contract_checks("http://127.0.0.1:9", "key")
