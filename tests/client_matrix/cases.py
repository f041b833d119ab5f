"""The smoke suite, defined once: what every client that can express a case must see. Drivers tell, this judges."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import httpx
from PIL import Image

from tests.client_matrix.service import ALIASES, DEFAULT_SIZE
from tests.picture_service import MODEL


class Wrong(Exception):
    """What a client saw is not what it should have seen."""


@dataclass(frozen=True, slots=True)
class Picture:
    data: bytes
    format: str
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Saw:
    """What the driver wrote down of one case, and what was seen from the other side."""

    told: Mapping[str, object]
    tries: int = 0
    """Through the busy door."""
    cancelled: bool = False
    """The gateway noticed that the client had gone, and the stage servers fell idle."""

    def pictures(self) -> list[Picture]:
        """Urls are fetched without a key, as clients do. Raises ``Wrong``."""
        return [_open(given) for given in self.told["pictures"]]


Judge = Callable[[Saw], None]


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    """Of the drivers' functions."""
    title: str
    judge: Judge
    """Raises ``Wrong``."""


def drawn(count: int = 1, key: str | None = None, *, other_size: bool = False) -> Judge:
    """So many different pictures of the size that was asked for, under ``key`` if it matters which."""

    def judge(saw: Saw) -> None:
        pictures = saw.pictures()
        expect(len(pictures) == count, f"{len(pictures)} pictures instead of {count}")
        expect(len({picture.data for picture in pictures}) == count, "two pictures are the same")
        asked = _size(saw.told.get("asked"))
        expect(not other_size or asked != DEFAULT_SIZE, "the driver asked for the default size")
        for given, picture in zip(saw.told["pictures"], pictures, strict=True):
            expect(key is None or key in given, f"the picture came as {'/'.join(given)}, not as {key}")
            expect(picture.size == asked, f"the picture is {picture.size}, not {asked}")
            expect(picture.format == "PNG", f"the picture is {picture.format}, not PNG")

    return judge


def repeated(count: int) -> Judge:
    """So many pictures, then the same again."""

    def judge(saw: Saw) -> None:
        data = [picture.data for picture in saw.pictures()]
        expect(len(data) == 2 * count, f"{len(data)} pictures instead of {2 * count}")
        expect(data[:count] == data[count:], "the same seed gave other bytes")
        expect(len(set(data)) == count, "different seeds gave the same picture")

    return judge


def streamed(kind: str) -> Judge:
    """Up to two partial pictures, fewer if the model makes fewer, then the finished one."""

    def judge(saw: Saw) -> None:
        *partial, last = saw.told["events"]
        expect(len(partial) <= 2, f"{len(partial)} events before the last")
        expect(set(partial) <= {f"{kind}.partial_image"}, f"events {partial}")
        expect(last == f"{kind}.completed", f"the last event is {last}")
        drawn(len(partial) + 1, "b64")(saw)

    return judge


def refused(status: int, kind: str, code: str, param: str | None, *, counted: bool = False) -> Judge:
    """An error of which the client shows at least the status, and the rest of the envelope as it was sent; if
    ``counted``, after as many tries as the driver says that the client makes."""
    expected = {"status": status, "type": kind, "code": code, "param": param}

    def judge(saw: Saw) -> None:
        error = saw.told.get("error")
        expect(isinstance(error, dict), f"no error, but {saw.told}")
        expect("status" in error, f"the error has no status: {error}")
        for name, value in expected.items():
            expect(error.get(name, value) == value, f"{name} {error.get(name)!r} instead of {value!r} ({error})")
        expect(bool(error.get("message")), f"the error has no message: {error}")
        expect(not counted or saw.tries == saw.told["tries"], f"{saw.tries} tries instead of {saw.told.get('tries')}")

    return judge


def came_back(saw: Saw) -> None:
    expect(saw.tries == 2, f"{saw.tries} tries instead of 2")
    drawn()(saw)


def then_refused(judge: Judge) -> Judge:
    """A picture within the key's limit, and the error of the request that goes beyond it."""

    def both(saw: Saw) -> None:
        drawn()(saw)
        judge(saw)

    return both


def done_later(saw: Saw) -> None:
    """A job that was posted, asked for until it had ended, and deleted."""
    told = saw.told
    expect(str(told["id"]).startswith("job_"), f"the id is {told['id']!r}")
    expect(told["posted"] == "queued", f"the job was {told['posted']!r} when it was posted")
    expect(told["ended"] == "completed", f"the job ended {told['ended']!r}")
    drawn()(saw)
    expect(told.get("deleted", True) is True, "the job is not deleted")
    expect(told.get("afterwards", 404) == 404, f"a deleted job answers {told.get('afterwards')}")


def done_by_the_line(saw: Saw) -> None:
    """A batch of two good lines and a bad one."""
    told = saw.told
    expect(told["ended"] == "completed", f"the batch ended {told['ended']!r}")
    expect(told["counts"] == [2, 1], f"{told['counts']} lines completed and failed instead of [2, 1]")
    drawn(2, "b64")(saw)
    expect(told["errors"] == {"bad": "invalid_value"}, f"the error file says {told['errors']}")


def done_once(saw: Saw) -> None:
    """Two requests without a seed, with one Idempotency-Key."""
    first, again = saw.pictures()
    expect(first == again, "the second request with the key gave another picture")


def listed(saw: Saw) -> None:
    missing = {MODEL, *ALIASES} - set(saw.told["models"])
    expect(not missing, f"the list lacks {sorted(missing)}")
    model = saw.told.get("retrieved", "org/tiny")
    expect(model == "org/tiny", f"retrieved {model!r} instead of 'org/tiny'")


def kept(saw: Saw) -> None:
    """A file uploaded, found in the list, read back and deleted; what a client cannot do, it leaves out."""
    told = saw.told
    expect(str(told["id"]).startswith("file-"), f"the id is {told['id']!r}")
    expect(told.get("bytes", told["sent"]) == told["sent"], f"{told.get('bytes')} bytes instead of {told['sent']}")
    expect(told.get("listed", True) is True, "the list lacks the file")
    expect(told.get("same", True) is True, "the content is not what was sent")
    expect(told.get("deleted", True) is True, "the file is not deleted")


def gone(saw: Saw) -> None:
    """Clients that send their timeout along may be told at once that it cannot be met."""
    error = saw.told.get("error", {})
    told_so = saw.told.get("sends_timeout") and error.get("code") == "server_is_overloaded"
    expect(bool(saw.told.get("gave_up") or told_so), f"the client did not give up, it saw {saw.told}")
    expect(bool(told_so) or saw.cancelled, "the service still works for a client that has gone")


BAD = "invalid_request_error"
LIMIT, QUOTA = "rate_limit_error", "insufficient_quota"

CASES: Sequence[Case] = (
    Case("generate", "a picture", drawn()),
    Case("n", "n = 2", drawn(2)),
    Case("size", "size", drawn(other_size=True)),
    Case("url", "as url", drawn(key="url")),
    Case("b64", "as b64_json", drawn(key="b64")),
    Case("seed", "seed twice", repeated(1)),
    Case("stream", "stream partial_images", streamed("image_generation")),
    Case("edit", "edit", drawn()),
    Case("edit_list", "edit two pictures", drawn()),
    Case("edit_mask", "edit mask", drawn()),
    Case("edit_stream", "edit stream", streamed("image_edit")),
    Case("models", "models", listed),
    Case("files", "files", kept),
    Case("job", "a job", done_later),
    Case("batch", "a batch", done_by_the_line),
    Case("once", "Idempotency-Key twice", done_once),
    Case("bad_parameter", "bad parameter", refused(400, BAD, "invalid_value", "size")),
    Case("unknown_model", "unknown model", refused(404, BAD, "model_not_found", "model")),
    Case("wrong_key", "wrong key", refused(401, BAD, "invalid_api_key", None)),
    Case("not_allowed", "key of another model", refused(403, BAD, "model_not_allowed", "model")),
    Case("over_limit", "its limit reached", then_refused(refused(429, LIMIT, "rate_limit_exceeded", None))),
    Case("budget", "its budget used up", then_refused(refused(429, QUOTA, QUOTA, None, counted=True))),
    Case("full", "503 then served", came_back),
    Case("limited", "429 then served", came_back),
    Case(
        "gives_up",
        "503 for good",
        refused(503, "service_unavailable_error", "server_is_overloaded", None, counted=True),
    ),
    Case("concurrent", "four at once", repeated(4)),
    Case("abort", "gives up waiting", gone),  # the last: the service must fall idle after it
)


def expect(condition: bool, complaint: str) -> None:
    if not condition:
        raise Wrong(complaint)


def _size(asked: object) -> tuple[int, int]:
    if asked is None:
        return DEFAULT_SIZE
    width, height = str(asked).split("x")
    return int(width), int(height)


def _open(given: Mapping[str, str]) -> Picture:
    data = _fetch(given["url"]) if "url" in given else base64.b64decode(given["b64"], validate=True)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return Picture(data, image.format or "", image.size)
    except OSError as error:
        raise Wrong(f"no picture: {error}; it begins with {data[:16]!r}") from error


def _fetch(url: str) -> bytes:
    answer = httpx.get(url, timeout=30)
    expect(answer.status_code == httpx.codes.OK, f"{url} answers {answer.status_code}")
    kind = answer.headers["content-type"]
    expect(re.fullmatch(r"image/\w+", kind) is not None, f"{url} has the type {kind!r}")  # Open WebUI compares exactly
    return answer.content
