"""The dispatcher between a scripted scheduler and recorded messages: no sockets, no processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import pytest

from gateway.service.dispatcher import Dispatcher
from gateway.service.embeddings import Embeddings
from gateway.service.interfaces import (
    Admitted,
    DeadlineExceeded,
    GenerationFailed,
    ModelNotFound,
    NoCapacity,
    Partial,
    Place,
    Progress,
    PromptRead,
    Ready,
    Took,
    UnsupportedRequest,
)
from gateway.service.outlets import Outlets
from gateway.stages.liveness import Heard, Joined, Lost
from gateway.storage.room import RoomTaken
from scheduler import actions as act
from scheduler import events as ev
from scheduler.reach import GATEWAY
from scheduler.roles.problem import Problem, RoleNeed, Server, ServerClass
from scheduler.spec import Input
from scheduler.standing import Standing
from wire import to_gateway, to_stage
from wire.errors import Code, InputLost, Loss
from wire.params import ImageParams, Workflow
from wire.to_stage import InputRef
from wire.types import REQUIRED, Epoch, Handle, JobId, ModelKey, RequestId, Role, ServerId

A, B = ServerId("a/1"), ServerId("b/1")
R = RequestId("r")
WHY = {"cause": 1, "reason": "as scripted"}
Script = Callable[[ev.Event], list[act.Action]]


@dataclass
class Scripted:
    """A scheduler that answers events as the test says."""

    script: Script
    events: list[ev.Event] = field(default_factory=list)
    wakeup: float | None = None
    standings: dict[RequestId, Standing] = field(default_factory=dict)
    roomless: dict[ModelKey, str] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def handle(self, event: ev.Event, now: float) -> list[act.Action]:
        self.events.append(event)
        self.news.set()
        if isinstance(event, ev.Tick):
            self.wakeup = None
        return self.script(event)

    def handle_together(self, events: Sequence[ev.Event], now: float) -> list[list[act.Action]]:
        return [self.handle(event, now) for event in events]

    def next_wakeup(self) -> float | None:
        return self.wakeup

    def standing(self, request_id: RequestId, now: float) -> Standing | None:
        assert now == pytest.approx(asyncio.get_running_loop().time(), abs=1.0)
        return self.standings.get(request_id)

    def no_room(self, model: ModelKey, now: float) -> str:
        return self.roomless.get(model, "")


class Bench:
    """A running dispatcher with its surroundings."""

    def __init__(self) -> None:
        self.answers: dict[type, list[act.Action]] = {}
        self.scheduler = Scripted(lambda event: self.answers.pop(type(event), []))
        self.sent: list[tuple[ServerId, to_stage.ToStage]] = []
        self.pictures: dict[Handle, bytes | InputLost] = {}
        self.held: dict[Handle, bytes] = {}
        self.faults: dict[str, str] = {}
        outlets = Outlets(
            send=lambda server, message: self.sent.append((server, message)),
            fetch=self._fetch,
            probe=self._probe,
            hold=self._hold,
            drop=lambda handle: self.held.pop(handle),
        )
        self.embeddings = Embeddings(1000)
        self.dispatcher = Dispatcher(self.scheduler, "g1", outlets, embeddings=self.embeddings)
        self.task = asyncio.create_task(self.dispatcher.run())

    def on(self, event: type, *actions: act.Action) -> None:
        """Answer the next event of that type with ``actions``."""
        self.answers[event] = list(actions)

    async def hear_of(self, kind: type) -> ev.Event:
        """The latest event, once it is of that kind."""
        async with asyncio.timeout(60):
            while not (self.scheduler.events and isinstance(self.scheduler.events[-1], kind)):
                self.scheduler.news.clear()
                await self.scheduler.news.wait()
        return self.scheduler.events[-1]

    async def settle(self) -> None:
        """Let everything happen that can happen without further news."""
        for _ in range(20):
            await asyncio.sleep(0)

    def generate(self, request) -> asyncio.Task:
        return asyncio.create_task(self.dispatcher.generate(request))

    async def _fetch(self, ref: InputRef) -> bytes:
        picture = self.pictures.get(ref.handle)
        if picture is None:
            await asyncio.Event().wait()
        if isinstance(picture, InputLost):
            raise picture
        return picture

    async def _probe(self, peer: to_stage.TryPeer) -> str:
        return self.faults.get(peer.endpoint, "")

    def _hold(self, picture: bytes) -> InputRef:
        if len(self.held) >= 2:
            raise RoomTaken("full")
        handle = Handle(f"upload{len(self.held)}")
        self.held[handle] = picture
        return InputRef(handle=handle, endpoint="tcp://gateway:1")


@pytest.fixture
async def bench(hello):
    bench = Bench()
    bench.dispatcher.report(Joined(A, hello("a", data_endpoint="tcp://a:1", public_key="key")))
    await bench.settle()
    yield bench
    assert not bench.task.done(), bench.task
    bench.task.cancel()
    await asyncio.wait([bench.task])


def run(job: str, role: Role, *inputs: Input, counter: int = 1, server: ServerId = A) -> act.Run:
    return act.Run(
        **WHY,
        server=server,
        role=role,
        job=JobId(f"r/{job}"),
        epoch=Epoch("g1", counter),
        inputs=inputs,
        deadline=asyncio.get_running_loop().time() + 5,
        preempt=True,
        keep_seconds=0.05,
        share=True,
    )


def fetch_result(image: int, handle: str, server: ServerId = A) -> act.FetchResult:
    return act.FetchResult(**WHY, request=R, job=JobId(f"r/decoder.{image}"), source=Input(Handle(handle), server, 9))


def done(counter: int, **times: float) -> to_gateway.StageDone:
    timings = to_gateway.Timings(**times)
    return to_gateway.StageDone(epoch=Epoch("g1", counter), outputs=(), timings=timings)


async def test_a_request_goes_to_the_scheduler_as_a_graph(bench, request_for):
    task = bench.generate(request_for())
    await bench.settle()
    arrived = bench.scheduler.events[-1]
    assert isinstance(arrived, ev.RequestArrived)
    assert [job.id for job in arrived.request.jobs] == ["r/encoder", "r/dit.0", "r/decoder.0"]
    assert arrived.request.deadline == pytest.approx(asyncio.get_running_loop().time() + 10, abs=1)
    task.cancel()


async def test_run_names_parameters_and_where_inputs_lie(bench, request_for):
    bench.on(ev.RequestArrived, run("dit.0", Role.DIT, Input(Handle("h"), A, 77)))
    task = bench.generate(request_for())
    await bench.settle()
    ((server, message),) = bench.sent
    assert server == A
    assert message.role is Role.DIT
    assert (message.preempt, message.keep_seconds, message.share) == (True, 0.05, True)
    assert message.remaining_seconds == pytest.approx(5, abs=1)
    (member,) = message.members
    assert member.params.prompt == ""
    assert member.request == "r"
    assert member.inputs == (InputRef(handle=Handle("h"), endpoint="tcp://a:1", nbytes=77, public_key="key"),)
    task.cancel()


async def test_two_servers_that_share_guided_steps_are_told_of_each_other(bench, request_for, hello):
    bench.dispatcher.report(Joined(B, hello("b", data_endpoint="tcp://b:1", public_key="other")))
    source = Input(Handle("h"), A, 77)
    leads = replace(run("dit.0", Role.DIT, source), partner=B)
    helps = act.Help(
        **WHY,
        server=B,
        epoch=Epoch("g1", 2),
        partner=A,
        leader=leads.epoch,
        job=leads.job,
        inputs=(source,),
        deadline=leads.deadline,
        predicted_seconds=3.0,
    )
    bench.on(ev.RequestArrived, leads, helps)
    task = bench.generate(request_for(previews=2))
    await bench.settle()
    ((first, own), (second, other)) = bench.sent
    assert (first, second) == (A, B)
    (one,), (two,) = own.members, other.members
    assert (one.half.leads, two.half.leads) == (True, False)
    assert one.half.handle != two.half.handle
    assert one.half.partner == InputRef(handle=two.half.handle, endpoint="tcp://b:1", public_key="other")
    assert two.half.partner == InputRef(handle=one.half.handle, endpoint="tcp://a:1", public_key="key")
    assert two.inputs == one.inputs
    assert two.params == msgspec.structs.replace(one.params, previews=0), "pictures of it are shown once"
    bench.dispatcher.report(Heard(B, to_gateway.Progress(epoch=helps.epoch, step=3, steps=12, step_seconds=0.1)))
    bench.dispatcher.report(Heard(B, to_gateway.StageDone(epoch=helps.epoch, outputs=(), timings=to_gateway.Timings())))
    await bench.settle()
    assert isinstance(bench.scheduler.events[-1], ev.JobDone)
    assert not task.done()
    task.cancel()


async def test_pictures_are_fetched_taken_and_returned_in_order_with_what_stages_took(bench, request_for):
    bench.pictures = {Handle("p0"): b"first", Handle("p1"): b"second"}
    bench.on(
        ev.RequestArrived,
        act.Admit(**WHY, request=R, predicted_seconds=1.5),
        run("encoder", Role.ENCODER),
        fetch_result(1, "p1"),
        fetch_result(0, "p0"),
    )
    task = bench.generate(request_for(n=2))
    await bench.settle()
    taken = [event.job for event in bench.scheduler.events if isinstance(event, ev.ResultTaken)]
    assert sorted(taken) == ["r/decoder.0", "r/decoder.1"]
    bench.on(ev.JobDone, act.Finish(**WHY, request=R))
    bench.dispatcher.report(Heard(A, done(1, wait=1.0, fetch=2.0, compute=3.0, publish=4.0, steps=5)))
    finished = await task
    assert finished.images == (b"first", b"second")
    assert finished.predicted_seconds == 1.5
    (stage,) = finished.stages
    assert (stage.role, stage.image, stage.server, stage.attempts, stage.steps) == ("encoder", None, "a", 1, 5)
    assert (stage.queue_seconds, stage.compute_seconds) == (pytest.approx(1.0, abs=0.5), 3.0)


async def test_the_caller_hears_how_it_goes(bench, request_for):
    bench.pictures = {Handle("p"): b"finished", Handle("s"): b"sketch"}
    sketch = act.FetchResult(**WHY, request=R, job=JobId("r/decoder.0.preview.1"), source=Input(Handle("s"), A, 9))
    bench.on(ev.RequestArrived, act.Admit(**WHY, request=R, predicted_seconds=1.5), run("dit.0", Role.DIT), sketch)
    heard = []
    request = request_for(previews=2)
    task = asyncio.create_task(bench.dispatcher.generate(request, heard.append))
    await bench.settle()
    bench.dispatcher.report(Heard(A, to_gateway.Progress(epoch=Epoch("g1", 1), step=3, steps=12, step_seconds=0.1)))
    bench.on(ev.JobProgressed, fetch_result(0, "p"))
    await bench.settle()
    assert heard == [Admitted(1.5), Partial(0, 1, b"sketch"), Progress(0, 3, 12), Ready(0, b"finished")]
    task.cancel()
    await bench.settle()


async def test_the_caller_hears_what_each_stage_job_took(bench, request_for):
    bench.on(ev.RequestArrived, run("encoder", Role.ENCODER))
    heard = []
    task = asyncio.create_task(bench.dispatcher.generate(request_for(), heard.append))
    await bench.settle()
    bench.on(ev.JobDone, run("dit.0", Role.DIT, counter=2))
    bench.dispatcher.report(Heard(A, done(1, compute=3.0)))
    await bench.settle()
    bench.dispatcher.report(Heard(A, to_gateway.Started(epoch=Epoch("g1", 2))))
    await bench.settle()
    assert heard == [Took("encoder", 3.0)]
    task.cancel()
    await asyncio.wait([task])
    assert [(took.role, took.device_seconds > 0) for took in heard[1:]] == [("dit", True)], "told before it is over"


async def test_a_failed_request_tells_what_it_took(bench, request_for):
    bench.on(ev.RequestArrived, run("encoder", Role.ENCODER))
    heard = []
    task = asyncio.create_task(bench.dispatcher.generate(request_for(), heard.append))
    await bench.settle()
    bench.on(ev.JobStarted, act.Fail(**WHY, request=R, code="no_capacity", message="no server"))
    bench.dispatcher.report(Heard(A, to_gateway.Started(epoch=Epoch("g1", 1))))
    with pytest.raises(NoCapacity):
        await task
    assert [took.role for took in heard] == ["encoder"]


async def test_what_the_encoder_says_of_the_prompt_comes_with_every_picture(bench, request_for):
    bench.pictures = {Handle("p"): b"finished"}
    bench.on(ev.RequestArrived, act.Admit(**WHY, request=R, predicted_seconds=1.5), run("encoder", Role.ENCODER))
    heard = []
    task = asyncio.create_task(bench.dispatcher.generate(request_for(), heard.append))
    await bench.settle()
    bench.on(ev.JobDone, fetch_result(0, "p"))
    bench.on(ev.ResultTaken, act.Finish(**WHY, request=R))
    words = msgspec.structs.replace(done(1), prompt_tokens=90, prompt_dropped=13)
    bench.dispatcher.report(Heard(A, words))
    finished = await task
    assert finished.prompt == PromptRead(90, 13)
    assert heard[-1] == Ready(0, b"finished", PromptRead(90, 13))


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (act.Reject(**WHY, request=R, retry_after_seconds=3, predicted_seconds=9), NoCapacity),
        (act.Fail(**WHY, request=R, code="deadline", message="late"), DeadlineExceeded),
        (act.Fail(**WHY, request=R, code="no_capacity", message="nobody"), NoCapacity),
        (act.Fail(**WHY, request=R, code="bad_request", message="cannot"), UnsupportedRequest),
        (act.Fail(**WHY, request=R, code="poison", message="three died"), GenerationFailed),
    ],
)
async def test_refusals_and_failures_reach_the_caller(bench, request_for, action, error):
    bench.on(ev.RequestArrived, action)
    with pytest.raises(error):
        await bench.dispatcher.generate(request_for())


async def test_a_caller_who_goes_away_cancels_the_request(bench, request_for):
    bench.on(ev.RequestArrived, fetch_result(0, "never comes"))
    task = bench.generate(request_for())
    await bench.settle()
    bench.on(ev.RequestCancelled, act.Cancel(**WHY, server=A, epochs=(Epoch("g1", 1),)))
    task.cancel()
    await bench.settle()
    assert bench.scheduler.events[-1] == ev.RequestCancelled(R)
    assert bench.sent == [(A, to_stage.Cancel(epochs=(Epoch("g1", 1),)))]
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("fetch")]


async def test_a_picture_that_is_lost_is_reported(bench, request_for):
    bench.pictures = {Handle("p"): InputLost(Handle("p"), Loss.MISSING)}
    bench.on(ev.RequestArrived, fetch_result(0, "p"))
    task = bench.generate(request_for())
    await bench.settle()
    assert bench.scheduler.events[-1] == ev.ResultLost(JobId("r/decoder.0"), Handle("p"))
    task.cancel()


async def test_a_picture_of_a_lost_server_is_not_taken_twice(bench, request_for, hello):
    bench.on(ev.RequestArrived, fetch_result(0, "slow"))
    task = bench.generate(request_for())
    await bench.settle()
    bench.dispatcher.report(Lost(A, "gone"))
    bench.dispatcher.report(Joined(B, hello("b")))
    await bench.settle()
    bench.pictures = {Handle("again"): b"picture"}
    bench.on(ev.Tick, fetch_result(0, "again", B))
    bench.on(ev.ResultTaken, act.Finish(**WHY, request=R))
    bench.scheduler.wakeup = 0.0
    bench.dispatcher.report(Heard(B, to_gateway.Grant(limits={})))
    assert (await task).images == (b"picture",)
    assert sum(isinstance(event, ev.ResultTaken) for event in bench.scheduler.events) == 1


async def test_ticks_come_when_the_scheduler_asked_for_them(bench, request_for):
    loop = asyncio.get_running_loop()
    bench.scheduler.wakeup = due = loop.time() + 0.05
    bench.on(ev.RequestArrived)
    task = bench.generate(request_for())
    await bench.hear_of(ev.Tick)
    assert loop.time() >= due - 0.01
    task.cancel()


async def test_servers_coming_and_going_are_told_and_counted(bench, hello):
    assert bench.dispatcher.ready()
    await bench.dispatcher.until_ready()
    assert [info.name for info in bench.dispatcher.models()] == ["tiny"]
    bench.dispatcher.report(Heard(A, to_gateway.RolesReady(epoch=Epoch("g1", 3), roles=(Role.DIT,), load_seconds=1.0)))
    await bench.settle()
    assert not bench.dispatcher.ready()
    assert bench.dispatcher.status()["tiny"]["roles"] == {"encoder": 0, "dit": 1, "decoder": 0}
    bench.dispatcher.report(Lost(A, "gone"))
    await bench.settle()
    assert bench.scheduler.events[-1] == ev.ServerLost(A, "gone")
    assert bench.dispatcher.status()["tiny"]["missing"] == list(REQUIRED)
    assert "no_room" not in bench.dispatcher.status()["tiny"]
    bench.scheduler.roomless[bench.dispatcher.status()["tiny"]["key"]] = "no server has room"
    assert bench.dispatcher.status()["tiny"]["no_room"] == "no server has room"


async def test_role_orders_and_releases_become_messages(bench, request_for):
    epoch = Epoch("g1", 9)
    bench.on(
        ev.RequestArrived,
        act.AssignRoles(**WHY, server=A, epoch=epoch, roles=frozenset({Role.DECODER, Role.ENCODER})),
        act.Release(**WHY, server=A, handles=(Handle("h"),)),
    )
    task = bench.generate(request_for())
    await bench.settle()
    assert bench.sent == [
        (A, to_stage.AssignRoles(epoch=epoch, roles=(Role.ENCODER, Role.DECODER))),
        (A, to_stage.Release(handles=(Handle("h"),))),
    ]
    task.cancel()


def whole_problem(speeds):
    """Of one server, for which every role is asked."""
    classes = {"c": ServerClass("c", 1 << 30, speeds)}
    return Problem(classes, (Server(A, "c", frozenset(speeds)),), dict.fromkeys(REQUIRED, 1.0))


@pytest.mark.parametrize("speeds", [{role: RoleNeed(1.0) for role in REQUIRED}, {Role.DIT: RoleNeed(1.0)}])
async def test_role_plans_are_solved_elsewhere_and_come_back(bench, request_for, speeds):
    bench.on(ev.RequestArrived, act.SolvePlan(**WHY, problem=whole_problem(speeds)))
    task = bench.generate(request_for())
    plan = (await bench.hear_of(ev.PlanReady)).plan
    assert (plan is not None) == (len(speeds) == len(REQUIRED))
    task.cancel()


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), ImportError("_highs.so: Too many open files")])
async def test_a_solver_that_cannot_be_loaded_gives_no_plan(bench, request_for, monkeypatch, error):
    """It is imported when it is first needed; by then this process may have no descriptors left."""

    def plan(problem):
        raise error

    monkeypatch.setattr("gateway.service.dispatcher.plan", plan)
    bench.on(ev.RequestArrived, act.SolvePlan(**WHY, problem=whole_problem({role: RoleNeed(1.0) for role in REQUIRED})))
    task = bench.generate(request_for())
    assert (await bench.hear_of(ev.PlanReady)).plan is None
    task.cancel()


async def test_uploads_are_held_while_the_request_lasts(bench, request_for):
    images = (ImageParams(workflow="image2image", width=64, height=64),)
    bench.on(ev.RequestArrived, run("encoder.0", Role.ENCODER))
    task = bench.generate(request_for(images=images, uploads={"image": b"png"}))
    await bench.settle()
    assert bench.sent[0][1].members[0].images["image"].handle == "upload0"
    assert bench.held == {"upload0": b"png"}
    task.cancel()
    await bench.settle()
    assert bench.held == {}


async def test_uploads_beyond_the_room_there_is_are_turned_away(bench, request_for):
    images = (ImageParams(workflow="image2image", width=64, height=64),)
    with pytest.raises(NoCapacity):
        await bench.dispatcher.generate(request_for(images=images, uploads=dict.fromkeys("abc", b"png")))
    assert bench.held == {}


async def test_uploads_are_given_up_where_a_request_fails_by_a_defect(bench, request_for, monkeypatch):
    def broken(*_: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr("gateway.service.graph.build", broken)
    with pytest.raises(ValueError, match="a defect"):
        await bench.dispatcher.generate(request_for(uploads={"image": b"png"}))
    assert bench.held == {}


async def test_what_cannot_be_done_is_refused_before_the_scheduler_hears_of_it(bench, request_for):
    with pytest.raises(ModelNotFound, match="'nobody'"):
        await bench.dispatcher.generate(request_for(model="nobody"))
    images = (ImageParams(workflow="video", width=64, height=64),)
    with pytest.raises(UnsupportedRequest):
        await bench.dispatcher.generate(request_for(images=images, uploads={"image": b"png"}))
    assert bench.held == {}
    assert not any(isinstance(event, ev.RequestArrived) for event in bench.scheduler.events)


async def test_one_request_id_twice_harms_nobody_else(bench, request_for):
    task = bench.generate(request_for())
    await bench.settle()
    with pytest.raises(ValueError, match="under way already"):
        await bench.dispatcher.generate(request_for())
    task.cancel()


async def test_a_defect_of_the_scheduler_ends_the_dispatcher_loudly(hello):
    def broken(event: ev.Event) -> list[act.Action]:
        raise AssertionError("a defect")

    bench = Bench()
    bench.scheduler.script = broken
    bench.dispatcher.report(Joined(A, hello()))
    with pytest.raises(BaseExceptionGroup, match="TaskGroup"):
        await bench.task


async def test_trials_are_made_by_the_gateway_or_by_a_stage_server(bench):
    bench.faults = {"tcp://a:1": "tcp://a:1: connection refused"}
    bench.on(
        ev.LimitsRaised,
        act.TryPeer(**WHY, fetcher=GATEWAY, holder=A),
        act.TryPeer(**WHY, fetcher=B, holder=A),
    )
    bench.dispatcher.report(Heard(A, to_gateway.Grant(limits={})))
    await bench.settle()
    assert bench.sent == [(B, to_stage.TryPeer(server=A, endpoint="tcp://a:1", public_key="key"))]
    assert bench.scheduler.events[-1] == ev.PeerUnreached(GATEWAY, A, "tcp://a:1: connection refused")
    bench.faults.clear()
    bench.on(ev.LimitsRaised, act.TryPeer(**WHY, fetcher=GATEWAY, holder=A))
    bench.dispatcher.report(Heard(A, to_gateway.Grant(limits={})))
    await bench.settle()
    assert bench.scheduler.events[-1] == ev.PeerReached(GATEWAY, A)


async def test_roles_set_aside_are_not_held_until_they_are_back(bench, caplog):
    why = {"cause": 1, "reason": "b cannot fetch from it: tcp://a:1: connection refused"}
    assert bench.dispatcher.ready()
    for roles in (frozenset({Role.DIT}), frozenset()):
        bench.on(ev.LimitsRaised, act.SetAside(**why, server=A, roles=roles))
        bench.dispatcher.report(Heard(A, to_gateway.Grant(limits={})))
        await bench.settle()
        assert bench.dispatcher.ready() == (not roles)
        server, message = bench.sent[-1]
        assert (server, message.roles) == (A, tuple(roles))
        assert ("--data-advertise" in message.why) == bool(roles)
    assert (
        "a/1 gets no dit work: b cannot fetch from it: tcp://a:1: connection refused. Check --data-bind" in caplog.text
    )


@pytest.mark.parametrize(("roles", "gone"), [(frozenset(REQUIRED), True), (frozenset({Role.DIT, Role.DECODER}), False)])
async def test_encodings_are_not_kept_where_nobody_can_fetch_them(bench, roles, gone):
    bench.embeddings.store(A, 1000, is_full=False)
    output = to_gateway.Output(port=Role.DIT, handle=Handle("h"), nbytes=10)
    finished = to_gateway.StageDone(epoch=Epoch("g1", 1), outputs=(output,), timings=to_gateway.Timings())
    bench.embeddings.made("key", A, finished)
    bench.embeddings.released(A, (Handle("h"),))
    bench.on(ev.LimitsRaised, act.SetAside(**WHY, server=A, roles=roles))
    bench.dispatcher.report(Heard(A, to_gateway.Grant(limits={})))
    await bench.settle()
    assert ((A, to_stage.Release(handles=(Handle("h"),))) in bench.sent) == gone
    assert (bench.embeddings.find("key", R, exact=True) is None) == gone


@pytest.fixture
async def equals(bench, hello, model, request_for):
    """Two requests of one prompt: the first has its encoder job running."""
    described = model("read", workflows=(Workflow("text2image", ("prompt",), encoder_inputs=("prompt",)),))
    bench.dispatcher.report(Joined(B, hello("b", model=described)))
    bench.embeddings.store(B, 4000, is_full=False)
    await bench.settle()
    bench.on(ev.RequestArrived, run("encoder", Role.ENCODER, server=B))
    tasks = [bench.generate(request_for(request_id=name, model="read")) for name in ("r", "s")]
    await bench.settle()
    yield tasks
    for task in tasks:
        task.cancel()


def arrivals(bench) -> dict[RequestId, bool]:
    """Requests that the scheduler knows, and whether their encoder job is done from the start."""
    told = [event.request for event in bench.scheduler.events if isinstance(event, ev.RequestArrived)]
    return {request.id: request.jobs[0].made is not None for request in told}


async def test_an_equal_prompt_waits_for_its_encoding(bench, equals):
    assert arrivals(bench) == {"r": False}
    output = to_gateway.Output(port=Role.DIT, handle=Handle("h"), nbytes=10)
    finished = to_gateway.StageDone(epoch=Epoch("g1", 1), outputs=(output,), timings=to_gateway.Timings())
    bench.dispatcher.report(Heard(B, finished))
    await bench.settle()
    assert arrivals(bench) == {"r": False, "s": True}


async def test_an_equal_prompt_is_encoded_where_the_first_request_is_cancelled(bench, equals):
    equals[0].cancel()
    await bench.settle()
    assert arrivals(bench) == {"r": False, "s": False}


async def test_an_equal_prompt_is_encoded_where_the_first_request_fails(bench, equals):
    bench.on(ev.JobFailed, act.Fail(**WHY, request=R, code="failed", message="no"))
    failure = to_gateway.StageFailed(epoch=Epoch("g1", 1), code=Code.ENGINE, message="no", retryable=False)
    bench.dispatcher.report(Heard(B, failure))
    await bench.settle()
    assert arrivals(bench) == {"r": False, "s": False}
    assert isinstance(equals[0].exception(), GenerationFailed)


async def test_a_request_that_is_cancelled_while_it_waits_is_forgotten(bench, equals, request_for):
    equals[1].cancel()
    await bench.settle()
    again = bench.generate(request_for(request_id="s", model="read"))  # its name is free
    await bench.settle()
    assert not again.done()
    assert arrivals(bench) == {"r": False}
    again.cancel()


async def test_the_place_of_a_request_is_the_scheduler_s_answer(bench):
    bench.scheduler.standings[R] = Standing(3, 12.5)
    assert bench.dispatcher.place("r") == Place(ahead=3, seconds_left=12.5)
    assert bench.dispatcher.place("nobody") is None
