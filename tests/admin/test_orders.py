"""Orders over HTTP: carried out, refused where they would do harm, and what the operator is told."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from scheduler import actions as act
from scheduler import events as ev
from wire.to_stage import Shutdown
from wire.types import REQUIRED, Role


async def order(admin: httpx.AsyncClient, server: str, what: str, **body: object) -> tuple[int, Any]:
    answer = await admin.post(f"/admin/servers/{server}/{what}", json=body or None)
    content = answer.json()
    return answer.status_code, content.get("error", content)


async def test_roles_change_under_way_done_and_rolled_back(desk: Any, admin: httpx.AsyncClient) -> None:
    desk.join("a", *REQUIRED)
    b = desk.join("b", Role.DIT)
    status, told = await order(admin, "b", "roles", roles=["decoder", "encoder"])
    assert (status, told["roles"], told["switching_to"], told["serving"]) == (202, ["dit"], ["encoder", "decoder"], [])
    desk.tell(ev.RolesFailed(b, desk.switching(b), frozenset({Role.DIT}), "text_encoder cannot be loaded"))
    (told,) = [one for one in (await admin.get("/admin/servers")).json()["servers"] if one["name"] == "b"]
    assert (told["roles"], told["switching_to"], told["serving"]) == (["dit"], None, ["dit"])
    why = (await admin.get("/admin/why", params={"server": "b"})).json()["decisions"]
    assert "text_encoder cannot be loaded" in [decision["event"].get("why") for decision in why]
    await order(admin, "b", "roles", roles=["decoder"])
    desk.tell(ev.RolesReady(b, desk.switching(b), frozenset({Role.DECODER}), 0.5))
    assert desk.scheduler.view.servers[b].serving == {Role.DECODER}


async def test_roles_that_are_held_or_on_their_way_are_not_ordered_again(desk: Any, admin: httpx.AsyncClient) -> None:
    desk.join("a", *REQUIRED)
    b = desk.join("b", Role.DIT)
    await order(admin, "b", "roles", roles=["dit"])
    assert desk.scheduler.view.servers[b].switching is None
    await order(admin, "b", "roles", roles=["encoder"])
    epoch = desk.switching(b)
    assert (await order(admin, "b", "roles", roles=["encoder"]))[0] == 202
    assert desk.switching(b) == epoch


async def test_only_a_server_that_shares_its_device_may_hold_nothing(desk: Any, admin: httpx.AsyncClient) -> None:
    desk.join("a", *REQUIRED)
    desk.join("b", *REQUIRED)
    assert "must hold a role" in (await order(admin, "b", "roles", roles=[]))[1]["message"]
    desk.join("c", *REQUIRED, device="c/1")
    desk.join("c.2", *REQUIRED, device="c/1")
    status, told = await order(admin, "c", "roles", roles=[])
    assert (status, told["switching_to"], told["shares_device_with"]) == (202, [], ["c.2"])


async def test_the_last_holder_keeps_its_role(desk: Any, admin: httpx.AsyncClient) -> None:
    desk.join("a", Role.ENCODER, Role.DIT)
    desk.join("b", Role.DECODER)
    for what, body in (("roles", {"roles": ["dit"]}), ("drain", {})):
        status, error = await order(admin, "a", what, **body)
        assert (status, error["code"]) == (409, "order_refused")
        assert error["message"].startswith("'a' is the last server that serves encoder")
        assert error["message"].endswith("of m@1: give that role to another server first.")
    assert desk.sent == []
    desk.join("c", Role.ENCODER, Role.DIT)
    assert (await order(admin, "a", "roles", roles=["dit"]))[0] == 202
    assert (await order(admin, "c", "roles", roles=["dit"]))[0] == 409  # the other one has begun to give it up


async def test_what_the_server_itself_would_refuse(desk: Any, admin: httpx.AsyncClient) -> None:
    desk.join("a", *REQUIRED)
    desk.join("fixed", Role.DIT, pinned=True)
    desk.join("small", Role.DECODER, capable=(Role.ENCODER, Role.DECODER))
    for server, roles, message in (
        ("fixed", ["encoder"], "'fixed' was started with --pin: restart it without, or with other roles."),
        ("small", ["dit"], "'small' cannot take dit; it can take encoder and decoder."),
    ):
        status, error = await order(admin, server, "roles", roles=roles)
        assert (status, error["message"]) == (409, message)
    assert (await order(admin, "fixed", "unpin"))[0] == 409


async def test_pinned_servers_are_left_alone_by_plans_and_not_by_orders(desk: Any, admin: httpx.AsyncClient) -> None:
    desk.join("a", *REQUIRED)
    b = desk.join("b", Role.DIT)
    assert (await order(admin, "b", "pin"))[1]["pinned"]
    assert (await order(admin, "b", "pin"))[0] == 200
    assert (await order(admin, "b", "roles", roles=["encoder"]))[0] == 202
    assert not (await order(admin, "b", "unpin"))[1]["pinned"]
    assert desk.scheduler.view.servers[b].switching is not None


async def test_a_drained_server_gets_no_work_and_is_told_to_end(desk: Any, admin: httpx.AsyncClient) -> None:
    a, b = desk.join("a", *REQUIRED), desk.join("b", *REQUIRED)
    status, told = await order(admin, "b", "drain")
    assert (status, told["leaving"], told["serving"], desk.sent) == (202, True, [], [(b, Shutdown())])
    await order(admin, "b", "drain")
    assert len(desk.sent) == 1
    assert (await order(admin, "b", "roles", roles=["dit"]))[1]["message"] == "'b' is leaving and takes no new roles."
    desk.ask()
    runs = [decision.action for decision in desk.decisions._log if isinstance(decision.action, act.Run)]
    assert {run.server for run in runs} == {a}


async def test_a_server_that_is_not_there(desk: Any, admin: httpx.AsyncClient) -> None:
    desk.join("a", *REQUIRED)
    for what, body in (("pin", {}), ("drain", {}), ("roles", {"roles": ["dit"]})):
        status, error = await order(admin, "rack/b", what, **body)
        assert (status, error["code"]) == (404, "server_not_found")
        assert error["message"] == "No stage server is named 'rack/b'; there are: a."


@pytest.mark.parametrize(
    ("body", "param"),
    [({}, "roles"), ({"roles": ["painter"]}, "roles.0"), ({"roles": ["dit"], "x": 1}, "x")],
)
async def test_bodies_that_make_no_sense(desk: Any, admin: httpx.AsyncClient, body: object, param: str) -> None:
    desk.join("a", *REQUIRED)
    answer = await admin.post("/admin/servers/a/roles", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
