"""Which files of tests are left out, unread, where one half of them is asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import pytest_ignore_collect


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("services", True),
        ("services and not nightly", True),
        ("services or simulation", None),
        ("not services", None),
        ("", None),
    ],
)
def test_a_file_is_left_out_where_nothing_of_it_can_be_meant(
    tmp_path: Path, expression: str, expected: bool | None
) -> None:
    file = tmp_path / "test_of_another_half.py"
    file.write_text("")
    config: Any = SimpleNamespace(option=SimpleNamespace(markexpr=expression))
    assert pytest_ignore_collect(file, config) is expected
