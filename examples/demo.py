"""``make demo``: a gateway and three stage servers on this machine, one picture through the OpenAI SDK, all gone after.

The picture lands in ``out/demo.png``; the table says how long each stage took, read from the ``server-timing`` header.
"""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":  # what is imported below takes a second or more; Ctrl-C always ends what was started
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))

import base64
import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI

PROMPT = "a large red circle in the center on a white background"
PICTURE = Path("out/demo.png")
ROLES = ("encoder", "dit", "decoder")
LINE_START = "\r\033[K" if sys.stdout.isatty() else ""
"""Writes over the line in which it is said what is waited for."""
START_SECONDS = 300.0
STOP_SECONDS = 15.0


def main() -> None:
    began = time.perf_counter()
    with gateway() as (url, log):
        wait_until_ready(url, log, began)
        print(f"Drawing: {PROMPT}", flush=True)
        timing = make_picture(url)
    print(f"The picture is in {PICTURE.resolve()}\n")
    print_stages(timing)


@contextmanager
def gateway() -> Iterator[tuple[str, Path]]:
    """A gateway with its stage servers, as ``python -m gateway --local``; its url and its log."""
    PICTURE.parent.mkdir(exist_ok=True)
    log = PICTURE.with_name("demo.log")
    command = [sys.executable, "-m", "gateway", "--local", "--port", "0", "--log-level", "info"]
    print(f"Starting a gateway and a stage server for each of {', '.join(ROLES)}; their log is {log}", flush=True)
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603 # our own program
    try:
        yield find_url(process, log), log
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def find_url(process: subprocess.Popen[bytes], log: Path) -> str:
    """Port 0 lets the system choose; the log says what it chose."""
    for _ in waiting():
        found = re.search(r"listening at (http://[^;]+);", log.read_text())
        if found:
            return found[1]
        if process.poll() is not None:
            break
    sys.exit(f"the gateway did not start:\n{log.read_text()}")


def wait_until_ready(url: str, log: Path, began: float) -> None:
    """Say of each stage when its weights are loaded, and at a terminal what is still waited for."""
    print(f"  {'gateway':<8} at {url}", flush=True)
    loaded: set[str] = set()
    for _ in waiting():
        held = held_roles(url)
        seconds = time.perf_counter() - began
        for role in ROLES:
            if role in held - loaded:
                print(f"{LINE_START}  {role:<8} ready after {seconds:.1f} s", flush=True)
        loaded |= held
        if loaded >= set(ROLES):
            return
        if sys.stdout.isatty():
            print(
                f"{LINE_START}  loading {', '.join(role for role in ROLES if role not in loaded)}: {seconds:.0f} s",
                end="",
                flush=True,
            )
    sys.exit(f"\nnot ready within {START_SECONDS:g} s:\n{log.read_text()}")


def held_roles(url: str) -> set[str]:
    """Roles that a live stage server holds, as the gateway sees it."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:  # noqa: S310 # our own http server
            status = json.load(answer)
    except urllib.error.HTTPError as error:  # 503: not every stage is here yet
        status = json.load(error)
    return {role for model in status["models"].values() for role, servers in model["roles"].items() if servers}


def waiting() -> Iterator[None]:
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit:
        yield
        time.sleep(0.3)


def make_picture(url: str) -> str:
    """The ``server-timing`` header of the answer; the picture goes to ``PICTURE``."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    answer = client.images.with_raw_response.generate(
        model="tiny-shapes", prompt=PROMPT, size="256x256", extra_body={"seed": 7}
    )
    data = answer.parse().data or []
    PICTURE.write_bytes(base64.b64decode(data[0].b64_json or ""))
    return answer.headers["server-timing"]


def print_stages(timing: str) -> None:
    phases = ("queue", "fetch", "compute", "publish")
    found = {(stage, phase): float(ms) for stage, phase, ms in re.findall(r"([\w.]+)\.(\w+);dur=([\d.]+)", timing)}
    print(f"{'milliseconds':<14}" + "".join(f"{phase:>10}" for phase in phases))
    for stage in dict.fromkeys(stage for stage, _ in found):
        print(f"{stage:<14}" + "".join(f"{found.get((stage, phase), 0.0):>10.1f}" for phase in phases))


if __name__ == "__main__":
    main()
