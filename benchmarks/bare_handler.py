"""What any service in Python pays for a request: FastAPI on uvicorn, a handler that takes the body as the same pydantic
model as ours, and answers bytes that it has.

python -m benchmarks.bare_handler PORT FILE [--encode]

With ``--encode`` the file is a picture, which goes out as ``b64_json``, encoded for every request.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pybase64
import uvicorn
from fastapi import FastAPI
from starlette.responses import Response

from gateway.api.schema import GenerationBody

PATH = "/v1/images/generations"


def app(answer: bytes | Callable[[], bytes]) -> FastAPI:
    made = FastAPI()

    @made.post(PATH)
    async def handler(body: GenerationBody) -> Response:  # noqa: ARG001 # it is read and checked, as ours is
        return Response(answer() if callable(answer) else answer, media_type="application/json")

    @made.get("/healthz")
    async def health() -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("file", type=Path)
    parser.add_argument("--encode", action="store_true")
    chosen = parser.parse_args()
    content = chosen.file.read_bytes()

    def encoded() -> bytes:
        return b"".join((b'{"created":1,"data":[{"b64_json":"', pybase64.b64encode(content), b'"}]}'))

    made = app(encoded if chosen.encode else content)
    uvicorn.run(made, port=chosen.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
