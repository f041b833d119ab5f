"""Storage by a clock that tests turn, in memory, in a folder, and in a real S3 server."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from gateway.settings import Settings
from gateway.storage.objects import Objects, in_memory, open_store
from gateway.storage.storage import Storage


class Clock:
    def __init__(self) -> None:
        self.now = 1_764_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of a server with a protocol of its own, on a port of its own; ended with the session."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
    assert threading.active_count() < 100


@pytest.fixture
def s3_url(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of this test's own, with the standard variables set as an operator would."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid.uuid4().hex}"
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/prefix"


@pytest.fixture(params=["memory", "folder", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path) -> Objects:
    match request.param:
        case "memory":
            return in_memory()
        case "folder":
            return open_store(None, tmp_path / "files")
        case _:
            return open_store(request.getfixturevalue("s3_url"), tmp_path)


Open = Callable[..., Storage]


@pytest.fixture
def reopen(objects: Objects, clock: Clock) -> Open:
    """What a gateway's process finds that starts now."""

    def open_storage(**settings: object) -> Storage:
        return Storage(Settings().model_copy(update=settings), objects, clock=clock)

    return open_storage
