"""Every case of the contract has a live test, and no test a case that does not exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from tests.live.contract import CASES


def names() -> Iterator[str]:
    """Of every test in this folder: its function's, and the ids that its parameters were given."""
    for path in Path(__file__).parent.glob("test_*.py"):
        for name, test in vars(import_module(f"tests.live.{path.stem}")).items():
            if name.startswith("test_"):
                yield name
                given = [mark.kwargs.get("ids") for mark in getattr(test, "pytestmark", ())]
                yield from (name for ids in given if isinstance(ids, list) for name in ids)


def test_every_case_has_a_test() -> None:
    found = {int(number) for name in names() for number in re.findall(r"(?:^|_)t(\d\d)(?=[_-])", name)}
    assert found == CASES.keys()
    assert CASES.keys() == set(range(1, 55))
