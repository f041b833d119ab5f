"""The examples of docs/api.md, as they stand there, against ``python -m gateway --local``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.services

DOCUMENT = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
SHELL = [text for language, text in BLOCKS if language == "sh"]
PYTHON = "".join(text for language, text in BLOCKS if language == "python")
ADDRESS = "http://127.0.0.1:8000"
MADE = re.compile(r"[\w-]+\.png$", re.MULTILINE)
"""What a command's output is redirected to, at the end of a line."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the files that the examples send."""
    Image.new("RGB", (128, 96), "white").save(tmp_path / "photo.jpg")
    (tmp_path / "in.jsonl").write_text('{"line": 1}\n')
    return tmp_path


def run(folder: Path, url: str, text: str, *command: str) -> str:
    assert ADDRESS in text
    script = text.replace(ADDRESS, url)
    done = subprocess.run([*command, script], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("text", SHELL, ids=[text.split()[-1] for text in SHELL])
def test_a_shell_example_works(text: str, local_url: str, folder: Path) -> None:
    if missing := [program for program in ("curl", "jq") if program in text.split() and not shutil.which(program)]:
        pytest.skip(f"{', '.join(missing)} of {text.split()[1]} is not installed")
    output = run(folder, local_url, text, "bash", "-euo", "pipefail", "-c")
    assert '"error"' not in output
    for name in MADE.findall(text):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG", output
    assert MADE.findall(text) or "completed" in output or '"id":"file-' in output


def test_the_python_examples_work_one_after_the_other(local_url: str, folder: Path) -> None:
    output = run(folder, local_url, PYTHON, sys.executable, "-c")
    assert "image_generation.completed" in output
    assert 'in.jsonl\'] {"line": 1}' in output
    assert "circle 2 200" in output
    assert Image.open(folder / "later.png").format == "PNG"
    assert Image.open(folder / "edited.png").size == (128, 96)
    assert [Image.open(folder / f"circle-{index}.png").format for index in range(2)] == ["PNG", "PNG"]


def test_every_part_has_an_example() -> None:
    for path in ("images/generations", "images/edits", "images/jobs", "files"):
        assert any(f"{ADDRESS}/v1/{path}" in text for text in SHELL)
    calls = ("images.generate(", "images.edit(", "files.create(", "batches.create(", "stream=True", "Idempotency-Key")
    for call in calls:
        assert call in PYTHON
