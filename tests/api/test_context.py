"""Ids of requests."""

from __future__ import annotations

from gateway.api import context


def test_ids_are_in_the_order_of_time_and_no_two_alike(monkeypatch):
    now = 1_795_000_000_000_000_000
    monkeypatch.setattr(context.time, "time_ns", lambda: now)
    same_moment = {context.new_id() for _ in range(1000)}
    assert len(same_moment) == 1000
    assert {len(one) for one in same_moment} == {len("req_") + 32}
    now += 1_000_000
    assert context.new_id() > max(same_moment)
