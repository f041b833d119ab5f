"""Models beside the diffusion model, as transformers publishes them: where they lie, and whether they are whole."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from stage_server.engine.base import LoadError
from stage_server.engine.weights import check_file

_HUB = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_DIGEST_CHARACTERS = 16
_CHUNK = 1 << 20


def located(source: str, what: str, files: Sequence[str], *, local_files_only: bool = False) -> Path:
    """The folder; of what is on the hub ``files`` are downloaded. ``what`` names the option. Raises ``LoadError``."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    found = _HUB.fullmatch(source)
    if found is None or source.startswith((".", "/", "~")):
        raise LoadError(
            f"no {what} at {source!r}: neither a folder nor a hub id; write --{what} FOLDER or "
            f"--{what} ORG/REPOSITORY[@REVISION]"
        )
    offline = local_files_only or is_offline_mode()
    try:
        return Path(
            snapshot_download(
                found["repo"], revision=found["revision"], allow_patterns=list(files), local_files_only=offline
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise LoadError(f"the {what} {source} cannot be fetched: {error}") from error


def weights_of(folder: Path) -> list[Path]:
    """Its files of weights, which are whole. Raises ``LoadError``."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise LoadError(f"{folder} has no .safetensors file; other formats can run code when they are read")
    for file in weights:
        check_file(file)
    return weights


def check_all_found(about: Mapping[str, Any], what: str) -> None:
    """``about``: what ``from_pretrained`` says of loading. Raises ``LoadError`` where weights would be random."""
    if missing := sorted(about["missing_keys"]):
        raise LoadError(
            f"{what} lacks {len(missing)} of its weights, such as {missing[0]}: they would be random; download it again"
        )


def name_of(source: str, fallback: str) -> str:
    """For people."""
    return source.rstrip("/").rpartition("/")[2].partition("@")[0][:100] or fallback


def digest_of(files: Iterable[Path], *words: str) -> str:
    """Of these files, as far as they exist, and of ``words``."""
    digest = hashlib.sha256()
    for path in files:
        if path.is_file():
            digest.update(path.name.encode() + b"\0")
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
    for word in words:
        digest.update(word.encode() + b"\0")
    return digest.hexdigest()[:_DIGEST_CHARACTERS]
