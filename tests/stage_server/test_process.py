"""The process as its operator sees it: command line, signals, exit status, what it says on stderr."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from stage_server.data.consumer import Consumer
from tests.curve import generate_keys
from wire.bundle import unpack
from wire.to_gateway import Ask, Fetched, Goodbye, Hello, Leaving, StageDone, Started
from wire.to_stage import InputRef, Refused, Release, SayHello, Welcome
from wire.types import REQUIRED, Role

Start = Callable[..., subprocess.Popen[str]]


async def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and stderr."""
    _, errors = await asyncio.to_thread(process.communicate, timeout=90)  # importing torch on a busy machine
    return process.returncode, errors


async def test_a_picture_through_three_servers(gateway: Any, start: Start) -> None:
    """One process holds all roles here; each output is fetched by the next job from its own store."""
    process = start("--role", "encoder,dit", "--role", "decoder", "--name", "solo", "--pin")
    hello = await gateway.welcome()
    assert (hello.name, hello.roles, hello.pinned, hello.engine) == ("solo", REQUIRED, True, "emulated")
    assert hello.model.name == "tiny-shapes"
    inputs: tuple[InputRef, ...] = ()
    for role in REQUIRED:
        done = await gateway.done(await gateway.run(role, *inputs))
        inputs = tuple(InputRef(handle=out.handle, endpoint=hello.data_endpoint) for out in done.outputs)
    assert done.outputs[0].port == "image"
    process.send_signal(signal.SIGTERM)
    await gateway.expect(Leaving)
    handles = [out.handle for message in gateway.seen if isinstance(message, StageDone) for out in message.outputs]
    await gateway.send(Release(handles=tuple(handles)))
    await gateway.expect(Goodbye)
    code, errors = await ended(process)
    assert code == 0, errors
    assert "Traceback" not in errors


async def test_it_offers_what_it_may_take_and_a_file_tells_probes_that_it_was_let_in(
    gateway: Any, start: Start, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    ready.touch()  # of a former process
    start("--role", "encoder", "--may-take", "encoder,decoder", "--ready-file", str(ready))
    assert set((await gateway.expect(Hello)).capable) == {Role.ENCODER, Role.DECODER}
    assert not ready.exists()
    await gateway.send(Welcome(gateway=gateway.incarnation, heartbeat_seconds=0.5, liveness_seconds=5.0))
    async with asyncio.timeout(300):
        while not ready.exists():  # noqa: ASYNC110 # files have no events
            await asyncio.sleep(0.01)


async def test_sigterm_finishes_the_running_job_and_leaves_in_time(gateway: Any, start: Start) -> None:
    process = start("--role", "dit", "--drain-timeout", "0.5")
    await gateway.welcome()
    with_inputs = await gateway.run(Role.DIT)  # fails for want of inputs, which is an end as well
    await gateway.expect(Fetched, lambda message: message.epoch == with_inputs)
    process.send_signal(signal.SIGINT)
    await gateway.expect(Goodbye)
    assert (await ended(process))[0] == 0


async def test_a_second_signal_is_obeyed_at_once(gateway: Any, start: Start) -> None:
    process = start("--role", "encoder", "--drain-timeout", "60")
    await gateway.welcome()
    await gateway.done(await gateway.run(Role.ENCODER))  # its output stays, so the server would wait
    process.send_signal(signal.SIGTERM)
    await gateway.expect(Leaving)
    process.send_signal(signal.SIGTERM)
    code, errors = await ended(process)
    assert code == 1
    assert "at once" in errors


async def test_a_frozen_server_cleans_up_when_it_goes_on(gateway: Any, start: Start) -> None:
    process = start("--role", "encoder")
    await gateway.welcome()
    done = await gateway.done(await gateway.run(Role.ENCODER))
    process.send_signal(signal.SIGSTOP)
    epoch = await gateway.run(Role.ENCODER)
    process.send_signal(signal.SIGCONT)
    await gateway.expect(Started, lambda message: message.epoch == epoch)
    await gateway.send(SayHello())
    hello = await gateway.welcome()
    await gateway.send(Release(handles=hello.holds))
    late = await gateway.done(epoch) if epoch in hello.running else None
    await gateway.send(Release(handles=tuple(out.handle for out in late.outputs) if late else ()))
    await gateway.settle()
    assert done.outputs[0].handle in hello.holds
    await gateway.send(SayHello())
    assert (await gateway.expect(Hello)).holds == ()


async def test_a_gateway_that_comes_back_finds_it(gateway: Any, start: Start, make_gateway: Callable[..., Any]) -> None:
    start("--role", "encoder")
    await gateway.welcome()
    await gateway.done(await gateway.run(Role.ENCODER))
    gateway.close()
    successor = make_gateway(incarnation="g2", port=gateway.port)
    hello = await successor.welcome()
    assert (hello.gateway, len(hello.holds)) == ("g1", 1)
    await successor.settle()
    await successor.send(SayHello())
    assert (await successor.expect(Hello)).holds == ()


async def test_everything_can_be_encrypted(start: Start, make_gateway: Callable[..., Any]) -> None:
    theirs, ours = generate_keys(), generate_keys()
    gateway = make_gateway(secret_key=theirs.secret)
    # A key may begin with a dash, which only this form takes for a value.
    keys = (
        f"--curve-public-key={ours.public}",
        f"--curve-secret-key={ours.secret}",
        f"--curve-gateway-key={theirs.public}",
    )
    start("--role", "encoder", *keys, "--data-bind", "tcp://0.0.0.0:*", "--data-advertise", "tcp://127.0.0.1:*",
          endpoint=gateway.endpoint)  # fmt: skip
    hello = await gateway.welcome()
    assert hello.public_key == ours.public
    done = await gateway.done(await gateway.run(Role.ENCODER))
    ref = InputRef(handle=done.outputs[0].handle, endpoint=hello.data_endpoint, public_key=ours.public)
    consumer = Consumer(keys=theirs)
    bundle = await asyncio.wrap_future(consumer.fetch(ref, 5.0))
    consumer.close()
    assert "prompt_embeds" in unpack(bundle)


async def test_an_emulated_server_is_light(gateway: Any, start: Start) -> None:
    process = start("--role", "encoder")
    await gateway.welcome()
    running = psutil.Process(process.pid)
    assert not [mapped.path for mapped in running.memory_maps() if "torch" in mapped.path]
    assert running.memory_info().rss < 100e6


async def test_a_refusal_comes_before_anything_is_loaded(gateway: Any, start: Start) -> None:
    gateway.answer = Refused(code="name", message="take another name")
    process = start("--role", "dit", "--name", "s")
    ask = await gateway.expect(Ask)
    assert (ask.name, gateway.peer.decode()) == ("s", f"s/{ask.incarnation}")
    code, errors = await ended(process)
    assert code == 2
    assert errors == f"stage_server: the gateway at {gateway.endpoint} refuses this server: take another name (name)\n"


async def test_an_older_gateway_that_knows_no_questions_is_served(gateway: Any, start: Start) -> None:
    gateway.answer = SayHello()
    start("--role", "dit")
    assert (await gateway.welcome()).roles == (Role.DIT,)
    (ask,) = (message for message in gateway.seen if isinstance(message, Ask))
    assert gateway.peer.decode().endswith(f"/{ask.incarnation}"), "the one that asked is the one that comes"


async def test_without_a_gateway_it_loads_all_the_same(start: Start) -> None:
    code, errors = await ended(start("--role", "dit", "--connect-timeout", "0.1", endpoint="tcp://127.0.0.1:1"))
    assert "asking the gateway at tcp://127.0.0.1:1: no answer; loading all the same" in errors
    assert "dit is loaded" in errors
    assert code == 2


async def test_a_refused_version(gateway: Any, start: Start) -> None:
    process = start("--role", "dit")
    await gateway.expect(Hello)
    await gateway.send(Refused(code="protocol", message="this gateway speaks protocol 2.0, the server 1.0"))
    code, errors = await ended(process)
    assert code == 2
    assert "this gateway speaks protocol 2.0" in errors
    assert "Traceback" not in errors


async def test_a_mistake_takes_one_line_and_status_2(start: Start) -> None:
    code, errors = await ended(start("--role", "painter"))
    assert code == 2
    assert errors == "stage_server: --role: 'painter' is no role; enhancer, encoder, dit, decoder, upscaler are\n"


async def test_an_exporter_that_is_not_built_in_is_a_mistake(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    code, errors = await ended(start("--role", "dit"))
    assert (code, errors) == (
        2,
        "stage_server: OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'; only http/protobuf is built in\n",
    )


async def test_no_gateway_within_the_time_allowed(start: Start) -> None:
    code, errors = await ended(start("--role", "dit", "--connect-timeout", "0.1", endpoint="tcp://127.0.0.1:1"))
    assert code == 2
    assert "no gateway is reachable at tcp://127.0.0.1:1: gave up after 0.1 s" in errors
    assert "Traceback" not in errors


async def test_a_port_in_use(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, errors = await ended(start("--role", "dit", "--data-bind", f"tcp://127.0.0.1:{taken.getsockname()[1]}"))
    assert code == 2
    assert "Address already in use; choose another port" in errors


@pytest.mark.services
async def test_a_model_that_is_not_there(start: Start) -> None:
    code, errors = await ended(start("--role", "dit", "--model", "/no/such/model", emulated=False))
    assert code == 2
    assert "/no/such/model" in errors
    assert "Traceback" not in errors
