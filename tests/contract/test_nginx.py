"""The gateway behind a real nginx, below a prefix, with TLS left to it: urls and uploads as clients see them."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.settings import Settings
from tests.needed import find, needs
from tests.servers import free_port

pytestmark = [pytest.mark.services, needs("nginx")]

CONFIGURATION = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
{location}
  }}
}}
"""

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "behind-nginx.md"
"""Its example is what is tested."""


@pytest.fixture
def buffering() -> bool:
    """Whether nginx buffers answers, as it does by itself; the example switches it off."""
    return False


@pytest.fixture
def nginx(live: str, tmp_path: Path, buffering: bool) -> Iterator[str]:
    """Base url of the gateway behind nginx."""
    example = re.search(r"```nginx\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert example
    location = example[1].replace("http://127.0.0.1:8000", live)
    if buffering:
        location = location.replace("proxy_buffering off", "proxy_buffering on")
    port = free_port()
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(folder=tmp_path, port=port, location=location))
    started = subprocess.Popen([find("nginx"), "-e", f"{tmp_path}/error.log", "-c", str(configuration)])
    url = f"http://127.0.0.1:{port}/images"
    transport = httpx.HTTPTransport(retries=20)  # until it listens
    with httpx.Client(transport=transport) as client:
        assert client.get(f"{url}/healthz").status_code == 200
    yield url
    started.terminate()
    started.wait(timeout=60)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"trusted_proxies": ("127.0.0.1/32",)})


def test_a_picture_can_be_fetched_by_its_url(nginx: str) -> None:
    answer = httpx.post(f"{nginx}/v1/images/generations", json={"prompt": "x", "response_format": "url"})
    url = answer.json()["data"][0]["url"]
    assert url.startswith(f"{nginx}/v1/images/files/img_")
    assert httpx.get(url).headers["content-type"] == "image/png"


def test_a_client_cannot_forge_its_address(nginx: str) -> None:
    lies = {"forwarded": "host=evil.example", "x-forwarded-host": "evil.example", "x-forwarded-prefix": "/evil"}
    answer = httpx.post(f"{nginx}/v1/images/generations", json={"prompt": "x", "response_format": "url"}, headers=lies)
    assert answer.json()["data"][0]["url"].startswith(f"{nginx}/v1/images/files/img_")


def test_a_file_goes_through(nginx: str) -> None:
    data = bytes(3 << 20)
    made = httpx.post(f"{nginx}/v1/files", data={"purpose": "vision"}, files={"file": io.BytesIO(data)})
    assert httpx.get(f"{nginx}/v1/files/{made.json()['id']}/content").content == data


@pytest.mark.parametrize("buffering", [False, True])
def test_events_are_not_held_back(nginx: str, service) -> None:
    """They reach the client while the work goes on, also through an nginx that buffers whatever does not forbid it."""
    service.hang = service.is_admitted = True
    body = {"prompt": "x", "stream": True}
    with httpx.stream("POST", f"{nginx}/v1/images/generations", json=body, timeout=60) as answer:
        assert next(answer.iter_raw()).startswith(b": admitted")
    assert service.cancelled.wait(10)
