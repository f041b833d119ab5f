"""What weight files say about themselves: whether they are whole, and how large their tensors are.

Only the headers of safetensors files are read, on disk or on the hub by range requests.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stage_server.engine.base import LoadError

_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_OTHERS = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_BYTES: Mapping[str, int] = _FLOATS | _OTHERS
"""Per element; of dtypes that are not here the size is taken on trust."""

_LONGEST_HEADER = 100_000_000
"""Bytes, as the format has it: a larger number is no length but the beginning of some other file."""
_LFS_POINTER = b"version https://git-lfs"


class DamagedFile(LoadError):
    """A file of a model is not what it should be. The text names it, what is wrong with it and what helps."""

    def __init__(self, path: Path, wrong: str) -> None:
        """``wrong`` goes on from the file's name: "is empty", say."""
        cure, target = "download it again", path.resolve()
        if target.parent.name == "blobs":  # the hub's cache, where a deleted link would be made anew to the same bytes
            cure = f"delete {target} and start again to {cure}, or take another --revision"
        super().__init__(f"{path} {wrong}; {cure}")
        self.wrong = wrong


def check_file(path: Path) -> None:
    """Raises ``DamagedFile`` if a weight file cannot be whole."""
    start, size = _beginning(path)
    if path.suffix == ".safetensors":
        read_header(path)
    elif start.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise DamagedFile(path, f"is cut short at {size} bytes: the directory at its end is missing")


def read_header(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """Tensor → ``dtype``, ``shape`` and ``data_offsets`` of a safetensors file. Raises ``DamagedFile``."""
    start, size = _beginning(path)
    length = int.from_bytes(start[:8], "little")
    if size < 8 or length > _LONGEST_HEADER:
        raise DamagedFile(path, f"is no safetensors file: it begins with {start[:16]!r}")
    if size < 8 + length:
        raise DamagedFile(path, f"is cut short inside its header: that takes {8 + length} bytes, {size} are there")
    try:
        with path.open("rb") as file:
            file.seek(8)
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = _end_of_data(header)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(path, f"has a header that does not describe tensors ({error})") from error
    if size != 8 + length + end:
        wrong = "is cut short" if size < 8 + length + end else "has bytes too many"
        raise DamagedFile(path, f"{wrong}: its header describes {8 + length + end} bytes, {size} are there")
    return dict(header)


def element_counts(path: Path) -> dict[str, int]:
    """Elements per stored dtype (safetensors names) of one file. Raises ``DamagedFile``."""
    counts: Counter[str] = Counter()
    for tensor in read_header(path).values():
        counts[tensor["dtype"]] += math.prod(tensor["shape"])
    return dict(counts)


def loaded_bytes(counts: Mapping[str, int], itemsize: int) -> int:
    """Bytes in memory when floats are loaded with ``itemsize`` bytes each and the rest as stored."""
    return sum(n * (itemsize if dtype in _FLOATS else _OTHERS.get(dtype, itemsize)) for dtype, n in counts.items())


def read_json(path: Path) -> dict[str, Any]:
    """A configuration. Raises ``DamagedFile``."""
    _beginning(path)
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DamagedFile(path, f"is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise DamagedFile(path, f"is not readable JSON of the right form: a {type(content).__name__}, not an object")
    return content


def _beginning(path: Path) -> tuple[bytes, int]:
    """The first bytes, and how many there are in all."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as error:
        raise unreadable(path, error) from error
    if not size:
        raise DamagedFile(path, "is empty")
    if start.startswith(_LFS_POINTER):
        raise DamagedFile(
            path, f"is a Git LFS pointer of {size} bytes, not the file that it stands for, which git lfs pull fetches"
        )
    return start, size


def unreadable(path: Path, error: OSError) -> LoadError:
    reason = error.strerror or str(error)
    return LoadError(f"{path} cannot be read by the user with the id {os.geteuid()}: {reason}")


def _end_of_data(header: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes of data that the header describes. Raises ``ValueError`` where tensors overlap or leave a gap."""
    end = 0
    for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, until = tensor["data_offsets"]
        nbytes = _BYTES.get(tensor["dtype"], 0) * math.prod(tensor["shape"])
        if begin != end or (nbytes and until - begin != nbytes):
            raise ValueError(f"{name} lies at {begin} to {until}, and should at {end} to {end + nbytes}")
        end = until
    return end
