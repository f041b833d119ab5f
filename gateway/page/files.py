"""The page's files, read once at start; the address of each changes with what they hold, so browsers may keep them."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
INDEX = "index.html"
DIGEST_MARK = b"@digest@"
"""In the index: stands for the digest of all files, which is part of their addresses."""

_INLINE_SCRIPT = re.compile(rb"<script type=\"importmap\">(.*?)</script>", re.DOTALL)
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
"""Named here, since those of ``mimetypes`` depend on the machine."""


@dataclass(frozen=True, slots=True)
class PageFile:
    body: bytes
    media_type: str
    etag: str
    """Quoted, as in the header."""


@dataclass(frozen=True, slots=True)
class Page:
    index: PageFile
    files: Mapping[str, PageFile]
    """By path below ``assets/``, without the index."""
    digest: str
    """Of all files together."""
    policy: str
    """``Content-Security-Policy`` of the index."""


def load_page(folder: Path = ASSETS) -> Page:
    """Raises ``OSError`` where the files are missing from the installation."""
    bodies = {path.relative_to(folder).as_posix(): path.read_bytes() for path in _found(folder)}
    template = bodies.pop(INDEX)
    summary = hashlib.sha256()
    for name, body in sorted((bodies | {INDEX: template}).items()):
        summary.update(b"%b\0%d\0%b" % (name.encode(), len(body), body))
    digest = summary.hexdigest()[:16]
    index = template.replace(DIGEST_MARK, digest.encode())
    files = {name: _file(name, body) for name, body in bodies.items()}
    return Page(_file(INDEX, index), files, digest, content_security_policy(index))


def content_security_policy(index: bytes) -> str:
    """Everything from this server alone. Of scripts in the page itself only its import map runs, known by its hash: an
    import map cannot be a file of its own.
    """
    hashes = [f"'sha256-{_base64_sha256(script)}'" for script in _INLINE_SCRIPT.findall(index)]
    return "; ".join(
        (
            "default-src 'none'",
            " ".join(("script-src 'self'", *hashes)),
            "style-src 'self'",
            "img-src 'self' blob: data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _found(folder: Path) -> Iterator[Path]:
    """Licences and lists, which no page loads, are not served."""
    return (path for path in folder.rglob("*") if path.suffix in _TYPES)


def _file(name: str, body: bytes) -> PageFile:
    media_type = _TYPES[Path(name).suffix] + "; charset=utf-8"
    return PageFile(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def _base64_sha256(script: bytes) -> str:
    return base64.b64encode(hashlib.sha256(script).digest()).decode()
