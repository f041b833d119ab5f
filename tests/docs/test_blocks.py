"""Every code block of the documentation is well-formed, and run by ``test_running.py`` unless it says why not."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from collections.abc import Callable

import pytest
import yaml

from tests.docs.blocks import BLOCKS, ROOT, Block, documents

MARK = re.compile(r"not run: \w.+|serves|file: [\w.-]+|")


def _shell(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


PARSERS: dict[str, Callable[[str], object]] = {
    "sh": _shell,
    "python": ast.parse,
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
    "nginx": str,  # test_nginx.py runs it
    "text": str,
}


def test_every_fence_is_part_of_a_block() -> None:
    for path in documents():
        fences = len(re.findall(r"^```", path.read_text(encoding="utf-8"), re.MULTILINE))
        assert fences == 2 * sum(ROOT / block.page == path for block in BLOCKS), path


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_well_formed(block: Block) -> None:
    assert block.language in PARSERS, "name its language; text where it is none"
    assert MARK.fullmatch(block.mark), block.mark
    PARSERS[block.language](block.text)


def test_what_is_made_by_make_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [command for block in BLOCKS if block.language == "sh" for command in block.commands()]
    named = {match[1] for command in commands if (match := re.search(r"(?:^|\s)make ([a-z][\w-]*)", command))}
    assert {"demo", "serve"} <= named <= targets


def test_hooks_before_a_commit_run_what_make_check_runs() -> None:
    [recipe] = re.findall(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    checks = {line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in recipe.splitlines()}
    [local] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    assert {hook["entry"] for hook in local["hooks"]} == checks
