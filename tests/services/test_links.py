"""Links that lead from a public address to a private one: in a network namespace that has a public address of its own.

The namespace has nothing but loopback, on which ``PUBLIC`` lies as well, so no packet leaves it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.needed import needs

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "tests/integration/slow.toml"
PUBLIC = "93.184.215.14"

pytestmark = [
    pytest.mark.services,
    needs("iproute2"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.xdist_group("network"),
]

CONVERSATION = f"""
import io, json, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import httpx
from PIL import Image

picture = io.BytesIO()
Image.new("RGB", (64, 64)).save(picture, "PNG")
visits = []

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        address = self.connection.getsockname()[0]
        visits.append(address + self.path)
        to = {{"/private": "http://127.0.0.1/", "/metadata": "http://169.254.169.254/", "/file": "file:///etc/passwd"}}
        self.send_response(302 if self.path in to else 200)
        self.send_header("location", to.get(self.path, "/"))
        self.end_headers()
        self.wfile.write(picture.getvalue())

server = ThreadingHTTPServer(("0.0.0.0", 80), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
limit = time.monotonic() + 60
while time.monotonic() < limit:
    try:
        if httpx.get("http://127.0.0.1:8000/readyz").status_code == 200:
            break
    except httpx.TransportError:
        pass
    time.sleep(0.1)
told = {{}}
for path in ("picture", "private", "metadata", "file"):
    body = {{"prompt": "x", "images": [{{"image_url": "http://{PUBLIC}/" + path}}], "size": "64x64", "strength": 1.0}}
    answer = httpx.post("http://127.0.0.1:8000/v1/images/edits", json=body, timeout=60)
    told[path] = [answer.status_code, answer.json().get("error", {{}}).get("code")]
print(json.dumps({{"told": told, "visits": visits}}))
"""

Run = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Run]:
    """Runs Python in the namespace."""
    space = f"links{os.getpid()}"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DISAGFUSION_")}
    environment = clean | {"DISAGFUSION_STATE_DIR": str(tmp_path / "state")}
    subprocess.run(["ip", "netns", "add", space], check=True)
    started: list[subprocess.Popen[bytes]] = []

    def run(*arguments: str) -> subprocess.Popen[bytes]:
        command = ["ip", "netns", "exec", space, sys.executable, *arguments]
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE))
        return started[-1]

    try:
        subprocess.run(["ip", "-n", space, "link", "set", "lo", "up"], check=True)
        subprocess.run(["ip", "-n", space, "addr", "add", f"{PUBLIC}/32", "dev", "lo"], check=True)
        yield run
    finally:
        for process in reversed(started):
            process.terminate()
            process.communicate(timeout=30)
        subprocess.run(["ip", "netns", "del", space], check=True)


def test_t48_redirects_to_private_addresses_are_not_followed(inside: Run) -> None:
    inside("-m", "gateway")
    emulated = ("--engine", "emulated", "--profile", str(PROFILE), "--time-scale", "0.01")
    inside("-m", "stage_server", *emulated, "--role", "encoder,dit,decoder", "--gateway", "tcp://127.0.0.1:5600")
    heard, _ = inside("-c", CONVERSATION).communicate(timeout=120)
    found = json.loads(heard)
    refused = [400, "invalid_image_url"]
    assert found["told"] == {"picture": [200, None], "private": refused, "metadata": refused, "file": refused}
    assert found["visits"] == [f"{PUBLIC}/{path}" for path in ("picture", "private", "metadata", "file")]
