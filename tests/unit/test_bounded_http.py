"""Addresses that a host names: which of them are gone to."""

from __future__ import annotations

import httpx2
import pytest

from quantyard.network.bounded_http import http_address_fault

HUB = httpx2.URL("https://hub.example/api/models/me/it")


@pytest.mark.parametrize("address", [
    "https://cdn.example/file", "/relative", "http://hub.example:8081/file", "http://hub.example/file",
])  # fmt: skip
def test_a_redirect_leads_anywhere_with_encryption_and_without_it_to_the_same_host(address: str) -> None:
    assert http_address_fault(address, HUB, is_redirect=True) == ""


@pytest.mark.parametrize("address", [
    "http://cdn.example/file", "http://hub.example.evil/file", "//me@cdn.example/file", "ftp://hub.example/",
])  # fmt: skip
def test_a_redirect_to_anything_else_is_refused(address: str) -> None:
    assert http_address_fault(address, HUB, is_redirect=True)
