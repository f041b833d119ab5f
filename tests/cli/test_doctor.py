"""Faults are planted one by one; each is found by name, with its cure, and nothing else is found beside it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from socketserver import BaseRequestHandler, TCPServer, ThreadingTCPServer
from types import SimpleNamespace

import pytest

from cli import __main__ as cli
from cli.doctor import machine
from cli.doctor.finding import Finding, Verdict, fault

Plant = Callable[[pytest.MonkeyPatch, Path], list[str]]
"""Makes one fault. Returns the arguments of the command."""


@pytest.fixture(autouse=True)
def _sound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a fault."""
    for variable in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "http_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DISAGFUSION_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("DISAGFUSION_STORAGE_MAX_BYTES", str(64 << 20))
    monkeypatch.setenv("DISAGFUSION_PORT", "0")
    monkeypatch.setenv("DISAGFUSION_CONTROL_BIND", "tcp://127.0.0.1:*")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    monkeypatch.setattr(machine, "import_module", lambda _: _torch(None))


def _torch(cuda: str | None) -> SimpleNamespace:
    working = SimpleNamespace(is_available=lambda: False)
    return SimpleNamespace(cuda=working, version=SimpleNamespace(cuda=cuda), __version__="2.8.0")


def an_old_package(patch: pytest.MonkeyPatch, _: Path) -> list[str]:
    real = metadata.version
    patch.setattr(machine.metadata, "version", lambda name: "0.20.1" if name == "msgspec" else real(name))
    return []


def a_torch_without_cuda(patch: pytest.MonkeyPatch, _: Path) -> list[str]:
    patch.setattr(machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    return []


def a_model_folder_without_index(_: pytest.MonkeyPatch, folder: Path) -> list[str]:
    return ["--model", str(folder)]


def a_model_that_may_not_be_fetched(patch: pytest.MonkeyPatch, _: Path) -> list[str]:
    patch.setenv("HF_HUB_OFFLINE", "1")
    return ["--model", "Tongyi-MAI/Z-Image-Turbo"]


def a_setting_out_of_range(patch: pytest.MonkeyPatch, _: Path) -> list[str]:
    patch.setenv("DISAGFUSION_MAX_N", "11")
    return []


def a_slip_in_a_variable(patch: pytest.MonkeyPatch, _: Path) -> list[str]:
    patch.setenv("DISAGFUSION_ADMIN_KY", "an-operators-long-key")
    return []


def a_file_that_others_can_read(_: pytest.MonkeyPatch, folder: Path) -> list[str]:
    (folder / "open.toml").write_text('admin_key = "an-operators-long-key"\n')
    (folder / "open.toml").chmod(0o644)
    return ["--config", str(folder / "open.toml")]


def sockets_without_encryption(patch: pytest.MonkeyPatch, _: Path) -> list[str]:
    patch.setenv("DISAGFUSION_CONTROL_BIND", "tcp://0.0.0.0:*")
    return []


def a_full_disk(patch: pytest.MonkeyPatch, _: Path) -> list[str]:
    patch.setenv("DISAGFUSION_STORAGE_MAX_BYTES", str(1 << 60))
    return []


def a_file_where_the_state_should_be(patch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    (folder / "state").write_text("")
    return []


def a_profile_that_is_not_there(patch: pytest.MonkeyPatch, _: Path) -> list[str]:
    patch.setenv("DISAGFUSION_PROFILES", '["nowhere.toml"]')
    return []


FAULTS: list[tuple[Plant, str, str]] = [
    (an_old_package, "msgspec is 0.20.1, but >=0.22 is needed", 'pip install "msgspec>=0.22"'),
    (a_torch_without_cuda, "torch 2.8.0 cannot use a GPU: it is built without CUDA", "install the build of torch"),
    (a_model_folder_without_index, "the folder has no model_index.json", "save_pretrained"),
    (a_model_that_may_not_be_fetched, "HF_HUB_OFFLINE forbids to fetch it", "unset HF_HUB_OFFLINE"),
    (a_setting_out_of_range, "DISAGFUSION_MAX_N: Input should be less than or equal to 10", "disagfusion config"),
    (a_slip_in_a_variable, "did you mean DISAGFUSION_ADMIN_KEY?", "correct or unset it"),
    (a_file_that_others_can_read, "open.toml can be read by other users", "chmod 600"),
    (sockets_without_encryption, "tcp://0.0.0.0:* can be reached", "set the CURVE keys"),
    (a_full_disk, "GB free, and files may take", "make room"),
    (a_file_where_the_state_should_be, "state cannot be written", "set DISAGFUSION_STATE_DIR"),
    (a_profile_that_is_not_there, "profile nowhere.toml is no file", "correct DISAGFUSION_PROFILES"),
]


def diagnose(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    """The exit status; each fault with its cure."""
    status = cli.main(["doctor", *arguments])
    lines = capsys.readouterr().out.splitlines()
    return status, [f"{line} {lines[at + 1]}" for at, line in enumerate(lines) if line.startswith(Verdict.FAULT)]


def the_only(found: tuple[int, list[str]], what: str, cure: str) -> None:
    status, faults = found
    assert status == 2
    assert len(faults) == 1, faults
    assert what in faults[0].partition(" → ")[0]
    assert cure in faults[0].partition(" → ")[2]


def test_a_sound_machine_has_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(capsys, "--model", "tiny-shapes") == (0, [])


@pytest.mark.parametrize(("plant", "what", "cure"), FAULTS, ids=lambda given: getattr(given, "__name__", ""))
def test_a_planted_fault_is_found_with_its_cure(
    plant: Plant,
    what: str,
    cure: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = plant(monkeypatch, tmp_path)
    the_only(diagnose(capsys, *arguments), what, cure)


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("DISAGFUSION_CONTROL_BIND", f"tcp://127.0.0.1:{port}")
        the_only(diagnose(capsys), f"control: cannot listen at 127.0.0.1:{port}", "another --control-bind")


def test_a_gateway_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    found = diagnose(capsys, "--url", f"http://127.0.0.1:{port}/v1")
    the_only(found, f"no gateway answers at http://127.0.0.1:{port}: ", "disagfusion serve")


def test_something_that_speaks_no_http(capsys: pytest.CaptureFixture[str]) -> None:
    class Greeting(BaseRequestHandler):
        def handle(self) -> None:  # as a ZeroMQ socket greets
            self.request.sendall(b"\xff\0\0\0\0\0\0\0\x01\x7f\n")

    with serving(ThreadingTCPServer(("127.0.0.1", 0), Greeting)) as port:
        the_only(diagnose(capsys, "--url", f"http://127.0.0.1:{port}"), "speaks no HTTP", "correct --url")


def test_a_gateway_without_stage_servers(capsys: pytest.CaptureFixture[str]) -> None:
    with answering({"/readyz": 503, "/v1/models": 200}) as url:
        the_only(diagnose(capsys, "--url", url), "has no stage server for every role", "disagfusion stage")


def test_a_key_that_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-old")
    with answering({"/readyz": 200, "/v1/models": 401}) as url:
        the_only(diagnose(capsys, "--url", url), "refuses the key in OPENAI_API_KEY", "disagfusion keys create")


def test_a_gateway_that_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    with answering({"/readyz": 200, "/v1/models": 200}) as url:
        assert diagnose(capsys, "--url", url) == (0, [])


def test_a_fault_without_a_cure_cannot_be_said() -> None:
    with pytest.raises(ValueError, match="needs its cure"):
        fault("it hurts", "")
    assert Finding(Verdict.NOTE, "it is fine").cure == ""


@contextmanager
def answering(statuses: dict[str, int]) -> Iterator[str]:
    """The url of a server that answers each path as told."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses[self.path])
            self.end_headers()
            self.wfile.write(json.dumps({"models": {}}).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the base class's name
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def serving(server: TCPServer) -> Iterator[int]:
    """Its port."""
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
