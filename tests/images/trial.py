"""Containers of both images in a network of their own, with nothing but loopback: a gateway, and a stage server for
each stage of the bundled model. Asks them for pictures, and looks at what they hold.

python -m tests.images.trial FOLDER        as ``alone`` runs it
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.images.buildah import Buildah, Failed, image

HOST, PORT = "127.0.0.1", 8000
"""Where the image's own command listens."""
CONTROL = "tcp://127.0.0.1:5600"
KEY = "sk-images"
MODEL = "tiny-shapes"
ROLES = ("encoder", "dit", "decoder")
GATEWAY_SETTINGS = {"DISAGFUSION_API_KEYS": json.dumps({"images": KEY}), "DISAGFUSION_ALLOW_PLAINTEXT": "true"}
USER = 10001

START_SECONDS = 900.0
"""For three processes that import torch, on a machine that may have other things to do."""
STOP_SECONDS = 30.0

NEITHER = {"gateway": ("torch", "diffusers"), "stage": ("fastapi", "uvicorn")}
"""What an image must not hold."""


def alone(folder: Path) -> None:
    """In namespaces for network and processes: ports are free, and no process outlives this. Raises ``Failed``."""
    command = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    ran = subprocess.run([*command, sys.executable, "-m", "tests.images.trial", str(folder)])
    if ran.returncode:
        raise Failed("the trial of the images failed, for the reason above")


def run(buildah: Buildah) -> Iterator[str]:
    """What was seen, line by line. Raises ``Failed``."""
    containers = {target: buildah.container(image(target)) for target in NEITHER}
    for target, container in containers.items():
        yield _looked_at(buildah, target, container)
    entry = {target: buildah.settings(image(target)) for target in NEITHER}
    with ExitStack() as stack:

        def start(name: str, target: str, arguments: Sequence[str], environment: Mapping[str, str]) -> _Running:
            program = [*_words(entry[target], "Entrypoint"), *arguments]
            command = buildah.command(containers[target], program, environment)
            return stack.enter_context(_running(command, buildah.folder / f"{name}.log"))

        running = {"gateway": start("gateway", "gateway", _words(entry["gateway"], "Cmd"), GATEWAY_SETTINGS)}
        began = time.monotonic()
        _await(running, lambda: _answers("/healthz"))
        yield f"gateway: /healthz answers after {time.monotonic() - began:.1f} s"
        yield _health(buildah, containers["gateway"], entry["gateway"])
        began = time.monotonic()
        for role in ROLES:
            arguments = ("--role", role, "--model", MODEL, "--gateway", CONTROL, "--name", role, "--threads", "1")
            running[role] = start(role, "stage", arguments, {})
        _await(running, lambda: _answers("/readyz"))
        yield f"stage: a server each of {', '.join(ROLES)}; /readyz answers 200 {time.monotonic() - began:.1f} s later"
        yield _pictures()
        yield _stopped(running)


def _looked_at(buildah: Buildah, target: str, container: str) -> str:
    user = _output(buildah.command(container, ["id", "-u"], {}))
    if user != str(USER):
        raise Failed(f"the {target} image runs as user {user}, not {USER}")
    code = f"import importlib.util as u; print([n for n in {NEITHER[target]!r} if u.find_spec(n)])"
    found = _output(buildah.command(container, ["python", "-c", code], {}))
    if found != "[]":
        raise Failed(f"the {target} image holds {found}")
    return f"{target}: runs as user {user}, without {' and '.join(NEITHER[target])}"


def _health(buildah: Buildah, container: str, settings: Mapping[str, object]) -> str:
    """The image's own health check."""
    check = settings["Healthcheck"]
    assert isinstance(check, dict)
    kind, *command = check["Test"]
    assert kind == "CMD"
    _output(buildah.command(container, command, {}))
    return "gateway: its HEALTHCHECK passes"


def _pictures() -> str:
    """A named seed gives the same bytes every time, which takes all three servers twice."""
    first, second = (_picture("a large red circle in the center on a white background", 7) for _ in range(2))
    if not first.startswith(b"\x89PNG\r\n\x1a\n"):
        raise Failed(f"no PNG came, but {first[:40]!r}…")
    if first != second:
        raise Failed("two pictures of one seed differ")
    if first == _picture("a large blue triangle on black", 8):
        raise Failed("another prompt gave the same picture")
    return f"three pictures through the containers, the two of one seed alike: PNG, {len(first)} bytes"


def _picture(prompt: str, seed: int) -> bytes:
    body = {"model": MODEL, "prompt": prompt, "seed": seed}
    status, answer = _asked("POST", "/v1/images/generations", json.dumps(body))
    if status != http.HTTPStatus.OK:
        raise Failed(f"a picture was answered with {status}: {answer[:1000]!r}")
    return base64.b64decode(json.loads(answer)["data"][0]["b64_json"])


def _stopped(running: Mapping[str, _Running]) -> str:
    """As ``docker stop`` ends them: SIGTERM to the process itself."""
    began = time.monotonic()
    for process in running.values():
        process.terminate()
    for name, process in running.items():
        try:
            process.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failed(f"{name} goes on {STOP_SECONDS:g} s after SIGTERM:\n{process.said()}") from None
        if process.popen.returncode:
            raise Failed(f"{name} did not end by itself on SIGTERM:\n{process.said()}")
    return f"all ended on SIGTERM within {time.monotonic() - began:.1f} s"


class _Running:
    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.popen = popen
        self._log = log

    def terminate(self) -> None:
        """The container's first process; buildah would kill it if it were asked to end itself."""
        pid = self.popen.pid
        for _ in range(3):  # buildah, its runtime, what enters the container, and then the program
            (pid,) = _children(pid)
        os.kill(pid, signal.SIGTERM)

    def said(self) -> str:
        return self._log.read_text(errors="replace")[-4000:]


@contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[_Running]:
    with log.open("wb") as output:
        popen = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield _Running(popen, log)
    finally:
        popen.kill()
        popen.wait()


def _children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        if parent == pid:
            found.append(int(stat.parent.name))
    return found


def _await(running: Mapping[str, _Running], is_so: Callable[[], bool]) -> None:
    limit = time.monotonic() + START_SECONDS
    while not is_so():
        ended = [name for name, process in running.items() if process.popen.poll() is not None]
        if ended or time.monotonic() > limit:
            why = f"{', '.join(ended)} ended" if ended else f"not ready within {START_SECONDS:g} s"
            told = "\n".join(f"{name}:\n{process.said()}" for name, process in running.items())
            raise Failed(f"the containers did not start: {why}\n{told}")
        time.sleep(0.2)


def _answers(path: str) -> bool:
    try:
        return _asked("GET", path)[0] == http.HTTPStatus.OK
    except OSError:
        return False


def _asked(method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    connection = http.client.HTTPConnection(HOST, PORT, timeout=300)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _output(command: Sequence[str]) -> str:
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise Failed(f"{' '.join(command[-3:])} ended with {ran.returncode}: {ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return ran.stdout.strip()


def _words(settings: Mapping[str, object], name: str) -> list[str]:
    words = settings[name]
    assert isinstance(words, list)
    return words


def main() -> int:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    try:
        for line in run(Buildah(Path(sys.argv[1]))):
            print(line, flush=True)
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
