"""Where the file of an adapter is. Only safetensors are read: nothing is ever unpickled."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from stage_server.engine.base import LoadError
from wire.params import MAX_ADAPTERS_OFFERED, AdapterName

USUAL_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""As diffusers and peft write them; of several files in one place these are meant."""

_HUB = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<file>[\w./ -]+))?")
_FORM = "write NAME=FILE.safetensors, NAME=FOLDER or NAME=ORG/REPOSITORY[@REVISION][:FILE.safetensors]"


def named_sources(given: Iterable[str], folder: str) -> dict[str, str]:
    """Name → source, from ``--adapter`` options and all that lies in ``--adapters-folder``. Raises ``LoadError``."""
    sources: dict[str, str] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not equals or not source:
            raise LoadError(f"--adapter {text!r}: {_FORM}")
        _add(sources, name, source)
    for path in _in_folder(Path(folder).expanduser()) if folder else ():
        _add(sources, path.stem if path.is_file() else path.name, str(path))
    if len(sources) > MAX_ADAPTERS_OFFERED:
        raise LoadError(f"{len(sources)} adapters are given; a server allows {MAX_ADAPTERS_OFFERED} at most")
    return sources


def locate(source: str, *, local_files_only: bool = False) -> Path:
    """The file meant by ``source``; one on the hub is downloaded. Raises ``LoadError``."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path / _choose([file.name for file in sorted(path.iterdir()) if file.is_file()], source)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise LoadError(f"{path} is no .safetensors file; other formats can run code when they are read")
        return path
    found = _HUB.fullmatch(source)
    if found is None or source.startswith((".", "/", "~")):
        raise LoadError(f"no adapter at {source!r}: neither a file, a folder, nor a hub id; {_FORM}")
    return _from_hub(found["repo"], found["revision"], found["file"], local_files_only or is_offline_mode())


def _from_hub(repo: str, revision: str | None, file: str | None, offline: bool) -> Path:
    if file is not None and not file.endswith(".safetensors"):
        raise LoadError(f"{file} of {repo} is no .safetensors file; other formats can run code when they are read")
    try:
        if file is None and not offline:
            top = [name for name in HfApi().list_repo_files(repo, revision=revision) if "/" not in name]
            file = _choose(top, repo)
        for name in USUAL_NAMES if file is None else (file,):
            try:
                return Path(hf_hub_download(repo, name, revision=revision, local_files_only=offline))
            except (EntryNotFoundError, LocalEntryNotFoundError):
                if name == file:
                    raise
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise LoadError(f"the adapter {repo} (revision {revision or 'main'}) cannot be fetched: {error}") from error
    raise LoadError(f"neither {' nor '.join(USUAL_NAMES)} of {repo} is in the cache, and the hub is not to be asked")


def _choose(names: Sequence[str], where: str) -> str:
    usual = [name for name in USUAL_NAMES if name in names]
    files = usual[:1] or [name for name in names if name.endswith(".safetensors")]
    if len(files) != 1:
        what = f"has {', '.join(files)}: name the one that is meant" if files else "has no .safetensors file"
        raise LoadError(f"the adapter {where} {what}")
    return files[0]


def _in_folder(folder: Path) -> list[Path]:
    """Each file, and each folder with a file: an adapter by that name."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise LoadError(f"--adapters-folder {folder} cannot be read: {error.strerror or error}") from error
    return [each for each in entries if each.is_dir() or each.suffix == ".safetensors"]


def _add(sources: dict[str, str], name: str, source: str) -> None:
    try:
        msgspec.convert(name, AdapterName)
    except msgspec.ValidationError as error:
        raise LoadError(
            f"adapter {name!r}: a name has up to 100 letters, digits, dots, dashes and underscores, and begins with a "
            "letter or digit"
        ) from error
    if name in sources:
        raise LoadError(f"two adapters are named {name}: {sources[name]} and {source}")
    sources[name] = source
