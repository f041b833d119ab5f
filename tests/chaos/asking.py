"""One attempt at one gateway: what is sent, and whether what comes is what was asked for."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.chaos.pictures import NoPicture, Said, read
from tests.chaos.record import Attempt, End

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
DEADLINE = 40.0
"""Seconds that requests allow the service."""
PATIENCE = 60.0
"""Seconds after which nothing will come: the deadline, the grace after it, and the longest freeze."""
ENVELOPE = {"message", "type", "param", "code"}
KEY = "chaos-0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for. The prompt is its own, and so is the seed, where it names one."""

    number: int
    size: tuple[int, int]
    n: int
    steps: int
    seed: int | None
    key: str = ""

    @property
    def prompt(self) -> str:
        return f"wish {self.number}"

    def body(self, **more: object) -> dict[str, object]:
        size = "x".join(map(str, self.size))
        named = {} if self.seed is None else {"seed": self.seed}
        common = {"model": "slow", "prompt": self.prompt, "size": size, "n": self.n}
        return common | named | {"num_inference_steps": self.steps} | more

    def headers(self) -> dict[str, str]:
        once = {"idempotency-key": self.key} if self.key else {}
        return {"authorization": f"Bearer {KEY}", "x-request-timeout": f"{DEADLINE:g}"} | once

    def wrong(self, index: int, data: bytes, seed: int | None) -> Iterator[str]:
        """``seed``: as the answer says it, if it does."""
        try:
            found = read(data)
        except NoPicture as error:
            yield f"picture {index}: {error}"
            return
        asked = None if self.seed is None else self.seed + index
        if None not in (asked, seed) and seed != asked:
            yield f"picture {index}: the answer says seed {seed}, asked for was {asked}"
        known = next((each for each in (asked, seed) if each is not None), found.seed)
        wanted = Said.wanted(self.prompt, known, self.size)
        if found != wanted:
            yield f"picture {index} is another's: {found}, wanted {wanted}"


@dataclass(slots=True)
class Answer:
    """What has come so far."""

    status: int = 0
    code: str = ""
    request_id: str = ""
    once: str = ""
    made_as: str = ""
    retry_after: float = 0.0
    complaints: list[str] = field(default_factory=list)
    pictures: dict[int, bytes] = field(default_factory=dict)
    job: str = ""
    fetches: str = ""
    """The url of a picture that is being fetched: of the gateway that made the answer, which may be another one."""

    @property
    def content(self) -> str:
        digest = hashlib.sha256()
        for index in sorted(self.pictures):
            digest.update(self.pictures[index])
        return digest.hexdigest()[:16] if self.pictures else ""

    def head(self, answer: httpx.Response) -> None:
        self.status = answer.status_code
        self.request_id = answer.headers.get("x-request-id", "")
        self.once = answer.headers.get("x-idempotency", "")
        self.made_as = answer.headers.get("x-original-request-id", self.request_id)

    def error(self, fields: object, answer: httpx.Response | None = None) -> None:
        """The envelope, with all it must have."""
        match fields:
            case {"error": {"message": str(), "code": str(code), **more}} if (
                set(more) | {"message", "code"} == ENVELOPE
            ):
                self.code = code
            case _:
                self.complaints.append(f"an error out of its envelope: {str(fields)[:200]}")
        if answer is not None and answer.status_code == 503:
            if "retry-after" not in answer.headers:
                self.complaints.append("503 without Retry-After")
            self.retry_after = float(answer.headers.get("retry-after", 1))

    def take(self, wish: Wish, index: int, data: bytes, seed: int | None) -> None:
        if index in self.pictures:
            self.complaints.append(f"doubled: picture {index} came twice")
        self.pictures[index] = data
        self.complaints.extend(wish.wrong(index, data, seed))

    def check_all(self, wish: Wish) -> None:
        if set(self.pictures) != set(range(wish.n)):
            self.complaints.append(f"lost: {wish.n} pictures were asked for, {sorted(self.pictures)} came")


class Refused(Exception):
    """``Answer`` has the error."""


class Asker:
    """Makes attempts at ``urls``, the gateways'. Every connection is used once: whether one that was kept is still
    good cannot be known when it is used again, and says nothing of the service."""

    def __init__(self, http: httpx.AsyncClient, urls: list[str], clock: Any) -> None:
        self._http = http
        self.urls = urls
        self._clock = clock

    async def attempt(self, gateway: int, ask: Any, stay: float | None = None) -> tuple[Attempt, Answer]:
        """``ask``: a coroutine function of base url and ``Answer``. ``stay``: hang up after so many seconds."""
        began, answer, end, detail = self._clock(), Answer(), End.ANSWERED, ""
        try:
            async with asyncio.timeout(PATIENCE if stay is None else stay):
                await ask(self.urls[gateway], answer)
        except Refused:
            end = End.REFUSED
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            end, detail = End.UNREACHED, repr(error)
        except httpx.TransportError as error:
            end, detail = End.BROKEN, repr(error)
        except TimeoutError:
            end = End.HUNG if stay is None else End.LEFT
        made = Attempt(
            self._gateway_of(answer.fetches, gateway),
            began,
            self._clock(),
            end,
            answer.status,
            answer.code or detail,
            answer.request_id if end in (End.ANSWERED, End.REFUSED) else "",
            answer.content,
            answer.once,
            answer.made_as,
            tuple(answer.complaints),
        )
        return made, answer

    def _gateway_of(self, url: str, asked: int) -> int:
        return next((number for number, each in enumerate(self.urls) if url.startswith(f"{each}/")), asked)

    async def _send(self, answer: Answer, method: str, url: str, **more: Any) -> httpx.Response:
        """Raises ``Refused``."""
        came = await self._http.request(method, url, **more)
        answer.head(came)
        if came.status_code >= 300:
            answer.error(_json(came), came)
            raise Refused
        return came

    # --- what can be asked --------------------------------------------------------------------------------------------

    async def plain(self, wish: Wish, url: str, answer: Answer, **more: object) -> None:
        came = await self._send(answer, "POST", url + GENERATIONS, json=wish.body(**more), headers=wish.headers())
        await self._pictures(wish, url, answer, came.json(), came.headers)

    async def by_url(self, wish: Wish, url: str, answer: Answer) -> None:
        await self.plain(wish, url, answer, response_format="url")

    async def edit(self, wish: Wish, url: str, answer: Answer, picture: bytes) -> None:
        form = {name: str(value) for name, value in wish.body().items()}
        files = {"image": ("a.png", picture, "image/png")}
        came = await self._send(answer, "POST", url + EDITS, data=form, files=files, headers=wish.headers())
        await self._pictures(wish, url, answer, came.json(), came.headers)

    async def stream(self, wish: Wish, url: str, answer: Answer) -> None:
        body = wish.body(stream=True, partial_images=2)
        async with self._http.stream("POST", url + GENERATIONS, json=body, headers=wish.headers()) as came:
            answer.head(came)
            if came.status_code != 200:
                await came.aread()
                answer.error(_json(came), came)
                raise Refused
            async for line in came.aiter_lines():
                if line.startswith("data: ") and not line.startswith("data: [DONE]"):
                    self._event(wish, answer, json.loads(line.removeprefix("data: ")))
        answer.check_all(wish)

    async def post_job(self, wish: Wish, url: str, answer: Answer) -> None:
        body = wish.body(**{"async": True})
        came = await self._send(answer, "POST", url + GENERATIONS, json=body, headers=wish.headers())
        answer.job = came.json()["id"]

    async def look_at_job(self, job: str, url: str, answer: Answer) -> dict[str, Any]:
        came = await self._send(answer, "GET", f"{url}/v1/images/jobs/{job}", headers=_auth())
        told: dict[str, Any] = came.json()
        return told

    async def list_jobs(self, url: str, answer: Answer) -> list[dict[str, Any]]:
        came = await self._send(answer, "GET", f"{url}/v1/images/jobs?limit=100", headers=_auth())
        jobs: list[dict[str, Any]] = came.json()["data"]
        return jobs

    async def delete(self, path: str, url: str, answer: Answer) -> None:
        await self._send(answer, "DELETE", url + path, headers=_auth())

    async def take_job(self, wish: Wish, told: Mapping[str, Any], headers: httpx.Headers, answer: Answer) -> None:
        """The answer within a job that is completed."""
        await self._pictures(wish, "", answer, told["response"], headers)

    # --- what comes ---------------------------------------------------------------------------------------------------

    async def _pictures(self, wish: Wish, url: str, answer: Answer, body: Any, headers: httpx.Headers) -> None:
        said = headers.get("x-seeds", "")
        seeds = [int(seed) for seed in said.split(",")] if said else []
        if seeds and len(seeds) != wish.n:
            answer.complaints.append(f"x-seeds names {len(seeds)} pictures of {wish.n}")
            seeds = []
        for index, item in enumerate(body["data"]):
            data = base64.b64decode(item["b64_json"]) if "b64_json" in item else await self._fetch(answer, item["url"])
            answer.take(wish, index, data, seeds[index] if index < len(seeds) else None)
        answer.check_all(wish)

    async def _fetch(self, answer: Answer, url: str) -> bytes:
        """Raises ``Refused``."""
        answer.fetches = url
        came = await self._http.get(url)
        answer.fetches = ""
        if came.status_code != 200:
            answer.status = came.status_code
            answer.error(_json(came), came)
            raise Refused
        return came.content

    def _event(self, wish: Wish, answer: Answer, event: dict[str, Any]) -> None:
        """Raises ``Refused``."""
        index = event.get("image_index", 0)
        match event.get("type"):
            case "image_generation.completed":
                answer.take(wish, index, base64.b64decode(event["b64_json"]), event["seed"])
            case "image_generation.partial_image":
                answer.complaints.extend(wish.wrong(index, base64.b64decode(event["b64_json"]), event.get("seed")))
            case _ if "error" in event:
                answer.error({"error": event["error"]})
                answer.status = {"server_error": 500, "timeout": 504}.get(answer.code, 503)
                raise Refused
            case other:
                answer.complaints.append(f"an event of type {other}")


def _auth() -> dict[str, str]:
    return {"authorization": f"Bearer {KEY}"}


def _json(answer: httpx.Response) -> object:
    try:
        return answer.json()
    except ValueError:
        return answer.text
