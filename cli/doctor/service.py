"""The gateway's settings, ports, keys and disk, and whether a gateway answers."""

from __future__ import annotations

import ipaddress
import json
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from http.client import BadStatusLine, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from cli.doctor.finding import Finding, fault, note, ok

if TYPE_CHECKING:
    from gateway.settings import Settings

TIMEOUT_SECONDS = 5.0


def settings_of(config: str | None) -> tuple[Settings | None, list[Finding]]:
    """The gateway's settings, if they can be used."""
    from gateway import given_settings as given  # their package, only where this command is called
    from gateway.settings import InvalidSettings

    try:
        settings = given.load_settings(config)
        settings.state_folder()  # raises where there is neither a setting nor a home
    except InvalidSettings as error:
        cure = "correct it; 'disagfusion config --changed' shows what is set, docs/operating.md what it means"
        return None, [fault(line, cure) for line in str(error).splitlines()]
    said = [fault(line, "correct or unset it") for line in given.ignored_variables()]
    file = given.config_file(config)
    if file is not None and stat.S_IMODE(file.stat().st_mode) & 0o044:
        said.append(fault(f"{file} can be read by other users and may hold secrets", f"chmod 600 {file}"))
    return settings, said or [ok("settings of the gateway")]


def ports(settings: Settings) -> Iterator[Finding]:
    """Whether the gateway could listen where it should."""
    yield _port("HTTP", settings.host, settings.port, "--port")
    for what, address, option in (
        ("control", settings.control_bind, "--control-bind"),
        ("data", settings.data_bind, "--data-bind"),
    ):
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        if port != "*":
            yield _port(what, "0.0.0.0" if host == "*" else host, int(port), option)  # noqa: S104 # as the gateway would


def _port(what: str, host: str, port: int, option: str) -> Finding:
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    try:
        socket.create_server((bare, port), family=family).close()
    except OSError as error:
        cure = f"stop what listens there (ss -ltnp), unless it is the gateway itself, or choose another {option}"
        return fault(f"{what}: cannot listen at {host}:{port}: {error.strerror}", cure)
    return ok(f"{what} port {host}:{port} is free")


def keys(settings: Settings) -> Iterator[Finding]:
    """Whether strangers could call, or listen."""
    if not settings.anonymous and not settings.api_keys:
        yield note(
            f"host {settings.host} can be reached from other machines, and no key is among the settings",
            "disagfusion keys create --tenant NAME, unless 'disagfusion keys list' shows one",
        )
    addresses = (settings.control_bind, settings.data_bind)
    beyond = [address for address in addresses if not _loopback(address)]
    if beyond and settings.curve_keys() is None and not settings.allow_plaintext:
        yield fault(
            f"{beyond[0]} can be reached from other machines without encryption: the gateway will not start",
            "set the CURVE keys (docs/operating.md#encryption), or --allow-plaintext on a private network",
        )
    if settings.admin_key is None:
        yield note(
            "no admin key: neither /admin nor the page's pipeline", "set DISAGFUSION_ADMIN_KEY to 16 or more letters"
        )


def _loopback(address: str) -> bool:
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def disk(settings: Settings) -> Iterator[Finding]:
    """Whether the state folder can be written and what it may hold has room; and whether the profiles are there."""
    folder = settings.state_folder()
    nearest = next(path for path in (folder, *folder.parents) if _is_there(path))
    if not nearest.is_dir() or not _writable(nearest):
        yield fault(
            f"{folder} cannot be written",
            f"give it to this user, or set DISAGFUSION_STATE_DIR ({nearest} is in the way)",
        )
    else:
        free, wanted = shutil.disk_usage(nearest).free, settings.storage_max_bytes
        if settings.file_store is None and free < wanted:
            cure = f"make room, move DISAGFUSION_STATE_DIR, or set DISAGFUSION_STORAGE_MAX_BYTES below {free}"
            yield fault(f"{nearest} has {free / 1e9:.1f} GB free, and files may take {wanted / 1e9:.1f} GB", cure)
        else:
            yield ok(f"{folder}: {free / 1e9:.1f} GB free")
    for path in settings.profiles:
        if not path.is_file():
            yield fault(f"profile {path} is no file", "correct DISAGFUSION_PROFILES; 'disagfusion profile' makes one")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder above it lets nobody look
        return False


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def gateway(url: str, key: str) -> Iterator[Finding]:
    """Whether a gateway answers at ``url``, takes ``key`` and has stage servers."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        yield fault(f"{url} is no address", "write http://HOST:PORT, as --url or in OPENAI_BASE_URL")
        return
    root = f"{parts.scheme}://{parts.netloc}"
    try:
        status, body = _get(f"{root}/readyz", "")
        with_key, _ = _get(f"{root}/v1/models", key)
    except (URLError, HTTPException, OSError, ValueError) as error:
        # What came instead of HTTP is not for a terminal.
        reason = (
            "what listens there speaks no HTTP" if type(error) is BadStatusLine else getattr(error, "reason", error)
        )
        cure = "start it (disagfusion serve), or correct --url or OPENAI_BASE_URL; a firewall may be between"
        yield fault(f"no gateway answers at {root}: {reason}", cure)
        return
    if status == 503:
        yield fault(f"the gateway at {root} has no stage server for every role of a model{_missing(body)}", _START)
    elif status != 200:
        yield fault(f"{root}/readyz answers {status}: that is no gateway of ours", "correct --url or OPENAI_BASE_URL")
        return
    else:
        yield ok(f"the gateway at {root} is ready")
    if with_key in (401, 403):
        cure = "set OPENAI_API_KEY to a key that 'disagfusion keys create' made, and that was not revoked"
        yield fault(f"the gateway refuses {'the key in OPENAI_API_KEY' if key else 'callers without a key'}", cure)


_START = (
    "disagfusion stage --role encoder,dit,decoder --model NAME --gateway tcp://HOST:5600; its log says why it cannot"
)


def _missing(body: bytes) -> str:
    try:
        held = json.loads(body)["models"]
    except (ValueError, KeyError, TypeError):
        return ""
    return f" ({json.dumps(held)})" if held else " (none has come)"


def _get(url: str, key: str) -> tuple[int, bytes]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with urlopen(Request(url, headers=headers), timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 # http(s), checked
            return answer.status, answer.read(1 << 20)
    except HTTPError as error:
        return error.code, error.read(1 << 20)
