"""The pipeline's stream: a real scheduler is fed by hand, a manual clock moves, readers put rows together again."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from gateway.api.app import create_app
from gateway.pipeline_feed.busy import SLICE_SECONDS, SLICES
from gateway.pipeline_feed.differ import Differ
from gateway.pipeline_feed.feed import KEEP_ALIVE, KEEP_ALIVE_SECONDS, LOOK_SECONDS, MOST_UNREAD, Feed
from gateway.pipeline_feed.lives import REMEMBERED
from gateway.pipeline_feed.readers import MOST_BYTES, Reader
from gateway.pipeline_feed.snapshot import Sources
from gateway.settings import Settings
from scheduler import actions as act
from scheduler import events as ev
from scheduler.spec import Output, Timings
from tests.admin.conftest import KEY, Desk, NoService
from wire.types import REQUIRED, Epoch, Handle, RequestId, Role, ServerId

STARTED = 1_000_000_000.0


class WatchedDesk(Desk):
    """An operator's desk whose scheduler is watched by a feed, on the desk's clock."""

    feed: Feed

    def __post_init__(self) -> None:
        super().__post_init__()
        sources = Sources(self.operator.servers, self.operator.plan)
        self.feed = Feed(self.scheduler.view, sources, lambda: STARTED + self.now)

    def tell(self, event: ev.Event) -> list[act.Action]:
        actions = super().tell(event)
        self.feed.note(event, actions, STARTED + self.now)
        return actions

    def runs(self, actions: list[act.Action]) -> list[act.Run]:
        return [action for action in actions if isinstance(action, act.Run)]

    def carry_through(self, server: ServerId, name: str = "req_1", seconds: float = 1.0) -> None:
        """Every job of the request, on the one server there is."""
        for job, port in (("encoder", "dit"), ("dit.0", "decoder"), ("decoder.0", "image")):
            epoch = self.epoch(server, f"{name}/{job}")
            self.tell(ev.JobStarted(server, epoch))
            self.now += seconds
            output = Output(port, Handle(f"{name}-{job}"), 8)
            self.tell(ev.JobDone(server, epoch, (output,), Timings(compute=seconds)))

    def epoch(self, server: ServerId, job: str) -> Epoch:
        attempts = self.scheduler.view.servers[server].attempts.values()
        (found,) = (attempt.epoch for attempt in attempts if attempt.job.spec.id == job)
        return found


@pytest.fixture
def desk() -> WatchedDesk:
    return WatchedDesk()


class Copy:
    """What a reader knows, put together from what it was told, as the page does it."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, Any]] = {}
        self.resets = 0
        self.complete = False

    def take(self, words: bytes) -> None:
        for block in words.decode().split("\n\n"):
            if block.startswith("event: pipeline\ndata: "):
                self._apply(json.loads(block.removeprefix("event: pipeline\ndata: ")))

    def _apply(self, told: dict[str, Any]) -> None:
        if told.get("reset"):
            self.tables, self.complete = {}, False
            self.resets += 1
        self.complete = self.complete or bool(told.get("complete"))
        for table, rows in told.get("rows", {}).items():
            self.tables.setdefault(table, {}).update(rows)
        for table, changes in told.get("changes", {}).items():
            for key, fields in changes.items():
                if key in self.tables.get(table, {}):
                    self.tables[table][key] |= fields
        for table, keys in told.get("gone", {}).items():
            for key in keys:
                self.tables.get(table, {}).pop(key, None)


async def read(reader: Reader, copy: Copy) -> None:
    """All that there is at the moment."""
    while True:
        try:
            async with asyncio.timeout(0):  # what is there is had without waiting
                copy.take(await reader.next())
        except TimeoutError:
            return


def tables_of(feed: Feed) -> Any:
    return json.loads(json.dumps(feed._take()))


def filled(tables: dict[str, Any]) -> dict[str, Any]:
    return {name: table for name, table in tables.items() if table}


# --- what is told -----------------------------------------------------------------------------------------------------


async def test_a_request_from_its_arrival_to_its_end(desk: WatchedDesk) -> None:
    server = desk.join("a", *REQUIRED)
    copy = Copy()
    with desk.feed.reading() as reader:
        desk.ask()
        desk.feed.look()
        await read(reader, copy)
        assert copy.complete
        (row,) = copy.tables["requests"].values()
        assert (row["state"], row["pictures"], row["took"]) == ("waiting", 1, None)
        assert row["predicted"] > 0
        assert copy.tables["stages"]["m@1 encoder"]["committed"] == 1
        desk.tell(ev.JobStarted(server, desk.epoch(server, "req_1/encoder")))
        desk.feed.look()
        await read(reader, copy)
        assert copy.tables["requests"]["req_1"]["state"] == "computing"
        assert copy.tables["stages"]["m@1 encoder"]["computing"] == 1
        (job,) = copy.tables["servers"]["a/i1"]["jobs"]
        assert (job["job"], job["state"]) == ("req_1/encoder", "running")
        desk.tell(ev.RequestCancelled(RequestId("req_1")))
        desk.feed.look()
        await read(reader, copy)
        row = copy.tables["requests"]["req_1"]
        assert (row["state"], row["why"]) == ("cancelled", "the client is gone")
        assert row["took"] == pytest.approx(0.2)
        assert copy.resets == 1


def test_the_attempts_of_a_request_with_their_times(desk: WatchedDesk) -> None:
    server = desk.join("a", *REQUIRED)
    desk.ask()
    desk.carry_through(server, seconds=2.0)
    pieces = desk.feed.life("req_1")
    assert pieces is not None
    assert [piece["job"] for piece in pieces] == ["encoder", "dit.0", "decoder.0"]
    for piece in pieces:
        ((begin, end),) = piece["computing"]
        assert end - begin == pytest.approx(2.1)
        assert (piece["server"], piece["how"], piece["ended"]) == ("a", "done", end)
    assert desk.feed.life("req_2") is None


def test_an_attempt_that_paused_has_two_stretches(desk: WatchedDesk) -> None:
    server = desk.join("a", *REQUIRED)
    desk.ask()
    epoch = desk.epoch(server, "req_1/encoder")
    for event in (ev.JobStarted(server, epoch), ev.JobPaused(server, epoch, 0), ev.JobStarted(server, epoch)):
        desk.tell(event)
    (piece,) = desk.feed.life("req_1") or ()
    first, second = piece["computing"]
    assert (len(first), len(second)) == (2, 1)


def test_an_attempt_heard_of_only_at_its_end_is_drawn_from_its_timings(desk: WatchedDesk) -> None:
    server = desk.join("a", *REQUIRED)
    desk.ask()
    epoch = desk.epoch(server, "req_1/encoder")
    desk.now += 5
    desk.tell(ev.JobDone(server, epoch, (Output("dit", Handle("h"), 8),), Timings(compute=3.0, publish=0.5)))
    piece = (desk.feed.life("req_1") or [])[0]
    at = STARTED + desk.now
    assert piece["computing"] == [[pytest.approx(at - 3.5, abs=1e-3), pytest.approx(at - 0.5, abs=1e-3)]]
    desk.now += SLICE_SECONDS
    desk.feed.look()
    ((_, row),) = tables_of(desk.feed)["slices"].items()
    assert row["busy"]["a"] > 0.2


def test_what_a_lost_server_had_ends_there(desk: WatchedDesk) -> None:
    first = desk.join("a", *REQUIRED)
    desk.join("b", *REQUIRED)
    desk.ask()
    lost = desk.epoch(first, "req_1/encoder")
    desk.tell(ev.JobStarted(first, lost))
    desk.tell(ev.ServerLost(first, "silent for 10 s"))
    pieces = desk.feed.life("req_1") or []
    assert [(piece["server"], piece["how"]) for piece in pieces] == [("a", "server lost: silent for 10 s"), ("b", "")]
    assert len(pieces[0]["computing"][0]) == 2
    (news,) = (row for row in tables_of(desk.feed)["news"].values() if row["kind"] == "lost")
    assert (news["server"], news["text"]) == ("a", "is gone: silent for 10 s")


def test_requests_turned_away_are_told_with_the_reason(desk: WatchedDesk) -> None:
    desk.join("a", *REQUIRED)
    desk.ask(deadline=0.0)
    tables = tables_of(desk.feed)
    assert tables["requests"]["req_1"]["state"] == "rejected"
    assert "deadline" in tables["requests"]["req_1"]["why"]
    assert [row["kind"] for row in tables["news"].values()] == ["joined", "rejected"]


async def test_role_changes_are_told_in_words(desk: WatchedDesk) -> None:
    desk.join("a", *REQUIRED)
    desk.join("b", Role.DIT)
    await desk.operator.assign("b", [Role.DECODER])
    server = ServerId("b/i1")
    desk.tell(ev.RolesReady(server, desk.switching(server), frozenset({Role.DECODER}), 1.5))
    told = [row["text"] for row in tables_of(desk.feed)["news"].values() if row["server"] == "b"]
    assert told[0] == "came with dit"
    assert told[1] == "was ordered to hold decoder"
    assert told[2].startswith("changes to decoder: ")
    assert told[3] == "holds decoder now, loaded from disk in 1.5 s"


def test_what_was_handed_to_a_stage_from_other_servers_in_the_last_minute(desk: WatchedDesk) -> None:
    first, second = desk.join("a", Role.ENCODER, Role.DIT), desk.join("b", Role.DECODER)
    desk.ask()
    for job, port in (("encoder", "dit"), ("dit.0", "decoder")):
        epoch = desk.epoch(first, f"req_1/{job}")
        desk.tell(ev.JobStarted(first, epoch))
        desk.tell(ev.JobDone(first, epoch, (Output(port, Handle(job), 800),)))
    assert desk.epoch(second, "req_1/decoder.0")
    stages = tables_of(desk.feed)["stages"]
    assert [(stages[f"m@1 {role}"]["handed_jobs"], stages[f"m@1 {role}"]["handed_bytes"]) for role in REQUIRED] == [
        (0, 0),
        (0, 0),  # its input was made where it is read
        (1, 800),
    ]
    for _ in range(13):
        desk.now += SLICE_SECONDS
        desk.feed.look()
    assert tables_of(desk.feed)["stages"]["m@1 decoder"]["handed_jobs"] == 0


def test_only_the_last_requests_are_kept(desk: WatchedDesk) -> None:
    desk.join("a", *REQUIRED)
    for number in range(REMEMBERED + 5):
        desk.ask(f"req_{number}", deadline=0.0)
    rows = tables_of(desk.feed)["requests"]
    assert len(rows) == REMEMBERED
    assert "req_4" not in rows
    assert f"req_{REMEMBERED + 4}" in rows
    assert desk.feed.life("req_4") is None


def test_busy_shares_are_of_the_slice_and_of_no_more_than_five_minutes(desk: WatchedDesk) -> None:
    server = desk.join("a", *REQUIRED)
    desk.ask()
    desk.feed.look()
    began = desk.now
    desk.tell(ev.JobStarted(server, desk.epoch(server, "req_1/encoder")))
    desk.now = began + 10.1
    desk.feed.look()
    *_, last = tables_of(desk.feed)["slices"].values()
    assert last["busy"]["a"] == pytest.approx(10 / (began + 10.1), abs=0.01)
    for _ in range(SLICES + 3):
        desk.now += SLICE_SECONDS
        desk.feed.look()
    slices = tables_of(desk.feed)["slices"]
    assert len(slices) == SLICES
    assert {row["busy"]["a"] for row in slices.values()} == {1.0}


def test_what_is_noted_while_nobody_looks_is_bounded_and_starts_afresh(desk: WatchedDesk) -> None:
    server = desk.join("a", *REQUIRED)
    desk.ask("req_early")
    assert desk.feed.life("req_early")
    for number in range(MOST_UNREAD + 1):
        desk.feed.note(ev.RequestCancelled(RequestId(f"req_{number}")), [], STARTED)
    assert len(desk.feed._unread) == MOST_UNREAD
    desk.ask("req_late")
    assert desk.feed.life("req_late") == []
    assert desk.feed.life("req_early") is None
    desk.carry_through(server, "req_early")
    desk.carry_through(server, "req_late")
    assert "req_early" not in tables_of(desk.feed)["requests"]
    assert tables_of(desk.feed)["requests"]["req_late"]["state"] == "computing"


# --- how it is told ---------------------------------------------------------------------------------------------------


async def test_differences_lead_to_the_same_state_as_a_new_look(desk: WatchedDesk) -> None:
    """Whenever a reader comes, and however often it reads."""
    server = desk.join("a", *REQUIRED)
    often, rarely, late = Copy(), Copy(), Copy()
    with desk.feed.reading() as first, desk.feed.reading() as second:
        for number in range(12):
            desk.ask(f"req_{number}")
            desk.feed.look()
            await read(first, often)
        desk.carry_through(server, "req_0")
        desk.feed.look()
        with desk.feed.reading() as third:
            desk.tell(ev.ServerLost(server, "gone"))
            desk.feed.look()
            for reader, copy in ((first, often), (second, rarely), (third, late)):
                await read(reader, copy)
                assert filled(copy.tables) == filled(tables_of(desk.feed))
                assert copy.resets == 1


async def test_nothing_is_told_where_nothing_changed(desk: WatchedDesk) -> None:
    desk.join("a", *REQUIRED)
    copy = Copy()
    with desk.feed.reading() as reader:
        await read(reader, copy)
        desk.feed.look()
        assert reader.nbytes == 0


async def test_a_long_silence_is_broken_by_a_comment(desk: WatchedDesk) -> None:
    with desk.feed.reading() as reader:
        await read(reader, Copy())
        for _ in range(3):  # slices are news
            desk.now += SLICE_SECONDS
            desk.feed.look()
        await read(reader, Copy())
        desk.feed._busy._slice_began = STARTED + desk.now + 1e-3 - SLICE_SECONDS  # the slice goes on for a moment
        desk.feed._busy.is_due = lambda _: False  # type: ignore[method-assign]
        desk.now += KEEP_ALIVE_SECONDS - 0.1
        desk.feed.look()
        assert reader.nbytes == 0
        desk.now += 0.2
        desk.feed.look()
        assert await reader.next() == KEEP_ALIVE


def test_a_difference_is_as_small_as_what_changed() -> None:
    differ = Differ()
    rows = {str(number): {"a": number, "b": "x" * 100} for number in range(500)}
    assert len(differ.step({"t": rows}, 1.0) or b"") > 50_000
    assert differ.step({"t": dict(rows)}, 2.0) is None
    changed = rows | {"7": {"a": -1, "b": "x" * 100, "c": True}, "8": {"b": "x" * 100}}
    del changed["9"]
    frame = differ.step({"t": changed}, 3.0) or b""
    assert json.loads(frame.removeprefix(b"event: pipeline\ndata: ")) == {
        "now": 3.0,
        "changes": {"t": {"7": {"a": -1, "c": True}, "8": {"a": None}}},
        "gone": {"t": ["9"]},
    }


async def test_whoever_has_read_all_is_told_at_once_and_not_woken(desk: WatchedDesk) -> None:
    desk.join("a", *REQUIRED)
    said: list[bytes] = []
    takes = True

    def say(frame: bytes) -> bool:
        if takes:
            said.append(frame)
        return takes

    copy = Copy()
    with desk.feed.reading(say) as reader:
        desk.ask("req_1")
        desk.feed.look()
        assert not said, "the whole state is still to come"
        await read(reader, copy)
        waiting = asyncio.create_task(reader.next())
        await asyncio.sleep(0)
        for name in ("req_2", "req_3"):
            desk.ask(name)
            desk.feed.look()
        assert len(said) == 2
        takes = False
        for name in ("req_4", "req_5"):
            desk.ask(name)
            desk.feed.look()
            takes = True  # but what was kept goes first
        assert len(said) == 2
        for words in (*said, await waiting):
            copy.take(words)
        assert filled(copy.tables) == filled(tables_of(desk.feed))
        assert copy.resets == 1


# --- readers that do not read -----------------------------------------------------------------------------------------


async def test_a_reader_that_does_not_read_keeps_little_and_begins_anew(desk: WatchedDesk) -> None:
    desk.join("a", *REQUIRED)
    copy, most = Copy(), 0
    with desk.feed.reading() as reader:
        await read(reader, copy)
        for number in range(400):
            desk.ask(f"req_{number}", deadline=0.0)
            desk.feed.look()
            most = max(most, reader.nbytes)
        assert MOST_BYTES / 2 < most <= MOST_BYTES
        assert reader.lags
        assert reader.nbytes == 0
        await read(reader, copy)
        assert copy.resets == 2
        assert copy.complete
        assert filled(copy.tables) == filled(tables_of(desk.feed))


async def test_a_write_is_never_larger_than_a_reader_may_keep(desk: WatchedDesk) -> None:
    for number in range(400):
        desk.join(f"server-{number}", *REQUIRED)
    sizes = []
    with desk.feed.reading() as reader:
        sizes += [len(await reader.next()) for _ in range(12)]
    assert sum(sizes) > 2 * MOST_BYTES
    assert max(sizes) <= MOST_BYTES


async def test_a_row_never_goes_back_in_time(desk: WatchedDesk) -> None:
    """What changes while the whole state is under way is told before rows that are encoded later."""
    for number in range(200):
        desk.join(f"server-{number}", *REQUIRED)
    copy = Copy()
    with desk.feed.reading() as reader:
        copy.take(await reader.next())
        copy.take(await reader.next())
        await desk.operator.pin("server-0", pinned=True)
        await desk.operator.pin("server-199", pinned=True)
        desk.feed.look()
        desk.tell(ev.ServerLost(ServerId("server-100/i1"), "gone"))
        desk.feed.look()
        await read(reader, copy)
    assert copy.complete
    assert copy.tables["servers"]["server-0/i1"]["pinned"]
    assert copy.tables["servers"]["server-199/i1"]["pinned"]
    assert "server-100/i1" not in copy.tables["servers"]


async def test_many_readers_are_told_less_often(desk: WatchedDesk) -> None:
    with ExitStack() as stack:
        pauses = []
        for _ in range(200):
            stack.enter_context(desk.feed.reading())
            pauses.append(desk.feed.pause())
    assert pauses[0] == pauses[24] == LOOK_SECONDS
    assert (pauses[49], pauses[99], pauses[199]) == (1.0, 2.0, 4.0)


async def test_a_closed_reader_ends(desk: WatchedDesk) -> None:
    with desk.feed.reading() as reader:
        await read(reader, Copy())
        waiting = asyncio.create_task(reader.next())
        await asyncio.sleep(0)
        desk.feed.close()
        assert await waiting == b""


# --- HTTP -------------------------------------------------------------------------------------------------------------


def client(desk: WatchedDesk, key: str = KEY, **settings: object) -> httpx.AsyncClient:
    app = create_app(NoService(), Settings(**({"admin_key": KEY} | settings)), operator=desk.operator, feed=desk.feed)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://g", headers=headers)


@pytest.mark.parametrize("path", ["/admin/pipeline", "/admin/requests/req_1"])
@pytest.mark.parametrize("key", ["", "wrong"])
async def test_only_operators_watch(desk: WatchedDesk, path: str, key: str) -> None:
    async with client(desk, key) as stranger:
        response = await stranger.get(path)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"


async def test_without_an_admin_key_there_is_nothing_to_watch(desk: WatchedDesk) -> None:
    async with client(desk, admin_key=None) as anybody:
        assert (await anybody.get("/admin/pipeline")).status_code == 404


async def test_the_life_of_a_request_over_http(desk: WatchedDesk) -> None:
    server = desk.join("a", *REQUIRED)
    desk.ask()
    desk.carry_through(server)
    async with client(desk) as admin:
        told = (await admin.get("/admin/requests/req_1")).json()
        assert [attempt["role"] for attempt in told["attempts"]] == ["encoder", "dit", "decoder"]
        assert {"Admit", "Run"} <= {decision["decision"] for decision in told["decisions"]}
        unknown = await admin.get("/admin/requests/req_9")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "request_not_found")


async def test_the_stream_over_http_ends_when_the_gateway_does(desk: WatchedDesk) -> None:
    desk.join("a", *REQUIRED)
    told: list[bytes] = []
    app = create_app(NoService(), Settings(admin_key=KEY), operator=desk.operator, feed=desk.feed)
    never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    first = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        return next(first, None) or await never

    complete = asyncio.Event()

    async def send(message: Any) -> None:
        told.append(message.get("body", b""))
        if b"complete" in told[-1]:
            complete.set()

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/admin/pipeline",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {KEY}".encode())],
    }
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(app(scope, receive, send))
        await complete.wait()
        desk.feed.close()
    copy = Copy()
    copy.take(b"".join(told))
    assert copy.tables["servers"]["a/i1"]["roles"] == ["encoder", "dit", "decoder"]
