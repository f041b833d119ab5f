"""Packages, GPU and models of this machine."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module, metadata
from pathlib import Path

from cli.doctor.finding import Finding, fault, note, ok

BUNDLED = "tiny-shapes"
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^]]*\])?(>=|==)([\d.]+)(?:.*extra == \"([\w-]+)\")?")
EXTRAS = ("gateway", "stage", "clients")


def packages() -> Iterator[Finding]:
    """Of each extra, whether it is complete, and whether what is installed is as new as we need it."""
    absent: dict[str, list[str]] = {extra: [] for extra in EXTRAS}
    old = False
    for requirement in metadata.requires("disagfusion") or ():
        found = _REQUIREMENT.match(requirement)
        if found is None or (found[4] or "gateway") not in EXTRAS or "platform" in requirement:
            continue
        name, relation, wanted, extra = found.groups()
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            if extra is None:
                yield fault(f"{name} is not installed", "pip install disagfusion")
            else:
                absent[extra].append(name)
            continue
        if _numbers(version) < _numbers(wanted) or (relation == "==" and _numbers(version) != _numbers(wanted)):
            old = True
            yield fault(
                f"{name} is {version}, but {relation}{wanted} is needed", f'pip install "{name}{relation}{wanted}"'
            )
    for extra, names in absent.items():
        if names:
            yield note(f"not complete here: {extra} (no {', '.join(names)})", f'pip install "disagfusion[{extra}]"')
        elif not old:
            yield ok(f"packages for {extra}")


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))


def gpu() -> Iterator[Finding]:
    """Whether torch can use the GPU that the driver has."""
    driver = shutil.which("nvidia-smi") is not None
    try:
        torch = import_module("torch")
    except ImportError as error:
        yield note(f"torch cannot be imported ({error}): no stage server here", 'pip install "disagfusion[stage]"')
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            yield ok(f"GPU cuda:{index}, {torch.cuda.get_device_name(index)}: {_gb(free)} of {_gb(total)} free")
    elif driver:
        why = "is built without CUDA" if torch.version.cuda is None else f"is built for CUDA {torch.version.cuda}"
        yield fault(
            f"there is an NVIDIA driver, but torch {torch.__version__} cannot use a GPU: it {why}",
            "install the build of torch that pytorch.org names for the driver (nvidia-smi shows its CUDA version), "
            "and look at CUDA_VISIBLE_DEVICES",
        )
    else:
        yield note("no GPU: stage servers compute on the processor, which is enough for the bundled model")


def models(names: Sequence[str], environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Whether each can be had: bundled, a folder, or in the hub's cache."""
    for name in names:
        folder = Path(name)
        if name == BUNDLED:
            yield ok(f"model {name} is bundled")
        elif folder.is_dir():
            if (folder / "model_index.json").is_file():
                yield ok(f"model {name} is a folder of diffusers' format")
            else:
                yield fault(
                    f"model {name}: the folder has no model_index.json",
                    "name the folder that diffusers' save_pretrained wrote, which has that file",
                )
        elif not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            yield fault(f"model {name} is neither a folder nor OWNER/NAME of the hub", "correct the path or the name")
        else:
            yield _hub(name, environment)


def _hub(name: str, environment: Mapping[str, str]) -> Finding:
    home = Path(environment.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(environment.get("HF_HUB_CACHE") or home / "hub")
    if any((cache / f"models--{name.replace('/', '--')}").glob("snapshots/*/model_index.json")):
        return ok(f"model {name} is in the cache {cache}")
    if environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return fault(
            f"model {name} is not in {cache}, and HF_HUB_OFFLINE forbids to fetch it",
            f"unset HF_HUB_OFFLINE, or fetch it elsewhere (hf download {name}) and name the folder",
        )
    token = "" if environment.get("HF_TOKEN") else "; if its licence must be accepted, do so and set HF_TOKEN"
    return note(f"model {name} is not in {cache}", f"the first start downloads it{token}")


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
