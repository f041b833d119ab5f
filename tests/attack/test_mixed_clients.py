"""Two hundred clients of every kind at once, a third of whom hang up: each gets its own pictures, and nothing stays."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from stage_server.engine.emulated_values import prompt_digest
from tests.attack.processes import PATIENCE, found, process

CLIENTS = 200
LEAVING = CLIENTS // 3
LONGEST_STAY = 6.0
"""Seconds until the last of those who leave has left; the servers have work for longer."""
ADMIN = {"Authorization": "Bearer an-admin-key-of-24-bytes"}
SERVERS = ("encoder", "dit", "dit,decoder", "encoder,dit,decoder")
GENERATIONS = "/v1/images/generations"
SIZES = ("64x64", "96x64", "64x128")


@dataclass
class Client:
    """One conversation. Prompt and seed are its own, so that its pictures can be told from all others."""

    http: httpx.AsyncClient
    number: int
    size: str
    steps: int

    def body(self, **more: object) -> dict[str, object]:
        common = {"prompt": f"client {self.number}", "seed": 1000 * self.number, "size": self.size}
        return common | {"num_inference_steps": self.steps} | more

    def check(self, data: bytes, index: int = 0) -> None:
        with Image.open(BytesIO(data)) as picture:
            picture.load()
            said = {key: picture.info[key] for key in ("seed", "prompt_digest")}
            size = "{}x{}".format(*picture.size)
        wanted = {"seed": str(1000 * self.number + index), "prompt_digest": prompt_digest(f"client {self.number}")}
        assert (said, size) == (wanted, self.size)

    def check_all(self, answer: httpx.Response, n: int) -> None:
        items = good(answer).json()["data"]
        assert len(items) == n
        for index, item in enumerate(items):
            self.check(base64.b64decode(item["b64_json"]), index)

    async def generate(self, n: int = 1) -> None:
        self.check_all(await self.http.post(GENERATIONS, json=self.body(n=n)), n)

    async def generate_two(self) -> None:
        await self.generate(2)

    async def fetch(self) -> None:
        answer = good(await self.http.post(GENERATIONS, json=self.body(response_format="url"))).json()
        self.check(good(await self.http.get(answer["data"][0]["url"])).content)

    async def stream(self) -> None:
        body = self.body(stream=True, partial_images=2, n=2)
        async with self.http.stream("POST", GENERATIONS, json=body) as answer:
            good(answer)
            kinds = Counter([event["type"] async for event in self._events(answer)])
        assert kinds.pop("image_generation.completed") == 2
        assert set(kinds) <= {"image_generation.partial_image"}

    async def edit(self) -> None:
        form = {key: str(value) for key, value in self.body(n=2).items()}
        answer = await self.http.post("/v1/images/edits", data=form, files={"image": ("a.png", small_picture())})
        self.check_all(answer, 2)

    async def upload(self) -> None:
        content = file_content(self.number)
        form = {"data": {"purpose": "batch"}, "files": {"file": (f"{self.number}.jsonl", content)}}
        file = good(await self.http.post("/v1/files", **form)).json()
        assert (file["filename"], file["bytes"]) == (f"{self.number}.jsonl", len(content))
        assert good(await self.http.get(f"/v1/files/{file['id']}/content")).content == content

    async def _events(self, answer: httpx.Response) -> AsyncIterator[dict]:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                self.check(base64.b64decode(event["b64_json"]), event["image_index"])
                yield event


KINDS = (Client.generate, Client.generate_two, Client.fetch, Client.stream, Client.edit, Client.upload)
Kind = Callable[[Client], Awaitable[None]]


class Busy(Exception):
    """503: the one failure that many clients at once may meet."""


def good(answer: httpx.Response) -> httpx.Response:
    if answer.status_code == 503:
        assert "retry-after" in answer.headers
        raise Busy
    assert answer.status_code == 200, answer.status_code
    return answer


def small_picture() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (80, 60), "red").save(buffer, "png")
    return buffer.getvalue()


def file_content(number: int) -> bytes:
    return f'{{"client": {number}}}\n'.encode() * 20_000


async def converse(client: Client, kind: Kind, stay: float | None) -> str:
    try:
        async with asyncio.timeout(stay):
            await kind(client)
    except TimeoutError:
        return "left"
    except Busy:
        return "busy"
    return "served"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[psutil.Process]:
    with ExitStack() as stack:
        settings = {"DISAGFUSION_ADMIN_KEY": ADMIN["Authorization"].removeprefix("Bearer ")}
        settings["DISAGFUSION_EMBEDDING_CACHE_BYTES"] = "0"  # in the end no store may have a byte
        arguments = ("gateway", "--port", "0", "--control-bind", "tcp://127.0.0.1:*")
        yield psutil.Process(stack.enter_context(process(tmp_path / "gateway.log", *arguments, **settings)).pid)


@pytest.mark.services  # 25 s, and both cores
async def test_every_answer_belongs_to_its_request_and_nothing_stays(gateway: psutil.Process, tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    await found(lambda: re.search("connect to", log.read_text()), "a gateway")
    url, control = re.findall(r"(?:http|tcp)://[\d.:]+", log.read_text())[:2]
    emulated = ("stage_server", "--engine", "emulated", "--profile", "tiny-shapes-cpu", "--time-scale", "0.25")
    with ExitStack() as stack:
        logs = [tmp_path / f"{number}.log" for number in range(len(SERVERS))]
        servers = [
            stack.enter_context(process(path, *emulated, "--role", roles, "--gateway", control))
            for path, roles in zip(logs, SERVERS, strict=True)
        ]
        unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, limits=unlimited, timeout=4 * PATIENCE) as http:
            await joined(http, len(SERVERS))
            await serves_every_kind(http)
            open_files = gateway.num_fds()
            await storm(http)
            await all_is_given_back(http)
            await files_are_whole_and_gone(http, tmp_path / "state")
            allowed = open_files + 4 * len(SERVERS)  # connections to data ports are made when first used, and kept
            await found(lambda: gateway.num_fds() <= allowed, "as many open files as before")
        for server in servers:
            server.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.wait, PATIENCE) == 0
    assert all("all work is done and handed over" in path.read_text() for path in logs)
    assert not any("Traceback" in path.read_text() for path in (log, *logs))


async def told(http: httpx.AsyncClient) -> list[dict]:
    return (await http.get("/admin/servers", headers=ADMIN)).json()["servers"]


async def joined(http: httpx.AsyncClient, servers: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while len(await told(http)) < servers:  # noqa: ASYNC110 # another process's state is no event
            await asyncio.sleep(0.05)


async def storm(http: httpx.AsyncClient) -> None:
    chance = random.Random(13)
    kinds = [KINDS[number % len(KINDS)] for number in range(CLIENTS)]
    chance.shuffle(kinds)
    stays = [chance.uniform(0, LONGEST_STAY) for _ in range(LEAVING)] + [None] * (CLIENTS - LEAVING)
    clients = [Client(http, number, chance.choice(SIZES), chance.randint(2, 12)) for number in range(CLIENTS)]
    async with asyncio.timeout(4 * PATIENCE):
        ends = await asyncio.gather(*map(converse, clients, kinds, stays))
    left = ends.count("left")
    assert Counter(ends) == {"served": CLIENTS - left, "left": left}, "the gateway admits far more than so many"
    assert LEAVING / 4 <= left <= LEAVING  # the others were served before their moment came


async def all_is_given_back(http: httpx.AsyncClient) -> None:
    """No job, no byte in any store; ready; and there are credits left for every kind of request."""
    async with asyncio.timeout(PATIENCE):
        while any(server["jobs"] or server["store_bytes"] for server in await told(http)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (await http.get("/readyz")).status_code == 200
    await serves_every_kind(http)


async def serves_every_kind(http: httpx.AsyncClient) -> None:
    clients = [Client(http, CLIENTS + number, "64x64", 2) for number in range(len(KINDS))]
    assert set(await asyncio.gather(*map(converse, clients, KINDS, [PATIENCE] * len(KINDS)))) == {"served"}


async def files_are_whole_and_gone(http: httpx.AsyncClient, state: Path) -> None:
    """Uploads that were broken off left no file; what was uploaded can be deleted without a trace."""
    for file in (await http.get("/v1/files")).json()["data"]:
        number = int(file["filename"].removesuffix(".jsonl"))
        assert (await http.get(f"/v1/files/{file['id']}/content")).content == file_content(number)
        assert (await http.delete(f"/v1/files/{file['id']}")).status_code == 200
    left = [path for name in ("files", "records") for path in (state / "files" / name).rglob("*") if path.is_file()]
    assert left == []
    assert list((state / "spool").iterdir()) == []
