"""``python -m gateway`` as a process: restarts, memory, and what it says to an operator's mistakes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.curve import generate_keys

PROFILE = Path(__file__).with_name("slow.toml")
MEGABYTE = 1 << 20
PICTURE = {"prompt": "x", "size": "64x64", "num_inference_steps": 1}


LARGE_PICTURES = """
import os, sys
from stage_server import __main__
from stage_server.engine import emulated, emulated_values
emulated.blank_png = emulated_values.blank_png = lambda width, height, code=b"": os.urandom(1_500_000)
sys.exit(__main__.main())
"""
"""A stage server whose pictures have the size of real ones of 1024 x 1024."""


def serve_all_roles(start, port, *extra, program=("-m", "stage_server")):
    return start(
        *(*program, "--engine", "emulated", "--profile", str(PROFILE), "--role", "encoder,dit,decoder"),
        *("--gateway", f"tcp://127.0.0.1:{port}", *extra),
    )


def highest_resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def test_all_is_there_again_after_the_gateway_was_killed(start, listening, until, is_ready, free_port):
    port = free_port()
    settings = {"DISAGFUSION_CONTROL_BIND": f"tcp://127.0.0.1:{port}", "DISAGFUSION_PORT": "0"}
    gateway = start("-m", "gateway", **settings)
    stage = serve_all_roles(start, port, "--time-scale", "0.1")
    url = listening(gateway)
    until(lambda: is_ready(url), "ready")
    answer = httpx.post(f"{url}/v1/images/generations", json=PICTURE | {"response_format": "url"})
    picture = answer.json()["data"][0]["url"].removeprefix(url)
    file = httpx.post(f"{url}/v1/files", data={"purpose": "vision"}, files={"file": b"kept"}).json()
    gateway.kill()
    url = listening(start("-m", "gateway", **settings))
    assert httpx.get(f"{url}{picture}").headers["content-type"] == "image/png"
    assert httpx.get(f"{url}/v1/files").json()["data"] == [file]
    assert httpx.get(f"{url}/v1/files/{file['id']}/content").content == b"kept"
    until(lambda: is_ready(url), "ready again")
    assert httpx.post(f"{url}/v1/images/generations", json=PICTURE).status_code == 200
    assert stage.popen.poll() is None
    assert "Traceback" not in stage.text()


@pytest.mark.services
async def test_memory_stays_small_with_a_hundred_requests_in_flight(start, listening, until, is_ready, free_port):
    port = free_port()
    patience = {"DISAGFUSION_REQUEST_TIMEOUT_SECONDS": "100000"}  # or a busy machine's gateway would admit fewer
    gateway = start("-m", "gateway", "--port", "0", "--control-bind", f"tcp://127.0.0.1:{port}", **patience)
    url = listening(gateway)
    serve_all_roles(start, port, "--time-scale", "0.01", program=("-c", LARGE_PICTURES))
    until(lambda: is_ready(url), "ready")
    process = psutil.Process(gateway.pid)
    idle = process.memory_info().rss
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
        body = PICTURE | {"size": "1024x1024"}
        answers = await asyncio.gather(*(client.post("/v1/images/generations", json=body) for _ in range(100)))
    assert {answer.status_code for answer in answers} == {200}
    assert min(len(answer.content) for answer in answers) > 2_000_000
    peak = highest_resident(gateway.pid)
    print(f"resident: {idle / MEGABYTE:.0f} MB idle, {peak / MEGABYTE:.0f} MB at most")
    assert idle < 180 * MEGABYTE
    assert peak < 300 * MEGABYTE
    assert not any("torch" in mapped.path for mapped in process.memory_maps())


def test_the_gateway_never_imports_torch():
    code = "import gateway.__main__, sys; sys.exit('torch' in sys.modules or 'stage_server' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "{taken}"), ("127.0.0.1:{taken}", "Address already in use", "--port")),
        (
            ("--port", "0", "--control-bind", "tcp://127.0.0.1:{taken}"),
            ("control socket", "{taken}", "Address already in use"),
        ),
        (("--port", "0", "--control-bind", "tcp://0.0.0.0:*"), ("control socket", "CURVE keys", "plaintext")),
        (("--host", "0.0.0.0", "--port", "0"), ("api_keys", "allow_anonymous", "keys create")),  # noqa: S104
        (("--control-bind", "5600"), ("DISAGFUSION_CONTROL_BIND",)),
    ],
)
def test_an_operators_mistake_is_one_clear_line(start, arguments, words):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = str(listener.getsockname()[1])
        told = (argument.format(taken=taken) for argument in arguments)
        process = start("-m", "gateway", *told, DISAGFUSION_LOG_LEVEL="warning")
        assert process.popen.wait(30) == 2
    (line,) = process.text().splitlines()
    assert line.startswith("gateway: ")
    assert [word for word in words if word.format(taken=taken) not in line] == []


def test_a_state_folder_that_cannot_be_used_is_one_clear_line(start, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    process = start("-m", "gateway", "--port", "0", DISAGFUSION_STATE_DIR=str(tmp_path / "file" / "state"))
    assert process.popen.wait(30) == 2
    (line,) = process.text().splitlines()
    assert line.startswith(f"gateway: DISAGFUSION_STATE_DIR: {tmp_path}/file/state cannot be used")


def test_a_stage_server_that_cannot_be_served_ends_with_the_gateways_reason(start, listening, until, free_port):
    """Two processes of one name would take turns in pushing each other out: the first one has to go."""
    port = free_port()
    gateway = start("-m", "gateway", "--port", "0", "--control-bind", f"tcp://127.0.0.1:{port}")
    listening(gateway)
    first = serve_all_roles(start, port, "--name", "twin")
    until(lambda: "twin/" in gateway.text(), "the first twin")
    serve_all_roles(start, port, "--name", "twin")
    assert first.popen.wait(30) == 2
    assert "give each server a name of its own" in first.text()
    assert "Traceback" not in first.text()
    assert gateway.finish(signal.SIGTERM) == 0


@pytest.mark.parametrize(("host", "callable_at"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]")])  # noqa: S104
def test_the_example_it_prints_works_from_this_machine(start, listening, until, free_port, host, callable_at):
    port, key = free_port(), "sk-never-to-be-printed"
    arguments = ("--port", "0", "--host", host, "--control-bind", f"tcp://127.0.0.1:{port}")
    gateway = start("-m", "gateway", *arguments, DISAGFUSION_API_KEYS=f'{{"me": "{key}"}}')
    http_port = listening(gateway).rpartition(":")[2]
    serve_all_roles(start, port)
    line = until(lambda: re.search(r"^  curl .*$", gateway.text(), re.MULTILINE), "the example")[0]
    assert f"http://{callable_at}:{http_port}/v1/" in line
    assert key not in gateway.text()
    body = r', "size": "64x64", "num_inference_steps": 1}'
    command = line.replace("}'", body + "'")
    answer = subprocess.run(["sh", "-c", command], env={**os.environ, "OPENAI_API_KEY": key}, capture_output=True)
    assert b'"url"' in answer.stdout, answer


def test_a_wrong_key_is_told_before_anything_is_loaded(start, listening, free_port):
    port, ours, theirs, strange = free_port(), *(generate_keys() for _ in range(3))
    gateway = start(
        *("-m", "gateway", "--port", "0", "--control-bind", f"tcp://127.0.0.1:{port}"),
        DISAGFUSION_CURVE_PUBLIC_KEY=ours.public,
        DISAGFUSION_CURVE_SECRET_KEY=ours.secret,
        DISAGFUSION_CURVE_ALLOWED_KEYS=json.dumps({"a": theirs.public}),
    )
    listening(gateway)
    for name, keys, complaint in (("a", strange, "is not registered there"), ("b", theirs, "registered for 'a'")):
        stage = serve_all_roles(
            *(start, port, "--name", name, f"--curve-public-key={keys.public}", f"--curve-secret-key={keys.secret}"),
            f"--curve-gateway-key={ours.public}",
        )
        assert stage.popen.wait(30) == 2
        assert complaint in stage.text()
        assert "loading" not in stage.text()
    stage = serve_all_roles(start, port)
    assert stage.popen.wait(30) == 2
    assert "one of the two has CURVE keys" in stage.text()


def test_the_two_logs_name_the_same_request(start, listening, until, is_ready, free_port):
    port = free_port()
    gateway = start("-m", "gateway", "--port", "0", "--control-bind", f"tcp://127.0.0.1:{port}")
    url = listening(gateway)
    stage = serve_all_roles(start, port, "--time-scale", "0.1")
    until(lambda: is_ready(url), "ready")
    answer = httpx.post(f"{url}/v1/images/generations", json=PICTURE)
    request = answer.headers["x-request-id"]
    for role in ("encoder", "dit", "decoder"):
        until(lambda role=role: re.search(rf"{request} {role}-\d+: done; ", stage.text()), f"a line about {role}")
    assert f"connected to the gateway at tcp://127.0.0.1:{port} (incarnation " in stage.text()


def test_a_variable_with_a_slip_is_told_at_start(start, listening):
    mine, theirs = {"DISAGFUSION_MAX_BATCHES": "8"}, {"DISAGFUSION_STAGE_ROEL": "dit"}
    gateway = start("-m", "gateway", "--port", "0", "--control-bind", "tcp://127.0.0.1:*", **mine, **theirs)
    listening(gateway)
    assert "MAX_BATCHES is no setting and is ignored; did you mean DISAGFUSION_MAX_BATCH?" in gateway.text()
    assert "ROEL" not in gateway.text()
