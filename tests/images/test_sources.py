"""What a build is told of this machine's pip; the builds themselves are ``make images``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.images import __main__ as images
from tests.images import sources

ROOT = Path(__file__).parents[2]


def test_pip_of_a_build_has_the_settings_of_the_one_here() -> None:
    listed = "global.timeout='5'\nglobal.index-url='https://a/simple'\ninstall.timeout='6'\n:env:.index-url='https://b/simple'\n"
    assert sources.pip_settings(listed) == {"timeout": "6", "index-url": "https://b/simple"}


def test_where_pip_installs_here_is_no_matter_of_a_build() -> None:
    assert sources.pip_settings("global.target='/opt/site'\nglobal.user='true'\n:env:.config-file='/etc/p'\n") == {}


def test_files_and_folders_that_the_settings_name_are_there_in_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (wheels := tmp_path / "wheels").mkdir()
    (certificate := tmp_path / "ca.pem").touch()
    monkeypatch.setenv("PIP_FIND_LINKS", f"file://{wheels} https://elsewhere/wheels")
    monkeypatch.setenv("PIP_CERT", str(certificate))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"https://c/simple {tmp_path}/nowhere")
    mounts = sources.pip_mounts(tmp_path)
    assert mounts[tmp_path / "pip.conf"] == "/etc/pip.conf"
    assert mounts[wheels] == str(wheels)
    assert mounts[certificate] == str(certificate)
    assert tmp_path / "nowhere" not in mounts


def test_so_is_what_lies_beside_an_index_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (index := tmp_path / "packages/simple").mkdir(parents=True)
    monkeypatch.setenv("PIP_INDEX_URL", f"file://{index}")
    assert sources.pip_mounts(tmp_path)[index.parent] == str(index.parent)


def test_the_file_that_is_written_is_one_that_pip_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a value of two lines, and a percent sign."""
    for name in ("PIP_FIND_LINKS", "PIP_CERT", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    theirs = tmp_path / "theirs.conf"
    theirs.write_text("[global]\nfind-links =\n    https://a/%41\n    https://b\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(theirs))
    sources.pip_mounts(tmp_path)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found = sources.pip_settings(listed.stdout)["find-links"]
    assert found.split() == ["https://a/%41", "https://b"]


def test_whoever_lacks_a_program_is_told_its_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.images.sources.PROGRAMS", {"no-such-builder": "a-builder"})
    assert images.main([]) == 1
    assert capsys.readouterr().err == "make images: a-builder not installed (tests/debian-packages.txt)\n"


def test_whoever_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tests.images.sources.PROGRAMS", {})
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert images.main([]) == 1
    assert "must be root" in capsys.readouterr().err


def test_both_targets_stand_on_a_base_that_can_be_named() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    outside = [line.split()[1] for line in lines if line.startswith("FROM ")]
    stages = {line.split()[3] for line in lines if line.startswith("FROM ")}
    assert set(outside) - stages == {"${BASE}"}
