"""The page's files: what is served of them, under which headers, and that the libraries are what they say they are."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from gateway.api.app import create_app
from gateway.page.files import ASSETS, content_security_policy, load_page
from gateway.settings import Settings
from tests.admin.conftest import NoService

Connect = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    opened = []

    def client(**settings: object) -> httpx.AsyncClient:
        app = create_app(NoService(), Settings(**settings))
        opened.append(httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://g"))
        return opened[-1]

    yield client
    for each in opened:
        await each.aclose()


def policy_of(response: httpx.Response) -> dict[str, list[str]]:
    directives = (each.split() for each in response.headers["content-security-policy"].split(";"))
    return {name: sources for name, *sources in directives}


async def test_the_page_and_every_file_that_it_names(connect: Connect) -> None:
    client = connect()
    page = await client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    named = set(re.findall(r"assets/[^\"]+", page.text))
    assert len(named) >= 10
    for address in named:
        response = await client.get(f"/{address}")
        assert response.status_code == 200, address
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert int(response.headers["content-length"]) == len(response.content)


async def test_the_policy_allows_this_server_and_nothing_else(connect: Connect) -> None:
    page = await connect().get("/")
    policy = policy_of(page)
    import_map = re.search(r'<script type="importmap">(.*?)</script>', page.text, re.DOTALL)
    assert import_map is not None
    digest = base64.b64encode(hashlib.sha256(import_map[1].encode()).digest()).decode()
    assert policy["default-src"] == ["'none'"]
    assert policy["script-src"] == ["'self'", f"'sha256-{digest}'"]
    assert policy["style-src"] == policy["connect-src"] == ["'self'"]
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == ["'none'"]
    assert "unsafe" not in page.headers["content-security-policy"]


def test_a_changed_import_map_has_another_hash() -> None:
    one, other = (b'<script type="importmap">{"a": %d}</script>' % number for number in (1, 2))
    assert content_security_policy(one) != content_security_policy(other)


async def test_what_a_browser_has_is_not_sent_again(connect: Connect) -> None:
    client = connect()
    for address in ("/", f"/assets/{load_page().digest}/js/main.js"):
        first = await client.get(address)
        again = await client.get(address, headers={"if-none-match": f'"x", W/{first.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
        other = await client.get(address, headers={"if-none-match": '"x"'})
        assert other.status_code == 200


async def test_head_has_the_length_and_no_body(connect: Connect) -> None:
    client = connect()
    head, whole = await client.head("/"), await client.get("/")
    assert head.headers["content-length"] == whole.headers["content-length"]
    assert head.content == b""


async def test_a_file_asked_for_under_another_digest_is_not_to_be_kept(connect: Connect) -> None:
    response = await connect().get("/assets/0000000000000000/js/main.js")
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path", ["js/none.js", "vendor/README.md", "vendor/LICENSE.preact", "../files.py", "..%2f__init__.py", "index.html"]
)
async def test_nothing_else_is_served(connect: Connect, path: str) -> None:
    response = await connect().get(f"/assets/{load_page().digest}/{path}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] in ("not_found", "unknown_url")


async def test_the_page_can_be_switched_off(connect: Connect) -> None:
    client = connect(page=False)
    for address in ("/", f"/assets/{load_page().digest}/js/main.js"):
        assert (await client.get(address)).status_code == 404
    assert (await client.get("/healthz")).status_code == 200


def test_the_digest_follows_every_file(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<script type="module" src="assets/@digest@/a.js"></script>')
    (tmp_path / "a.js").write_text("1")
    before = load_page(tmp_path)
    assert before.digest.encode() in before.index.body
    (tmp_path / "a.js").write_text("2")
    after = load_page(tmp_path)
    assert after.digest != before.digest
    assert after.files["a.js"].etag != before.files["a.js"].etag


def test_libraries_are_the_files_of_their_packages() -> None:
    vendor = ASSETS / "vendor"
    listed = dict(
        re.findall(r"^\| `([^`]+)` \|.*`([0-9a-f]{64})` \|$", (vendor / "README.md").read_text(), re.MULTILINE)
    )
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in vendor.iterdir()
        if path.suffix in {".js", ".css"}
    }
    assert found == listed


def test_own_scripts_are_short() -> None:
    own = [path for path in ASSETS.rglob("*") if path.suffix in {".js", ".css"} and path.parent.name != "vendor"]
    assert len(own) > 10
    assert not [path.name for path in own if len(path.read_text().splitlines()) > 400]
