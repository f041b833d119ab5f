"""Hundreds of clients that come and go, at real processes: nothing of them stays."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from pathlib import Path

import httpx
import psutil

from tests.attack.processes import PATIENCE, found, process

REQUESTS = 150
BODY = json.dumps({"prompt": "x", "size": "64x64", "num_inference_steps": 8}).encode()
HEAD = (
    "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\n"
    f"content-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
).encode()


async def leave(host: str, port: int) -> None:
    """Ask for a picture and hang up without reading the answer."""
    _, writer = await asyncio.open_connection(host, port)
    writer.write(HEAD + BODY)
    await writer.drain()
    await asyncio.sleep(0.3)
    writer.transport.abort()


async def test_clients_that_hang_up_leave_nothing_behind(tmp_path: Path) -> None:
    log, stage_log = tmp_path / "gateway.log", tmp_path / "stage.log"
    with process(log, "gateway", "--port", "0", "--control-bind", "tcp://127.0.0.1:*") as gateway:
        await found(lambda: re.search("connect to", log.read_text()), "a gateway")
        http, control = re.findall(r"(?:http|tcp)://([\d.:]+)", log.read_text())[:2]
        stage = ("stage_server", "--role", "encoder,dit,decoder", "--engine", "emulated", "--time-scale", "0.1")
        where = ("--profile", "tiny-shapes-cpu", "--gateway", f"tcp://{control}")
        with process(stage_log, *stage, *where) as server:
            await found(lambda: "Ready" in log.read_text(), "a server")
            running = psutil.Process(gateway.pid)
            before = running.num_fds(), running.memory_info().rss
            host, _, port = http.partition(":")
            await asyncio.gather(*(leave(host, int(port)) for _ in range(REQUESTS)))
            async with httpx.AsyncClient(base_url=f"http://{http}", timeout=PATIENCE) as client:
                answer = await client.post(
                    "/v1/images/generations", content=BODY, headers={"content-type": "application/json"}
                )
            assert answer.status_code == 200
            await found(lambda: running.num_fds() <= before[0] + 5, "as many open files as before")
            assert running.memory_info().rss - before[1] < 50e6
            server.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.wait, PATIENCE) == 0
            assert "all work is done and handed over" in stage_log.read_text()
        gateway.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(gateway.wait, PATIENCE) == 0
    assert "Traceback" not in log.read_text() + stage_log.read_text()
