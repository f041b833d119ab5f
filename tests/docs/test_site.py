"""The documentation site: its reference tells all that the code has, its links lead somewhere, and it builds."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from cli.commands import COMMANDS
from gateway.settings import Settings
from stage_server.settings import Settings as StageSettings
from tests.docs.blocks import ROOT, documents
from website.reference import http_api, messages, settings
from website.reference.attributes import attributes
from website.source import for_site, links
from wire import to_gateway, to_stage, transfer


def first_cells(page: str) -> set[str]:
    return set(re.findall(r"^\| `([^`]+)`", page, re.MULTILINE))


def test_every_setting_is_in_the_reference() -> None:
    assert first_cells(settings.gateway_page()) == {name.upper() for name in Settings.model_fields}
    options = {f"--{name.replace('_', '-')}" for name in StageSettings.model_fields}
    assert first_cells(settings.stage_server_page()) == options


def test_a_setting_has_default_values_and_meaning() -> None:
    page = settings.gateway_page().splitlines()
    assert "| `PORT` | `8000` | integer, from 0 to 65,535 | 0 lets the system choose. |" in page
    assert "| `USAGE_MAX_AGE_DAYS` | `400` | number, above 0 | How long records of use are kept. |" in page
    assert "| `FILE_MAX_BYTES` | 512 MiB | integer, from 1 | Of one uploaded file. |" in page
    assert any(row.startswith('| `MODERATION_STAGES` | `["after", "before"]` | list |') for row in page)


def test_settings_are_in_groups() -> None:
    page = settings.gateway_page()
    assert "## HTTP\n" in page
    assert "## Scheduling\n" in page  # without the rest of that comment


def test_every_message_and_field_is_in_the_reference() -> None:
    page = messages.page()
    members = [*get_args(to_gateway.ToGateway), *get_args(to_stage.ToStage)]
    members += [*get_args(transfer.Request), *get_args(transfer.Answer)]
    for cls in members:
        sections = re.findall(rf"^### {cls.__name__}\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE)
        assert set(cls.__struct_fields__) in map(first_cells, sections), cls  # of two that are named Refused, one


def test_every_path_and_field_is_in_the_reference() -> None:
    page = http_api.page()
    for path, methods in http_api.document()["paths"].items():
        for method in methods:
            assert f"### {method.upper()} {path}\n" in page
    assert "| `prompt` (required) | string, at most 32,000 characters |" in page
    assert "| `output_format` | `png`, `jpeg`, `webp` |" in page


def test_attributes_come_from_the_source() -> None:
    class Sample:
        # First
        one: int = 1
        """Of ``a`` | b,
        on two lines."""
        _hidden: int = 0

        # Second
        two: str

    one, two = attributes(Sample)
    assert (one.name, one.type, one.default, one.group) == ("one", "int", "1", "")  # no paragraph begins there
    assert one.text.startswith("Of ``a`` | b,")
    assert (two.default, two.text, two.group) == ("", "", "Second")


def test_links_that_leave_the_documents_become_text() -> None:
    text = "[a](../examples/x.md) [b](api.md#c) [d](https://e.example)\n```sh\n[f](../g)\n```\n"
    assert for_site(text, Path()) == "a [b](api.md#c) [d](https://e.example)\n```sh\n[f](../g)\n```\n"
    assert for_site("[a](../api.md) [b](../../c)", Path("how-to")) == "[a](../api.md) b"


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_to_files_of_the_repository(path: Path) -> None:
    """On a code host, where the pages of the reference do not exist."""
    for target, _ in links(path.read_text(encoding="utf-8")):
        assert not target or (path.parent / target).exists(), f"{path}: {target}"


def test_every_document_is_in_the_navigation() -> None:
    def listed(entry: object) -> list[str]:
        match entry:
            case str(page):
                return [page]
            case dict(section):
                return [page for part in section.values() for page in listed(part)]
            case list(several):
                return [page for part in several for page in listed(part)]
        raise AssertionError(entry)

    navigation = listed(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    documents = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    made = {"http-api.md", "gateway-settings.md", "stage-server-settings.md", "commands.md", "messages.md"}
    assert sorted(navigation) == sorted(documents | {f"reference/{name}" for name in made})


@pytest.mark.services
def test_the_site_is_built_and_asks_no_other_host() -> None:
    pytest.importorskip("zensical")
    done = subprocess.run([sys.executable, "-m", "website"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in (ROOT / "out" / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(?:https?:)?//", text), page
    commands = (ROOT / "out" / "site-source" / "reference" / "commands.md").read_text(encoding="utf-8")
    assert all(f"\n## disagfusion {name}\n" in commands for name in COMMANDS)
    assert "\n### disagfusion keys create\n" in commands


@pytest.mark.services
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    pytest.importorskip("zensical")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Here\n\n[there](index.md#nowhere)\n")
    (tmp_path / "zensical.toml").write_text('[project]\nsite_name = "x"\n')
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "anchor does not exist" in done.stdout + done.stderr
