"""How fast the body of an image response is built: joining bytes against JSON renderers.

python -m benchmarks.response_body [--megabytes 1.5] [--images 1] [--seconds 1]
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import time
from collections.abc import Callable, Sequence

import msgspec
import pybase64
from fastapi.encoders import jsonable_encoder

from gateway.api import answer
from gateway.api.generation import plan
from gateway.api.schema import GenerationBody
from gateway.settings import Settings
from wire.params import ModelInfo

ROUNDS = 3

Build = Callable[[Sequence[bytes]], bytes]


def joined() -> Build:
    """What the gateway does."""
    body = GenerationBody(prompt="x")
    model = ModelInfo(name="m", key="m@1", family="m", dtype="bfloat16")
    generation = plan(body, model, Settings())
    return lambda images: answer.join(answer.b64_items(images), body, generation, created=1)


def fastapi_default(images: Sequence[bytes]) -> bytes:
    """A handler that returns a dict: FastAPI's encoder, then the standard library's JSON."""
    data = [{"b64_json": base64.b64encode(image).decode()} for image in images]
    return json.dumps(jsonable_encoder({"created": 1, "data": data}), ensure_ascii=False).encode()


def stdlib(images: Sequence[bytes]) -> bytes:
    data = [{"b64_json": base64.b64encode(image).decode()} for image in images]
    return json.dumps({"created": 1, "data": data}).encode()


def fast_json(images: Sequence[bytes]) -> bytes:
    data = [{"b64_json": pybase64.b64encode_as_string(image)} for image in images]
    return msgspec.json.encode({"created": 1, "data": data})


def per_second(build: Build, images: Sequence[bytes], seconds: float) -> float:
    """Bodies per second on one core."""
    began = time.perf_counter()
    count = 0
    while (elapsed := time.perf_counter() - began) < seconds:
        build(images)
        count += 1
    return count / elapsed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1.5, help="size of one encoded picture")
    parser.add_argument("--images", type=int, default=1, help="pictures in one response")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each way and round")
    chosen = parser.parse_args(arguments)
    images = [os.urandom(int(chosen.megabytes * 1e6)) for _ in range(chosen.images)]
    ways: dict[str, Build] = {
        "bytes joined, pybase64 (the gateway)": joined(),
        "msgspec JSON, pybase64": fast_json,
        "stdlib json, stdlib base64": stdlib,
        "FastAPI default (dict returned)": fastapi_default,
    }
    print(f"{chosen.images} x {chosen.megabytes} MB per response")
    # The allocator learns from the first rounds: the best of several counts.
    rates = [[per_second(build, images, chosen.seconds) for build in ways.values()] for _ in range(ROUNDS)]
    for name, rate in zip(ways, map(max, *rates), strict=True):
        print(f"{name:40}{rate:10.0f} per second{1000 / rate:10.2f} ms")


if __name__ == "__main__":
    main()
