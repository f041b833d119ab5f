"""Between the wire's vocabulary and the scheduler's: messages → events, introductions → server specs. Pure."""

from __future__ import annotations

from scheduler import events as ev
from scheduler.cost.work import Target
from scheduler.spec import Output, RoleCost, ServerSpec, Timings
from wire import to_gateway as wire
from wire.params import ModelInfo
from wire.types import ModelKey, Role, ServerId

READS_AHEAD = (1, 2)
"""Protocol from which on servers know ``Preload``."""


def joined(server: ServerId, hello: wire.Hello, gateway: str) -> ev.ServerJoined:
    """``gateway``: our incarnation. What a server holds for another gateway it drops by itself when welcomed."""
    ours = hello.gateway == gateway
    return ev.ServerJoined(
        server_spec(server, hello),
        hello.limits,
        running=hello.running if ours else (),
        holds=hello.holds if ours else (),
    )


def server_spec(server: ServerId, hello: wire.Hello) -> ServerSpec:
    return ServerSpec(
        id=server,
        name=hello.name,
        model=ModelKey(hello.model.key),
        device_class=hello.device_class,
        roles=frozenset(hello.roles),
        capable={
            role: RoleCost(
                cost.weight_bytes,
                cost.activation_bytes,
                cost.load_seconds,
                cost.together,
                cost.warm_seconds,
                cost.common_bytes,
            )
            for role, cost in hello.capable.items()
        },
        memory_bytes=hello.memory_bytes,
        pinned=hello.pinned,
        target=Target.of(hello.model.name, hello.device_class, hello.model.dtype),
        warm=frozenset(hello.warm),
        reads_ahead=hello.protocol >= READS_AHEAD,
        software=hello.software,
        device=hello.device,
        pool=hello.pool,
        model_name=hello.model.name,
        shares_guidance=hello.shares_guidance,
        adapters=_adapters(hello.model),
    )


def _adapters(model: ModelInfo) -> dict[str, frozenset[Role]]:
    """What jobs may need of a server beside its model, by key. An upscaler or enhancer is told apart like a LoRA."""
    found = {adapter.key: frozenset(adapter.roles) for adapter in model.adapters}
    return found | {each.key: frozenset({role}) for role, each in model.brought.items()}


def event(server: ServerId, message: wire.ToGateway) -> ev.Event | None:
    """None for messages that are about the connection, not about work."""
    if isinstance(message, Attempt):  # most of them
        return _of_attempt(server, message)
    match message:
        case wire.Grant(limits=limits):
            return ev.LimitsRaised(server, limits)
        case wire.Leaving():
            return ev.ServerLeaving(server, message.within)
        case wire.RolesReady():
            roles = frozenset(message.roles)
            return ev.RolesReady(server, message.epoch, roles, message.load_seconds, message.from_host)
        case wire.Heartbeat(warm=warm):
            return ev.RolesWarm(server, frozenset(warm))
        case wire.RolesFailed():
            return ev.RolesFailed(server, message.epoch, frozenset(message.roles), message.message)
        case wire.PeerTried(server=peer, detail=""):
            return ev.PeerReached(server, ServerId(peer))
        case wire.PeerTried(server=peer, detail=detail):
            return ev.PeerUnreached(server, ServerId(peer), detail)
        case wire.Hello() | wire.Ask() | wire.AskCell() | wire.Goodbye():
            return None


Attempt = (
    wire.Fetched
    | wire.Started
    | wire.Paused
    | wire.Progress
    | wire.PreviewMade
    | wire.StageDone
    | wire.StageFailed
    | wire.StageCancelled
    | wire.HandedOver
)


def _of_attempt(server: ServerId, message: Attempt) -> ev.Event:
    match message:
        case wire.Fetched(epoch=epoch):
            return ev.JobFetched(server, epoch)
        case wire.Started(epoch=epoch):
            return ev.JobStarted(server, epoch)
        case wire.Paused(epoch=epoch, step=step):
            return ev.JobPaused(server, epoch, step)
        case wire.Progress(epoch=epoch, step=step, steps=steps, step_seconds=seconds):
            return ev.JobProgressed(server, epoch, step, steps, seconds)
        case wire.PreviewMade(epoch=epoch, index=index, output=output):
            return ev.JobPreviewed(server, epoch, index, Output(output.port, output.handle, output.nbytes))
        case wire.StageDone(epoch=epoch):
            return ev.JobDone(server, epoch, outputs(message), timings(message.timings))
        case wire.StageFailed(epoch=epoch, code=code, message=text, retryable=retryable, lost_inputs=lost):
            return ev.JobFailed(server, epoch, code, text, retryable, lost, message.unreached)
        case wire.HandedOver(epoch=epoch, step=step):
            return ev.JobHandedOver(server, epoch, step, _left(message.output), timings(message.timings))
        case wire.StageCancelled(epoch=epoch):
            return ev.JobCancelled(server, epoch)


def _left(output: wire.Output | None) -> Output | None:
    return None if output is None else Output(output.port, output.handle, output.nbytes)


def outputs(done: wire.StageDone) -> tuple[Output, ...]:
    return tuple(Output(output.port, output.handle, output.nbytes) for output in done.outputs)


def timings(times: wire.Timings) -> Timings:
    return Timings(
        wait=times.wait,
        fetch=times.fetch,
        compute=times.compute,
        publish=times.publish,
        paused=times.paused,
        steps=times.steps,
        batch=times.batch,
    )
