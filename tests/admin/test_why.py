"""``/admin/why`` and ``/admin/plan``: every decision with its reason and the event that caused it."""

from __future__ import annotations

from typing import Any

import httpx

from gateway.service.decisions import REMEMBERED, Decisions
from scheduler import actions as act
from scheduler import events as ev
from scheduler.roles.solver import plan
from wire.types import REQUIRED, RequestId, Role


async def test_the_story_of_a_request(desk: Any, admin: httpx.AsyncClient) -> None:
    a = desk.join("a", *REQUIRED)
    desk.ask()
    desk.tell(ev.ServerLost(a, "silent for 10 s"))
    desk.join("b", *REQUIRED)
    desk.ask("req_2")
    told = (await admin.get("/admin/why", params={"request": "req_1"})).json()
    assert (told["request"], told["under_way"]) == ("req_1", True)
    assert [(one["decision"], one["event"]["kind"]) for one in told["decisions"]] == [
        ("Admit", "RequestArrived"),
        ("Run", "RequestArrived"),
        ("Run", "ServerJoined"),
    ]
    admitted, first, second = told["decisions"]
    assert admitted["reason"].startswith("predicted ")
    assert admitted["event"]["request"] == "req_1"
    assert (first["server"], second["server"], second["job"]) == ("a/i1", "b/i1", "req_1/encoder")
    assert [first["cause"] < second["cause"], first["at"] < second["at"]] == [True, True]
    assert [(job["job"], job["state"], job["server"]) for job in told["jobs"]] == [
        ("req_1/encoder", "fetching", "b"),
        ("req_1/dit.0", "waiting", None),
        ("req_1/decoder.0", "waiting", None),
    ]


async def test_a_cancellation_belongs_to_the_request_whose_attempt_it_ends(desk: Any, admin: httpx.AsyncClient) -> None:
    desk.join("a", *REQUIRED)
    desk.ask("req_1")
    desk.tell(ev.RequestCancelled(RequestId("req_1")))
    told = (await admin.get("/admin/why", params={"request": "req_1"})).json()
    assert (told["under_way"], told["jobs"]) == (False, [])
    assert (told["decisions"][-1]["decision"], told["decisions"][-1]["reason"]) == ("Cancel", "the client is gone")


async def test_a_refusal_is_remembered(desk: Any, admin: httpx.AsyncClient) -> None:
    desk.join("a", *REQUIRED)
    desk.ask(deadline=0.0)
    (decision,) = (await admin.get("/admin/why", params={"request": "req_1"})).json()["decisions"]
    assert decision["decision"] == "Reject"
    assert "its deadline is in " in decision["reason"]


async def test_what_a_server_did_and_why(desk: Any, admin: httpx.AsyncClient) -> None:
    a = desk.join("a", *REQUIRED)
    desk.join("b", *REQUIRED)
    desk.tell(ev.ServerLost(a, "its connection ended"))
    told = (await admin.get("/admin/why", params={"server": "a"})).json()["decisions"]
    assert [one["event"]["kind"] for one in told] == ["ServerJoined", "ServerLost"]
    assert told[1]["event"]["why"] == "its connection ended"
    assert len((await admin.get("/admin/why")).json()["decisions"]) == 3


async def test_what_nobody_knows(desk: Any, admin: httpx.AsyncClient) -> None:
    request = await admin.get("/admin/why", params={"request": "req_9"})
    server = await admin.get("/admin/why", params={"server": "z"})
    both = await admin.get("/admin/why", params={"server": "z", "request": "req_9"})
    codes = [(answer.status_code, answer.json()["error"]["code"]) for answer in (request, server, both)]
    assert codes == [(404, "request_not_found"), (404, "server_not_found"), (400, "invalid_value")]


def test_the_log_is_bounded_and_keeps_no_housekeeping() -> None:
    decisions = Decisions()
    release = act.Release(cause=1, reason="", server="a/1", handles=())
    for number in range(REMEMBERED + 10):
        cancel = act.Cancel(cause=number, reason="", server="a/1", epochs=())
        decisions.note(ev.Tick(), [cancel, release], float(number))
    assert len(decisions._log) == REMEMBERED
    assert decisions._log[0].at == 10.0
    assert len(decisions.latest()) == 200


async def verdict(desk: Any, admin: httpx.AsyncClient) -> str:
    desk.now += 2
    desk.tell(ev.Tick())
    (model,) = (await admin.get("/admin/plan")).json()["models"].values()
    assert model["demand"].keys() == set(REQUIRED)
    return str(model["verdict"])


async def test_the_plan_says_why_nothing_moves(desk: Any, admin: httpx.AsyncClient) -> None:
    assert (await admin.get("/admin/plan")).json() == {"verdict": "no work has been planned for yet"}
    desk.join("a", Role.ENCODER, Role.DIT)
    desk.join("b", Role.DECODER)
    desk.ask()
    desk.tell(ev.RequestCancelled(RequestId("req_1")))
    assert await verdict(desk, admin) == "too few requests have come to plan by"
    for number in range(20):
        desk.ask(f"more_{number}")
        desk.tell(ev.RequestCancelled(RequestId(f"more_{number}")))
    assert await verdict(desk, admin) == "every stage is less than 60% busy: nothing moves"


async def test_where_everything_is_held_everywhere_there_is_nothing_to_plan(
    desk: Any, admin: httpx.AsyncClient
) -> None:
    desk.join("a", *REQUIRED)
    for number in range(20):
        desk.ask(f"req_{number}")
    assert await verdict(desk, admin) == "every server holds all that it may"


async def test_the_plan_gives_a_role_without_holder_its_first(desk: Any, admin: httpx.AsyncClient) -> None:
    desk.join("a", Role.ENCODER, Role.DIT)
    desk.ask()
    desk.now += 2
    (solve,) = [action for action in desk.tell(ev.Tick()) if isinstance(action, act.SolvePlan)]
    desk.tell(ev.PlanReady(plan(solve.problem)))
    told = (await admin.get("/admin/plan")).json()
    assert told["last_plan"]["capacity"]["present"] == 0
    (move,) = told["last_plan"]["moves"]
    assert (move["server"], move["reason"]) == ("a/i1", "no server held decoder")
    assert "decoder" in move["roles"]
    (model,) = told["models"].values()
    assert (model["unheld"], model["utilisation"]) == (["decoder"], None)
    assert model["doubt"].keys() == model["demand"].keys() == {"encoder", "dit", "decoder"}
    assert model["verdict"] == "1 servers move: no server held decoder"
