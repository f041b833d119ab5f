"""Where the tests find torchao and bitsandbytes, which ``.[quantize]`` brings.

``make test`` puts them into ``.quantize``, beside ``.venv`` and not into it: diffusers and transformers import them
wherever they are installed, which takes every process two seconds more.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / ".quantize"

PACKAGES = ("torchao", "bitsandbytes")


def make_importable() -> None:
    """Once diffusers is imported, which has then not looked for them. Skips the test where they are not."""
    if FOLDER.is_dir() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
        importlib.invalidate_caches()
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is neither installed nor in {FOLDER.name}")
