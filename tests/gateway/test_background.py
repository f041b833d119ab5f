"""Batches are behind everybody else, whatever shares an operator gives out."""

from __future__ import annotations

from gateway.service.interfaces import BACKGROUND
from gateway.settings import Settings
from gateway.shell.assembly import elastic_settings


def test_batches_get_what_nobody_else_wants() -> None:
    shares = elastic_settings(Settings(tenant_shares={"alice": 2.0})).tenant_shares
    assert shares["alice"] == 2.0
    assert shares[BACKGROUND] < 1e-5
