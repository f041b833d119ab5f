"""``/v1/files`` as OpenAI's SDK uses it, and as nobody should."""

from __future__ import annotations

import openai
import pytest

from gateway.api.app import create_app
from gateway.settings import Settings
from gateway.storage.objects import Objects, open_store
from gateway.storage.storage import Storage

KEYS = {"alice": "sk-alice", "bob": "sk-bob"}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
JSONL = b'{"custom_id": "1"}\n'
HOUR = 3600


@pytest.fixture
def client(connect):
    return connect()


@pytest.fixture
def open_sdk(live):
    """OpenAI's client, strict about responses."""
    opened = []

    def connect(key: str = "none") -> openai.OpenAI:
        opened.append(
            openai.OpenAI(base_url=f"{live}/v1", api_key=key, max_retries=0, _strict_response_validation=True)
        )
        return opened[-1]

    yield connect
    for sdk in opened:
        sdk.close()


@pytest.fixture
def sdk(open_sdk):
    return open_sdk()


async def upload(client, data: bytes = JSONL, filename: str = "in.jsonl", headers=None, **fields: str):
    form = {"purpose": "batch"} | fields
    return await client.post("/v1/files", files={"file": (filename, data)}, data=form, headers=headers)


def error(answer) -> tuple[int, str, str | None]:
    envelope = answer.json()["error"]
    return answer.status_code, envelope["code"], envelope["param"]


def test_the_life_of_a_file_through_the_sdk(sdk):
    made = sdk.files.create(file=("in.jsonl", JSONL), purpose="batch")
    assert made.id.startswith("file-")
    assert len(made.id) == 37
    assert (made.bytes, made.filename, made.purpose, made.status) == (len(JSONL), "in.jsonl", "batch", "processed")
    assert made.expires_at == made.created_at + 30 * 24 * HOUR
    assert sdk.files.retrieve(made.id) == made
    content = sdk.files.content(made.id)
    assert content.read() == JSONL
    assert content.response.headers["content-type"] == "application/jsonl"
    assert sdk.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError) as gone:
        sdk.files.retrieve(made.id)
    assert (gone.value.code, gone.value.param) == ("file_not_found", "id")


def test_a_large_file_through_the_sdk(sdk):
    data = bytes(range(256)) * 4096 * 12
    made = sdk.files.create(file=data, purpose="user_data", expires_after={"anchor": "created_at", "seconds": HOUR})
    assert (made.bytes, made.filename, made.expires_at) == (len(data), "upload", made.created_at + HOUR)
    content = sdk.files.content(made.id)
    assert content.read() == data
    assert content.response.headers["content-type"] == "application/octet-stream"


def test_pages_through_the_sdk(sdk):
    made = [sdk.files.create(file=(f"{index}", PNG), purpose="vision").id for index in range(5)]
    sdk.files.create(file=("x", PNG), purpose="user_data")
    assert [file.id for file in sdk.files.list(purpose="vision", limit=2)] == made[::-1]
    assert [file.id for file in sdk.files.list(order="asc", after=made[2], purpose="vision")] == made[3:]
    page = sdk.files.list(order="asc", limit=2)
    assert ([file.id for file in page.data], page.has_more) == (made[:2], True)
    assert (page.first_id, page.last_id) == (made[0], made[1])


@pytest.mark.parametrize("settings", [Settings(api_keys=KEYS)])
def test_each_tenant_sees_its_own_through_the_sdk(open_sdk):
    alice, bob = open_sdk("sk-alice"), open_sdk("sk-bob")
    made = alice.files.create(file=("a", PNG), purpose="vision")
    assert list(bob.files.list()) == []
    for attempt in (bob.files.retrieve, bob.files.content, bob.files.delete):
        with pytest.raises(openai.NotFoundError):
            attempt(made.id)
    assert alice.files.retrieve(made.id) == made


async def test_without_a_key_nothing(connect):
    client = connect(api_keys=Settings(api_keys=KEYS).api_keys)
    for method, path in (("GET", "/v1/files"), ("POST", "/v1/files"), ("GET", "/v1/files/x/content")):
        assert error(await client.request(method, path))[:2] == (401, "invalid_api_key")


async def test_a_list_without_files_and_its_query(client):
    assert (await client.get("/v1/files")).json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    assert error(await client.get("/v1/files?limit=0")) == (400, "integer_below_min_value", "limit")
    assert error(await client.get("/v1/files?limit=10001")) == (400, "integer_above_max_value", "limit")
    assert error(await client.get("/v1/files?limit=many")) == (400, "invalid_type", "limit")
    assert error(await client.get("/v1/files?order=up")) == (400, "invalid_value", "order")
    assert error(await client.get("/v1/files?after=file-x")) == (404, "file_not_found", "after")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"purpose": "fun"}, "invalid_value", "purpose"),
        ({"colour": "red"}, "unknown_parameter", "colour"),
        ({"expires_after[anchor]": "created_at"}, "missing_required_parameter", "expires_after[seconds]"),
        ({"expires_after[seconds]": "3600"}, "missing_required_parameter", "expires_after[anchor]"),
        (
            {"expires_after[anchor]": "birth", "expires_after[seconds]": "3600"},
            "invalid_value",
            "expires_after[anchor]",
        ),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"},
            "integer_below_min_value",
            "expires_after[seconds]",
        ),
    ],
)
async def test_fields_that_are_refused(client, fields, code, param):
    assert error(await upload(client, **fields)) == (400, code, param)


async def test_forms_that_are_refused(client):
    missing = await client.post("/v1/files", data={"purpose": "batch"}, files={"other": ("x", b"1")})
    assert error(missing) == (400, "unknown_parameter", "other")
    two = await client.post("/v1/files", data={"purpose": "batch"}, files=[("file", b"1"), ("file", b"2")])
    assert error(two) == (400, "invalid_form", None)
    twice = await client.post("/v1/files", data={"purpose": ["batch", "vision"]}, files={"file": b"1"})
    assert error(twice) == (400, "invalid_value", "purpose")
    assert error(await client.post("/v1/files", json={"purpose": "batch"})) == (415, "unsupported_media_type", None)
    bare = await client.post("/v1/files", files={"file": b"1"})
    assert error(bare) == (400, "missing_required_parameter", "purpose")
    boundary = {"content-type": "multipart/form-data; boundary=XX"}
    only = b'--XX\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--XX--\r\n'
    answer = await client.post("/v1/files", content=only, headers=boundary)
    assert error(answer) == (400, "missing_required_parameter", "file")


async def test_one_file_may_have_so_many_bytes(connect):
    client = connect(file_max_bytes=100)
    assert (await upload(client, bytes(100))).status_code == 200
    assert error(await upload(client, bytes(101))) == (413, "request_too_large", "file")
    assert error(await upload(client, bytes(200_000))) == (413, "request_too_large", None)


async def test_a_full_store_refuses_and_says_not_to_retry(connect):
    client = connect(storage_max_bytes=10_000)
    assert (await upload(client, bytes(5_000))).status_code == 200
    answer = await upload(client, bytes(5_000))
    assert error(answer) == (507, "storage_full", None)
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\secret\\a.png", "a.png"),
        ("..", "upload"),
        ("a\u202egnp.exe", "agnp.exe"),
        ("x" * 300, "x" * 255),
        ("größe 100%;.txt", "größe 100%;.txt"),
    ],
)
async def test_hostile_names(client, given, kept):
    made = (await upload(client, filename=given)).json()
    assert made["filename"] == kept
    download = await client.get(f"/v1/files/{made['id']}/content")
    disposition = download.headers["content-disposition"]
    assert disposition.startswith('attachment; filename="')
    assert disposition.isascii()
    assert disposition.count('"') == 2


@pytest.mark.parametrize(
    ("filename", "data", "expected"),
    [
        ("page.html", b"<script>alert(1)</script>", "application/octet-stream"),
        ("image.png", b"<script>alert(1)</script>", "application/octet-stream"),
        ("image.svg", b"<svg/>", "application/octet-stream"),
        ("x", PNG, "image/png"),
        ("x", b"\xff\xd8\xff\xe0", "image/jpeg"),
        ("x", b"RIFF1234WEBPVP8 ", "image/webp"),
        ("x", b"RIFF1234WAVEfmt ", "application/octet-stream"),
        ("x.JSONL", b"{}\n", "application/jsonl"),
        ("empty", b"", "application/octet-stream"),
    ],
)
async def test_downloads_are_nothing_that_a_browser_runs(client, filename, data, expected):
    made = (await upload(client, data, filename)).json()
    download = await client.get(f"/v1/files/{made['id']}/content")
    assert download.content == data
    assert download.headers["content-type"] == expected
    assert download.headers["x-content-type-options"] == "nosniff"
    assert download.headers["content-length"] == str(len(data))


async def test_files_that_expire_by_setting(connect):
    client = connect(files_max_age_seconds=HOUR)
    made = (await upload(client, purpose="vision")).json()
    assert made["expires_at"] == made["created_at"] + HOUR


async def test_pictures_behind_urls_are_mere_pictures(client):
    answer = await client.post(
        "/v1/images/generations", json={"prompt": "x", "response_format": "url", "output_format": "jpeg"}
    )
    picture = await client.get(answer.json()["data"][0]["url"])
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.headers["x-content-type-options"] == "nosniff"
    assert picture.headers["cache-control"] == "private"


async def test_pages_of_other_origins_may_delete(connect):
    asked = {"origin": "https://app.example", "access-control-request-method": "DELETE"}
    answer = await connect(cors_origins=["https://app.example"]).options("/v1/files/x", headers=asked)
    assert "DELETE" in answer.headers["access-control-allow-methods"]


@pytest.fixture
def failing(tmp_path) -> Objects:
    folder = tmp_path / "files"
    objects = open_store(None, folder)
    for name in ("files", "pictures"):
        (folder / name).write_bytes(b"in the way")
    return objects


async def test_a_store_that_fails_fails_nothing_else(connect, service, settings, failing, caplog):
    client = connect()
    client._transport.app = create_app(service, settings, storage=Storage(settings, failing))
    wanted = {"prompt": "x", "response_format": "url"}
    for answer in (await upload(client), await client.post("/v1/images/generations", json=wanted)):
        assert error(answer) == (503, "storage_unavailable", None)
        assert answer.headers["retry-after"] == "5"
        assert "files" not in answer.text
    assert "cannot" in caplog.text
    answer = await client.post("/v1/images/generations", json={"prompt": "x"})
    assert answer.status_code == 200
