"""A job's webhook, from the request that names it to a receiver that checks it with the specification's library."""

from __future__ import annotations

import base64
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from standardwebhooks import Webhook

from gateway.service.interfaces import OutOfDeviceMemory

SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
PATIENCE = 120.0


@pytest.fixture
def receiver() -> Iterator[tuple[str, queue.Queue]]:
    """Its url, and what it gets."""
    got: queue.Queue[tuple[dict[str, str], bytes]] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.put((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", got
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def settings_changes(receiver) -> dict[str, object]:
    port = httpx.URL(receiver[0]).port
    return {"webhook_secret": SECRET, "webhook_ports": (80, port), "allow_private_webhooks": True}


@pytest.fixture
def client(live_with_jobs) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_with_jobs, timeout=PATIENCE) as client:
        yield client


def post(client: httpx.Client, url: str) -> httpx.Response:
    return client.post("/v1/images/generations", json={"prompt": "x", "async": True, "webhook_url": url})


@pytest.mark.parametrize(("error", "status"), [(None, "completed"), (OutOfDeviceMemory(""), "failed")])
def test_the_receiver_is_told_how_the_job_ended(client, service, receiver, error, status):
    service.error = error
    url, got = receiver
    job = post(client, url).json()
    headers, body = got.get(timeout=PATIENCE)
    event = Webhook(SECRET).verify(body, headers)
    assert (event["type"], event["data"]) == (f"image.job.{status}", {"id": job["id"]})
    assert headers["webhook-id"] == event["id"]
    assert client.get(f"/v1/images/jobs/{job['id']}").json()["status"] == status, "it may be asked for at once"


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://127.0.0.1:1", "http://nowhere.invalid", "hook", "http://"])
def test_a_url_that_cannot_be_called_makes_no_job(client, url):
    refused = post(client, url)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["code"] == "invalid_webhook_url"
    assert refused.json()["error"]["param"] == "webhook_url"


@pytest.mark.parametrize("settings_changes", [{"webhook_secret": SECRET}])
def test_private_addresses_are_not_called(client):
    refused = post(client, "http://127.0.0.1")
    assert refused.json()["error"]["message"] == "The 'webhook_url' must lead to a public address."
