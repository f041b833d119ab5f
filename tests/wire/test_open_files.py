"""As many files as a process needs, as far as the system lets it."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from wire.open_files import allow_files


@pytest.fixture(autouse=True)
def _few() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("nothing is limited here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 2, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_limit_is_raised_as_far_as_is_needed_and_never_lowered() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_files(soft + 1, "this test")
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft + 1, hard)
    allow_files(10, "this test")
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft + 1, hard)


def test_where_that_is_not_enough_the_log_says_who_needs_more(caplog: pytest.LogCaptureFixture) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_files(hard + 5, "--max-streams")
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert f"{hard} files may be open, and --max-streams needs {hard + 5}: raise the limit" in caplog.text
